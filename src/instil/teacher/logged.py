"""The teacher's predictions that stand in the rows: what a server told with its answers.

A server of text splits its answers into tokens of its own. As long as they are the tokens of the
student's completion, what it told of them is what a teacher in this process would predict. From the
first difference on, nothing is known, and the completion is learnt as text. An end of a turn that a
server does not list is such a place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from instil.errors import FieldError
from instil.prompts.tokens import HALF, Tokens
from instil.results.training import LoggedTargets
from instil.system.files import digest
from instil.targets.prediction import Targets
from instil.targets.selection import Selection
from instil.targets.told import Step, told_targets
from instil.tasks.logprobs import Step as Named
from instil.tasks.logprobs import steps_of
from instil.tasks.rows import Row

LEAST_ALIKE = 0.9
"""Share of the answers that both tokenizers must split in the same way."""


@dataclass(frozen=True)
class Logged:
    """The predictions that stand in rows.

    Attributes:
        rows: The rows.
        tokens: The student's tokenizer.
        vocabulary: Number of the student's outcomes.
    """

    rows: Sequence[Row]
    tokens: Tokens
    vocabulary: int

    @cached_property
    def digest(self) -> str:
        """A digest of all of them."""
        return digest([row.logprobs for row in self.rows])

    def check(self, completions: Iterable[tuple[int, list[int]]]) -> None:
        """Refuses rows without any, and those of another tokenizer.

        Answers that call tools are not counted: a server may tell the tokens of another spelling.

        Args:
            completions: Numbers of rows, and completions in token ids.

        Raises:
            FieldError: the message has the numbers.
        """
        covered, alike = 0, 0
        for row, completion in completions:
            told, turn = self._told(row), self.rows[row].turn
            if not told or (turn and turn.answer and turn.answer.tool_calls):
                continue
            known = len(_known(self._steps(told), completion))
            covered += 1
            # A server may list an end of its own. Half a character may have no name.
            half = known < len(told) and HALF in str(told[known][0][0])
            alike += known > 0 and (known >= min(len(told) - 1, len(completion)) or half)
        if not any(row.logprobs for row in self.rows):
            raise FieldError(
                "teacher.targets is logged, but no row has log-probabilities",
                mend="answer the rows with `instil answer --logprobs 20`, or leave teacher.targets out",
            )
        if alike < LEAST_ALIKE * covered:
            raise FieldError(
                "the log-probabilities are of other tokens than the student's",
                got=f"{alike:,} of {covered:,} answers are split into the same tokens",
                allowed=f"at least {LEAST_ALIKE:.0%}",
                mend="use --format chat if a chat was answered, and the thoughts that were told "
                "(--thinking learn); with another tokenizer, leave teacher.targets out and set "
                "objective=cross_entropy, to learn the text",
            )

    def counted(self, completions: Iterable[tuple[int, list[int]]]) -> LoggedTargets:
        """How much of completions is learnt from predictions; see `check` for the argument."""
        found = [len(self.known(*one)) for one in completions]
        return LoggedTargets(rows=sum(count > 0 for count in found), tokens=sum(found))

    def known(self, row: int, completion: Sequence[int]) -> list[Step]:
        """What is known of the first tokens of a completion: ids, and log-probabilities in nats."""
        return _known(self._steps(self._told(row)), completion)

    def targets(self, row: int, completion: Sequence[int], kept: Selection) -> Targets:
        """The targets of a completion. Where nothing is known, its own token has all probability.

        Args:
            row: Number of the row.
            completion: Its completion, in token ids.
            kept: Which outcomes are kept.
        """
        known = self.known(row, completion)
        text: list[Step] = [[(token, 0.0)] for token in completion[len(known) :]]
        return told_targets([*known, *text], kept, self.vocabulary)

    def _told(self, row: int) -> list[Named]:
        text = self.rows[row].logprobs
        return [] if text is None else steps_of(text)

    def _steps(self, told: Sequence[Named]) -> list[list[tuple[int | None, float]]]:
        """The same with the student's ids; None for a token that it does not have, or has twice."""
        ids = self.tokens.by_text
        return [
            [(name if isinstance(name, int) else ids.get(name), p) for name, p in step]
            for step in told
        ]


def _known(
    steps: Sequence[Sequence[tuple[int | None, float]]], completion: Sequence[int]
) -> list[Step]:
    found: list[Step] = []
    for step, token in zip(steps, completion, strict=False):
        if step[0][0] != token:
            break
        found.append([(known, logprob) for known, logprob in step if known is not None])
    return found
