"""The figures: each where the data support it, in the page's colours, described in words."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.unit.report.conftest import draw_anew
from tests.unit.report.pages import plain
from tests.unit.report.planned import planned
from tests.unit.report.runs import answers, build_results, build_run, first_rows, write_run
from tests.unit.report.studies import (
    LABELS,
    build_cell,
    build_study,
    draw,
    predict,
    write_study_folder,
)
from tests.unit.report.written_studies import PLANS, build_written_study

from instil.report import Study, read_study, write_study
from instil.report.analysis import Analysis, analyse
from instil.report.drawing import Figure, Sketch
from instil.report.figures import sketches

OF_A_RUN = ["accuracy", "query-cost", "loss", "phase-cost"]


@pytest.fixture(scope="module")
def of_a_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    """The figures of a run, and that of one without gold outputs."""
    folder = tmp_path_factory.mktemp("figures")
    found = sketches(analyse(build_run(folder / "graded")))
    assert [sketch.name for sketch in found] == OF_A_RUN
    ungraded = sketches(analyse(build_run(folder / "ungraded", None)))
    assert [sketch.name for sketch in ungraded] == ["fidelity-evaluation-rows", *OF_A_RUN[1:]]
    return {sketch.name: sketch.inline() for sketch in [*found, ungraded[0]]}


@pytest.fixture(params=[*OF_A_RUN, "fidelity-evaluation-rows"])
def figure(request: pytest.FixtureRequest, of_a_run: dict[str, Figure]) -> Figure:
    return of_a_run[request.param]


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


def test_a_description_says_the_numbers(of_a_run: dict[str, Figure]) -> None:
    said = {name: plain(figure.description) for name, figure in of_a_run.items()}
    assert "In-context: evaluation rows, in domain 82.0 % (73.3 % to 88.3 %)" in said["accuracy"]
    assert "seconds per query: Zero-shot 0.112" in said["query-cost"]
    assert "wall seconds: load 0.900; generate 41.3" in said["phase-cost"]
    assert "at 5 " in said["loss"]
    fidelity = said["fidelity-evaluation-rows"]
    assert "KL to the teacher, nats per token (0 is identical): Zero-shot 3.21" in fidelity
    assert "top-1 agreement with the teacher: Zero-shot 31.2 %; Distillation 93.4 %" in fidelity


def sketch_named(study: Study, name: str) -> Sketch:
    return next(sketch for sketch in sketches(analyse(study)) if sketch.name == name)


def test_a_matplotlibrc_does_not_show_through(tmp_path: Path, of_a_run: dict[str, Figure]) -> None:
    import matplotlib

    study = build_run(tmp_path / "run")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "axes.grid": True}):
        assert draw_anew(sketch_named(study, "query-cost")) == of_a_run["query-cost"]


@pytest.mark.parametrize("name", [*OF_A_RUN, "fidelity-evaluation-rows"])
def test_the_same_numbers_give_the_same_bytes(
    tmp_path: Path, of_a_run: dict[str, Figure], name: str
) -> None:
    study = build_run(tmp_path / "run", None if name.startswith("fidelity") else (1, 82, 80))
    assert draw_anew(sketch_named(study, name)) == of_a_run[name]


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    study = build_run(tmp_path / "run", phases={}, seconds=(None, None, None))
    assert [sketch.name for sketch in sketches(analyse(study))] == ["accuracy", "loss"]


@pytest.mark.parametrize("right", [(0, 100, 100), (0, 0, 0)])
def test_scores_at_the_edges_stay_inside(tmp_path: Path, right: tuple[int, int, int]) -> None:
    drawn = sketch_named(build_run(tmp_path / "run", right), "accuracy").inline()
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', drawn.svg)[1])  # type: ignore[index]
    placed = [float(x) for x in re.findall(r'<text [^>]*\bx="([\d.-]+)"', drawn.svg)]
    assert all(0 <= x <= width for x in placed)


def test_figures_of_a_study_are_in_the_page_s_colours_and_described(study: Study) -> None:
    drawn = [sketch.inline() for sketch in sketches(analyse(study))]
    assert [figure.name for figure in drawn] == [
        "accuracy-demonstrations-k-mnli-matched",
        "accuracy-demonstrations-k-hans",
        "cost-demonstrations-k",
        "tunings-vanilla-fine-tuning",
        "tunings-pattern-fine-tuning",
        "tunings-distillation",
        "reliability-mnli-matched",
        "reliability-hans",
    ]
    for figure in drawn:
        assert ElementTree.fromstring(figure.svg).tag.endswith("svg")
        assert re.findall(r"#[0-9a-f]{6}", figure.svg) == []
    said = plain(drawn[0].description)
    mean = analyse(study).groups[1].scores["mnli_matched"].mean
    assert f"In-context: at 2 {100 * mean:.1f} %" in said
    assert "Zero-shot, independent of demonstrations k:" in said
    assert "chance" in said


def swept(folder: Path, key: str, values: tuple[float, ...]) -> Study:
    section, name = key.split(".")
    cells = []
    for value in values:
        lines = predict(draw(0, "mnli_matched", 0.5, 60, str(value)), LABELS, "mnli_matched")
        made = build_cell(
            "distillation",
            lines,
            tuning="lora",
            k=8,
            name=f"{name}{value}",
            varied={key: value},
            recipe={section: {name: value}},
        )
        cells.append((made, lines))
    return read_study([write_study_folder(folder / "s", cells, varied=[key])])


@pytest.mark.parametrize(
    ("key", "values", "shown"),
    [
        ("objective.alpha", (0.0, 0.5, 1.0), "against α"),
        ("training.learning_rate", (1e-5, 1e-4, 1e-3), "against learning rate"),
        ("training.epochs", (1, 3), "against epochs"),
        ("training.rows", (50, 400), "against training rows"),
    ],
)
def test_a_sweep_is_drawn(tmp_path: Path, key: str, values: tuple[float, ...], shown: str) -> None:
    found = sketches(analyse(swept(tmp_path, key, values)))
    titles = [sketch.title for sketch in found]
    assert any(shown in title for title in titles), titles
    assert f"at {values[0]:g} " in next(s for s in found if shown in s.title).description
    assert "loss" in [sketch.name for sketch in found]


def test_without_a_k_the_methods_are_dots(tmp_path: Path) -> None:
    study = build_study(tmp_path / "s", ks=(8,), tunings=("lora",), seeds=(0,), rows=60)
    names = [sketch.name for sketch in sketches(analyse(study))]
    assert names[:2] == ["accuracy-mnli-matched", "accuracy-hans"]


def test_figures_of_their_own_have_real_colours(study: Study, tmp_path: Path) -> None:
    written = write_study(study, tmp_path, ["svg"])
    assert len(written) == 8
    text = written[0].read_text(encoding="utf-8")
    assert "#009e73" in text
    assert "var(--" not in text
    assert "#0102" not in text


def test_the_prompt_that_students_replace_has_a_line_of_its_own(tmp_path: Path) -> None:
    grid = {"seed": [0], "demonstrations.k": [1, 8], "tuning": [{"name": "lora"}]}
    drawn = sketches(planned(tmp_path, "nli-opt", **grid))
    (chart,) = (one for one in drawn if one.name == "accuracy-demonstrations-k-mnli-matched")
    assert "In-context, teacher = itself" in plain(chart.description)


def test_figures_of_training_and_of_both_domains(written: Analysis) -> None:
    drawn = {sketch.name: sketch.inline() for sketch in sketches(written)}
    assert list(drawn) == [
        "accuracy",
        "training-accuracy",
        "training-kl",
        "training-cross-entropy",
    ]
    for figure in drawn.values():
        assert ElementTree.fromstring(figure.svg).tag.endswith("svg")
        assert re.findall(r"#[0-9a-f]{6}", figure.svg) == []
    bars = plain(drawn["accuracy"].description)
    mean = written.groups[3].scores["svamp"].mean
    assert f"svamp, out of domain {100 * mean:.1f} %" in bars
    curves = plain(drawn["training-accuracy"].description)
    assert "Distillation, zero-shot teacher: at 0 30.0 %" in curves
    assert "at 200 53.0 % (50.5 % to 55.5 %) selected checkpoint, at 250" in curves
    assert "In-context" not in curves
    assert "at 200 0.125" in plain(drawn["training-kl"].description)


def test_several_k_are_an_axis_and_no_bars(tmp_path: Path) -> None:
    plans = [PLANS[0], *(("distillation", k, "gold", 0.4, 0.1, 0.6) for k in (0, 2, 8))]
    names = [s.name for s in sketches(analyse(build_written_study(tmp_path / "s", plans=plans)))]
    assert names[:2] == ["accuracy-demonstrations-k-gsm8k", "accuracy-demonstrations-k-svamp"]


def test_seconds_of_a_study_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    for k in (2, 8):
        context = {"description": f"{k} demonstrations", "k": k, "tokens": 9 * k}
        build_run(tmp_path / str(k), context=context)
    found = sketches(analyse(read_study(sorted(tmp_path.iterdir()))))
    (cost,) = (sketch for sketch in found if sketch.name == "query-cost")
    assert "Zero-shot 0.112; In-context, k = 2 0.298" in plain(cost.description)


def test_a_run_that_is_half_without_answers_is_drawn(tmp_path: Path) -> None:
    lines = answers([first_rows(2, 4), first_rows(0, 4), first_rows(3, 4)])
    study = write_run(tmp_path / "run", build_results(lines), lines[:6])
    assert [sketch.name for sketch in sketches(analyse(study))] == OF_A_RUN
