r"""A weighted sum of losses.

$$ L_t = \sum_i w_i L_{i,t} $$

In a recipe it is a plain list: `objective: [{name: cross_entropy}, {name: logit_mse, weight: 0.5}]`.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from instil.losses.base import HiddenStateLoss, LogitLoss
from instil.losses.cross_entropy import CrossEntropy
from instil.losses.divergence import Divergence
from instil.losses.forward_kl import ForwardKL
from instil.losses.hidden_state import HiddenState
from instil.losses.jensen_shannon import JensenShannon
from instil.losses.logit_mse import LogitMSE
from instil.losses.reverse_kl import ReverseKL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from instil.targets.prediction import Targets

Term = Annotated[
    ForwardKL | ReverseKL | JensenShannon | CrossEntropy | LogitMSE | HiddenState,
    Field(discriminator="name"),
]


class WeightedSum(BaseModel):
    """Several losses at once, each times its weight; in a recipe a plain list of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    by_position: ClassVar[bool] = True

    name: Literal["sum"] = "sum"
    # No min_length: pydantic would also tell of an empty list where the only loss is at fault.
    terms: tuple[Term, ...] = Field(
        json_schema_extra={"minItems": 1}, description="the losses, each with its weight"
    )

    @model_validator(mode="after")
    def _terms_agree(self) -> Self:
        if not self.terms:
            raise ValueError("an empty list; give at least one loss")
        for (i, one), (j, other) in combinations(enumerate(self.terms), 2):
            if one.model_copy(update={"weight": other.weight}) == other:
                raise ValueError(
                    f"losses {i} and {j} are the same ({one.name}); keep one, with the sum of their weights"
                )
        told = [term for term in self.terms if isinstance(term, Divergence)]
        if len({term.temperature for term in told}) > 1:
            shown = ", ".join(f"{term.name} {term.temperature:g}" for term in told)
            raise ValueError(
                f"losses of different temperatures ({shown}): targets are stored at one; give all the same"
            )
        return self

    @property
    def needs_logits(self) -> bool:
        """Whether a term compares logits; if not, `hidden` is all of the loss."""
        return any(term.needs_logits for term in self.terms)

    @property
    def needs_targets(self) -> bool:
        """Whether a term compares with the teacher's targets."""
        return any(term.needs_targets for term in self.terms)

    @property
    def needs_distribution(self) -> bool:
        """Whether a term compares all outcomes that the targets tell apart."""
        return any(term.needs_distribution for term in self.terms)

    @property
    def takes_draws(self) -> bool:
        """Whether all terms that compare with the teacher's targets are linear in them."""
        return all(term.takes_draws for term in self.terms if term.needs_targets)

    @property
    def needs_hidden_states(self) -> bool:
        """Whether a term compares hidden states."""
        return any(term.needs_hidden_states for term in self.terms)

    @property
    def temperature(self) -> float:
        """At which targets are made: the divergences' own, 1 if there is none."""
        return next((term.temperature for term in self.terms if isinstance(term, Divergence)), 1.0)

    @property
    def top_k_needed(self) -> int | None:
        """Log-probabilities a token that the targets must hold; None: any number."""
        return max((k for term in self.terms if (k := term.top_k_needed)), default=None)

    def __call__(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None = None
    ) -> Tensor:
        """Sum of the terms that compare logits, for each completion token.

        Args:
            logits_NV: Student logits that predict each of N completion tokens.
            completion_N: The tokens' ids.
            targets: The teacher's targets for the same N tokens; None if no term needs them.

        Returns:
            Shape (N,); zeros if no term compares logits.

        Raises:
            ValueError: a term needs targets and got none, or targets of another temperature.
        """
        losses = [
            term(logits_NV, completion_N, targets)
            for term in self.terms
            if isinstance(term, LogitLoss)
        ]
        return sum(losses, start=logits_NV.new_zeros(len(logits_NV)))

    def hidden(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Sum of the terms that compare hidden states, for each completion token.

        Args:
            student: Hidden states (N, D): the output of the embeddings, then of each layer.
            teacher: The teacher's for the same N tokens.

        Returns:
            Shape (N,); zeros if no term compares hidden states.

        Raises:
            ConfigError: the two differ in number or width, or a layer does not exist.
        """
        losses = [
            term.hidden(student, teacher)
            for term in self.terms
            if isinstance(term, HiddenStateLoss)
        ]
        return sum(losses, start=student[0].new_zeros(len(student[0])))
