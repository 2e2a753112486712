r"""A weighted sum of losses.

$$ L_t = \sum_i w_i L_{i,t} $$

In a recipe it is a plain list:
`objective: [{name: cross_entropy}, {name: logit_mse, weight: 0.5}]`.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from instil.losses.base import Loss
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

TokenLosses = ForwardKL | ReverseKL | JensenShannon | CrossEntropy | LogitMSE | HiddenState
"""All losses that can be terms of a sum. Add a new loss here."""
Term = Annotated[TokenLosses, Field(discriminator="name")]


class WeightedSum(Loss):
    """Several losses at once, each times its weight; in a recipe, a plain list of losses."""

    name: Literal["sum"] = "sum"
    # No min_length: if the only loss is wrong, pydantic would also report an empty list.
    terms: tuple[Term, ...] = Field(
        json_schema_extra={"minItems": 1}, description="the losses, each with its weight"
    )

    @model_validator(mode="after")
    def _terms_agree(self) -> Self:
        if not self.terms:
            raise ValueError("an empty list; give at least one loss")
        for (i, first), (j, second) in combinations(enumerate(self.terms), 2):
            if first.model_copy(update={"weight": second.weight}) == second:
                raise ValueError(
                    f"losses {i} and {j} are the same ({first.name}); "
                    "use it once, with the sum of their weights"
                )
        divergences = [term for term in self.terms if isinstance(term, Divergence)]
        if len({term.temperature for term in divergences}) > 1:
            shown = ", ".join(f"{term.name} {term.temperature:g}" for term in divergences)
            raise ValueError(
                f"the losses have different temperatures ({shown}), but targets are stored at a "
                "single temperature; set the same temperature for all"
            )
        return self

    @property
    @override
    def needs_logits(self) -> bool:
        return any(term.needs_logits for term in self.terms)

    @property
    @override
    def needs_targets(self) -> bool:
        return any(term.needs_targets for term in self.terms)

    @property
    @override
    def needs_distribution(self) -> bool:
        return any(term.needs_distribution for term in self.terms)

    @property
    @override
    def takes_draws(self) -> bool:
        return all(term.takes_draws for term in self.terms if term.needs_targets)

    @property
    @override
    def needs_hidden_states(self) -> bool:
        return any(term.needs_hidden_states for term in self.terms)

    @property
    @override
    def needs_logits_of_teacher(self) -> bool:
        return any(term.needs_logits_of_teacher for term in self.terms)

    @property
    def temperature(self) -> float:
        """Temperature of the targets: that of the divergences, or 1 without a divergence."""
        return next((term.temperature for term in self.terms if isinstance(term, Divergence)), 1.0)

    @property
    @override
    def top_k_needed(self) -> int | None:
        return max((k for term in self.terms if (k := term.top_k_needed)), default=None)

    @override
    def __call__(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None = None
    ) -> Tensor:
        losses = (
            term(logits_NV, completion_N, targets) for term in self.terms if term.needs_logits
        )
        return sum(losses, start=super().__call__(logits_NV, completion_N, targets))

    @override
    def hidden(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        losses = (term.hidden(student, teacher) for term in self.terms if term.needs_hidden_states)
        return sum(losses, start=super().hidden(student, teacher))
