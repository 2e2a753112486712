r"""Mean squared difference of hidden states.

$$ L_t = \frac{1}{|\mathcal{L}|} \sum_{l \in \mathcal{L}} \frac{\lVert h_{l,t} - g_{l,t} \rVert^2}{\lVert g_{l,t} \rVert^2} $$

h are the student's hidden states and g the teacher's, at the positions that predict the same token
(Jiao et al. 2020, TinyBERT, arXiv:1909.10351, eq. 8, without the projection, because both models
have the same width). The division by the teacher's squared norm makes the value a ratio without a
unit: 0 if the states are equal, 1 for a student of zeros, whatever the layer's norm. The division
is made at each position, so that the loss of a token does not depend on the other tokens of its
batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from instil.errors import ConfigError
from instil.losses.base import HiddenStateLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class HiddenState(HiddenStateLoss):
    """Squared difference of hidden states: the student must also compute as the teacher does.

    The other losses compare only the answers.
    """

    temperature: ClassVar[float] = 1.0

    name: Literal["hidden_state"] = "hidden_state"
    layers: Literal["all"] | tuple[int, ...] = Field(
        "all",
        description="numbers of the compared layers: 1 is the first, -1 the last, 0 the embeddings;"
        " `all` leaves out the embeddings",
    )
    normalise: bool = Field(
        True, description="divide by the mean square of the teacher's hidden states"
    )

    @field_validator("layers")
    @classmethod
    def _some_layer(cls, value: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if not value:
            raise ValueError("an empty list; list at least one layer, or use all")
        return value

    def chosen(self, states: int) -> list[int]:
        """Indices of the compared hidden states, each once, for a model that gives `states` states.

        Raises:
            ConfigError: a layer does not exist.
        """
        if self.layers == "all":
            return list(range(1, states))
        for layer in self.layers:
            if not -states <= layer < states:
                raise ConfigError(
                    f"hidden_state: the model has no layer {layer}",
                    got=f"layers {list(self.layers)}, a model of {states - 1} layers",
                    allowed=f"0 (the embeddings) to {states - 1}, or -1 (the last) to {-states}",
                )
        return sorted({layer % states for layer in self.layers})

    def unweighted(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean over the layers of the squared difference at each completion token, shape (N,)."""
        import torch

        shapes = [
            (len(states), states[0].shape[-1] if states else 0) for states in (student, teacher)
        ]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                "hidden_state: teacher and student differ in layers or width",
                got=f"(hidden states, width) {shapes[1]} and {shapes[0]}",
                mend="make the model its own teacher (teacher.model: null), or use another loss",
            )
        losses = []
        for layer in self.chosen(len(student)):
            dtype = torch.promote_types(student[layer].dtype, torch.float32)
            h_ND, g_ND = student[layer].to(dtype), teacher[layer].detach().to(dtype)
            loss_N = (h_ND - g_ND).square().mean(-1)
            if self.normalise:
                loss_N = loss_N / g_ND.square().mean(-1).clamp(min=torch.finfo(dtype).eps)
            losses.append(loss_N)
        return torch.stack(losses).mean(0)
