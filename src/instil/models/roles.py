"""Teacher and student: one copy of the weights, or two."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from instil.methods import Method
from instil.models.load import LanguageModel, check_same_tokens, load, resolve
from instil.models.tuning import LoRA
from instil.system.progress import Display


@dataclass(frozen=True)
class Models:
    """Teacher and student.

    Attributes:
        teacher: Answers with the context.
        student: Answers without it; carries the adapter.
    """

    teacher: LanguageModel
    student: LanguageModel

    @classmethod
    def load(
        cls,
        student: str,
        teacher: str | None,
        *,
        dtype: str,
        tuning: LoRA,
        seed: int,
        display: Display,
    ) -> Models:
        """Loads both: one copy of the weights, with an adapter, unless the teacher is another model.

        Args:
            student: Hub id, local folder, or `bundled:NAME`.
            teacher: The same; None: the student's own weights with the adapter off.
            dtype: `auto`, `float32`, `bfloat16` or `float16`; the teacher has the student's.
            tuning: The student's adapter.
            seed: Of the adapter's first weights.
            display: Shows progress.

        Raises:
            UnknownModelError: there is no such model.
            TokenizerMismatchError: the two models' tokens differ.
            TuningError: the model does not allow the tuning.
        """
        display.note(f"loading {student}")
        base = load(student, dtype=dtype)
        other = None
        if teacher is not None and resolve(teacher) != resolve(student):
            display.note(f"loading {teacher}")
            other = load(teacher, dtype=base.dtype)
            check_same_tokens(other, base)
        adapted = tuning.apply(base.network, seed=seed)
        adapted.eval()
        learner = replace(base, network=cast(PreTrainedModel, adapted))
        return cls(teacher=other or learner, student=learner)

    def made_whole(self, again: Callable[[], Models]) -> Models:
        """The same after training, with a student that one process can run.

        Where FSDP has shared its layers out, they are loaded anew. All processes of a launch have to call it.

        Args:
            again: Loads both models as they were before training.
        """
        trained = shared_out(self.student.network)
        if trained is None:
            return self
        whole = again()
        take_over(whole.student.network, trained)
        return whole

    @property
    def shared(self) -> bool:
        """Whether teacher and student are one copy of the weights."""
        return self.teacher is self.student

    def model(self, method: Method) -> LanguageModel:
        """The model that answers with this method: the teacher if the context is sent."""
        return self.teacher if method.context else self.student

    def adapter(self, *, on: bool) -> AbstractContextManager[object]:
        """Runs what is inside with the adapter on, or with the untouched base."""
        return nullcontext() if on else self.student.network.disable_adapter()  # type: ignore[operator]


def shared_out(student: Any) -> dict[str, Tensor] | None:
    """The trained weights, whole, of a student whose layers FSDP has shared out; None if they are not.

    All processes have to call it.
    """
    from torch.distributed.tensor import DTensor

    named = list(student.named_parameters())
    if not any(isinstance(weight, DTensor) for _, weight in named):
        return None
    return {
        name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().cpu()
        for name, weight in named
        if weight.requires_grad
    }


def take_over(student: Any, trained: dict[str, Tensor]) -> None:
    """Puts trained weights, by their names, in the place of a student's own."""
    for name, weight in student.named_parameters():
        if name in trained:
            weight.data.copy_(trained[name])
