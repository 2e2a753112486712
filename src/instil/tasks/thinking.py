"""What a model thinks before it answers. It is no part of the answer.

A thinking block stands between two marks. A chat template may open the block in the generation
prompt, or write an empty block before the last answer.
"""

from __future__ import annotations

MARKS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What opens and what closes a thinking block, for the model families that have one."""


def opened(text: str) -> tuple[str, str] | None:
    """The marks of a thinking block that a text opens and does not close; None if there is none."""
    for opening, closing in MARKS:
        if text.rfind(opening) > text.rfind(closing):
            return opening, closing
    return None


def closing_of(text: str, *, inside: bool = False) -> str | None:
    """The mark that closes the thinking at the start of a text; None if it has none there.

    Args:
        text: What a model writes, or a gold output.
        inside: Whether the prompt has opened a thinking block.
    """
    start = text.lstrip()
    for opening, closing in MARKS:
        if closing in text and (inside or start.startswith((opening, closing))):
            return closing
    return None


def spoken(text: str) -> str:
    """A gold output without the thinking at its start."""
    closing = closing_of(text)
    return text if closing is None else text.rpartition(closing)[2].lstrip("\r\n")


def split_off(text: str) -> tuple[str | None, str]:
    """What stands in the thinking block at the start of an answer, and the rest of the answer.

    The first is None if there is no such block.
    """
    start = text.lstrip()
    for opening, closing in MARKS:
        if start.startswith(opening) and closing in start:
            thoughts, _, rest = start.removeprefix(opening).partition(closing)
            return thoughts.strip("\r\n"), rest.lstrip("\r\n")
    return None, text


def after_opening(tail: str, output: str) -> str:
    """What a model writes after a prompt that has opened a thinking block.

    Args:
        tail: End of the prompt, from the query on. It opens a block.
        output: The gold output. It may begin with its own thinking; if not, the block is empty.
    """
    marks = opened(tail)
    assert marks is not None
    opening, closing = marks
    if closing_of(output) == closing:
        return output.lstrip().removeprefix(opening).lstrip("\r\n")
    written = tail.rpartition(opening)[2]
    return "\n\n"[len(written) :] + closing + "\n\n" + output
