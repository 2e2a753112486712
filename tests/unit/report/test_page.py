"""The report as its reader gets it: one file, whole, with text from data as text."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from instil.report import figures, render
from instil.report.drawing import Figure
from instil.report.page import PAGE_SIZE
from instil.results.schema import Prediction, Results

MakeResults = Callable[..., Results]
MakePredictions = Callable[..., list[Prediction]]

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"
DRAWN: dict[str, Figure] = {}
BOXES = {"td", "th", "div", "dd"}
VOID = {"meta", "link", "input", "br", "hr", "img"}


@pytest.fixture(autouse=True)
def draw_each_figure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is nine tenths of a render and `test_figures` tests it; here, like figures share."""

    def remembered(
        name: str, title: str, description: str, draw: Callable[..., None], height: float
    ) -> Figure:
        if description not in DRAWN:
            DRAWN[description] = draw_figure(name, title, description, draw, height)
        return DRAWN[description]

    draw_figure = figures._figure
    monkeypatch.setattr(figures, "_figure", remembered)


class Page(HTMLParser):
    """What a browser would make of the file: its tags, their attributes, the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag in BOXES:
            self.text.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def named(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [
            found
            for name, found in self.tags
            if name == tag and all(found.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def test_every_tag_is_closed_and_every_section_is_there(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    page = Page(
        render(make_results(), make_predictions(), environment={"a": 1}, context_text="Q: dog")
    )
    assert page.open == []
    assert [s["id"] for s in page.named("section")] == [
        "methods",
        "fidelity",
        "costs",
        "send",
        "rows",
        "environment",
    ]
    assert len(page.named("h1")) == 1


def test_ids_are_unique_across_the_page_and_its_figures(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    ids = [a["id"] for _, a in Page(render(make_results(), make_predictions())).tags if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("where", ["input", "expected", "output"])
def test_hostile_text_in_a_row_is_shown_and_not_run(
    make_results: MakeResults, make_predictions: MakePredictions, where: str
) -> None:
    rows = [p.model_copy(update={where: HOSTILE}) for p in make_predictions(rows=2)]
    page = Page(render(make_results(), rows))
    assert HOSTILE in page.words
    assert page.named("img") == []
    assert len(page.named("script")) == 1
    assert not any(name.startswith("on") for _, a in page.tags for name in a)


def test_hostile_text_elsewhere_is_shown_and_not_run(make_results: MakeResults) -> None:
    results = make_results(
        model=HOSTILE,
        teacher_model=HOSTILE,
        student_prompt=HOSTILE,
        stop=[HOSTILE],
        context={HOSTILE: HOSTILE},
    )
    page = Page(render(results, [], environment={HOSTILE: {"x": HOSTILE}}, context_text=HOSTILE))
    # model, teacher, context key and value, prompt and its string, stop, context, environment.
    assert page.words.count(HOSTILE) >= 9
    assert page.named("img") == []
    assert len(page.named("script")) == 1


def test_nothing_is_loaded_from_elsewhere(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    html = render(make_results(), make_predictions(), environment={"home": "https://example.org"})
    for tag, attributes in Page(html).tags:
        for name in {"src", "href", "xlink:href", "action", "data", "srcset"} & set(attributes):
            assert attributes[name].startswith(("#", "data:")), (tag, name, attributes[name])
        assert "@import" not in attributes.get("style", "")
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", html))
    assert "@import" not in html
    assert "<!DOCTYPE svg" not in html


def test_the_policy_admits_the_page_s_own_script_and_no_other(make_results: MakeResults) -> None:
    html = render(make_results(), [])
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


def test_the_method_table_holds_scores_intervals_and_sort_keys(make_results: MakeResults) -> None:
    page = Page(render(make_results(), []))
    for said in ("82.0 % 73.3\u201388.3 %", "80.0 %", "79.6", "0.298"):
        assert said in page.words
    assert page.named("td", **{"data-key": "0.82"})
    headers = page.named("table", class_="sortable numbers")
    assert len(headers) == 2
    assert len(page.named("button")) == 5 + 8


def test_without_gold_outputs_the_table_says_why_it_has_no_accuracy(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    page = Page(render(make_results(None), make_predictions(graded=False)))
    assert "for want of gold outputs" in page.words
    assert page.named("td", **{"data-key": ""})
    assert "None" not in page.words
    assert not page.named("button", **{"data-filter": "wrong"})
    assert "✓ right" not in page.words


def test_what_to_send_in_a_plain_run(make_results: MakeResults) -> None:
    html = render(make_results(student_prompt="\nQ: {input}\nA:"), [])
    words = Page(html).words
    assert 'string, with every space and line break: "\\nQ: {input}\\nA:"' in words
    assert 'Stop at "\\n", or after max_new_tokens = 16' in words
    # The parser eats the first line break after <pre>; the prompt's own must come second.
    assert '<pre tabindex="0" dir="auto">\n\nQ: {input}\nA:</pre>' in html


def test_what_to_send_in_a_chat_run(make_results: MakeResults, chat_fields: dict[str, Any]) -> None:
    words = Page(render(make_results(**chat_fields, stop=[]), [])).words
    assert "Send these turns" in words
    assert "system Answer with one word. user {input}" in words
    assert "There is no stop string" in words
    assert "Send this prompt" not in words


def test_several_stop_strings_are_joined(make_results: MakeResults) -> None:
    assert (
        'Stop at "\\n" or "###", or after'
        in Page(render(make_results(stop=["\n", "###"]), [])).words
    )


def test_the_context_is_there_when_it_was_given(make_results: MakeResults) -> None:
    assert "Q: dog\nA: dogs" in render(make_results(), [], context_text="Q: dog\nA: dogs")
    assert "context that the teacher read" not in render(make_results(), [])


def test_the_environment_is_flattened(make_results: MakeResults) -> None:
    environment = {"packages": {"torch": "2.8.0"}, "cores": 2, "flags": ["avx2"], "gpu": None}
    words = Page(render(make_results(), [], environment=environment)).words
    assert "packages.torch 2.8.0 cores 2" in words
    assert 'flags ["avx2"] gpu null' in words
    assert "not recorded" in Page(render(make_results(), [])).words


def test_rows_carry_their_filters(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    rows = make_predictions(rows=3)
    rows[-1] = rows[-1].model_copy(update={"output": "leafs", "correct": False})
    rows[-2] = rows[-2].model_copy(update={"output": "leafes", "correct": False})
    page = Page(render(make_results(), rows))
    found = [a["data-filters"] for a in page.named("tr") if "data-filters" in a]
    # Row 1 is lost in distillation; in row 2 every method is wrong, each in its own words.
    assert found == ["disagree", "disagree wrong lost", "wrong"]
    for said in ("All rows (3)", "Methods disagree (2)", "Distilled wrong (2)"):
        assert said in page.words
    assert "Distilled wrong, in-context right (1)" in page.words


def test_without_gold_outputs_methods_disagree_where_outputs_differ(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    rows = make_predictions(rows=2, graded=False)
    same = [p.model_copy(update={"output": "apples "[: 6 + i]}) for i, p in enumerate(rows[:2])]
    rows = [*same, rows[2], *rows[3:]]
    page = Page(render(make_results(None), rows))
    found = [a["data-filters"] for a in page.named("tr") if "data-filters" in a]
    assert found == ["", "disagree"]
    assert "their outputs differ" in page.words


def test_marks_do_not_rest_on_colour(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    words = Page(render(make_results(), make_predictions(rows=1))).words
    assert "✗ wrong Apple is a fruit" in words
    assert words.count("✓ right") == 2


def test_an_empty_output_and_a_missing_answer_are_told_apart(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    zero, _, distilled = make_predictions(rows=1)
    page = Page(render(make_results(), [zero.model_copy(update={"output": " \n"}), distilled]))
    assert "✗ wrongempty" in page.words
    assert page.named("span", class_="none")


def test_paired_counts(make_results: MakeResults, make_predictions: MakePredictions) -> None:
    words = Page(render(make_results(), make_predictions(rows=4))).words
    assert (
        "on the same 4 rows: both right on 3, only in-context on 1, only distilled on 0, "
        "neither on 0." in words
    )


def test_a_thousand_rows_are_all_there_and_one_page_is_shown(
    make_results: MakeResults, make_predictions: MakePredictions
) -> None:
    html = render(make_results(), make_predictions(rows=1000))
    rows = [a for a in Page(html).named("tr") if "data-filters" in a]
    assert len(rows) == 1000
    assert sum("hidden" not in a for a in rows) == PAGE_SIZE
    assert "<noscript>" in html
    assert len(html) < 1_500_000


def test_a_run_without_predictions_says_so(make_results: MakeResults) -> None:
    assert "No predictions were stored" in Page(render(make_results(), [])).words


def test_costs_are_told_in_words(make_results: MakeResults) -> None:
    words = Page(render(make_results(), [])).words
    assert "sends 71.2 prompt tokens fewer than in-context, 89 % of that prompt" in words
    assert "took 4 min 2 s and break even after 1,345 queries" in words
    assert "all phases 338.4" in words


def test_without_a_break_even_none_is_promised(make_results: MakeResults) -> None:
    cost = {"prompt_tokens_saved_per_query": 71.2, "break_even_queries": None}
    words = Page(render(make_results(cost=cost), [])).words
    assert "so there is no break-even" in words
    assert "break even after" not in words


def test_a_run_with_nothing_measured_still_renders(make_results: MakeResults) -> None:
    full = make_results()
    bare = full.model_copy(
        update={
            "phases": {},
            "methods": {},
            "recovery": None,
            "training": full.training.model_copy(update={"loss": []}),
        }
    )
    page = Page(render(bare, []))
    assert page.open == []
    assert "fidelity to the teacher" in page.words
