"""A study as it lies on disk: its cells, what failed, what has not run yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instil.errors import DataFileError, DataFormatError
from instil.report.run_cells import is_run, run_cells, run_predictions
from instil.results.cell import CELL, FAILURE, NO_MATTER, PREDICTIONS, Cell, CellPrediction, Failure
from instil.results.schema import RESULTS
from instil.results.study_index import CELLS, INDEX, StudyIndex
from instil.system.files import read_lines

K = "demonstrations.k"
UNCOMPARED = {"seed", "task.name", "tuning.name"} | {
    f"{section}.{key}" for section, keys in NO_MATTER.items() for key in keys
}
"""Settings whose difference does not make two joined studies differ, or is told by another key."""


@dataclass(frozen=True)
class Study:
    """Everything that a study's report is drawn from.

    Attributes:
        title: What a person calls it.
        description: What it asks, in a sentence or two; may be empty.
        cells: The finished cells, in the grid's order; names are unique.
        failures: The cells that came to nothing.
        missing: Names of the cells that have not run yet.
        varied: The grid's keys.
        folders: Where each cell lies, by its name.
    """

    title: str
    description: str
    cells: list[Cell]
    failures: list[Failure]
    missing: list[str]
    varied: list[str]
    folders: dict[str, Path] = field(default_factory=dict)

    def predictions(self, cell: Cell) -> list[CellPrediction]:
        """Reads a cell's predictions; empty where none were stored.

        Raises:
            DataFormatError: a line is not a prediction of this version.
        """
        folder = self.folders.get(cell.name)
        if folder is None or not (path := folder / PREDICTIONS).is_file():
            return []
        try:
            if is_run(folder):
                return run_predictions(path, cell.method)
            return read_lines(CellPrediction, path)
        except ValueError as error:
            raise DataFormatError(
                f"{path} is not a {PREDICTIONS} of this version", got=str(error).splitlines()[0]
            ) from None


def read_study(paths: Sequence[Path]) -> Study:
    """Reads studies, single cells and runs, and joins them into one study.

    Args:
        paths: Folders, each a study (`study.json`), one cell (`cell.json`) or a run (`results.json`).

    Raises:
        DataFileError: no folder was named, or one is none of these.
        DataFormatError: a file in it is not of this version.
    """
    if not paths:
        raise DataFileError("no folder to report on", mend="name the folder of a study or a cell")
    indices: list[StudyIndex] = []
    folders: dict[Path, str] = {}
    for path in paths:
        if (path / INDEX).is_file():
            index = StudyIndex.read(path / INDEX)
            indices.append(
                index if index.title else index.model_copy(update={"title": path.resolve().name})
            )
            found = {path / CELLS / name: name for name in index.cells}
        elif is_run(path) or any((path / name).is_file() for name in (CELL, FAILURE)):
            found = {path: path.resolve().name}
        else:
            raise DataFileError(
                f"{path} is no study, cell or run",
                got="no such folder" if not path.is_dir() else f"a folder without {INDEX}",
                allowed=f"a folder with {INDEX}, {CELL} or {RESULTS}",
                mend="name the folder of the study itself",
            )
        # Named twice, a folder counts once.
        known = {folder.resolve() for folder in folders}
        folders |= {f: name for f, name in found.items() if f.resolve() not in known}
    return _join(indices, folders, several=len(paths) > 1)


def _join(indices: list[StudyIndex], folders: Mapping[Path, str], *, several: bool) -> Study:
    cells: dict[str, Cell] = {}
    failures: list[Failure] = []
    missing: list[str] = []
    places: dict[str, Path] = {}
    for folder, name in folders.items():
        if is_run(folder) or (folder / CELL).is_file():
            if is_run(folder):
                told = run_cells(folder, name)
            else:
                told = [Cell.read(folder / CELL).model_copy(update={"name": name})]
            for cell in told:
                unique = cell.name if cell.name not in cells else _unique(folder, cell.name, cells)
                cells[unique] = cell.model_copy(update={"name": unique})
                places[unique] = folder
        elif (folder / FAILURE).is_file():
            failures.append(Failure.read(folder / FAILURE))
        else:
            missing.append(name)
    varied = list(dict.fromkeys(key for index in indices for key in index.varied))
    if several:
        varied += [key for key in differing(cells.values()) if key not in varied]
    elif not indices:
        varied = [key for cell in cells.values() for key in cell.varied]
    titles = [index.title for index in indices] or list(folders.values())
    described = (index.description.strip() for index in indices)
    return Study(
        title=" + ".join(dict.fromkeys(titles[:4])) + (" + …" if len(titles) > 4 else ""),
        description="\n\n".join(text for text in described if text),
        cells=list(cells.values()),
        failures=failures,
        missing=missing,
        varied=varied,
        folders=places,
    )


def _unique(folder: Path, name: str, taken: Mapping[str, Cell]) -> str:
    """Two studies may use one name; the folder tells them apart, and a number if it does not."""
    study = folder.resolve().parent.parent.name
    candidates = [f"{study}/{name}", *(f"{study}/{name} ({n})" for n in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested settings under dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(cells: Iterable[Cell]) -> list[str]:
    """What tells joined cells apart: settings that differ between cells of one method."""
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
    for alike in recipes.values():
        for key in dict.fromkeys(key for recipe in alike for key in recipe):
            values = {repr(recipe[key]) for recipe in alike if key in recipe}
            if key == "dtype" or ("task" in found and key.startswith("task.")):
                continue  # what a cell computed in is told; a task's name stands for its sets
            if len(values) > 1 and key not in UNCOMPARED:
                found.append(key)
    return list(dict.fromkeys(found))
