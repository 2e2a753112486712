"""Log-probabilities that came with an answer: for each of its tokens, those of the likeliest tokens.

A row keeps them as JSON text, a list with one item for each token of the answer: pairs of a token
and its log-probability in nats. The first pair is the token itself. A token is its text, or its id
if the server told ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_ID = "token_id:"
"""What stands before an id where vLLM is asked for ids (`return_tokens_as_token_ids`)."""

Step = list[tuple[str | int, float]]
"""Tokens that may stand at one place, with their log-probabilities in nats."""


def logprobs_of(value: object) -> str | None:
    """Log-probabilities of a record as JSON text; None if there are none.

    Args:
        value: The JSON text or its list, or `choices[0].logprobs` of OpenAI's interface. Other
            values are not of this kind, so there are none.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    try:
        steps = [*map(_told, value["content"])] if isinstance(value, Mapping) else value
        if not steps or not isinstance(steps, list):
            return None
        known = [[(_token(token), float(logprob)) for token, logprob in step] for step in steps]
    except (KeyError, TypeError, ValueError):
        return None
    if not all(known):
        return None
    return json.dumps([[[token, round(p, 5)] for token, p in step] for step in known])


def steps_of(text: str) -> list[Step]:
    """What `logprobs_of` has written."""
    return [[(token, logprob) for token, logprob in step] for step in json.loads(text)]


def _told(one: Mapping[str, Any]) -> list[tuple[object, object]]:
    """A token of OpenAI's interface: itself first, then the other likeliest ones."""
    others = one.get("top_logprobs") or []
    pairs = [(other["token"], other["logprob"]) for other in others]
    return [(one["token"], one["logprob"]), *(pair for pair in pairs if pair[0] != one["token"])]


def _token(token: object) -> str | int:
    if isinstance(token, str):
        return int(token.removeprefix(_ID)) if token.startswith(_ID) else token
    if isinstance(token, int):
        return token
    raise TypeError(token)
