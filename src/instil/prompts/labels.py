"""Labels as token sequences, and their probabilities.

p(label | prompt) is the sum, over the label's surface forms, of the probability of the form's token
sequence. For forms of one token, the logits after the prompt are enough. A longer form also needs
the logits after its first tokens. So a prompt is run with the fewest continuations (*paths*) that
give all these logits. A stem is a form without its last token. One path is enough if every stem is
the beginning of the longest stem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from instil.errors import AlignmentError, VerbalizerError
from instil.prompts.format import PromptFormat
from instil.prompts.pair import check_window
from instil.tasks.rows import Row

HEAD = ([0],)
"""Completions for a classification head, which reads only the prompt."""


@dataclass(frozen=True)
class LabelTokens:
    """The surface forms of all labels as token ids.

    Attributes:
        labels: Names of the L labels.
        forms: Surface forms of each label.
        vocabulary: Number of tokens of the tokenizer. Further outputs of a model are padding and
            get no probability. None if there is no padding.
    """

    labels: tuple[str, ...]
    forms: tuple[tuple[tuple[int, ...], ...], ...]
    vocabulary: int | None = None

    @classmethod
    def of(
        cls, verbalizer: Mapping[str, Sequence[str]], form: PromptFormat, query: str
    ) -> LabelTokens:
        """Tokenises the surface forms as they are tokenised after a prompt.

        Args:
            verbalizer: Label -> surface forms.
            form: Prompt format; it may put a space before an answer.
            query: Any query; the forms are tokenised after it.

        Raises:
            VerbalizerError: the tokens of a form are equal to a form of another label, or its
                beginning.
        """
        cut = {
            label: {tuple(form.answer_ids(Row(query, text))): text for text in texts}
            for label, texts in verbalizer.items()
        }
        for label, forms in cut.items():
            for other, others in cut.items():
                for ids, text in forms.items():
                    for longer, longer_text in others.items():
                        if label != other and longer[: len(ids)] == ids:
                            raise VerbalizerError(
                                f"the verbalizer cannot separate the labels {label!r} and {other!r}",
                                got=f"the tokens of {text!r} are {_how(ids, longer)} {longer_text!r}",
                                allowed="no form may be the beginning of another label's form",
                                mend="use other surface forms",
                            )
        return cls(
            labels=tuple(cut),
            forms=tuple(_shortest(tuple(forms)) for forms in cut.values()),
            vocabulary=len(form.tokenizer),
        )

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Token sequences after the prompt that give the logits of all forms; often only `()`."""
        stems = {ids[:-1] for forms in self.forms for ids in forms}
        return tuple(
            sorted(
                stem
                for stem in stems
                if not any(o != stem and o[: len(stem)] == stem for o in stems)
            )
        )

    @cached_property
    def completions(self) -> tuple[list[int], ...]:
        """The paths as completions: each has one more token, which is predicted but not read."""
        return tuple([*path, 0] for path in self.paths)

    @property
    def positions(self) -> int:
        """P: number of positions whose logits a prompt needs, over all paths."""
        return sum(map(len, self.completions))

    def cut(self, logits_NV: Tensor) -> Tensor:
        """The logits without the padding of the vocabulary."""
        return logits_NV[:, : self.vocabulary]

    def logprobs(self, logits_NV: Tensor) -> Tensor:
        """Log-probability of each label; their total probability is the verbalizer's mass.

        Args:
            logits_NV: Logits of R rows with P positions each (N = R × P), in the order of
                `completions`.

        Returns:
            Nats, shape (R, L).
        """
        rows = logits_NV.shape[0] // self.positions
        logprobs_RPV = self.cut(logits_NV).log_softmax(-1).reshape(rows, self.positions, -1)
        forms = [
            torch.logsumexp(
                torch.stack(
                    [logprobs_RPV[:, where, ids].sum(-1) for where, ids in self._places(forms)], -1
                ),
                -1,
            )
            for forms in self.forms
        ]
        return torch.stack(forms, dim=-1)

    def _places(self, forms: tuple[tuple[int, ...], ...]) -> list[tuple[list[int], list[int]]]:
        """For each form, the positions that predict its tokens, and the tokens."""
        places = []
        for ids in forms:
            start = 0
            for path, completion in zip(self.paths, self.completions, strict=True):
                if path[: len(ids) - 1] == ids[:-1]:
                    places.append((list(range(start, start + len(ids))), list(ids)))
                    break
                start += len(completion)
        return places


def _shortest(forms: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Forms that do not begin with another form: that form already has their probability."""
    return tuple(ids for ids in forms if not any(o != ids and ids[: len(o)] == o for o in forms))


def _how(ids: tuple[int, ...], longer: tuple[int, ...]) -> str:
    return "the same as those of" if ids == longer else "the beginning of those of"


def check_prompts(
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    window: int | None,
    *,
    what: str,
) -> None:
    """Checks that prompts with their completions fit a model's window.

    Args:
        prompts: Prompts in token ids.
        completions: Completions after each of them, in token ids.
        window: Longest sequence that the model can read, in tokens; None if it has no limit.
        what: What the prompts are, for the error message.

    Raises:
        AlignmentError: a prompt has no tokens, or does not fit. The message has the row and the
            numbers.
    """
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise AlignmentError(
                f"{what}, sampled row {number}: the prompt has no tokens",
                mend="use a pattern that contains text",
            )
        check_window(
            len(prompt),
            max(map(len, completions)),
            window,
            where=f"{what}, sampled row {number}",
            side="full",
            mend="use fewer demonstrations or shorten the row",
        )
