"""Which outcomes of a token a target store keeps, and how many it draws from the tail.

The tail is all other outcomes.
"""

from __future__ import annotations

from pydantic import Field

from instil.system.files import Strict

# Estimated outcomes per token if a rule selects them; by default about 40 in worked solutions.
USUALLY_KEPT = 100
# Estimated bytes per outcome; about 2 in worked solutions.
OUTCOME_BYTES = 4


class Selection(Strict):
    """Which outcomes of a token are kept: the likeliest outcomes that pass all rules.

    Attributes:
        top_k: Most outcomes per token.
        min_probability: Least probability of an outcome, at temperature 1.
        mass: Keep no further outcome once those before it cover this mass, at temperature 1.
        at_least: Keep at least N outcomes, whatever the two rules above select.
        mass_per_draw: Draw one outcome of the tail per this much of its mass, at most `top_k`; 0:
            draw none.
    """

    top_k: int = Field(ge=1)
    min_probability: float = Field(0.0, ge=0, lt=1)
    mass: float = Field(1.0, gt=0, le=1)
    at_least: int = Field(1, ge=1)
    mass_per_draw: float = Field(0.0, ge=0, lt=1)

    @property
    def all_alike(self) -> bool:
        """Whether every token keeps `top_k` outcomes, not counting draws."""
        return not self.min_probability and self.mass == 1

    @property
    def most(self) -> int:
        """Most outcomes that a token can have, with drawn outcomes and without the tail."""
        return self.top_k * 2 if self.mass_per_draw else self.top_k

    def token_bytes(self, vocabulary: int) -> int:
        """Bytes to reserve per token in a target store, for a vocabulary of `vocabulary` tokens."""
        usual = self.most if self.all_alike else max(self.at_least, USUALLY_KEPT)
        return min(usual, self.most, vocabulary) * OUTCOME_BYTES
