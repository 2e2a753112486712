"""Finds texts that repeat themselves without an end, as greedy decoding may write them.

Such a row would be decoded to the length limit, and it would only say the same again (Holtzman et al.
2019, arXiv:1904.09751, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import StoppingCriteria

LONGEST_PERIOD = 64  # tokens of the text that is repeated
TIMES = 4
LEAST = 64  # tokens in which nothing else is written
EVERY = 16  # tokens after which a row is looked at


def repeating(ids_BL: Tensor) -> Tensor:
    """Whether each row ends in the same text, `TIMES` times or more, and in at least `LEAST` tokens.

    Args:
        ids_BL: Token ids, shape (B, L).

    Returns:
        Booleans, shape (B,).
    """
    found_B = torch.zeros(len(ids_BL), dtype=torch.bool, device=ids_BL.device)
    for period in range(1, LONGEST_PERIOD + 1):
        needed = max(TIMES * period, LEAST)
        if needed > ids_BL.shape[1]:
            break
        tail = ids_BL[:, -needed:]
        found_B |= (tail[:, period:] == tail[:, :-period]).all(-1)
    return found_B


def cut(ids: Sequence[int]) -> int | None:
    """Tokens after which `StopRepeats` would have ended a row; None if it would not."""
    for length in range(EVERY, len(ids) + 1, EVERY):
        if bool(repeating(torch.tensor([ids[:length]]))):
            return length
    return None


class StopRepeats(StoppingCriteria):
    """Ends a row that repeats itself.

    Attributes:
        lengths: Number of a row -> its new tokens when it was ended, and perhaps of a row that had
            ended before and was padded.

    Args:
        prompt_length: Length of the prompts, with padding.
    """

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Whether each row is at its end; see `transformers.StoppingCriteria`."""
        new_BL = input_ids[:, self.prompt_length :]
        length = new_BL.shape[1]
        if length % EVERY:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        found_B = repeating(new_BL)
        for row in found_B.nonzero().flatten().tolist():
            self.lengths.setdefault(row, length)
        return found_B
