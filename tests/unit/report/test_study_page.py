"""A study's page and figures as their reader gets them."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.unit.report.studies import (
    LABELS,
    build_cell,
    build_study,
    draw,
    predict,
    write_study_folder,
)
from tests.unit.report.test_page import Page

from instil.report import Study, read_study, render_study, write_study
from instil.report.analysis import analyse
from instil.report.study_browser import LONGEST_TEXT, ROWS_PER_SET, browse
from instil.report.study_figures import sketches
from instil.results.cell import Failure

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    failure = Failure(
        name="distillation-k32",
        varied={"demonstrations.k": 32},
        error="killed",
        message=f"out of memory {HOSTILE}",
        seconds=61,
    )
    return build_study(
        tmp_path_factory.mktemp("study") / "s",
        ks=(2, 8),
        tunings=("lora", "bitfit"),
        rows=120,
        texts=dict.fromkeys(range(0, 120, 7), HOSTILE),
        description=f"A question. {HOSTILE}",
        failures=[failure],
        missing=["not-yet"],
    )


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return render_study(study)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_section_is_there_and_every_tag_closed(page: Page) -> None:
    assert page.open == []
    assert [s["id"] for s in page.named("section")] == [
        "scores",
        "figures",
        "pairs",
        "costs",
        "confusion",
        "rows",
        "unfinished",
        "settings",
    ]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.named("a")} <= set(ids)


def test_markup_in_data_stays_text(page: Page) -> None:
    # The description, the failure, and rows on which methods disagree.
    assert page.words.count(HOSTILE) >= 3
    assert page.named("img") == []
    assert len(page.named("script")) == 1
    assert not any(name.startswith("on") for _, a in page.tags for name in a)


def test_nothing_is_loaded_and_only_its_own_script_runs(html: str, page: Page) -> None:
    for _, attributes in page.tags:
        for name in {"src", "href", "xlink:href", "action", "srcset"} & set(attributes):
            assert attributes[name].startswith(("#", "data:"))
    script = re.search(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    (policy,) = page.named("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]
    assert f"script-src 'sha256-{digest}';" in policy["content"]


def test_levels_failures_and_reuse_are_told(page: Page) -> None:
    for said in (
        "chance 33.3 %, majority label 33.3 %",
        "distillation-k32 demonstrations.k = 32 killed out of memory",
        "Not run yet: not-yet",
        "Distillation, BitFit, k = 2: teach†",
        "its cost is the one measured there",
        "training.epochs 3",
    ):
        assert said in page.words, said


def test_the_same_study_gives_the_same_bytes(study: Study, html: str) -> None:
    assert render_study(study) == html
    assert len(html) < 2_000_000


def test_figures_are_in_the_page_s_colours_and_described(study: Study) -> None:
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
    said = drawn[0].description.replace("\N{NO-BREAK SPACE}", " ")
    mean = analyse(study).groups[1].scores["mnli_matched"].mean
    assert f"In-context: at 2 {100 * mean:.1f} %" in said
    assert "Zero-shot, whatever the demonstrations k:" in said
    assert "chance" in said


def swept(folder: Path, key: str, values: tuple[float, ...]) -> Study:
    section, name = key.split(".")
    cells = []
    for value in values:
        lines = predict(draw(0, "mnli_matched", 0.5, 60, str(value)), LABELS, "mnli_matched")
        cells.append(
            (
                build_cell(
                    "distillation",
                    lines,
                    tuning="lora",
                    k=8,
                    name=f"{name}{value}",
                    varied={key: value},
                    recipe={section: {name: value}},
                ),
                lines,
            )
        )
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


def test_every_format_has_its_file(tmp_path: Path) -> None:
    small = build_study(tmp_path / "s", ks=(8,), tunings=("lora",), seeds=(0,), rows=30)
    written = write_study(small, tmp_path / "out", ["html", "md", "tex", "csv", "pdf"])
    names = {path.relative_to(tmp_path / "out").as_posix() for path in written}
    assert {"report.html", "tables.md", "tables.tex", "cells.csv"} <= names
    assert all(path.stat().st_size > 0 for path in written)
    assert next(p for p in written if p.suffix == ".pdf").read_bytes().startswith(b"%PDF")


def test_rows_are_limited_and_long_texts_cut(tmp_path: Path) -> None:
    texts = {0: "x" * (LONGEST_TEXT + 5)}
    cells = []
    for method, right in (("zero_shot", False), ("in_context", True)):
        lines = predict([right] * 150, LABELS, "mnli_matched", texts)
        cells.append((build_cell(method, lines), lines))
    study = read_study([write_study_folder(tmp_path / "s", cells, varied=["method"])])
    found = browse(analyse(study))
    assert found.filters == [("set-0", "mnli_matched", ROWS_PER_SET, 150)]
    assert len(found.rows) == ROWS_PER_SET
    assert found.rows[0].input.endswith("x… (5 more characters)")
    assert "100 of 150 on mnli_matched" in Page(render_study(study)).words


def test_a_study_without_predictions_or_cells_still_renders(tmp_path: Path) -> None:
    lines = predict([True, False], LABELS, "mnli_matched")
    bare = build_cell("zero_shot", lines, phases={}, recipe={})
    study = read_study([write_study_folder(tmp_path / "a", [(bare, [])], varied=[])])
    words = Page(render_study(study)).words
    assert "No predictions were stored" in words
    assert "no two methods have predictions on the same rows" in words
    empty = read_study([write_study_folder(tmp_path / "b", [], varied=[], missing=["x"])])
    assert "No cell of this study has finished." in Page(render_study(empty)).words
