r"""What every loss of sequence distillation has: a weight, and what it must be given.

$$ L = \sum_i w_i L_i $$

The weight is applied here and nowhere else, so a loss alone and a loss in a sum are weighted alike.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from instil.targets.prediction import Targets


class Loss(BaseModel):
    """One loss. It compares either logits or hidden states.

    Besides what stands here a loss has `temperature`: a field if it compares distributions, else the constant 1.

    Attributes:
        by_position: It may be called with some of a batch's positions at a time.
        needs_logits: It is called with the student's logits.
        needs_targets: It is called with the teacher's targets.
        needs_distribution: It compares all outcomes that the targets tell apart.
        takes_draws: Its gradient is linear in the teacher's distribution, so of outcomes drawn from it one expects the
            gradient of all (`instil.targets.draws`).
        needs_hidden_states: Its `hidden` is called with both models' hidden states.
        top_k_needed: Log-probabilities a token that the targets must hold for it; None: any number.
        name: Tells it from the others in a recipe.
        weight: Factor of the loss.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    by_position: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    needs_targets: ClassVar[bool] = False
    needs_distribution: ClassVar[bool] = False
    takes_draws: ClassVar[bool] = False
    needs_hidden_states: ClassVar[bool] = False

    name: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="in a sum")

    @property
    def top_k_needed(self) -> int | None:
        """Log-probabilities a token that the targets must hold for it; None: any number."""
        return None


class LogitLoss(Loss):
    """A loss of the student's logits."""

    needs_logits: ClassVar[bool] = True

    def __call__(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None = None
    ) -> Tensor:
        """Loss of each completion token, times the weight.

        Args:
            logits_NV: Student logits that predict each of N completion tokens.
            completion_N: The tokens' ids.
            targets: The teacher's targets for the same N tokens; None if the loss needs none.

        Returns:
            Shape (N,); nats, but for `logit_mse`.

        Raises:
            ValueError: it needs targets and got none, targets of another temperature, or drawn ones that it does not take.
        """
        drawn = targets is not None and targets.excess_N is not None
        if drawn and self.needs_targets and not self.takes_draws:
            raise ValueError(f"{self.name} needs targets without draws (got drawn ones)")
        return self.weight * self.unweighted(logits_NV, completion_N, targets)

    @abstractmethod
    def unweighted(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None
    ) -> Tensor:
        """The loss itself, of the same arguments."""


class HiddenStateLoss(Loss):
    """A loss of the student's hidden states; the teacher runs beside the student, since hidden states are not stored."""

    needs_hidden_states: ClassVar[bool] = True

    def hidden(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Loss of each completion token, times the weight.

        Args:
            student: Hidden states (N, D) at the positions that predict N completion tokens: the output of the
                embeddings, then of each layer.
            teacher: The teacher's, at the positions that predict the same tokens. They get no gradient.

        Returns:
            Shape (N,).

        Raises:
            ConfigError: the two differ in number or width, or a layer does not exist.
        """
        return self.weight * self.unweighted(student, teacher)

    @abstractmethod
    def unweighted(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss itself, of the same arguments."""
