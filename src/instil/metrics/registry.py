"""The registry of metrics: what an answer is compared with, and how well it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from instil.errors import ConfigError, did_you_mean

Function = Callable[[str, Any], float]
"""A function of an answer and of what is expected: yes or no, or a number from 0 to 1.

Expected is the gold answer of the row where the function is a metric, and the argument of the rule
where it is a rule.
"""
F = TypeVar("F", bound=Callable[..., Any])

GROUP = "instil.metrics"
"""Entry points of other packages with metrics."""
PYTHON = "python:"


@dataclass(frozen=True)
class Metric:
    """A named way to judge an answer.

    Attributes:
        name: Its name.
        function: Judges an answer.
        compares: Whether an answer can be compared with a gold answer. If not, the metric is only
            for rules.
        of_itself: Whether a gold answer is right by its own measure. That of `regex` is a pattern.
        reads: Prepares the argument of a rule, and refuses a wrong one; None: it is text.
        given: Makes the function from what follows the name after a colon; None: nothing may follow.
    """

    name: str
    function: Function
    compares: bool = True
    of_itself: bool = True
    reads: Callable[[Any], Any] | None = None
    given: Callable[[str], Function] | None = None

    def value(self, written: str, expected: Any, *, where: str = "") -> float:
        """Judges an answer: a boolean, or a number from 0 to 1.

        Args:
            written: The answer.
            expected: The gold answer, or the argument of a rule.
            where: The row, for error messages.

        Raises:
            ConfigError: the function fails, or gives something else.
        """
        try:
            found = self.function(written, expected)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the metric {self.name!r} fails on {where or 'an answer'}",
                got=f"{type(error).__name__}: {error}",
                mend="correct the function, or leave out the metric",
            ) from error
        if isinstance(found, bool):
            return found
        if isinstance(found, int | float) and math.isfinite(found) and 0 <= found <= 1:
            return float(found)
        raise ConfigError(
            f"the metric {self.name!r} gives no value for {where or 'an answer'}",
            got=repr(found)[:80],
            allowed="True, False, or a number from 0 to 1",
        )


METRICS: dict[str, Metric] = {}
"""Name -> metric."""


def metric(
    name: str,
    *,
    compares: bool = True,
    of_itself: bool = True,
    reads: Callable[[Any], Any] | None = None,
    given: Callable[[str], Function] | None = None,
) -> Callable[[F], F]:
    """Registers a function as a metric with this name.

    ```python
    @instil.metrics.metric("same_first_word")
    def same_first_word(written: str, gold: str) -> bool:
        return written.split()[:1] == gold.split()[:1]
    ```

    Args:
        name: The name.
        compares: See `Metric`, also for the next three arguments.
        of_itself: Whether a gold answer is right by its own measure.
        reads: Prepares the argument of a rule.
        given: Makes the function from what follows the name after a colon.

    Raises:
        ValueError: another metric already has this name.
    """

    def register(function: F) -> F:
        made = Metric(name, function, compares, of_itself, reads, given)
        if METRICS.setdefault(name, made).function is not function:
            raise ValueError(f"there is already a metric {name!r}; choose another name")
        return function

    return register


def find(name: str, *, read: bool = True) -> Metric:
    """Finds a metric by its name.

    Args:
        read: Whether to read what the name takes; if not, only the name is checked.
        name: A name of the registry or of an entry point, `python:MODULE.FUNCTION`, or a name with
            what it takes after a colon, such as `json_fields:schema.json`.

    Raises:
        ConfigError: there is no such metric, or it cannot take what follows its name.
    """
    if name in METRICS:
        return METRICS[name]
    called, _, argument = name.partition(":")
    if called in METRICS and argument:
        taking = METRICS[called]
        if taking.given is None:
            raise ConfigError(
                f"the metric {called!r} takes nothing after its name",
                got=repr(name),
                allowed=called,
            )
        return replace(taking, name=name, function=taking.given(argument)) if read else taking
    if name.startswith(PYTHON):
        return Metric(name, _imported(name))
    for point in entry_points(group=GROUP):
        if point.name == name:
            return Metric(name, point.load())
    known = [*METRICS, *(point.name for point in entry_points(group=GROUP))]
    raise ConfigError(
        f"there is no metric {name!r}",
        mend=f"{did_you_mean(name, known)}; or python:MODULE.FUNCTION for your own",
    )


def comparing(name: str, *, read: bool = True) -> Metric:
    """Finds a metric that compares an answer with a gold answer; see `find`.

    Raises:
        ConfigError: there is no such metric, or it is only for rules.
    """
    found = find(name, read=read)
    if not found.compares:
        raise ConfigError(
            f"the metric {name!r} compares with no gold answer: it is for rules",
            mend="write it in a file of rules (--rules), or use another metric",
        )
    return found


def _imported(name: str) -> Function:
    module, _, attribute = name.removeprefix(PYTHON).replace(":", ".").rpartition(".")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the metric {name!r} cannot be imported",
            got=f"{type(error).__name__}: {error}",
            allowed="python:MODULE.FUNCTION, with a module that Python can import",
            mend="install the module, or set PYTHONPATH to its folder",
        ) from error
    if not callable(function):
        raise ConfigError(f"the metric {name!r} is no function", got=type(function).__name__)
    return function  # type: ignore[no-any-return]


def needs(library: str, metric: str) -> ConfigError:
    """The error for a library that a metric needs and that is not installed."""
    return ConfigError(
        f"the metric {metric!r} needs the library {library}", mend="pip install 'instil[metrics]'"
    )
