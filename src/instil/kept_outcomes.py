"""Which outcomes of a token a target store keeps one by one, and how many it draws from its tail, which are all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field

from instil.stored import Strict

if TYPE_CHECKING:
    from instil.config import Teacher
    from instil.objective import Objective


USUALLY_KEPT = 100  # outcomes a token, where a rule chooses; by default some 40 in worked solutions
OUTCOME_BYTES = 4  # some 2 there


class Kept(Strict):
    """What a token keeps: outcomes in the order of their probability, for as long as all rules agree.

    Attributes:
        top_k: At most so many.
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

    @classmethod
    def of(cls, teacher: Teacher, objective: Objective) -> Self:
        """As the recipe says, and as many as a loss of raw logits reads; where nothing reads more, no more.

        Nothing is drawn at another temperature than 1. At a higher one the tail has a large share of all: few draws say little of
        it, and many take the space that was to be saved.
        """
        read = objective.top_k_needed
        draws = objective.takes_draws and objective.temperature == 1
        if read and (read >= teacher.top_k or not objective.needs_distribution):
            return cls(top_k=read)
        rule = cls(
            top_k=teacher.top_k,
            min_probability=teacher.min_probability,
            mass=teacher.mass,
            mass_per_draw=teacher.mass_per_draw if draws else 0.0,
        )
        return rule if rule.all_alike else rule.model_copy(update={"at_least": read or 1})


SETTINGS = set(Kept.model_fields) - {"at_least"}
"""Of a teacher: those that `Kept.of` reads."""


def settled(teacher: Teacher, objective: Objective) -> Teacher:
    """The same teacher; what decides nothing of what is kept is set to its default, so that equal targets have equal settings."""
    kept, plain = Kept.of(teacher, objective), type(teacher)()
    read = objective.top_k_needed
    changes: dict[str, object] = {}
    if read and kept == Kept(top_k=read):
        changes = plain.model_dump(include=SETTINGS) | {"top_k": read}
    elif not Kept.of(plain, objective).mass_per_draw:
        changes = {"mass_per_draw": plain.mass_per_draw}
    return teacher.model_copy(update=changes)
