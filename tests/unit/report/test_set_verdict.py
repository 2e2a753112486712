"""How much of the prompt's gain a student keeps, and how close it is to its teacher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.report.pages import plain
from tests.unit.report.runs import answers, build_results, build_run, first_rows, write_run

from instil.report import Study
from instil.report.analysis import Analysis, analyse
from instil.report.verdict import Verdict, judge


def opening(study: Study) -> Verdict:
    verdict, _ = judge(analyse(study))
    return verdict


def evidence(verdict: Verdict) -> str:
    return plain(" ".join(verdict.evidence))


HEADLINES = [
    ((1, 82, 80), 100, "good", "The student recovers 98 % of the prompt's gain."),
    ((1, 82, 85), 100, "good", "The student recovers all (104 %) of the prompt's gain."),
    ((10, 810, 809), 1000, "good", "The student recovers 99 % of the prompt's gain."),
    (
        (1, 82, 50),
        100,
        "short",
        "The student recovers only 60 % of the prompt's gain.",
    ),
    (
        (10, 82, 9),
        100,
        "short",
        "The student recovers nothing of the prompt's gain.",
    ),
    (
        (300, 800, 200),
        1000,
        "short",
        "The student is worse than the model without training.",
    ),
    (
        (33, 32, 34),
        100,
        "open",
        "The prompt does not increase accuracy on these rows, so there is nothing to recover.",
    ),
    (
        (33, 33, 60),
        100,
        "open",
        "The prompt does not increase accuracy on these rows, so there is nothing to recover.",
    ),
    (
        (600, 300, 600),
        1000,
        "open",
        "The prompt reduces accuracy on these rows, so there is nothing to recover.",
    ),
    (
        (20, 26, 26),
        40,
        "open",
        "Undecided on 40 held-out rows: the prompt's gain of 15.0 points is not significant.",
    ),
]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(("right", "n", "tone", "headline"), HEADLINES)
def test_headline(
    tmp_path: Path, right: tuple[int, int, int], n: int, tone: str, headline: str, stored: bool
) -> None:
    """The same with the paired tests and, where no predictions were stored, with intervals."""
    verdict = opening(build_run(tmp_path / "run", right, n, stored=stored))
    assert plain(verdict.headline) == headline
    assert verdict.tone == tone


def test_a_share_that_is_not_clearly_too_low_is_undecided(tmp_path: Path) -> None:
    verdict = opening(build_run(tmp_path / "run", (10, 60, 53)))
    assert plain(verdict.headline) == (
        "The student recovers 86 % of the prompt's gain. On 100 held-out rows this is not clearly "
        "below 90 %."
    )
    assert (verdict.tone, verdict.label) == ("open", "Undecided")
    found = re.search(r"The 95 % interval of recovery is ([\d.]+)–([\d.]+) %\.", evidence(verdict))
    assert found is not None
    assert float(found[1]) < 86 < 90 <= float(found[2])
    many = opening(build_run(tmp_path / "many", (100, 600, 530), 1000))
    assert plain(many.headline) == "The student recovers only 86 % of the prompt's gain."


def test_a_student_that_the_rows_do_not_separate_from_zero_shot(tmp_path: Path) -> None:
    """It is right on other rows than zero-shot, and on few more of them."""
    verdict = opening(build_run(tmp_path / "run", (300, 362, 357), 1000, start=400))
    assert plain(verdict.headline) == (
        "The student recovers 92 % of the prompt's gain, but on 1,000 held-out rows it is not "
        "significantly better than zero-shot."
    )
    assert verdict.tone == "open"


def test_pairs_show_what_intervals_that_overlap_cannot(tmp_path: Path) -> None:
    """40 against 55 of 100: the intervals overlap, and 15 rows to none are p = 6e-5."""
    paired = opening(build_run(tmp_path / "paired", (40, 55, 54)))
    assert plain(paired.headline) == "The student recovers 93 % of the prompt's gain."
    alone = opening(build_run(tmp_path / "alone", (40, 55, 54), stored=False))
    assert alone.headline.startswith("Undecided")


def test_the_number_and_its_evidence_stand_beside_the_headline(tmp_path: Path) -> None:
    verdict = opening(build_run(tmp_path / "run"))
    assert plain(verdict.figure) == "98 %"
    assert "On 100 held-out rows: zero-shot 1.0 % (0.2–5.4 %)" in evidence(verdict)


@pytest.mark.parametrize(
    ("right", "n", "said"),
    [
        (
            (1, 82, 80),
            100,
            "the student is not significantly different from in-context (−2.0 points, p = 0.50)",
        ),
        ((10, 820, 740), 1000, "the student is worse than in-context (−8.0 points, p < 0.001)"),
        ((10, 740, 820), 1000, "the student is better than in-context (+8.0 points, p < 0.001)"),
        ((33, 32, 60), 100, "the student is better than zero-shot (+27.0 points, p < 0.001)"),
        ((20, 26, 26), 40, "a share of it says little"),
    ],
)
def test_the_paired_test_is_evidence(
    tmp_path: Path, right: tuple[int, int, int], n: int, said: str
) -> None:
    assert said in evidence(opening(build_run(tmp_path / "run", right, n)))


def test_without_predictions_the_intervals_are_evidence(tmp_path: Path) -> None:
    said = evidence(opening(build_run(tmp_path / "run", stored=False)))
    assert "By the intervals, the student is not significantly different from in-context" in said


def test_paired_counts(tmp_path: Path) -> None:
    hits = [[row % 3 != 1 for row in range(4)], [False] * 4, [True] * 4]
    lines = answers(hits)
    _, (judged,) = judge(analyse(write_run(tmp_path / "run", build_results(lines), lines)))
    assert (
        "on the same 4 rows: both right on 3, only in-context on 1, only the student on 0, "
        "neither on 0." in plain(" ".join(judged.sentences))
    )


def test_a_run_of_several_seeds_is_judged_by_their_means(tmp_path: Path) -> None:
    from instil.report import read_study

    for seed in (0, 1):
        build_run(tmp_path / str(seed), (1, 82, 80 - seed), seed=seed)
    verdict = opening(read_study(sorted(tmp_path.iterdir())))
    assert plain(verdict.headline) == "The student recovers 97 % of the prompt's gain."
    assert "On 100 held-out rows in each of 2 seeds" in evidence(verdict)


@pytest.mark.parametrize(
    ("kl", "tone", "said", "figure"),
    [
        ((3.214, 0.187), "good", "removes 94 % of the divergence", "94 %"),
        ((2.0, 1.0), "short", "Training removes only 50 % of the student's divergence", "50 %"),
        ((1.0, 1.2), "short", "increased the student's divergence", "−20 %"),
        ((0.0, 0.0), "open", "nothing to recover", "0"),
    ],
)
def test_without_gold_outputs_the_verdict_is_about_fidelity(
    tmp_path: Path, kl: tuple[float, float], tone: str, said: str, figure: str
) -> None:
    verdict = opening(build_run(tmp_path / "run", None, kl=kl, agreement=(0.3, 0.9)))
    assert said in plain(verdict.headline)
    assert verdict.tone == tone
    assert plain(verdict.figure) == figure
    assert "no gold outputs" in evidence(verdict)
    assert "fidelity" in evidence(verdict)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (["distillation"], "zero-shot was not measured"),
        (["zero_shot", "in_context"], "there is nothing to compare"),
    ],
)
def test_without_gold_outputs_and_without_its_rivals(
    tmp_path: Path, kept: list[str], said: str
) -> None:
    lines = answers([first_rows(4, 4)] * 3, graded=False)
    results = build_results(lines)
    changes: dict[str, Any] = {"methods": [m for m in results.methods if m.method in kept]}
    if "distillation" not in kept:
        changes |= {"training": None}
    lines = [line for line in lines if line.method in kept]
    study = write_run(tmp_path / "run", results.model_copy(update=changes), lines)
    assert said in opening(study).headline


def test_the_verdict_speaks_of_controls_and_of_closeness(written: Analysis) -> None:
    _, (judged, _) = judge(written)
    text = plain(" ".join(judged.sentences))
    for part in (
        "its control with a zero-shot teacher (+",
        "its control with shuffled answers (+",
        "KL to the teacher is 0.120 nats per token for distillation, k = 8, and 0.610 for zero-shot.",
        "highest probability under fine-tuning: cross-entropy 0.580 nats per token, and 1.12 for",
    ):
        assert part in text, part
