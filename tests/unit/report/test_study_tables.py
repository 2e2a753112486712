"""The tables that other programs read."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from tests.unit.report.studies import build_study

from instil.report.analysis import Analysis, analyse
from instil.report.tables import latex, markdown, to_csv, to_latex, to_markdown


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
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


def test_latex_tables_are_whole(analysis: Analysis) -> None:
    text = to_latex(analysis)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 6
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 6
    for block in text.split(r"\begin{tabular}")[1:]:
        columns = len(block.split("}", 1)[0].removeprefix("{"))
        body = block.split(r"\midrule")[1].split(r"\bottomrule")[0].strip()
        for line in body.splitlines():
            assert line.replace(r"\&", "").count("&") == columns - 1
    assert r"mnli\_matched" in text


def test_markdown_tables_have_as_many_cells_in_every_line(analysis: Analysis) -> None:
    text = to_markdown(analysis)
    assert text.startswith("# Four methods on MNLI\n\n")
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace(r"\|", "").count("|") for line in lines}) <= 1
    assert "## Paired tests on hans" in text


def test_csv_has_a_line_a_cell_set_and_who(analysis: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(analysis))))
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
    cell = next(c for c in analysis.study.cells if c.name == student["cell"])
    assert float(student["accuracy"]) == cell.scores[0].accuracy.value
    assert student["teach.reused"] == "True"
    assert student["kl_to_teacher"] == "0.21"
