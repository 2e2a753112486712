"""A student judged before and in the middle of its training; the best one is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from instil.prompts.rendered import RenderedRows
from instil.results.cell import Checkpoint
from instil.results.statistics import proportion
from instil.system import processes
from instil.system.files import read_lines, write_lines, written_whole

if TYPE_CHECKING:
    from instil.pipeline.text import WritingCell


class Watch:
    """Judges a student before and in the middle of its training, and remembers the best one that has learnt.

    What it has seen stands in a folder, for a training that is interrupted and goes on.
    """

    def __init__(self, cell: WritingCell, rows: RenderedRows, folder: Path) -> None:
        self.cell = cell
        self.rows = rows
        self.log, self.weights = folder / "judged.jsonl", folder / "best.safetensors"
        there = read_lines(Checkpoint, self.log) if self.log.exists() else []
        self.seen = {one.step: one for one in there}

    def observe(self, step: int) -> None:
        """Judges the student as it is now on the validation rows."""
        cell, rows = self.cell, self.rows
        with cell.recorder.instead("evaluate", of="train"):
            written = cell.answers(rows, f"judging step {step}")
            gold = cell.gold_score(rows)
        now = Checkpoint(
            step=step,
            accuracy=proportion(cell.right(rows, written)),
            cross_entropy=gold.cross_entropy,
            fidelity=gold.fidelity,
            kept=False,
        )
        best = next((one for one in self.seen.values() if one.kept), None)
        if step and (best is None or best.step == step or _rank(now) > _rank(best)):
            self.seen = {n: one.model_copy(update={"kept": False}) for n, one in self.seen.items()}
            now = now.model_copy(update={"kept": True})
            state = get_peft_model_state_dict(
                cast(Any, cell.models.student.network), save_embedding_layers=False
            )
            processes.main_does(lambda: self._write(state))
        self.seen[step] = now
        processes.main_does(self._log)

    def _log(self) -> None:
        with written_whole(self.log) as work:
            write_lines(work, self.seen.values())

    def _write(self, state: dict[str, Tensor]) -> None:
        with written_whole(self.weights) as work:
            save_file({name: one.detach().cpu().contiguous() for name, one in state.items()}, work)

    def keep_best(self) -> list[Checkpoint]:
        """Puts the best student back, and tells which it was."""
        network: Any = self.cell.models.student.network
        set_peft_model_state_dict(network, load_file(self.weights))
        return [one for _, one in sorted(self.seen.items())]


def _rank(one: Checkpoint) -> tuple[float, float]:
    """Of the most accurate checkpoints the one nearest to its teacher, or to the gold answers, comes first."""
    apart = one.fidelity.kl_to_teacher if one.fidelity else one.cross_entropy
    return one.accuracy.value, -apart
