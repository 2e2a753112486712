"""From text to token ids and back.

A control token is a token that opens or ends a text or a turn, such as `<|im_end|>`. Text that
comes from data may spell one. It is marked before it goes into a prompt, and is then tokenised as
plain text, so it can neither forge a turn nor end one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from instil.prompts.pieces import Pieces
from instil.tasks.thinking import MARKS

_START, _END = "\ufdd0", "\ufdd1"  # Unicode reserves these for use inside a program
HALF = "\ufffd"
"""In the text of a token, stands for a part of a character."""
_TAG = re.compile(r"<.+>|\[.+\]")
_THOUGHTS = {mark for pair in MARKS for mark in pair}


def unmarked(text: str) -> str:
    """The text without the marks around spelt control tokens."""
    return text.replace(_START, "").replace(_END, "") if _START in text else text


class Tokens:
    """Tokenises prompts and completions.

    Attributes:
        pieces: Tokenises texts that hold the template's control tokens.

    Args:
        tokenizer: The tokenizer.
        ends: Further token ids that end a text.
        template: Text that a chat template writes around the turns; its added tokens are control
            tokens.
        own: Text that the user wrote for every prompt, such as a pattern. The control tokens that
            it spells remain tokens everywhere.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ends: Collection[int] = (),
        template: str = "",
        own: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self._before, self._after = self._around()
        self.line_break = self._bare("\n")
        # SentencePiece puts a space before a text, and takes it away when it decodes.
        self._adds_space = self._bare("\na") != self.line_break + self._bare("a")
        self._takes_space = self._adds_space and tokenizer.decode(self.line_break) == "\n"
        control = {
            number: token for number, token in self._control(ends, template) if token not in own
        }
        self._control_ids = set(control)
        longest_first = sorted(control.values(), key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.pieces = Pieces(tokenizer, [one for one in longest_first if one in template])

    @property
    def start(self) -> list[int]:
        """The token ids that stand before a text, at least one."""
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        marks = [[int(number)] for number in known if number is not None]
        return next(filter(None, [self._before, *marks]), self.line_break)

    @cached_property
    def by_text(self) -> dict[str, int | None]:
        """Text of a token -> its id; None if several tokens have this text."""
        made: dict[str, int | None] = {}
        for number in range(len(self.tokenizer)):
            text = self.text([number])
            if text and HALF not in text:
                made[text] = None if text in made else number
        return made

    def spells(self, text: str) -> str | None:
        """The first control token that a text from data spells; None if there is none."""
        found = self._spelt.search(text)
        return found and found[0]

    def marked(self, text: str) -> str:
        """A text from data, with marks around the control tokens that it spells."""
        return self._spelt.sub(rf"{_START}\g<0>{_END}", text)

    def ids(self, text: str, *, special: bool) -> list[int]:
        """The token ids of a prompt.

        Args:
            text: The prompt; data in it is marked.
            special: Whether to add the tokens that the tokenizer puts before a text. Tokens that it
                puts after a text are never added: a prompt must not be closed.
        """
        first, *others = self._pieces(text)
        ids = self._with_special(first) if special else self.pieces.ids(first)
        if special and self._after:
            ids = ids[: -len(self._after)]
        count = len(self._before)
        if (
            special and count and ids[count : 2 * count] == self._before
        ):  # the pattern has them, too
            ids = ids[count:]
        for number, piece in enumerate(others):
            ids = ids + self._inside(piece, control=number % 2 == 0)
        return ids

    def continuation(
        self, prompt: str, prompt_ids: list[int], text: str, *, special: bool
    ) -> list[int]:
        """The token ids of a text after a prompt.

        If a token would span the border, the text is tokenised alone.

        Args:
            prompt: The prompt; data in it is marked.
            prompt_ids: Its token ids.
            text: The text; data in it is marked.
            special: As for `ids`.
        """
        joined = self.ids(prompt + text, special=special)
        if joined[: len(prompt_ids)] == prompt_ids:
            return joined[len(prompt_ids) :]
        ids: list[int] = []
        for number, piece in enumerate(self._pieces(text)):
            ids += self._inside(piece, control=number % 2 == 1)
        return ids

    def spans_border(self, prompt: str, text: str, *, special: bool) -> bool:
        """Whether the tokens of a prompt change when a text follows it."""
        alone = self.ids(prompt, special=special)
        return self.ids(prompt + text, special=special)[: len(alone)] != alone

    def text(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of token ids inside a text: a space at its start is not lost."""
        anchor = self.line_break if self._takes_space else []
        text = str(
            self.tokenizer.decode(
                [*anchor, *ids],
                skip_special_tokens=skip_special,
                clean_up_tokenization_spaces=False,
            )
        )
        return text.removeprefix("\n") if anchor else text

    def _pieces(self, text: str) -> list[str]:
        """Text, spelt control token, text, spelt control token and so on; ends in text."""
        if _START not in text:
            return [text]
        return re.split(f"{_START}({self._spelt.pattern}){_END}", text)

    def _inside(self, piece: str, *, control: bool) -> list[int]:
        """Token ids of a piece that does not begin a text."""
        if control:
            return self._split(piece)
        if self._adds_space and piece:
            after, count = self.pieces.ids("\n" + piece), len(self.line_break)
            if after[:count] == self.line_break:
                return after[count:]
        return self.pieces.ids(piece)

    def _split(self, token: str) -> list[int]:
        """A control token's text in ordinary tokens: neither of two parts is a control token."""
        for cut in range(1, len(token)):
            ids = self._inside(token[:cut], control=False) + self._inside(
                token[cut:], control=False
            )
            if not self._control_ids & set(ids):
                return ids
        return self._bare(token)  # for example `<unk>`, if its letters are unknown, too

    def _with_special(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def _bare(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after every text."""
        alone, whole = self._bare("a"), self.tokenizer("a")["input_ids"]
        for start in range(len(whole) - len(alone) + 1):
            if alone and whole[start : start + len(alone)] == alone:
                return whole[:start], whole[start + len(alone) :]
        return [], []

    def _control(self, ends: Collection[int], template: str) -> Iterator[tuple[int, str]]:
        special = self.tokenizer.special_tokens_map.values()
        named = [token for token in special if isinstance(token, str)]
        for number, added in self.tokenizer.added_tokens_decoder.items():
            token = added.content
            in_template = token in template and (added.special or _TAG.fullmatch(token))
            if (
                (token in named or number in ends or in_template)
                and token.strip()
                and token not in _THOUGHTS
            ):
                yield number, token
