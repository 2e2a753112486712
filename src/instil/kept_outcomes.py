"""Which outcomes of a token a target store keeps one by one; all others are its tail."""

from __future__ import annotations

from pydantic import Field

from instil.stored import Strict


class Kept(Strict):
    """What a token keeps: outcomes in the order of their probability, for as long as all rules agree.

    Attributes:
        top_k: At most so many.
        min_probability: None that is less likely than this.
        mass: None after the first that together cover this.
        at_least: So many whatever the two above say: what a loss of raw logits reads.
    """

    top_k: int = Field(ge=1)
    min_probability: float = Field(0.0, ge=0, lt=1)
    mass: float = Field(1.0, gt=0, le=1)
    at_least: int = Field(1, ge=1)
