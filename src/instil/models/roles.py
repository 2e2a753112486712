"""Teacher and student, with one or two copies of the weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from instil.methods import Method
from instil.models.load import (
    PLAIN,
    LanguageModel,
    check_same_tokens,
    load,
    load_for_training,
)
from instil.models.loading import Loading
from instil.models.reshape import keep_layers, put_head
from instil.models.source import resolve
from instil.models.tuning import LoRA, Tuning
from instil.system.progress import Display


@dataclass(frozen=True)
class Models:
    """Teacher and student.

    Attributes:
        teacher: Answers with the context.
        student: Answers without the context; has the adapter.
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
        how: Loading = PLAIN,
    ) -> Models:
        """Loads both models.

        They share one copy of the weights, with an adapter, unless the teacher is another model or
        is not quantised as the student is.

        Args:
            student: Hub id, local folder, or `bundled:NAME`.
            teacher: As `student`; None: the student's own weights with the adapter off.
            dtype: `auto`, `float32`, `bfloat16` or `float16`, for both.
            tuning: The student's adapter.
            seed: Seed of the adapter's initial weights.
            display: Shows progress.
            how: How the weights are loaded.

        Raises:
            UnknownModelError: there is no such model, or it cannot be loaded in this way.
            TokenizerMismatchError: the two models have different tokens.
            TuningError: the model does not support the tuning.
        """
        display.note(f"loading {student}")
        base = load(student, dtype=dtype, how=how)
        other, teaching = None, teacher or student
        if resolve(teaching) != resolve(student) or how.of_teacher != how:
            display.note(f"loading {teaching}")
            other = load(teaching, dtype=base.dtype, how=how.of_teacher)
            check_same_tokens(other, base)
        learner = _tuned(base, tuning, seed=seed)
        return cls(teacher=other or learner, student=learner)

    def made_whole(self, again: Callable[[], Models]) -> Models:
        """The same models after training, with a student that one process can run.

        If FSDP has split the student's layers among processes, both models are loaded again and get
        the trained weights. All processes of a launch must call this method.

        Args:
            again: Loads both models as they were before training.
        """
        trained = shared_out(self.student.network)
        if trained is None:
            return self
        reloaded = again()
        take_over(reloaded.student.network, trained)
        return reloaded

    @property
    def shared(self) -> bool:
        """Whether teacher and student are one copy of the weights."""
        return self.teacher is self.student

    def model(self, method: Method) -> LanguageModel:
        """The model that answers with this method: the teacher if the method sends the context."""
        return self.teacher if method.context else self.student

    def adapter(self, *, on: bool) -> AbstractContextManager[object]:
        """Runs the enclosed code with the adapter on, or with the unchanged base.

        A student without an adapter must not be trained yet.
        """
        network: Any = self.student.network
        return (
            nullcontext()
            if on or not hasattr(network, "peft_config")
            else network.disable_adapter()
        )


@dataclass(frozen=True)
class Reshaped:
    """A model with another shape: fewer layers, or a classification head as its output layer.

    Attributes:
        name: Hub id, local folder, or `bundled:NAME`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        keep_layers: How many layers remain, or the numbers of the remaining layers; None: all.
        labels: Number of outputs of the classification head; None: a language model without a head.
        how: How the weights are loaded.
    """

    name: str
    dtype: str
    keep_layers: int | tuple[int, ...] | None = None
    labels: int | None = None
    how: Loading = PLAIN

    def load(self, *, tuning: Tuning | None, seed: int) -> LanguageModel:
        """Loads the model, and makes the weights of the tuning trainable.

        Args:
            tuning: Which weights are trained; None: no weights.
            seed: Seed of new weights.

        Raises:
            UnknownModelError: there is no such model.
            TuningError: the model does not support the tuning.
        """
        loading = load_for_training if tuning is not None and tuning.trains_base else load
        model = loading(self.name, dtype=self.dtype, how=self.how)
        if self.keep_layers is not None:
            keep_layers(model.network, self.keep_layers)
        head = None
        if self.labels is not None:
            head = put_head(model.network, self.labels, seed=seed)
        if tuning is None:
            return model
        return _tuned(model, tuning, seed=seed, head=head)


def _tuned(
    model: LanguageModel, tuning: Tuning, *, seed: int, head: str | None = None
) -> LanguageModel:
    """The model with its trainable weights, in evaluation mode."""
    network: Any = tuning.apply(model.network, seed=seed, head=head)
    for config in getattr(network, "peft_config", {}).values():
        config.revision = model.source.commit
    return replace(model, network=network.eval())


def shared_out(student: Any) -> dict[str, Tensor] | None:
    """The full trained weights of a student whose layers FSDP has split among processes.

    All processes must call it. Returns None if FSDP has not split the layers.
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
    """Copies trained weights into a student, by name."""
    for name, weight in student.named_parameters():
        if name in trained:
            weight.data.copy_(trained[name])
