"""Evaluates a student before and during training, and keeps its best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from instil.results.training import Checkpoint, HeldOutLoss
from instil.system import processes
from instil.system.files import read_lines, write_lines, written_whole
from instil.training.trainer import HeldOut

Seen = TypeVar("Seen", Checkpoint, HeldOutLoss)


class Watch(Generic[Seen]):
    """Remembers how good a student was during training, and its best trained weights.

    Scores and weights are stored in a folder, so that an interrupted training can resume.

    Args:
        network: The student, with its adapter.
        kind: What is remembered at a step.
        folder: Folder for scores and weights.
    """

    def __init__(self, network: Any, kind: type[Seen], folder: Path) -> None:
        self.network = network
        self.log, self.weights = folder / "judged.jsonl", folder / "best.safetensors"
        earlier = read_lines(kind, self.log) if self.log.exists() else []
        self.seen: dict[int, Seen] = {seen.step: seen for seen in earlier}

    def add(self, now: Seen) -> None:
        """Adds the score of the current state, and writes its weights if it is the best.

        Step 0 is never the best.
        """
        step = now.step
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

    def observed(self, judge: Callable[[int], Seen]) -> Callable[[int], None]:
        """Returns a function of the step that judges the student and adds the score."""
        return lambda step: self.add(judge(step))

    def _log(self) -> None:
        with written_whole(self.log) as work:
            write_lines(work, self.seen.values())

    def _write(self, state: dict[str, Tensor]) -> None:
        with written_whole(self.weights) as work:
            save_file(
                {name: weights.detach().cpu().contiguous() for name, weights in state.items()},
                work,
            )

    def keep_best(self) -> list[Seen]:
        """Loads the best weights into the student, and returns all scores in their order."""
        set_peft_model_state_dict(self.network, load_file(self.weights))
        return [seen for _, seen in sorted(self.seen.items())]


def held_out(watch: Watch[HeldOutLoss], numbers: Sequence[int]) -> HeldOut:
    """Lets a training measure its loss on held-out lessons, and remember it.

    Args:
        watch: Remembers the losses.
        numbers: Numbers of the lessons.
    """

    def tell(step: int, loss: float) -> None:
        watch.add(HeldOutLoss(step=step, loss=loss, kept=False))

    return HeldOut(numbers, {step: seen.loss for step, seen in watch.seen.items()}, tell)


def _rank(checkpoint: Checkpoint | HeldOutLoss) -> tuple[float, float]:
    """Returns the rank of a score; higher is better.

    Accuracy counts first. Then counts the KL to the teacher or, without a teacher, the
    cross-entropy of the completions; lower values are better.
    """
    if isinstance(checkpoint, HeldOutLoss):
        return 0.0, -checkpoint.loss
    fidelity = checkpoint.fidelity
    distance = fidelity.kl_to_teacher if fidelity else checkpoint.cross_entropy
    return checkpoint.accuracy.value if checkpoint.accuracy else 0.0, -distance
