"""What every loss has: what it needs, and how it is called."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from instil.targets.prediction import Targets


class Loss(BaseModel):
    """A loss: what it compares, and what it needs for that.

    Besides what stands here a loss has `temperature`: a field if it compares distributions, else the constant 1.

    Attributes:
        name: Tells it from the others in a recipe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    @property
    def by_position(self) -> bool:
        """Whether it may be called with some of a batch's positions at a time."""
        return True

    @property
    def needs_logits(self) -> bool:
        """Whether it compares logits; if not, `hidden` is all of the loss."""
        return False

    @property
    def needs_targets(self) -> bool:
        """Whether it is called with the teacher's targets."""
        return False

    @property
    def needs_distribution(self) -> bool:
        """Whether it compares all outcomes that the targets tell apart."""
        return False

    @property
    def takes_draws(self) -> bool:
        """Whether its gradient is linear in the teacher's distribution.

        Outcomes drawn from that distribution then give the gradient of all on average (`instil.targets.draws`).
        """
        return False

    @property
    def needs_hidden_states(self) -> bool:
        """Whether it compares hidden states."""
        return False

    @property
    def top_k_needed(self) -> int | None:
        """Log-probabilities per token that the targets must hold for it; None: any number."""
        return None

    def __call__(self, logits_NV: Tensor, completion_N: Tensor, targets: Any) -> Tensor:
        """Loss of the logits, for each completion token.

        Args:
            logits_NV: Student logits that predict each of N completion tokens.
            completion_N: The tokens' ids.
            targets: The teacher's targets for the same N tokens; None if the loss needs none. `label_kl` has its own.

        Returns:
            Shape (N,); nats, but for `logit_mse`. Zeros if the loss compares no logits.

        Raises:
            ValueError: it needs targets and got none, targets of another temperature, or drawn ones that it does not take.
        """
        return logits_NV.new_zeros(len(logits_NV))

    def hidden(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Loss of the hidden states, for each completion token.

        Args:
            student: Hidden states (N, D) at the positions that predict N completion tokens: the output of the
                embeddings, then of each layer.
            teacher: The teacher's, at the positions that predict the same tokens. They get no gradient.

        Returns:
            Shape (N,); zeros if the loss compares no hidden states.

        Raises:
            ConfigError: the two differ in number or width, or a layer does not exist.
        """
        return student[0].new_zeros(len(student[0]))


class TokenLoss(Loss):
    r"""A loss of completion tokens, which may be a term of a sum.

    $$ L = \sum_i w_i L_i $$

    The weight is applied to the loss itself, so a loss alone and a loss in a sum are weighted alike.

    Attributes:
        weight: Factor of the loss.
    """

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="in a sum")


class LogitLoss(TokenLoss):
    """A loss of the student's logits."""

    needs_logits: ClassVar[bool] = True

    def __call__(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None = None
    ) -> Tensor:
        """The loss times its weight; see `Loss.__call__`."""
        drawn = targets is not None and targets.excess_N is not None
        if drawn and self.needs_targets and not self.takes_draws:
            raise ValueError(f"{self.name} needs targets without draws (got drawn ones)")
        return self.weight * self.unweighted(logits_NV, completion_N, targets)

    @abstractmethod
    def unweighted(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None
    ) -> Tensor:
        """The loss itself, of the same arguments."""


class HiddenStateLoss(TokenLoss):
    """A loss of the student's hidden states; the teacher runs beside the student, since hidden states are not stored."""

    needs_hidden_states: ClassVar[bool] = True

    def hidden(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss times its weight; see `Loss.hidden`."""
        return self.weight * self.unweighted(student, teacher)

    @abstractmethod
    def unweighted(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss itself, of the same arguments."""
