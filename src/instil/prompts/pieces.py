"""Tokenises long texts in pieces, each of which is tokenised once.

A tokenizer cuts a text at its added tokens, such as `<|im_start|>`, and tokenises what stands
between them apart. The turns of a conversation therefore have the same ids in every prompt. This
is shown for each tokenizer before it is used; a tokenizer that does otherwise reads whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from itertools import islice, product

from transformers import PreTrainedTokenizerBase

KNOWN_PIECES = 2048
"""Pieces whose ids are kept. The turns of a conversation follow each other closely."""
FIRST_TEXTS, EVERY = 8, 256
"""How many of the first texts, and which of the later ones, are tokenised as a whole, too."""
_MOST_CUTS = 16
_BORDERS = (
    "",
    "a",
    "a ",
    " a",
    "\n",
    "\n\na",
    " \n ",
    "é",
    "e\u0301",
    "日本",
    "🙂",
    "'s",
    "12",
    "<",
    "|",
)
"""What may stand before and after an added token."""


class Pieces:
    """Tokenises texts without the tokens that stand around a whole text.

    Attributes:
        used: Whether texts are tokenised in pieces. It becomes False for good if the ids of a text
            differ from those of the whole text.

    Args:
        tokenizer: The tokenizer.
        cuts: Added tokens at which a text may be cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cuts: Collection[str]) -> None:
        self._tokenizer = tokenizer
        self._piece = lru_cache(maxsize=KNOWN_PIECES)(self._alone)
        self._count = 0
        found = list(islice((cut for cut in cuts if _cuts(tokenizer, cut)), _MOST_CUTS))
        longest_first = sorted(found, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self.used = bool(found) and self._proven(found)

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, the same as those of the whole text."""
        if not self.used:
            return list(self._whole(text))
        ids = self._joined(text)
        self._count += 1
        if self._count <= FIRST_TEXTS or self._count % EVERY == 0:
            whole = [*self._whole(text)]
            self.used = ids == whole
            return whole
        return ids

    def _joined(self, text: str) -> list[int]:
        """The ids of the pieces. Each but the first one begins with an added token."""
        start, *others = self._cut.split(text)
        ids = [*self._piece(start)] if start else []
        for number in range(0, len(others), 2):
            ids += self._piece(others[number] + others[number + 1])
        return ids

    def _alone(self, piece: str) -> tuple[int, ...]:
        # Where each token stands in the text is not needed, and takes a third of the time.
        backend = self._tokenizer.backend_tokenizer
        return tuple(backend.encode_batch_fast([piece], add_special_tokens=False)[0].ids)

    def _whole(self, text: str) -> tuple[int, ...]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(ids)

    def _proven(self, cuts: Collection[str]) -> bool:
        """Whether texts with added tokens have the ids of their pieces."""
        texts = [
            f"{before}{cut}{after}{other}{before}"
            for cut, other in zip(cuts, [*cuts][1:] + [*cuts][:1], strict=True)
            for before, after in product(_BORDERS, repeat=2)
        ]
        whole = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return all(self._joined(text) == ids for text, ids in zip(texts, whole, strict=True))


def _cuts(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether a tokenizer cuts every text at a token, wherever the token stands.

    It does not if another added token may hold a part of it, or if the token also takes white
    space before it, or is looked for in another form of the text.
    """
    if not tokenizer.is_fast:
        return False
    added = tokenizer.added_tokens_decoder.values()
    own = [one for one in added if one.content == token]
    if not own or any(one.normalized or one.lstrip or one.single_word for one in own):
        return False
    others = [one.content for one in added if one.content != token]
    return not any(
        token in other or any(other.endswith(token[:end]) for end in range(1, len(token)))
        for other in others
    )
