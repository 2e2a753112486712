"""Labels as token sequences, scored whole: what a verbalizer becomes once a tokenizer has cut it.

p(label | prompt) is the sum over its surface forms of the probability of the form's whole token sequence. Forms of one
token are all read off the logits after the prompt; a longer form needs the logits after its first tokens, too. So a
prompt is run with as few continuations (*paths*) as give all these logits: one, whenever no two long forms part ways.
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


@dataclass(frozen=True)
class LabelTokens:
    """The surface forms of all labels in token ids.

    Attributes:
        labels: Their names, L of them.
        forms: Of each label, its surface forms.
        vocabulary: Tokens that the tokenizer knows; what a model has beyond them is padding and gets no probability.
            None: the model has none.
    """

    labels: tuple[str, ...]
    forms: tuple[tuple[tuple[int, ...], ...], ...]
    vocabulary: int | None = None

    @classmethod
    def of(
        cls, verbalizer: Mapping[str, Sequence[str]], form: PromptFormat, query: str
    ) -> LabelTokens:
        """Cuts the surface forms as they are cut after a prompt.

        Args:
            verbalizer: Label -> surface forms.
            form: Renders an answer, for example with a space before it.
            query: Any query: the forms are cut as they follow it.

        Raises:
            VerbalizerError: a form of one label is, in tokens, also a form of another or the beginning of one.
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
                                f"the verbalizer cannot tell {label!r} from {other!r}",
                                got=f"{text!r} is in tokens {_how(ids, longer)} {longer_text!r}",
                                allowed="forms of which none begins another label's",
                                mend="use other surface forms",
                            )
        return cls(
            labels=tuple(cut),
            forms=tuple(_shortest(tuple(forms)) for forms in cut.values()),
            vocabulary=len(form.tokenizer),
        )

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """What is put after a prompt so that the logits of every form's every token are there; often just `()`."""
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
        """The paths as completions: each with one token more, which is predicted but not read."""
        return tuple([*path, 0] for path in self.paths)

    @property
    def positions(self) -> int:
        """P: positions whose logits one prompt needs, all paths together."""
        return sum(map(len, self.completions))

    def cut(self, logits_NV: Tensor) -> Tensor:
        """The logits without what pads the vocabulary."""
        return logits_NV[:, : self.vocabulary]

    def logprobs(self, logits_NV: Tensor) -> Tensor:
        """Log-probability of each label, over the whole vocabulary: the labels' sum is the verbalizer's mass.

        Args:
            logits_NV: Logits of R rows, P positions each, as `completions` orders them.

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
        """Of each form, the positions that predict its tokens, and the tokens."""
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
    """Without forms that begin with another one: their probability is part of that one's."""
    return tuple(ids for ids in forms if not any(o != ids and ids[: len(o)] == o for o in forms))


def _how(ids: tuple[int, ...], longer: tuple[int, ...]) -> str:
    return "the same as" if ids == longer else "the beginning of"


def check_prompts(
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    window: int | None,
    *,
    what: str,
) -> None:
    """Refuses prompts that a model cannot read whole with what is put after them.

    Args:
        prompts: In token ids.
        completions: What is put after them.
        window: Longest sequence that the model reads, in tokens; None if it has no limit.
        what: Names them in the message.

    Raises:
        AlignmentError: names the row and the numbers.
    """
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise AlignmentError(
                f"{what}, drawn row {number}: no tokens", mend="use a pattern with text in it"
            )
        check_window(
            len(prompt),
            max(map(len, completions)),
            window,
            where=f"{what}, drawn row {number}",
            side="whole",
            mend="take fewer demonstrations or shorten the row,",
        )
