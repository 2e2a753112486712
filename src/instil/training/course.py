r"""The course of a training: how many steps it has, and the learning rate of each.

Of $n$ steps, $w$ are the warm-up. At step $s$, counted from 0, the learning rate is its highest
value times

$$ (s + 1) / (w + 1) \text{ if } s < w, \text{ else } f((s - w) / (n - w)) $$

with $f(t) = 1 - t$ (linear), $(1 + \cos \pi t) / 2$ (cosine) or 1 (constant). So no step has a
learning rate of 0. The schedules of transformers begin at 0: their first step changes no weight, so
a training of one step would learn nothing.

With `training.until`, the number of steps is not known in advance. After the warm-up, the learning
rate stays at its highest value until the loss on held-out rows stops falling, at step $b$. Then it
falls, as $f$ does, in $\max(10, b / 3)$ more steps, and training ends (warm-up, stable, decay:
Hu et al. 2024, arXiv:2404.06395). The loss stops falling when the last two fifths of the steps have
lowered it by less than 15 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from instil.recipe.sections import KlShare, Training
from instil.results.training import Ended

EVERY = 10
"""Steps between two measurements of the held-out loss."""
RECENT = 0.4
"""The loss has stopped falling if it has hardly fallen in this last share of the steps."""
LEAST_FALL = 0.15
"""The fall, as a share of the loss, that counts."""
FALLING = 1 / 3
"""Length of the fall of the learning rate, as a share of the steps before it."""


@dataclass
class Course:
    """The steps of a training.

    It depends only on the settings and on the held-out losses, so a training that is resumed with
    the same losses takes the same course.

    Attributes:
        fixed: Number of steps if it is fixed in advance. The warm-up and the checkpoints follow it.
        most: Most steps.
        warmup: Steps of the warm-up.
        falls: How the learning rate falls: linear, cosine or constant.
        until: When training ends; None: after `most` steps.
        losses: Held-out loss after a number of steps.
    """

    fixed: int
    most: int
    warmup: int
    falls: str
    until: str | KlShare | None = None
    losses: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Training, rows: int, *, watched: bool = False) -> Course:
        """The course that the settings ask for.

        Args:
            settings: Optimisation.
            rows: Number of lessons.
            watched: Whether there are held-out rows. Without them, the number of steps is fixed.
        """
        fixed = settings.steps(rows)
        until = settings.until if watched else None
        return cls(
            fixed=fixed,
            most=settings.most_steps(rows) if until else fixed,
            warmup=math.ceil(settings.warmup_share * fixed),
            falls=settings.schedule,
            until=until,
        )

    @property
    def end(self) -> int:
        """Number of steps, as far as it is known."""
        return self._ending[1]

    @property
    def ended(self) -> Ended | None:
        """Why training ends; None: the number of steps was fixed, or it is not known yet."""
        return self._ending[2]

    def measures(self, step: int) -> bool:
        """Whether the held-out loss is measured after this number of steps."""
        return self.until is not None and (step % EVERY == 0 or step == self.end)

    def share(self, step: int) -> float:
        """The share of the highest learning rate at a step, counted from 0."""
        begin, end, _ = self._ending
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if step < begin:
            return 1.0
        falling = max(1, end - begin)
        if self.falls == "linear":
            return max(0.0, (end - step) / falling)
        if self.falls == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - begin) / falling)))
        return 1.0

    @property
    def _ending(self) -> tuple[int, int, Ended | None]:
        """The first step at which the learning rate falls, the number of steps, and the reason."""
        if self.until is None:
            return self.warmup, self.most, None
        begin, end = self.most, self.most
        why: Ended | None = None
        for step in sorted(self.losses):
            if self._reached(step):
                return min(begin, step), step, "kl_share"
            if why is None:
                fall = 0 if self.falls == "constant" else max(EVERY, round(FALLING * step))
                # The learning rate at the next step is set before the loss is measured.
                if self._flat(step):
                    begin, end, why = step + 1, min(self.most, step + 1 + fall), "plateau"
                elif step + EVERY + fall >= self.most:
                    begin, why = step + 1, "max_steps"
        return begin, end, why

    def _reached(self, step: int) -> bool:
        """Whether the loss at this step is the share of the first loss that is asked for."""
        if not isinstance(self.until, KlShare) or not step:
            return False
        return self.losses[step] <= self.until.kl_share * self.losses.get(0, 0.0)

    def _flat(self, step: int) -> bool:
        """Whether the loss had stopped falling after this number of steps."""
        before = [loss for at, loss in self.losses.items() if at <= (1 - RECENT) * step]
        recent = [loss for at, loss in self.losses.items() if (1 - RECENT) * step < at <= step]
        trained = step >= self.warmup + 2 * EVERY
        return trained and min(recent) > (1 - LEAST_FALL) * min(before)
