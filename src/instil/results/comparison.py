"""Compares the cells of a study: a flat table of their scores, and the best cell."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from instil.errors import ConfigError, did_you_mean
from instil.methods import MethodName
from instil.results.schema import MethodResult, Results
from instil.results.scores import SetScore
from instil.results.statistics import deviation


def averages(cells: Iterable[Results], varied: Sequence[str]) -> list[dict[str, Any]]:
    """Averages scores over seeds.

    Args:
        cells: The finished cells of a study.
        varied: Keys of the grid. All except `method` and `seed` make up the setting.

    Returns:
        One row per method, setting and evaluation set, in the order of the cells. All rows have
        the same keys. The values are numbers, strings, booleans or None.
    """
    keys = [key for key in varied if key not in ("method", "seed")]
    groups: dict[str, tuple[dict[str, Any], list[tuple[MethodResult, SetScore]]]] = {}
    for cell in cells:
        setting = {key: _scalar(cell.varied.get(key)) for key in keys}
        for number, result in enumerate(cell.methods):
            for score in result.scores:
                row = {"method": result.method, "baseline": number > 0, **setting}
                row |= {"set": score.name, "domain": score.domain}
                groups.setdefault(json.dumps(row), (row, []))[1].append((result, score))
    return [{**row, **_averaged(scored)} for row, scored in groups.values()]


def best(cells: Sequence[Results], method: MethodName, set: str | None = None) -> int:
    """Returns the number of the cell with the highest accuracy.

    If several cells have the same accuracy, it is the cell with the lowest KL to the teacher.

    Args:
        cells: The finished cells of a study.
        method: Method whose cells are compared.
        set: Name of the evaluation set; by default the first in-domain set.

    Raises:
        ConfigError: no cell has this method or this set.
    """
    known = {cell.method: None for cell in cells}
    if method not in known:
        raise ConfigError(
            f"no finished cell has the method {method!r}",
            mend=did_you_mean(method, known) if known else "run the study first",
        )
    scores = {n: cell.methods[0].scores for n, cell in enumerate(cells) if cell.method == method}
    if set is None:
        chosen = {
            n: next((s for s in all_sets if s.domain == "in"), all_sets[0])
            for n, all_sets in scores.items()
        }
    else:
        chosen = {n: s for n, all_sets in scores.items() for s in all_sets if s.name == set}
    if not chosen:
        names = dict.fromkeys(s.name for all_sets in scores.values() for s in all_sets)
        raise ConfigError(f"there is no evaluation set {set!r}", mend=did_you_mean(str(set), names))
    return min(chosen, key=lambda n: _rank(chosen[n]))


def _rank(score: SetScore) -> tuple[float, float]:
    """Returns the rank of a score by accuracy, then by KL to the teacher; lower is better."""
    accuracy = score.accuracy.value if score.accuracy else 0.0
    return -accuracy, score.fidelity.kl_to_teacher if score.fidelity else float("inf")


def _scalar(value: Any) -> Any:
    """Returns a value of the grid in a form that fits one cell of a table."""
    return json.dumps(value) if isinstance(value, dict | list) else value


def _averaged(scored: Sequence[tuple[MethodResult, SetScore]]) -> dict[str, Any]:
    """Averages the scores and costs on one set over cells that differ only in their seed."""
    results, scores = [result for result, _ in scored], [score for _, score in scored]
    accuracies = [score.accuracy.value for score in scores if score.accuracy]
    fidelities = [score.fidelity for score in scores if score.fidelity]
    return {
        "rows": scores[0].rows,
        "seeds": len(scored),
        "accuracy": _mean(accuracies),
        "accuracy_sd": deviation(accuracies),
        "kl_to_teacher": _mean(fidelity.kl_to_teacher for fidelity in fidelities),
        "agreement": _mean(fidelity.agreement for fidelity in fidelities),
        "cross_entropy": _mean(score.cross_entropy for score in scores),
        "drift": _mean(result.drift.kl_to_base for result in results if result.drift),
        "prompt_tokens": _mean(result.prompt_tokens_mean for result in results),
        "seconds_per_query": _mean(result.seconds_per_query for result in results),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are not None, or None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
