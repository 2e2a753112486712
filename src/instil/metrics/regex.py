"""Regular expressions."""

from __future__ import annotations

import re

from instil.errors import ConfigError
from instil.metrics.arguments import pattern
from instil.metrics.registry import metric


@metric("regex", of_itself=False, reads=pattern)
def regex(written: str, expected: str | re.Pattern[str]) -> bool:
    """Whether a regular expression is found in an answer. As a metric, the gold output is one."""
    try:
        return re.search(expected, written) is not None
    except re.error as error:
        raise ConfigError(
            "the metric 'regex' needs gold outputs that are regular expressions",
            got=f"{str(expected)[:80]!r}: {error}",
            mend="correct the row, or use another metric",
        ) from error


@metric("must_regex", compares=False, reads=pattern)
def must_regex(written: str, expected: re.Pattern[str]) -> bool:
    """Whether a regular expression is found in an answer."""
    return expected.search(written) is not None


@metric("forbid_regex", compares=False, reads=pattern)
def forbid_regex(written: str, expected: re.Pattern[str]) -> bool:
    """Whether a regular expression is not found in an answer."""
    return expected.search(written) is None
