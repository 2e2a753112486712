"""Labels as token sequences, and their probabilities.

p(label | prompt) is the sum, over the label's surface forms, of the probability of the form's token
sequence. For forms of one token, the logits after the prompt are enough. A longer form also needs
the logits after its first tokens. A stem is a form without its last token. So a prompt is read with
all stems as the branches of a tree (`instil.models.branches`). There is one path if every stem is
the beginning of the longest stem.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from instil.errors import AlignmentError, VerbalizerError
from instil.models.branches import Branches
from instil.prompts.format import PromptFormat
from instil.prompts.pair import check_window
from instil.tasks.rows import Row

HEAD = Branches(((),))
"""For a classification head, which reads only the prompt."""


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
    def branches(self) -> Branches:
        """What is read after a prompt to get the logits of all forms."""
        return Branches.of({ids[:-1] for forms in self.forms for ids in forms})

    @property
    def positions(self) -> int:
        """P: number of positions whose logits a prompt needs: the nodes of the branches."""
        return len(self.branches.nodes)

    @property
    def visits(self) -> Tensor:
        """Number of paths that go through each position."""
        return self.branches.visits

    def cut(self, logits_NV: Tensor) -> Tensor:
        """The logits without the padding of the vocabulary."""
        return logits_NV[:, : self.vocabulary]

    def logprobs(self, chunks: Iterable[Tensor]) -> Tensor:
        """Log-probability of each label; their total probability is the verbalizer's mass.

        Args:
            chunks: Logits of R rows with P positions each, in the order of the nodes of `branches`:
                chunks of any length, each with shape (C, V).

        Returns:
            Nats, shape (R, L).
        """
        made, end = [], 0
        for logits_CV in chunks:
            start, end = end, end + len(logits_CV)
            made.append(self.token_logprobs(logits_CV, start))
        return self.joined(torch.cat(made))

    def token_logprobs(self, logits_CV: Tensor, start: int) -> Tensor:
        """Log-probabilities of the tokens that continue a form. The vocabulary is not needed after.

        Args:
            logits_CV: Logits of some of R x P positions.
            start: Number of the first of them.

        Returns:
            Nats, shape (C, K); K is the largest number of tokens that continue forms at one
            position. Positions with fewer of them are padded with any values.
        """
        position_C = torch.arange(start, start + len(logits_CV)) % self.positions
        ids_CK = self._ids[position_C].to(logits_CV.device)
        return self.cut(logits_CV).log_softmax(-1).gather(-1, ids_CK)

    def joined(self, logprobs_NK: Tensor) -> Tensor:
        """Log-probability of each label, shape (R, L), from what `token_logprobs` gives."""
        logprobs_RPK = logprobs_NK.reshape(-1, self.positions, logprobs_NK.shape[-1])
        labels = [
            torch.logsumexp(
                torch.stack([logprobs_RPK[:, nodes, columns].sum(-1) for nodes, columns in places]),
                0,
            )
            for places in self._places
        ]
        return torch.stack(labels, dim=-1)

    @cached_property
    def _next(self) -> list[list[int]]:
        """For each node, the tokens that continue a form."""
        following: list[list[int]] = [[] for _ in self.branches.nodes]
        for ids in sorted({ids for forms in self.forms for ids in forms}):
            for end, token in enumerate(ids):
                tokens = following[self.branches.number[ids[:end]]]
                if token not in tokens[-1:]:  # sorted, so the same tokens come one after another
                    tokens.append(token)
        return following

    @cached_property
    def _ids(self) -> Tensor:
        """The same tokens, padded with any token."""
        width = max(map(len, self._next))
        return torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in self._next])

    @cached_property
    def _places(self) -> list[list[tuple[list[int], list[int]]]]:
        """For each form of each label, where `token_logprobs` has its tokens: nodes and columns."""

        def place(ids: tuple[int, ...]) -> tuple[list[int], list[int]]:
            nodes = [self.branches.number[ids[:end]] for end in range(len(ids))]
            return nodes, [self._next[n].index(token) for n, token in zip(nodes, ids, strict=True)]

        return [[place(ids) for ids in forms] for forms in self.forms]


def _shortest(forms: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Forms that do not begin with another form: that form already has their probability."""
    return tuple(ids for ids in forms if not any(o != ids and ids[: len(o)] == o for o in forms))


def _how(ids: tuple[int, ...], longer: tuple[int, ...]) -> str:
    return "the same as those of" if ids == longer else "the beginning of those of"


def check_prompts(
    prompts: Sequence[list[int]],
    branches: Branches,
    window: int | None,
    *,
    what: str,
) -> None:
    """Checks that prompts with the labels after them fit a model's window.

    Args:
        prompts: Prompts in token ids.
        branches: What is read after each of them.
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
            branches.longest + 1,
            window,
            where=f"{what}, sampled row {number}",
            side="full",
            mend="use fewer demonstrations or shorten the row",
        )
