"""The report as its reader gets it: one file, whole, with text from data as text."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.report.pages import HOSTILE, Page
from tests.unit.report.runs import (
    answers,
    build_predictions,
    build_results,
    build_run,
    chat,
    first_rows,
    write_run,
)
from tests.unit.report.studies import build_cell, build_study, predict, write_study_folder
from tests.unit.report.written_studies import build_written_study

from instil.errors import OutputError
from instil.report import Study, read_study, render, write_report, write_study
from instil.report.analysis import Analysis
from instil.report.export import to_latex, to_markdown
from instil.report.figures import sketches
from instil.report.page import PAGE_SIZE

OF_LABELS = ("chance,", "majority", "calibration", "verbalizer", "confusion", "predicted label")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Page]:
    """Renders a run of these answers; other names change its results."""

    def of(lines: Any = None, *, stored: bool = True, **changes: Any) -> Page:
        lines = build_predictions() if lines is None else lines
        extra = {k: changes.pop(k) for k in ("environment", "context_text") if k in changes}
        study = write_run(
            tmp_path / "run",
            build_results(lines, **changes),
            lines if stored else (),
            environment=extra.get("environment"),
            context=extra.get("context_text", ""),
        )
        return Page(render(study))

    return of


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return render(study)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def written_page(written: Analysis) -> Page:
    return Page(render(written.study))


def test_every_section_of_a_run_is_there_and_every_tag_closed(run: Callable[..., Page]) -> None:
    page = run(environment={"a": 1}, context_text="Q: dog")
    assert page.open == []
    assert page.sections == [
        "scores",
        "fidelity",
        "figures",
        "pairs",
        "costs",
        "send",
        "rows",
        "settings",
        "environment",
    ]
    assert len(page.named("h1")) == 1
    assert {a["href"][1:] for a in page.named("a")} == set(page.sections)


def test_every_section_of_a_study_is_there_and_every_tag_closed(page: Page) -> None:
    assert page.open == []
    assert page.sections == [
        "scores",
        "figures",
        "pairs",
        "costs",
        "confusion",
        "send",
        "rows",
        "unfinished",
        "settings",
    ]
    assert {a["href"][1:] for a in page.named("a")} == set(page.sections)


def test_no_section_and_no_word_of_a_study_of_text_is_about_labels(
    written_page: Page, written: Analysis
) -> None:
    assert written_page.open == []
    sections = ["scores", "figures", "pairs", "costs", "send", "rows", "settings"]
    assert written_page.sections == sections
    assert {a["href"][1:] for a in written_page.named("a")} == set(sections)
    texts = [written_page.words, to_markdown(written), to_latex(written)]
    texts += [sketch.description for sketch in sketches(written)]
    for text in texts:
        for word in OF_LABELS:
            assert word not in text.lower(), word
    assert "At chance" not in written_page.words
    assert "Cross-entropy" in written_page.words
    # The teacher, though its answers are not scored.
    assert "the student’s own weights" in written_page.words


def test_no_word_of_a_run_is_about_labels_or_seeds(run: Callable[..., Page]) -> None:
    words = run().words
    for word in (*OF_LABELS, "Student’s t", "several seeds"):
        assert word not in words, word


def test_a_study_of_labels_beside_one_of_text(tmp_path: Path) -> None:
    written = build_written_study(tmp_path / "w", seeds=(0,), rows=40)
    lines = predict([True, False] * 20, ["a", "b"], "mnli_matched")
    labelled = [(build_cell("zero_shot", lines, labels=["a", "b"], name="labels"), lines)]
    write_study_folder(tmp_path / "l", labelled, varied=["method"])
    study = read_study([tmp_path / "w", tmp_path / "l"])
    assert len(study.cells) == len(written.cells) + 1
    page = Page(render(study))
    assert "confusion" in page.sections
    for words in (
        "Calibration error",
        "Cross-entropy, nats per token",
        "Full text",
        "chance 50.0 %",
    ):
        assert words in page.words, words
    assert "chance 0.0" not in page.words


def test_ids_are_unique_across_the_page_and_its_figures(
    run: Callable[..., Page], page: Page
) -> None:
    for one in (run(), page):
        ids = [a["id"] for _, a in one.tags if "id" in a]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("where", ["input", "expected", "predicted", "text"])
def test_markup_in_a_row_is_shown_and_not_run(run: Callable[..., Page], where: str) -> None:
    page = run([p.model_copy(update={where: HOSTILE}) for p in build_predictions(rows=2)])
    assert HOSTILE in page.words
    assert page.named("img") == []
    assert len(page.named("script")) == 1
    assert not any(name.startswith("on") for _, a in page.tags for name in a)


def test_markup_elsewhere_in_a_run_is_shown_and_not_run(run: Callable[..., Page]) -> None:
    page = run(
        model=HOSTILE,
        teacher_model=HOSTILE,
        recipe={HOSTILE: HOSTILE, "tuning": {"name": "lora"}},
        prompt={
            "format": "plain",
            "pattern": HOSTILE,
            "messages": None,
            "stop": [HOSTILE],
            "end_ids": [],
            "max_new_tokens": 4,
            "words": {HOSTILE: [HOSTILE]},
        },
        context={"description": HOSTILE, "k": 1},
        environment={HOSTILE: {"x": HOSTILE}},
        context_text=HOSTILE,
    )
    # Title, model, teacher, context, settings, prompt and its string, words, stop, context, environment.
    assert page.words.count(HOSTILE) >= 9
    assert page.named("img") == []
    assert len(page.named("script")) == 1


def test_markup_in_a_study_stays_text(page: Page, written_page: Page) -> None:
    # The description, the failure, and rows on which methods disagree.
    assert page.words.count(HOSTILE) >= 3
    assert HOSTILE in written_page.words
    for one in (page, written_page):
        assert one.named("img") == []
        assert len(one.named("script")) == 1
        assert not any(name.startswith("on") for _, a in one.tags for name in a)


def test_nothing_is_loaded_from_elsewhere(
    html: str, run: Callable[..., Page], tmp_path: Path
) -> None:
    run(environment={"home": "https://example.org"})
    for text in (html, render(read_study([tmp_path / "run"]))):
        for tag, attributes in Page(text).tags:
            for name in {"src", "href", "xlink:href", "action", "data", "srcset"} & set(attributes):
                assert attributes[name].startswith(("#", "data:")), (tag, name, attributes[name])
            assert "@import" not in attributes.get("style", "")
        assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))
        assert "@import" not in text
        assert "<!DOCTYPE svg" not in text


def test_the_policy_admits_the_page_s_own_script_and_no_other(html: str) -> None:
    script = re.search(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    (policy,) = Page(html).named("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]
    assert f"script-src 'sha256-{digest}';" in policy["content"]


def test_torch_and_matplotlib_are_not_imported() -> None:
    code = (
        "import sys, instil.report; "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_levels_failures_and_reuse_are_named(page: Page) -> None:
    for said in (
        "chance 33.3 %, majority label 33.3 %",
        "distillation-k32 demonstrations.k = 32 killed out of memory",
        "Not run yet: not-yet",
        "Distillation, BitFit, k = 2: teach†",
        "and the cost was measured there",
        "training.epochs 3",
    ):
        assert said in page.words, said


def test_the_same_study_gives_the_same_bytes(study: Study, html: str) -> None:
    assert render(study) == html
    assert len(html) < 2_000_000


def test_the_order_of_predictions_does_not_matter(tmp_path: Path) -> None:
    lines = build_predictions()
    one = write_run(tmp_path / "a", build_results(lines), lines)
    other = write_run(tmp_path / "b", build_results(lines), reversed(lines))
    assert render(one) == render(other)


def test_the_tables_of_a_run_hold_scores_intervals_and_sort_keys(tmp_path: Path) -> None:
    page = Page(render(build_run(tmp_path / "run")))
    for said in ("82.0 % 73.3–88.3 % over rows", "80.0 %", "79.6", "0.298", "0.041"):
        assert said in page.words, said
    assert page.named("td", **{"data-key": "0.82"})
    assert len(page.named("table", class_="sortable numbers")) == 4


def test_without_gold_outputs_the_page_says_why_it_has_no_accuracy(
    run: Callable[..., Page],
) -> None:
    page = run(build_predictions(graded=False))
    assert "because there are no gold outputs" in page.words
    assert page.named("td", **{"data-key": ""})
    assert "None" not in page.words
    assert not page.named("button", **{"data-filter": "wrong"})
    assert "✓ right" not in page.words
    assert "pairs" not in page.sections


def test_gold_outputs_of_one_of_two_joined_runs(tmp_path: Path) -> None:
    build_run(tmp_path / "a")
    build_run(
        tmp_path / "b", None, recipe={"task": {"eval": "other.jsonl"}, "tuning": {"name": "lora"}}
    )
    page = Page(render(read_study([tmp_path / "a", tmp_path / "b"])))
    assert page.open == []
    assert "Distillation" in page.words


def test_fidelity_and_drift_are_read_with_their_meaning(run: Callable[..., Page]) -> None:
    words = run().words
    for said in (
        "Measured on 412 tokens of the gold answers for held-out rows.",
        "zero-shot 3.21 student 0.187",
        "Training removed 94 % of it.",
        "zero-shot 31.2 % student 93.4 %",
        "62.2 points above zero-shot.",
        "Drift nats per token student 0.0410",
        "On 2,048 tokens of unrelated text. The likeliest next token is still the same at 93 % of the "
        "positions (prose 91 %, code 95 %).",
        "A good value is below 0.1",
    ):
        assert said in words, said
    assert (
        "Measured on 412 tokens of the teacher’s completions for held-out rows."
        in run(build_predictions(graded=False)).words
    )


def test_what_to_send_in_a_plain_run(tmp_path: Path) -> None:
    prompt = build_results(build_predictions()).prompt.model_dump() | {
        "pattern": "\nQ: {input}\nA:"
    }
    html = render(build_run(tmp_path / "run", prompt=prompt))
    words = Page(html).words
    assert 'string, with all spaces and line breaks: "\\nQ: {input}\\nA:"' in words
    assert 'Stop at "\\n", or after max_new_tokens = 16 tokens' in words
    # The parser eats the first line break after <pre>; the prompt's own must come second.
    assert '<pre tabindex="0" dir="auto">\n\nQ: {input}\nA:</pre>' in html


def test_what_to_send_in_a_chat_run(run: Callable[..., Page]) -> None:
    words = run(prompt=chat()).words
    assert "Send these turns" in words
    assert "system Answer with one word. user {input}" in words
    assert "There is no stop string" in words
    assert "Send this prompt" not in words


def test_what_to_send_to_a_student_of_labels(page: Page) -> None:
    assert "{premise} {hypothesis}" in page.words
    assert (
        'entailment " entailment"; neutral " neutral"; contradiction " contradiction".'
        in page.words
    )
    assert "max_new_tokens" not in page.words


def test_several_stop_strings_are_joined(run: Callable[..., Page]) -> None:
    prompt = build_results(build_predictions()).prompt.model_dump() | {"stop": ["\n", "###"]}
    assert 'Stop at "\\n" or "###", or after' in run(prompt=prompt).words


def test_the_context_is_there_when_it_was_kept(run: Callable[..., Page], tmp_path: Path) -> None:
    assert "context that the teacher read" not in run().words
    assert "Q: dog A: dogs" in run(context_text="Q: dog\nA: dogs").words


def test_the_environment_is_flattened(run: Callable[..., Page]) -> None:
    assert "environment" not in run().sections
    environment = {"packages": {"torch": "2.8.0"}, "cores": 2, "flags": ["avx2"], "gpu": None}
    words = run(environment=environment).words
    assert "packages.torch 2.8.0 cores 2" in words
    assert 'flags ["avx2"] gpu null' in words


def test_costs_are_in_words(run: Callable[..., Page]) -> None:
    words = run().words
    assert "has 71.2 fewer prompt tokens than in-context, which is 89 % of that prompt" in words
    assert "It takes 0.118 s instead of 0.298 s." in words
    assert "took 4 min 2 s, which is paid back after 1,345 queries" in words
    assert "Trained on 200 rows (803 completion tokens) for 80 steps; 1,220,000 trainable" in words
    assert "all phases 338.4" in words


def test_without_a_break_even_none_is_promised(run: Callable[..., Page]) -> None:
    words = run(seconds=(0.3, 0.112, 0.298)).words
    assert "so training never pays back its cost" in words
    assert "is paid back after" not in words


def test_the_break_even_is_that_of_the_results(tmp_path: Path) -> None:
    study = build_run(tmp_path / "run")
    assert study.finished[0].break_even_queries == 1345


def test_a_run_with_nothing_measured_still_renders(run: Callable[..., Page]) -> None:
    lines = answers([first_rows(1, 2)] * 3)
    training = {"rows": 1, "steps": 1, "trainable_parameters": 1, "trainable_share": 1, "loss": []}
    page = run(
        lines,
        stored=False,
        phases={},
        seconds=(None, None, None),
        drift=None,
        training=training,
        context=None,
    )
    assert page.open == []
    assert "No predictions were stored" in page.words


def test_a_run_without_baselines_has_no_cost_to_compare(run: Callable[..., Page]) -> None:
    lines = build_predictions()
    methods = [one.model_dump() for one in build_results(lines).methods[:1]]
    page = run([line for line in lines if line.method == "distillation"], methods=methods)
    assert "fidelity" in page.sections
    assert "in-context" not in page.words
    assert "Trained on 200 rows" in page.words


def test_marks_do_not_rest_on_colour(run: Callable[..., Page]) -> None:
    words = run(build_predictions(rows=1)).words
    assert "✗ wrong Apple is a fruit" in words
    assert words.count("✓ right") == 2


def test_an_empty_answer_and_a_missing_one_are_distinguished(run: Callable[..., Page]) -> None:
    student, zero, _ = build_predictions(rows=1)
    blank = zero.model_copy(update={"predicted": "", "text": " \n"})
    page = run([student, blank])
    assert "✗ wrong empty" in page.words
    assert page.named("span", class_="none")


def test_a_thousand_rows_are_all_there_and_one_page_is_shown(tmp_path: Path) -> None:
    lines = build_predictions(rows=1000)
    html = render(write_run(tmp_path / "run", build_results(lines), lines))
    rows = [a for a in Page(html).named("tr") if "data-filters" in a]
    assert len(rows) == 1000
    assert sum("hidden" not in a for a in rows) == PAGE_SIZE
    assert "<noscript>" in html
    assert len(html) < 1_500_000


def test_a_run_without_predictions_says_so(run: Callable[..., Page]) -> None:
    assert "No predictions were stored" in run(stored=False).words


def test_a_study_without_predictions_or_cells_still_renders(tmp_path: Path) -> None:
    lines = predict([True, False], ["a", "b"], "mnli_matched")
    bare = build_cell("zero_shot", lines, labels=["a", "b"], phases={})
    study = read_study([write_study_folder(tmp_path / "a", [(bare, [])], varied=[])])
    words = Page(render(study)).words
    assert "No predictions were stored" in words
    assert "no two methods have predictions on the same rows" in words
    empty = read_study([write_study_folder(tmp_path / "b", [], varied=[], missing=["x"])])
    assert "No cell of this study has finished." in Page(render(empty)).words


def test_every_format_has_its_file(tmp_path: Path) -> None:
    small = build_study(tmp_path / "s", ks=(8,), tunings=("lora",), seeds=(0,), rows=30)
    written = write_study(small, tmp_path / "out", ["html", "md", "tex", "csv", "pdf"])
    names = {path.relative_to(tmp_path / "out").as_posix() for path in written}
    assert {"report.html", "tables.md", "tables.tex", "cells.csv"} <= names
    assert all(path.stat().st_size > 0 for path in written)
    assert next(p for p in written if p.suffix == ".pdf").read_bytes().startswith(b"%PDF")


def test_a_run_s_report_is_written_from_its_files_alone(tmp_path: Path) -> None:
    study = build_run(tmp_path / "run")
    path = write_report(tmp_path / "run")
    assert path == tmp_path / "run/report.html"
    assert path.read_text(encoding="utf-8") == render(study)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    study = build_run(tmp_path / "run", (0, 1, 1), 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_study(study, tmp_path / "file", ["md"])


def test_a_page_does_not_hold_the_name_of_a_run_s_folder(tmp_path: Path) -> None:
    """It may be drawn in a folder that is renamed when the run is whole."""
    study = build_run(tmp_path / "some-folder.partial")
    assert "some-folder" not in render(study)
    assert render(replace(study, title="other")) == render(study)
