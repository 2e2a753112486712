"""The interface of every loss: what it needs, and how it is called."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from instil.system.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from instil.targets.prediction import Targets


class Loss(Settings):
    """A loss.

    In addition to the members below, a loss has a `temperature`: a field if it compares
    distributions, otherwise the constant 1.

    Attributes:
        name: Identifies the loss in a recipe.
    """

    name: str

    @property
    def by_position(self) -> bool:
        """Whether it can be called with only some of a batch's positions."""
        return True

    @property
    def needs_logits(self) -> bool:
        """Whether it compares logits; if not, `hidden` is the full loss."""
        return False

    @property
    def needs_targets(self) -> bool:
        """Whether it is called with the teacher's targets."""
        return False

    @property
    def needs_distribution(self) -> bool:
        """Whether it compares all outcomes of the targets."""
        return False

    @property
    def takes_draws(self) -> bool:
        """Whether its gradient is linear in the teacher's distribution.

        Outcomes drawn from that distribution then give, on average, the gradient of the full
        distribution (`instil.targets.draws`).
        """
        return False

    @property
    def needs_hidden_states(self) -> bool:
        """Whether it compares hidden states."""
        return False

    @property
    def needs_logits_of_teacher(self) -> bool:
        """Whether it reads the teacher's raw logits, and not only log-probabilities."""
        return False

    @property
    def top_k_needed(self) -> int | None:
        """Number of log-probabilities per token that the targets must hold; None: any number."""
        return None

    def __call__(self, logits_NV: Tensor, completion_N: Tensor, targets: Any) -> Tensor:
        """Loss of the logits, for each completion token.

        Args:
            logits_NV: Student logits that predict each of N completion tokens.
            completion_N: The tokens' ids.
            targets: The teacher's targets for the same N tokens; None if the loss needs none.
                `label_kl` has its own type of targets.

        Returns:
            Shape (N,), in nats except for `logit_mse`. Zeros if the loss compares no logits.

        Raises:
            ValueError: the loss needs targets and got none, or the targets have another
                temperature, or they have drawn outcomes that the loss does not take.
        """
        return logits_NV.new_zeros(len(logits_NV))

    def hidden(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Loss of the hidden states, for each completion token.

        Args:
            student: Hidden states (N, D) at the positions that predict N completion tokens: the
                output of the embeddings, then of each layer.
            teacher: The teacher's hidden states at the positions that predict the same tokens. They
                get no gradient.

        Returns:
            Shape (N,); zeros if the loss compares no hidden states.

        Raises:
            ConfigError: the models differ in number or width of layers, or a layer does not exist.
        """
        return student[0].new_zeros(len(student[0]))


class TokenLoss(Loss):
    r"""A loss of completion tokens; it can be a term of a sum.

    $$ L = \sum_i w_i L_i $$

    The weight is a factor of the loss itself, so it also applies to a loss outside a sum.

    Attributes:
        weight: Factor of the loss.
    """

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="factor of the loss")


class LogitLoss(TokenLoss):
    """A loss of the student's logits."""

    needs_logits: ClassVar[bool] = True

    def __call__(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None = None
    ) -> Tensor:
        """The loss times its weight; see `Loss.__call__`."""
        drawn = targets is not None and targets.excess_N is not None
        if drawn and self.needs_targets and not self.takes_draws:
            raise ValueError(
                f"{self.name} needs targets without drawn outcomes (got targets with some)"
            )
        return self.weight * self.unweighted(logits_NV, completion_N, targets)

    @abstractmethod
    def unweighted(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None
    ) -> Tensor:
        """The loss itself, of the same arguments."""


class HiddenStateLoss(TokenLoss):
    """A loss of the student's hidden states.

    The teacher runs during training, because its hidden states are not stored.
    """

    needs_hidden_states: ClassVar[bool] = True

    def hidden(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss times its weight; see `Loss.hidden`."""
        return self.weight * self.unweighted(student, teacher)

    @abstractmethod
    def unweighted(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss itself, of the same arguments."""
