"""Evaluates a student before and during training, and keeps its best checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from instil.results.schema import Checkpoint
from instil.system import processes
from instil.system.files import read_lines, write_lines, written_whole


class Watch:
    """Evaluates a student before and during training, and saves the best trained weights.

    Scores and weights are stored in a folder, so that an interrupted training can resume.

    Args:
        network: The student, with its adapter.
        judge: Evaluates the student in its current state. Its argument is the number of steps.
        folder: Folder for scores and weights.
    """

    def __init__(self, network: Any, judge: Callable[[int], Checkpoint], folder: Path) -> None:
        self.network = network
        self.judge = judge
        self.log, self.weights = folder / "judged.jsonl", folder / "best.safetensors"
        earlier = read_lines(Checkpoint, self.log) if self.log.exists() else []
        self.seen = {checkpoint.step: checkpoint for checkpoint in earlier}

    def observe(self, step: int) -> None:
        """Evaluates the student in its current state, and writes its weights if it is the best.

        Step 0 is evaluated, but it is never the best.
        """
        now = self.judge(step)
        best = next((seen for seen in self.seen.values() if seen.kept), None)
        if step and (best is None or best.step == step or _rank(now) > _rank(best)):
            self.seen = {
                n: seen.model_copy(update={"kept": False}) for n, seen in self.seen.items()
            }
            now = now.model_copy(update={"kept": True})
            state = get_peft_model_state_dict(self.network, save_embedding_layers=False)
            processes.main_does(lambda: self._write(state))
        self.seen[step] = now
        processes.main_does(self._log)

    def _log(self) -> None:
        with written_whole(self.log) as work:
            write_lines(work, self.seen.values())

    def _write(self, state: dict[str, Tensor]) -> None:
        with written_whole(self.weights) as work:
            save_file(
                {name: weights.detach().cpu().contiguous() for name, weights in state.items()},
                work,
            )

    def keep_best(self) -> list[Checkpoint]:
        """Loads the best weights into the student, and returns all checkpoints in their order."""
        set_peft_model_state_dict(self.network, load_file(self.weights))
        return [checkpoint for _, checkpoint in sorted(self.seen.items())]


def _rank(checkpoint: Checkpoint) -> tuple[float, float]:
    """Returns the rank of a checkpoint; higher is better.

    Accuracy counts first. Then counts the KL to the teacher or, without a teacher, the
    cross-entropy of the completions; lower values are better.
    """
    fidelity = checkpoint.fidelity
    distance = fidelity.kl_to_teacher if fidelity else checkpoint.cross_entropy
    return checkpoint.accuracy.value if checkpoint.accuracy else 0.0, -distance
