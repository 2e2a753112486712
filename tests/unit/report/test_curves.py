"""Students during their training."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.report.pages import plain
from tests.unit.report.runs import build_run

from instil.report.analysis import Analysis, analyse
from instil.report.curves import MOST_MARKERS, milestones
from instil.report.figures import sketches
from instil.report.page import render


def test_milestones_are_means_over_seeds(written: Analysis) -> None:
    group = written.groups[3]
    first, *_, kept, last = milestones(group)
    assert (first.step, kept.step, last.step) == (0, 200, 250)
    assert (kept.seeds, kept.kept, last.kept) == (3, 3, 0)
    assert kept.accuracy is not None
    assert kept.accuracy.mean == pytest.approx(0.53)
    # Student's t over 0.52, 0.53, 0.54; before training the seeds agree, and rows are counted.
    assert kept.accuracy.low == pytest.approx(0.53 - 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert first.accuracy is not None
    assert first.accuracy.low == pytest.approx(0.2190, abs=2e-3)
    assert kept.kl is not None
    assert kept.kl.mean == pytest.approx(0.125)
    assert milestones(written.groups[0]) == []


@pytest.mark.parametrize("curve", [[(1, 0.7)], [(1, 0.0), (2, 0.0)], [(s, 1.0) for s in range(99)]])
def test_odd_loss_curves_are_drawn(tmp_path: Path, curve: list[tuple[int, float]]) -> None:
    training = {
        "rows": 200,
        "steps": 80,
        "trainable_parameters": 10,
        "trainable_share": 0.1,
        "loss": curve,
    }
    found = sketches(analyse(build_run(tmp_path / "run", training=training)))
    (loss,) = (sketch for sketch in found if sketch.name == "loss")
    drawn = loss.inline()
    assert "loss per token" in drawn.description
    assert (drawn.svg.count("<use") > MOST_MARKERS) is False


def test_without_a_loss_there_is_no_curve(tmp_path: Path) -> None:
    training = {"rows": 2, "steps": 0, "trainable_parameters": 1, "trainable_share": 1, "loss": []}
    found = sketches(analyse(build_run(tmp_path / "run", training=training)))
    assert "loss" not in [sketch.name for sketch in found]


LEARNT = {
    "rows": 180,
    "steps": 54,
    "trainable_parameters": 10,
    "trainable_share": 0.1,
    "loss": [(s, 2.0 / s) for s in range(1, 54, 5)],
    "held_out_rows": 20,
    "held_out": [
        {"step": s, "loss": loss, "kept": s == 50}
        for s, loss in (
            (0, 2.1),
            (10, 0.9),
            (20, 0.7),
            (30, 0.69),
            (40, 0.68),
            (50, 0.6),
            (54, 0.61),
        )
    ],
    "ended": "plateau",
}


def test_the_loss_on_held_out_rows_is_drawn_below_that_of_the_training(tmp_path: Path) -> None:
    found = sketches(analyse(build_run(tmp_path / "run", training=LEARNT)))
    (loss,) = (sketch.inline() for sketch in found if sketch.name == "loss")
    assert "loss per token, held-out rows" in loss.description
    assert "step that is kept" in loss.svg or "step that is kept" in loss.description


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        ("plateau", "no longer fell"),
        ("kl_share", "was as low as training.until asks for"),
        ("max_steps", "was still falling"),
    ],
)
def test_a_report_says_why_a_training_ended(tmp_path: Path, ended: str, why: str) -> None:
    page = plain(render(build_run(tmp_path / "run", training={**LEARNT, "ended": ended})))
    assert f"Training ended when the loss on 20 held-out rows {why}" in page
    assert "after step 50, which is the step whose weights are kept" in page
