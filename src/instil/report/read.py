"""Reads finished runs and studies: the cells, and their answers to the evaluation rows."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from instil.errors import DataFileError, DataFormatError
from instil.methods import METHODS, MethodName, Phase
from instil.results.schema import (
    CELLS,
    CONTEXT,
    ENVIRONMENT,
    EVALUATION,
    FAILURE,
    INDEX,
    NO_MATTER,
    PREDICTIONS,
    RESULTS,
    Ending,
    EvaluationRow,
    Failure,
    MethodResult,
    PhaseCost,
    Prediction,
    Results,
    StudyIndex,
)
from instil.results.scores import SetScore
from instil.results.training import Training
from instil.system.files import JsonFile, read_lines

F = TypeVar("F", bound=JsonFile)
K = "demonstrations.k"
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]"
)
"""Control characters except tab and line feed, other line ends, and what is no character."""
UNCOMPARED = {"seed", "method", "task.name", "task.k", "tuning.name", "evaluation.baselines"} | {
    name
    for section, keys in NO_MATTER.items()
    for name in ([section] if keys is True else [f"{section}.{key}" for key in keys])
}
"""Settings that do not distinguish cells of joined studies, or that another key represents."""


@dataclass(frozen=True)
class Cell:
    """The results of one method in a finished folder: the recipe's method, or a baseline.

    Only the recipe's method has training, phases and weights.

    Attributes:
        name: A name that is unique in the study.
        folder: Folder of the results.
        results: All results of the folder.
        result: The results of this method.
    """

    name: str
    folder: Path
    results: Results
    result: MethodResult

    @property
    def own(self) -> bool:
        """Whether this is the recipe's method, not a baseline."""
        return self.result is self.results.methods[0]

    @property
    def method(self) -> MethodName:
        """The method."""
        return self.result.method

    @property
    def seed(self) -> int:
        """The seed for all randomness."""
        return self.results.seed

    @property
    def model(self) -> str:
        """The student's base model."""
        return self.results.model

    @property
    def teacher_model(self) -> str | None:
        """The teacher; None without a teacher, or if it has the student's own weights."""
        return self.results.teacher_model if METHODS[self.method].teacher else None

    @property
    def dtype(self) -> str:
        """Data type of the weights."""
        return self.results.dtype

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.results.task

    @property
    def labels(self) -> list[str]:
        """The task's labels; empty for free-text answers."""
        return self.results.labels

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings of the folder."""
        return self.results.recipe

    @property
    def varied(self) -> dict[str, Any]:
        """The cell's values of the grid's keys; empty for a baseline, which reads few of them."""
        return self.results.varied if self.own else {}

    @property
    def k(self) -> int:
        """Demonstrations per context; 0 if the method reads none."""
        if self.own:
            return self.results.k
        read = self.results.context if METHODS[self.method].context else None
        return read.k if read else 0

    @property
    def tuning(self) -> str | None:
        """`full`, `lora` or `bitfit`; None without training."""
        return self.results.tuning if self.own else None

    @property
    def training(self) -> Training | None:
        """Facts about the training; None without training."""
        return self.results.training if self.own else None

    @property
    def scores(self) -> list[SetScore]:
        """The method's scores, one per set."""
        return self.result.scores

    @property
    def teacher(self) -> list[SetScore]:
        """The teacher's scores on the same rows; for free text, the in-context baseline's."""
        if not self.own or METHODS[self.method].learns != "targets":
            return []
        prompted = self.results.result("in_context")
        return self.results.teacher or (prompted.scores if prompted else [])

    @property
    def prompt_tokens_mean(self) -> float:
        """Mean prompt tokens per query."""
        return self.result.prompt_tokens_mean

    @property
    def seconds_per_query(self) -> float | None:
        """Mean seconds per query; None if they were not measured."""
        return self.result.seconds_per_query

    @property
    def drift(self) -> float | None:
        """KL(base || student) in nats per token on unrelated text; None if it was not measured."""
        return self.result.drift.kl_to_base if self.result.drift else None

    @property
    def phases(self) -> dict[Phase, PhaseCost]:
        """Cost of each phase, including the baselines in the folder."""
        return self.results.phases if self.own else {}

    @property
    def reused(self) -> list[Phase]:
        """Phases whose cost was measured in another cell."""
        return self.results.reused if self.own else []

    @property
    def shipped_bytes(self) -> int:
        """Size of the trained weights."""
        return self.results.shipped_bytes if self.own else 0


@dataclass(frozen=True)
class Study:
    """All data for a report.

    Attributes:
        title: Title of the study.
        description: The question of the study in a few sentences; may be empty.
        cells: The methods of the finished folders, in the grid's order.
        failures: The cells that failed.
        missing: Names of the cells that have not run yet.
        varied: The grid's keys.
        single: Whether it is only one finished folder, not a study.
        context: The teacher's context in a single folder; empty if it was not stored.
        environment: Versions and hardware; empty if they were not recorded, or for several folders.
    """

    title: str
    description: str
    cells: list[Cell]
    failures: list[Failure]
    missing: list[str]
    varied: list[str]
    single: bool = False
    context: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> list[Results]:
        """The results of each finished folder, in the grid's order."""
        return [cell.results for cell in self.cells if cell.own]

    def predictions(self, cell: Cell) -> list[Prediction]:
        """Reads a cell's predictions; empty if none were stored.

        Raises:
            DataFormatError: a line is not a prediction in the format of this version.
        """
        return [line for line in _lines(cell.folder) if line.method == cell.method]


def printable(value: Any) -> Any:
    """Returns text without characters that XML, tables and figures cannot hold.

    A replacement character takes their place. In lists and mappings, every text is replaced.
    """
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value.replace("\r\n", "\n"))
    if isinstance(value, Mapping):
        return {printable(key): printable(inner) for key, inner in value.items()}
    return list(map(printable, value)) if isinstance(value, list) else value


def _shown(file: F) -> F:
    """Returns the content of a file with printable text."""
    return type(file).model_validate(printable(file.model_dump(mode="json")))


def _lines(folder: Path) -> list[Prediction]:
    path = folder / PREDICTIONS
    if not path.is_file():
        return []
    return read_lines(Prediction, path)


def read_study(paths: Sequence[Path]) -> Study:
    """Reads studies, cells and runs, and joins them into one study.

    Args:
        paths: Folders of studies (with `study.json`), or of runs or cells (with `results.json`).

    Raises:
        DataFileError: there is no folder, or a folder is not a study, cell or run.
        DataFormatError: a file is not in the format of this version.
    """
    if not paths:
        raise DataFileError(
            "there is no folder to report on", mend="pass the folder of a study or run"
        )
    indices: list[StudyIndex] = []
    folders: dict[Path, str] = {}
    for path in paths:
        if (path / INDEX).is_file():
            index = _shown(StudyIndex.read(path / INDEX))
            indices.append(
                index if index.title else index.model_copy(update={"title": path.resolve().name})
            )
            found = {path / CELLS / name: name for name in index.cells}
        elif any((path / name).is_file() for name in (RESULTS, FAILURE)):
            found = {path: path.resolve().name}
        else:
            raise DataFileError(
                f"{path} is not a study, cell or run",
                got="no such folder"
                if not path.is_dir()
                else f"a folder without {INDEX} and {RESULTS}",
                allowed=f"a folder with {INDEX} or {RESULTS}",
                mend="pass the folder of the study, cell or run itself",
            )
        # A folder that is given twice counts once.
        known = {folder.resolve() for folder in folders}
        folders |= {f: name for f, name in found.items() if f.resolve() not in known}
    joined = _join(indices, folders, several=len(paths) > 1)
    if len(paths) > 1:
        return joined
    context = paths[0] / CONTEXT
    return replace(
        joined,
        single=bool(joined.cells) and not indices,
        context=context.read_text(encoding="utf-8") if context.is_file() else "",
        environment=_environment(paths[0] / ENVIRONMENT),
    )


def _environment(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataFormatError(f"{path} is not a JSON object", got=str(error)) from None
    return found


def _join(indices: list[StudyIndex], folders: Mapping[Path, str], *, several: bool) -> Study:
    cells: dict[str, Cell] = {}
    failures: list[Failure] = []
    missing: list[str] = []
    for folder, name in folders.items():
        if (folder / RESULTS).is_file():
            results = _shown(Results.read(folder / RESULTS))
            for result in sorted(
                results.methods, key=lambda found: list(METHODS).index(found.method)
            ):
                named = name if result is results.methods[0] else f"{name}/{result.method}"
                unique = named if named not in cells else _unique(folder, named, cells)
                cells[unique] = Cell(unique, folder, results, result)
        elif (folder / FAILURE).is_file():
            failures.append(_shown(Failure.read(folder / FAILURE)))
        else:
            missing.append(name)
    varied = list(dict.fromkeys(key for index in indices for key in index.varied))
    if several:
        varied += [key for key in differing(cells.values()) if key not in varied]
    elif not indices:
        varied = list(dict.fromkeys(key for cell in cells.values() for key in cell.varied))
    titles = [index.title for index in indices] or list(folders.values())
    described = (index.description.strip() for index in indices)
    return Study(
        title=" + ".join(dict.fromkeys(titles[:4])) + (" + …" if len(titles) > 4 else ""),
        description="\n\n".join(text for text in described if text),
        cells=list(cells.values()),
        failures=failures,
        missing=missing,
        varied=varied,
    )


def _unique(folder: Path, name: str, taken: Mapping[str, Cell]) -> str:
    """Makes a name unique with the study's folder, and with a number if this is not enough."""
    study = folder.resolve().parent.parent.name
    candidates = [f"{study}/{name}", *(f"{study}/{name} ({n})" for n in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Flattens nested settings into dotted keys and values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(cells: Iterable[Cell]) -> list[str]:
    """Keys that distinguish joined cells: settings that differ between cells of the same method."""
    cells = list(cells)
    found = [
        key
        for key in ("method", "task", "model", "dtype")
        if len({getattr(c, key) for c in cells}) > 1
    ]
    if len({cell.tuning for cell in cells if cell.tuning}) > 1:
        found.append("tuning")
    if len({cell.k for cell in cells if cell.k}) > 1:
        found.append(K)
    recipes: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        recipes.setdefault(cell.method, []).append(dict(flat(cell.recipe)))
    for same_method in recipes.values():
        for key in dict.fromkeys(key for recipe in same_method for key in recipe):
            values = {repr(recipe[key]) for recipe in same_method if key in recipe}
            if key == "dtype" or ("task" in found and key.startswith("task.")):
                continue  # the results have the dtype; a task's name represents its settings
            if len(values) > 1 and key not in UNCOMPARED:
                found.append(key)
    return list(dict.fromkeys(found))


class Mark(NamedTuple):
    """A cell's answer to an evaluation row.

    Attributes:
        input: The row's input.
        expected: Its gold answer; None if there is none.
        predicted: The label, or the part of a free-text answer that is compared.
        right: Whether the answer is right; None without a gold answer, and if the metric gives a
            number.
        score: 1 for a right answer, 0 for a wrong one, or the number of the metric; None without a
            gold answer.
        confidence: Probability of the label; None for free text.
        text: The full answer; None for labels.
        rules: Rule that applies -> whether the answer obeys it.
        ending: How the answer ends; None for labels.
        turn: Number of the answer in its conversation; None without one.
        tokens: Length of the answer; None for labels.
        kl: KL to the teacher on this row, in nats per token; None if it was not measured.
    """

    input: str
    expected: str | None
    predicted: str
    right: bool | None
    score: float | None
    confidence: float | None
    text: str | None
    rules: Mapping[str, bool] = MappingProxyType({})
    ending: Ending | None = None
    turn: int | None = None
    tokens: int | None = None
    kl: float | None = None


Marks = dict[str, dict[str, dict[int, Mark]]]
"""Cell -> set -> row -> answer."""


def read_marks(study: Study) -> Marks:
    """Reads the predictions of all cells; equal texts share memory."""
    tasks = len({cell.task for cell in study.cells})
    marks: Marks = {cell.name: {} for cell in study.cells}
    for folder, cells in groupby(study.cells, key=lambda cell: cell.folder):
        by_method = {cell.method: cell for cell in cells}
        for line in _lines(folder):
            cell = by_method.get(line.method)
            if cell is None:
                continue
            name = printable(line.set if tasks == 1 else f"{cell.task}: {line.set}")
            marks[cell.name].setdefault(name, {})[line.row] = Mark(
                sys.intern(printable(line.input)),
                line.expected and sys.intern(printable(line.expected)),
                sys.intern(printable(line.predicted)),
                line.correct,
                line.score,
                line.probabilities.get(line.predicted, 0.0) if line.probabilities else None,
                printable(line.text),
                line.rules,
                line.ending,
                line.turn,
                line.tokens,
                line.kl,
            )
    return marks


def read_rows(study: Study) -> dict[tuple[str, int], EvaluationRow]:
    """The evaluation rows of a single run: (set, row) -> row; empty for a study."""
    if not study.single:
        return {}
    paths = [cell.folder / EVALUATION for cell in study.cells]
    found = next((path for path in paths if path.is_file()), None)
    rows = read_lines(EvaluationRow, found) if found else []
    return {(printable(row.set), row.row): row for row in rows}


def different_rows(marks: Marks, cells: Iterable[str], name: str) -> int:
    """Number of different rows of a set that some cells answered; 0 if none were stored."""
    return len({m[:2] for cell in cells for m in marks.get(cell, {}).get(name, {}).values()})
