"""The tables that other programs read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from tests.unit.report.runs import build_run
from tests.unit.report.studies import build_study

from instil.report import read_study
from instil.report.analysis import Analysis, analyse
from instil.report.export import latex, markdown, to_csv, to_latex, to_markdown


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder: Path = tmp_path_factory.mktemp("tables") / "s"
    return analyse(build_study(folder, ks=(8,), tunings=("bitfit",), seeds=(0, 1), rows=60))


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50 % & more_of $x^2$ #1 {a}", r"50 \% \& more\_of \$x\textasciicircum{}2\$ \#1 \{a\}"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("a\n b\N{NO-BREAK SPACE}\N{MINUS SIGN}1", r"a b~$-$1"),
        ("<~|>", r"\textless{}\textasciitilde{}\textbar{}\textgreater{}"),
    ],
)
def test_latex_prints_a_text_as_it_stands(text: str, escaped: str) -> None:
    assert latex(text) == escaped


def test_markdown_shows_a_text_as_it_stands() -> None:
    assert markdown("a|b\n*c* <b>`x`") == r"a\|b \*c\* &lt;b&gt;\`x\`"


def test_latex_tables_are_whole(small: Analysis) -> None:
    text = to_latex(small)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 6
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 6
    for block in text.split(r"\begin{tabular}")[1:]:
        columns = len(block.split("}", 1)[0].removeprefix("{"))
        body = block.split(r"\midrule")[1].split(r"\bottomrule")[0].strip()
        for line in body.splitlines():
            assert line.replace(r"\&", "").count("&") == columns - 1
    assert r"mnli\_matched" in text


def test_markdown_tables_have_as_many_cells_in_every_line(small: Analysis) -> None:
    text = to_markdown(small)
    assert text.startswith("# Four methods on MNLI\n\n")
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace(r"\|", "").count("|") for line in lines}) <= 1
    assert "## Paired tests on hans" in text


def test_csv_has_a_line_a_cell_set_and_who(small: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(small))))
    # Five cells a seed on two sets, and a teacher beside distillation.
    assert len(rows) == 2 * (5 * 2 + 2)
    assert {row["who"] for row in rows} == {"method", "teacher"}
    for name in [
        "cell",
        "method",
        "tuning",
        "k",
        "seed",
        "demonstrations.k",
        "set",
        "domain",
        "who",
        "rows",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "chance",
        "majority",
        "calibration_error",
        "verbalizer_mass",
        "kl_to_teacher",
        "agreement",
        "predicted_shares",
        "confusion",
        "single_contexts",
        "prompt_tokens_mean",
        "seconds_per_query",
        "truncated_completions",
        "trained_rows",
        "trainable_parameters",
        "trainable_share",
        "shipped_bytes",
        "train.wall_seconds",
        "train.cpu_user_seconds",
        "train.cpu_system_seconds",
        "train.peak_rss_mb",
        "train.mean_rss_mb",
        "train.tokens",
        "train.steps",
        "teach.reused",
    ]:
        assert name in rows[0], name
    student = next(row for row in rows if row["method"] == "distillation")
    cell = next(c for c in small.study.cells if c.name == student["cell"])
    assert float(student["accuracy"]) == cell.scores[0].accuracy.value
    assert student["teach.reused"] == "True"
    assert student["kl_to_teacher"] == "0.21"


def test_csv_has_the_columns_of_text(written: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(written))))
    assert len(rows) == 3 * 7 * 2
    assert {"cross_entropy", "kl_to_teacher", "agreement", "demonstrations.answers"} <= set(rows[0])
    for name in ("chance", "majority", "calibration_error", "verbalizer_mass", "confusion"):
        assert name not in rows[0], name
    student = next(row for row in rows if row["cell"] == "distillation-k8-gold-seed0")
    assert (student["cross_entropy"], student["kl_to_teacher"]) == ("0.64", "0.12")


@pytest.mark.parametrize("right", [(1, 82, 80), None])
def test_csv_of_a_run_has_a_line_a_method_and_its_teacher(
    tmp_path: Path, right: tuple[int, int, int] | None
) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(analyse(build_run(tmp_path / "run", right))))))
    assert [(row["method"], row["who"]) for row in rows] == [
        ("zero_shot", "method"),
        ("in_context", "method"),
        ("distillation", "method"),
        ("distillation", "teacher"),
    ]
    assert [row["accuracy"] for row in rows] == (
        ["0.01", "0.82", "0.8", "0.82"] if right else [""] * 4
    )
    assert [row["seconds_per_query"] for row in rows[:3]] == ["0.112", "0.298", "0.118"]
    assert [row["drift"] for row in rows[:3]] == ["", "", "0.041"]


def test_tables_of_a_run_end_in_a_sum(tmp_path: Path) -> None:
    found = analyse(build_run(tmp_path / "run"))
    assert "| all phases | 338.4 |" in to_markdown(found)
    assert "all phases & 338.4 &" in to_latex(found)


def test_a_text_is_no_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    folder = build_run(tmp_path / "run").cells[0].folder
    results = json.loads((folder / "results.json").read_text())
    results["model"] = "=1+1"
    (folder / "results.json").write_text(json.dumps(results))
    (line, *_) = csv.DictReader(io.StringIO(to_csv(analyse(read_study([folder])))))
    assert line["model"] == "'=1+1"
    assert float(line["seconds_per_query"]) > 0
