"""The same words, however they are written."""

from __future__ import annotations

import unicodedata

from instil.metrics.registry import metric


def normal(text: str) -> str:
    """A text without case, punctuation, extra white space and differences of Unicode form."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (" " if unicodedata.category(letter)[0] in "PZC" else letter for letter in folded)
    return " ".join("".join(kept).split())


@metric("normalised")
def normalised(written: str, expected: str) -> bool:
    """Whether two texts are equal without case, punctuation and extra white space.

    A text of punctuation alone is compared as it is.
    """
    one, two = normal(written), normal(expected)
    return one == two if one or two else written.strip() == expected.strip()
