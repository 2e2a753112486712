"""The reports in a real browser: they sort, search and page, load nothing, and fit a phone.

Chromium is not downloaded; where the machine has none, these tests are skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests import finished
from tests.unit.report.runs import build_predictions, build_results, write_run
from tests.unit.report.studies import build_study
from tests.unit.report.written_studies import build_written_study

from instil.report import render, write_report
from instil.results.schema import EVALUATION, PREDICTIONS, EvaluationRow, Message, Prediction
from instil.results.scores import (
    Ends,
    HarnessScore,
    KindRetention,
    LeakedPhrase,
    Leaks,
    OwnFidelity,
    Retention,
    ServedScore,
    Written,
)
from instil.results.statistics import proportion
from instil.system.files import write_lines

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

FLAGS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
HOSTILE = "<script>document.title = 'run'</script><img src=x onerror=alert(1)>"


@dataclass
class Opened:
    """A page, and what went wrong in it."""

    page: Any
    path: Path
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("browser")
    study = build_study(
        folder / "s",
        ks=(2, 8),
        tunings=("lora", "bitfit"),
        rows=120,
        texts={0: HOSTILE, 1: HOSTILE},
    )
    written = build_written_study(
        folder / "w", texts=dict.fromkeys(range(0, 150, 5), f"{HOSTILE}\n#### 7")
    )
    rows = build_predictions(rows=120)
    rows = [p.model_copy(update={"input": HOSTILE}) if p.row == 0 else p for p in rows]
    run = write_run(folder / "r", build_results(rows), rows, context=HOSTILE)
    pages = {"study": render(study), "written": render(written), "run": render(run)}
    for name, html in pages.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(params=["study", "written", "run"])
def report(request: pytest.FixtureRequest, reports: dict[str, Path]) -> Path:
    return reports[request.param]


def visit(browser: Any, path: Path, **settings: Any) -> Opened:
    page = browser.new_page(**({"viewport": {"width": 1200, "height": 900}} | settings))
    opened = Opened(page, path)
    page.on("request", lambda request: opened.requests.append(request.url))
    page.on("pageerror", lambda error: opened.problems.append(str(error)))
    page.on(
        "console",
        lambda said: (
            opened.problems.append(said.text) if said.type in ("error", "warning") else None
        ),
    )
    page.goto(path.as_uri())
    return opened


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    found = visit(browser, report)
    yield found
    # Whatever a test did in it, the page is quiet and has asked for nothing but itself.
    assert found.problems == []
    assert [url for url in found.requests if not url.startswith("data:")] == [report.as_uri()]
    found.page.close()


def test_it_renders(opened: Opened) -> None:
    assert opened.page.locator("h1").inner_text()
    box = opened.page.locator("figure svg").first.bounding_box()
    assert box["width"] > 200
    assert box["height"] > 50


def test_a_header_sorts_by_click_and_by_key(opened: Opened) -> None:
    table = opened.page.locator("table.sortable").first
    column = 2
    header = table.locator("thead th").nth(column - 1)
    cells = f"tbody tr > *:nth-child({column})"

    def keys() -> list[float]:
        found = table.locator(cells).evaluate_all(
            "cells => cells.map((c) => Number(c.dataset.key))"
        )
        return [float(key) for key in found]

    before = keys()
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert keys() == sorted(before)
    header.locator("button").focus()
    opened.page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert keys() == sorted(before, reverse=True)
    assert keys() != before


def test_search_filter_and_pages(opened: Opened) -> None:
    page, rows = opened.page, "#row-browser tbody tr:visible"
    size = int(page.locator("#row-browser").get_attribute("data-page-size"))
    assert page.locator(rows).count() == size
    first = opened.texts(f"{rows} th")[0]
    page.locator("#row-next").click()
    assert opened.texts(f"{rows} th")[0] != first
    page.locator("#row-previous").click()
    buttons = page.locator("#row-browser button[data-filter]")
    buttons.nth(1).click()
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    kept = buttons.nth(1).get_attribute("data-filter")
    for found in page.locator(rows).all():
        assert kept in found.get_attribute("data-filters").split()
    page.locator("#row-search").fill("no such text anywhere")
    assert page.locator(rows).count() == 0
    assert "No row matches" in page.locator("#row-status").inner_text()
    page.locator("#row-search").fill("")
    assert page.locator(rows).count() > 0


def test_markup_in_a_premise_stays_text(opened: Opened) -> None:
    page = opened.page
    page.locator("#row-search").fill("document.title")
    row = page.locator("#row-browser tbody tr:visible").first
    if opened.path.stem == "written":  # there the text is in an answer, folded up
        row.locator("summary").first.click()
        shown = row.locator("details .data").first
        assert shown.inner_text().startswith(HOSTILE)
    else:
        assert row.locator("td.input").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.title() != "run"


@pytest.mark.parametrize("open_all", [False, True])
def test_it_fits_a_phone(browser: Any, report: Path, open_all: bool) -> None:
    opened = visit(browser, report, viewport={"width": 360, "height": 740})
    if open_all:
        opened.page.evaluate(
            "document.querySelectorAll('details').forEach((d) => { d.open = true })"
        )
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    assert opened.problems == []
    opened.page.close()


def test_dark_mode_is_dark_and_figures_follow(browser: Any, report: Path) -> None:
    colors = {}
    for scheme in ("light", "dark"):
        opened = visit(browser, report, color_scheme=scheme)
        colors[scheme] = opened.page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('figure svg text')).fill]"
        )
        assert opened.problems == []
        opened.page.close()
    paper = {scheme: luminance(found[0]) for scheme, found in colors.items()}
    ink = {scheme: luminance(found[1]) for scheme, found in colors.items()}
    assert paper["light"] > 0.9 > 0.2 > paper["dark"]
    assert ink["light"] < 0.2 < 0.8 < ink["dark"]


def test_the_policy_stops_other_scripts(browser: Any, report: Path, tmp_path: Path) -> None:
    tampered = tmp_path / "tampered.html"
    html = report.read_text(encoding="utf-8")
    tampered.write_text(html.replace("</main>", f"{HOSTILE}</main>"), encoding="utf-8")
    opened = visit(browser, tampered)
    assert opened.page.title() != "run"
    assert any("Content Security Policy" in problem for problem in opened.problems)
    opened.page.close()


def luminance(color: str) -> float:
    """Of `rgb(r, g, b)`, from 0 to 1, near enough to tell dark from light."""
    parts = [float(part) for part in color.split("(")[1].rstrip(")").split(",")[:3]]
    return sum(parts) / (3 * 255)


ROWS = 2000
METHODS = ("distillation", "zero_shot", "in_context")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 2,000 rows of conversations, and all that a report can tell of answers."""
    folder = tmp_path_factory.mktemp("large") / "run"
    half = proportion([n % 2 == 0 for n in range(ROWS)])
    written = Written(
        ends=Ends(tokens_mean=40, cut=half, repeats=half),
        rules={f"rule number {n} with a long name": half for n in range(12)},
        same_answer=half,
        same_start=0.6,
        on_own=OwnFidelity(kl_to_teacher=0.1, agreement=0.9, tokens=100),
        leaks=Leaks(
            share=half,
            phrases=[LeakedPhrase(text="based on the text above", student=9, teacher=1)],
            verbatim=half,
            verbatim_teacher=half,
        ),
    )
    scored = finished.score(5, kl=0.1).model_copy(update={"written": written, "rows": ROWS})
    kind = KindRetention(kl_to_base=0.1, same_answer=half, length=1.0, prompts=9)
    kinds = dict.fromkeys(("instructions", "questions", "sums", "code"), kind)
    kinds["formats"] = kind.model_copy(update={"obeyed": half, "obeyed_by_base": half})
    student, *others = (finished.method_result(name, scored) for name in METHODS)
    told = Retention(**kind.model_dump(), kinds=kinds)
    student = student.model_copy(update={"retention": told})
    served = ServedScore(
        where="vLLM, bfloat16",
        set="words",
        rows=ROWS,
        same_answer=half,
        accuracy=half,
        accuracy_in_process=half,
        p=0.5,
        rules=written.rules,
        seconds=10.0,
    )
    harness = HarnessScore(
        task="task_of_a_long_name",
        metric="acc",
        base=0.5,
        base_error=0.01,
        student=0.4,
        student_error=0.01,
        examples=100,
    )
    found = finished.results(student, *others, served=[served], harness=[harness])
    finished.write_run(folder, found)
    said = [
        Message(role=role, content=f"What {HOSTILE} did they say at that time? " * 3)
        for role in ("user", "assistant", "user")
    ]
    write_lines(
        folder / EVALUATION,
        [
            EvaluationRow(set="words", row=n, input=f"query {n}", output="1", messages=said, turn=2)
            for n in range(ROWS)
        ],
    )
    write_lines(
        folder / PREDICTIONS,
        [
            Prediction(
                set="words",
                row=n,
                method=name,
                input=f"query {n}",
                expected="1",
                predicted=f"{name} says that it is {n} " * 6,
                text=f"{name} says that it is {n} " * 6,
                correct=(n + place) % 3 == 0,
                rules={
                    f"rule number {k} with a long name": (n + k + place) % 2 == 0 for k in range(12)
                },
                tokens=40 + place,
                ending="finished",
                turn=2,
                kl=0.1,
            )
            for n in range(ROWS)
            for place, name in enumerate(METHODS)
        ],
    )
    return write_report(folder)


def test_2000_rows_do_not_stall(browser: Any, large: Path) -> None:
    start = time.monotonic()
    opened = visit(browser, large, viewport={"width": 360, "height": 740})
    loaded = time.monotonic() - start
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    start = time.monotonic()
    page.locator("#row-search").fill("query 1999")
    page.wait_for_function("document.querySelector('#row-status').textContent.includes('1')")
    assert page.locator("#row-browser tbody tr:visible").count() == 1
    searched = time.monotonic() - start
    assert large.stat().st_size < 30e6
    assert (loaded < 10, searched < 5) == (True, True), (loaded, searched)
    for heading in ("General prompts", "As served", "Benchmarks", "Leaks"):
        assert page.get_by_role("heading", name=heading, exact=True).count() >= 1
    assert opened.problems == []
    page.close()
