"""Which outcomes of a token a target store keeps one by one, and how many it draws from its tail, which are all others."""

from __future__ import annotations

from pydantic import Field

from instil.system.files import Strict

USUALLY_KEPT = 100  # outcomes a token, where a rule chooses; by default some 40 in worked solutions
OUTCOME_BYTES = 4  # some 2 there


class Selection(Strict):
    """What a token keeps: outcomes in the order of their probability, for as long as all rules agree.

    Attributes:
        top_k: Most outcomes.
        min_probability: None that is less likely than this, at temperature 1.
        mass: None after the first that together cover this, at temperature 1.
        at_least: So many whatever the two above say.
        mass_per_draw: Of all others one is drawn for each such part of their mass, `top_k` at most; 0: none.
    """

    top_k: int = Field(ge=1)
    min_probability: float = Field(0.0, ge=0, lt=1)
    mass: float = Field(1.0, gt=0, le=1)
    at_least: int = Field(1, ge=1)
    mass_per_draw: float = Field(0.0, ge=0, lt=1)

    @property
    def all_alike(self) -> bool:
        """Whether every token keeps `top_k`, draws aside."""
        return not self.min_probability and self.mass == 1

    @property
    def most(self) -> int:
        """Outcomes that a token may have, what is drawn included and the tail not."""
        return self.top_k * 2 if self.mass_per_draw else self.top_k

    def token_bytes(self, vocabulary: int) -> int:
        """Space to set aside for a token in a target store, whose distribution has `vocabulary` outcomes."""
        usual = self.most if self.all_alike else max(self.at_least, USUALLY_KEPT)
        return min(usual, self.most, vocabulary) * OUTCOME_BYTES
