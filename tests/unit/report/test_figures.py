"""The figures: in the page's colours, described in words, the same on every machine."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest

from instil.report import figures, render
from instil.report.drawing import Figure
from instil.results.schema import Prediction, Results

MakeResults = Callable[..., Results]
DRAWINGS = (
    figures.accuracy,
    figures.fidelity,
    figures.query_cost,
    figures.loss,
    figures.phase_cost,
)


@pytest.fixture(params=DRAWINGS, ids=lambda drawing: drawing.__name__)
def figure(request: pytest.FixtureRequest, make_results: MakeResults) -> Figure:
    drawn: Figure = request.param(make_results())
    return drawn


def test_a_figure_is_one_svg_element(figure: Figure) -> None:
    assert ElementTree.fromstring(figure.svg).tag.endswith("svg")
    assert "<metadata" not in figure.svg


def test_text_is_text_and_takes_the_colour_of_the_page(figure: Figure) -> None:
    assert "<text" in figure.svg
    styles = re.findall(r'<text style="([^"]*)"', figure.svg)
    assert styles
    assert all("fill: currentColor" in style for style in styles)


def test_no_colour_is_fixed(figure: Figure) -> None:
    assert re.findall(r"#[0-9a-f]{6}", figure.svg) == []


def test_every_reference_has_its_target(figure: Figure) -> None:
    named = set(re.findall(r'\bid="([^"]*)"', figure.svg))
    asked = set(re.findall(r'(?:url\(#|href="#)([^")]*)', figure.svg))
    assert asked <= named
    assert all(name.startswith(f"{figure.name}-") for name in named)


def test_a_description_says_the_numbers(make_results: MakeResults) -> None:
    drawn = figures.accuracy(make_results())
    assert drawn is not None
    said = drawn.description.replace("\N{NO-BREAK SPACE}", " ")
    assert "In-context 82.0 %, interval 73.3\u201388.3 %" in said
    cost = figures.query_cost(make_results())
    assert cost is not None
    assert "seconds a query: Zero-shot 0.112" in cost.description


def test_the_same_run_gives_the_same_bytes(
    make_results: MakeResults, make_predictions: Callable[..., list[Prediction]]
) -> None:
    shuffled = list(reversed(make_predictions()))
    assert render(make_results(), make_predictions()) == render(make_results(), shuffled)


def test_a_matplotlibrc_does_not_show_through(make_results: MakeResults) -> None:
    import matplotlib

    plain = figures.query_cost(make_results())
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "axes.grid": True}):
        assert figures.query_cost(make_results()) == plain


def test_what_was_not_measured_is_not_drawn(make_results: MakeResults) -> None:
    results = make_results(None)
    bare = results.model_copy(
        update={
            "phases": {},
            "methods": {},
            "training": results.training.model_copy(update={"loss": []}),
        }
    )
    assert figures.accuracy(bare) is None
    assert figures.query_cost(bare) is None
    assert figures.loss(bare) is None
    assert figures.phase_cost(bare) is None


@pytest.mark.parametrize("curve", [[(1, 0.7)], [(1, 0.0), (2, 0.0)], [(s, 1.0) for s in range(99)]])
def test_odd_loss_curves_are_drawn(
    make_results: MakeResults, curve: list[tuple[int, float]]
) -> None:
    results = make_results()
    training = results.training.model_copy(update={"loss": curve})
    assert figures.loss(results.model_copy(update={"training": training})) is not None


@pytest.mark.parametrize("right", [(0, 100, 100), (0, 0, 0)])
def test_scores_at_the_edges_stay_inside(
    make_results: MakeResults, right: tuple[int, int, int]
) -> None:
    drawn = figures.accuracy(make_results(right))
    assert drawn is not None
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', drawn.svg)[1])  # type: ignore[index]
    placed = [float(x) for x in re.findall(r'<text [^>]*\bx="([\d.-]+)"', drawn.svg)]
    assert all(0 <= x <= width for x in placed)
