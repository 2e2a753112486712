"""The Python interface: `distill`, `run`, `validate`, `load`, and the classes `Run` and `Study`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from instil.errors import ConfigError, DataFileError
from instil.methods import MethodName
from instil.prompts.context import Context, ContextPart
from instil.recipe import changes, sections
from instil.recipe.grid import override
from instil.recipe.keep import Keep
from instil.recipe.recipe import Recipe
from instil.recipe.shipped import find
from instil.recipe.usual import usual
from instil.results.comparison import averages, best
from instil.results.gate import Gate, check
from instil.results.schema import (
    CELLS,
    FAILURE,
    INDEX,
    PREDICTIONS,
    REPORT,
    RESULTS,
    Failure,
    Prediction,
    Results,
    StudyIndex,
)
from instil.system.disk import from_home
from instil.system.files import read_lines
from instil.tasks.files import Files
from instil.tasks.logs import read_pile
from instil.tasks.rows import Row, as_records

if TYPE_CHECKING:
    from instil.losses import HiddenState, Objective
    from instil.models.tuning import Tuning
    from instil.pipeline.student import Student
    from instil.tasks import Task

Settings = Mapping[str, Any]
"""A recipe or a section of it, as a mapping."""
DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, init=False)
class Run:
    """A finished run: the folder of one method on one task.

    Args:
        path: Folder of the run.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    @cached_property
    def results(self) -> Results:
        """Scores, costs and settings: the content of `results.json`.

        Raises:
            DataFileError: the folder holds no finished run.
            DataFormatError: another version of instil wrote the file.
        """
        return Results.read(self.path / RESULTS)

    @cached_property
    def predictions(self) -> list[Prediction]:
        """Every answer of every method: the content of `predictions.jsonl`.

        Raises:
            DataFileError: the folder holds no predictions.
        """
        path = self.path / PREDICTIONS
        if not path.is_file():
            raise DataFileError(f"{path}: no such file", mend="name the folder of a finished run")
        return read_lines(Prediction, path)

    @cached_property
    def student(self) -> Student:
        """The trained model. It answers queries without the context. It is loaded on first use.

        Raises:
            DataFileError: the folder holds no finished run.
            UnknownModelError: the base model no longer exists.
        """
        from instil.pipeline.student import Student

        return Student.load(self.path)

    @property
    def adapter(self) -> Path:
        """Folder of the adapter in PEFT's format. It exists only if the tuning is LoRA."""
        return self.path / "adapter"

    def report(self) -> Path:
        """Returns the path of the HTML report. A missing report is written again.

        Raises:
            DataFileError: the folder holds no finished run.
        """
        path = self.path / REPORT
        if not path.exists():
            from instil.report import write_report

            path = write_report(self.path)
        return path

    def check(self, gate: Gate | Settings | str | Path | None = None, **limits: Any) -> None:
        """Raises an error if the student does not keep a limit.

        ```python
        run.check(min_recovery=0.9, max_drift=0.05)
        run.check("gate.yaml")
        run.check()  # the default: recovery, or the KL where rows have no outputs; drift; leaks
        ```

        Args:
            gate: The limits, or a YAML file of them. docs/how-to/judge-answers.md describes all.
            **limits: Limits by name, in place of those of `gate`.

        Raises:
            ConfigError: a limit is unknown or wrong.
            GateError: a limit is not kept. Further ones are notes of the error.
        """
        if gate is None:
            made = Gate() if limits else Gate.usual(self.results)
        elif isinstance(gate, str | Path):
            made = Gate.read(from_home(gate))
        else:
            made = gate if isinstance(gate, Gate) else Gate.of(gate)
        check(self.results, made.joined(Gate.of(limits)))


@dataclass(frozen=True, init=False)
class Study:
    """The folder of a study, with one run per cell of its grid.

    The files are read once. To see new cells, `load` the study again.

    Args:
        path: Folder of the study.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    @cached_property
    def index(self) -> StudyIndex:
        """Title, varied keys and names of the cells: the content of `study.json`.

        Raises:
            DataFileError: the folder holds no study.
            DataFormatError: another version of instil wrote the file.
        """
        return StudyIndex.read(self.path / INDEX)

    @cached_property
    def cells(self) -> list[Run]:
        """The finished cells, in the order of the grid.

        Raises:
            DataFileError: the folder holds no study.
        """
        return [Run(folder) for folder in self._folders() if (folder / RESULTS).is_file()]

    @cached_property
    def failures(self) -> list[Failure]:
        """The cells that failed, with their errors, in the order of the grid.

        Raises:
            DataFileError: the folder holds no study.
        """
        return [
            Failure.read(folder / FAILURE)
            for folder in self._folders()
            if (folder / FAILURE).is_file() and not (folder / RESULTS).is_file()
        ]

    def table(self) -> list[dict[str, Any]]:
        """Returns the scores averaged over seeds: one row per method, setting and evaluation set.

        Every row has the same keys. Every value is a number, a string, a boolean or None, so
        `pandas.DataFrame(study.table())` works. The keys are:

        - `method`, and `baseline`: whether the method ran as a baseline of the cell's own method;
        - each key that the grid varies, except `seed`: None if the method does not use it;
        - `set`, `domain` (`in` or `out`), `rows` (in the set, per seed) and `seeds` (a number);
        - `accuracy` and `accuracy_sd` (standard deviation over seeds; None for one seed);
        - `kl_to_teacher` (nats), `agreement`, `cross_entropy` and `drift` (nats per token);
        - `prompt_tokens` and `seconds_per_query`.

        Raises:
            DataFileError: the folder holds no study.
        """
        return averages([cell.results for cell in self.cells], self.index.varied)

    def best(self, method: MethodName, set: str | None = None) -> Run:
        """Returns the cell of a method with the highest accuracy.

        If several cells have the same accuracy, it is the cell with the lowest KL to the teacher.
        The best of many cells is partly lucky: expect a lower accuracy on new rows.

        Args:
            method: Method whose cells are compared.
            set: Name of the evaluation set; by default the first in-domain set.

        Raises:
            ConfigError: no finished cell has this method or this set.
            DataFileError: the folder holds no study.
        """
        return self.cells[best([cell.results for cell in self.cells], method, set)]

    def report(self) -> Path:
        """Writes the HTML report of all cells and returns its path.

        Raises:
            DataFileError: the folder holds no study.
            OutputError: the folder cannot be written.
        """
        from instil.report import read_study, write_study

        write_study(read_study([self.path]), self.path, ["html"])
        return self.path / REPORT

    def _folders(self) -> Iterator[Path]:
        return (self.path / CELLS / name for name in self.index.cells)


def distill(
    model: str | Path,
    *,
    context: ContextPart | Sequence[ContextPart] | None = None,
    inputs: Iterable[Row | str | Settings],
    eval: Iterable[Row | Settings] | Mapping[str, Iterable[Row | Settings]] | None = None,
    output: str | Path | None = None,
    prompt: sections.Prompt | Settings | None = None,
    teacher: sections.Teacher | Settings | None = None,
    student: sections.Student | Settings | None = None,
    objective: Objective | HiddenState | Settings | Sequence[object] | None = None,
    tuning: Tuning | Settings | None = None,
    training: sections.Training | Settings | None = None,
    keep: Keep | Settings | None = None,
    evaluation: sections.Evaluation | Settings | None = None,
    logs: Settings | None = None,
    dtype: DType = "auto",
    seed: int = 0,
    set: Sequence[str] = (),
    allow_overlap: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Run:
    """Bakes a context into an adapter, and compares it with zero-shot and in-context answers.

    Each section of the recipe is either a mapping of its keys, such as `training={"epochs": 3}`,
    or an object: a section of `instil.recipe.sections`, a loss of `instil.losses`, or a tuning of
    `instil.models.tuning`. docs/reference/recipe.md describes all keys.

    Args:
        model: Hub id, local folder, or `bundled:NAME`.
        context: What the teacher reads: `FewShot`, `Instruction`, `Document`, or a list of them.
            None: it comes from the conversations (`logs={"context_from_logs": True}`), or each row
            has its own.
        inputs: Queries to learn from: strings, rows with `input`, or conversations, such as
            mappings with `messages`. To learn gold completions, rows with `output`.
        eval: Evaluation rows with `input` and `output`; for several sets, a mapping of names to
            rows. By default a fifth of the inputs (at most 100) is held out; without outputs
            their accuracy is unknown.
        output: Folder of the run; by default `runs/` and the time.
        prompt: How a query is rendered.
        teacher: Which model teaches, and where the completions come from.
        student: Whether the trained weights are saved.
        objective: A loss, or a list of losses, which are added with their weights.
        tuning: Which weights are trained.
        training: How the student is optimised; by default until it learns no more.
        keep: Text on which the student stays as its base is.
        evaluation: How the student is evaluated; by default with zero-shot and in-context.
        logs: How conversations are read: the keys `context_from_logs`, `student_system`,
            `bake_tools`, `turns`, `thinking`, `on_bad_row` and `fields` of the task `files`.
        dtype: Number format of the weights; `auto` measures which is fastest.
        seed: Seed for all randomness.
        set: More changes, as on the command line: `quantization.bits=4`. They are applied last.
        allow_overlap: Allow evaluation rows that are also inputs or demonstrations.
        overwrite: Replace the run at `output`.
        quiet: Show no progress.

    Returns:
        The finished run.

    Raises:
        ConfigError: settings are unknown or wrong; the message names every problem.
        ContextError: there is no context, or there are too few inputs to hold some out.
        OverlapError: an evaluation row is also an input or a demonstration.
        OutputExistsError: `output` already exists.
        InstilError: the data, the model, the disk, or another process that works on `output` does
            not allow the run. If work is kept, the message says where.
        KeyboardInterrupt: Ctrl-C; the same call with the same `output` resumes the run.
    """
    chosen = {
        "prompt": prompt,
        "teacher": teacher,
        "student": student,
        "objective": objective,
        "tuning": tuning,
        "training": training,
        "keep": keep,
        "evaluation": evaluation,
    }
    settings = {
        "model": str(model),
        "task": {"name": "files", "allow_overlap": allow_overlap, **(logs or {})},
        "dtype": dtype,
        "seed": seed,
        **usual({name: value for name, value in chosen.items() if value is not None}),
    }
    recipe = Recipe.parse(override(settings, set) if set else settings)
    from instil.pipeline.given import Given, named_sets, reads_logprobs

    task = cast(Files, recipe.task)
    kept = {"gold": recipe.teacher.completions == "gold", "logprobs": reads_logprobs(recipe)}
    given = Given.of(
        recipe,
        task,
        Context() if context is None else Context.of(context),
        read_pile(as_records(inputs, name="inputs"), "inputs", task.reading(**kept)),
        named_sets(eval, task.reading(**kept, evaluation=True)),
    )
    folder = from_home(output) if output else _by_time()

    from instil.pipeline import cell
    from instil.system.progress import Display

    display = Display(quiet=quiet)
    return Run(cell.run(recipe, folder, given=given, overwrite=overwrite, display=display))


def run(
    recipe: str | Path | Settings | Recipe,
    *,
    model: str | Path | None = None,
    task: Task | Settings | None = None,
    method: MethodName | None = None,
    demonstrations: sections.Demonstrations | Settings | None = None,
    prompt: sections.Prompt | Settings | None = None,
    teacher: sections.Teacher | Settings | None = None,
    student: sections.Student | Settings | None = None,
    objective: Objective | HiddenState | Settings | Sequence[object] | None = None,
    tuning: Tuning | Settings | None = None,
    training: sections.Training | Settings | None = None,
    keep: Keep | Settings | None = None,
    evaluation: sections.Evaluation | Settings | None = None,
    dtype: DType | None = None,
    seed: int | None = None,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]] | None = None,
    set: Sequence[str] = (),
    output: str | Path | None = None,
    quiet: bool = False,
) -> Study:
    """Runs a recipe: every cell of its grid, or one cell if it has no grid.

    If a cell fails, the others still run: see `Study.failures`. Finished cells are not run again,
    so the same call with the same `output` resumes a study.

    Args:
        recipe: Name of a shipped recipe, path of a recipe file, its content, or a `Recipe`.
        model: Model of the student. This argument and those down to `seed` change the recipe. A
            mapping changes the keys that it names. An object, or a mapping with another `name`,
            replaces the section.
        task: Which task is solved, and where its rows are.
        method: Which method is run.
        demonstrations: How the context is drawn from the task's rows.
        prompt: How a query is rendered.
        teacher: Which model teaches, and where the completions come from.
        student: Which layers the student has, and whether its weights are saved.
        objective: A loss, or a list of losses, which are added with their weights.
        tuning: Which weights are trained.
        training: How the student is optimised.
        keep: Text on which the student stays as its base is.
        evaluation: How the student is evaluated.
        dtype: Number format of the weights; `auto` measures which is fastest.
        seed: Seed for all randomness.
        grid: Keys of the recipe with the values to try, in place of the recipe's own grid. All
            combinations are run; for a list of grids, those of each grid. `{}` runs one cell.
        set: More changes, as on the command line: `teacher.top_k=64`. They are applied last.
        output: Folder of the study; by default `runs/` and the recipe's name, or else the time.
        quiet: Show no progress.

    Returns:
        The study, with its finished and failed cells.

    Raises:
        ConfigError: the recipe has problems, or an argument changes a key that the grid varies.
        DataFileError: the recipe file is missing or cannot be read.
        OutputExistsError: `output` exists and is not a study.
        OutputError: another process works on this study, or the folder cannot be created.
        KeyboardInterrupt: Ctrl-C; the same call with the same `output` resumes the study.
    """
    planned = changes.planned(recipe, locals(), grid, set)
    if output is None:
        file = find(str(recipe)) if isinstance(recipe, str | Path) else None
        output = Path("runs") / file.stem if file else _by_time()

    from instil.pipeline import study
    from instil.system.progress import Display

    folder = from_home(output)
    study.run(planned, folder, display=Display(quiet=quiet))
    return Study(folder)


def validate(
    recipe: str | Path | Settings | Recipe,
    *,
    model: str | Path | None = None,
    task: Task | Settings | None = None,
    method: MethodName | None = None,
    demonstrations: sections.Demonstrations | Settings | None = None,
    prompt: sections.Prompt | Settings | None = None,
    teacher: sections.Teacher | Settings | None = None,
    student: sections.Student | Settings | None = None,
    objective: Objective | HiddenState | Settings | Sequence[object] | None = None,
    tuning: Tuning | Settings | None = None,
    training: sections.Training | Settings | None = None,
    keep: Keep | Settings | None = None,
    evaluation: sections.Evaluation | Settings | None = None,
    dtype: DType | None = None,
    seed: int | None = None,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]] | None = None,
    set: Sequence[str] = (),
) -> None:
    """Checks a recipe, every cell of its grid, and the rows in local files.

    It loads no model and downloads nothing. The arguments are those of `run`.

    Raises:
        ConfigError: the recipe has problems; the message names every problem of every cell.
        DataFileError: the recipe file is missing or cannot be read.
    """
    planned = changes.planned(recipe, locals(), grid, set)
    from instil.pipeline.rows import problems_of_rows

    if problems := problems_of_rows(cell.recipe for cell in planned.cells):
        raise ConfigError.listing(problems)


def load(path: str | Path) -> Run | Study:
    """Opens a finished run, a cell of a study, or a study.

    Args:
        path: Folder of the run, cell or study.

    Returns:
        A `Study` if the folder holds `study.json`, a `Run` if it holds `results.json`.

    Raises:
        DataFileError: the folder holds neither; the message says what was found.
        DataFormatError: another version of instil wrote the file.
    """
    folder = from_home(path)
    if (folder / INDEX).is_file():
        study = Study(folder)
        _ = study.index
        return study
    if (folder / RESULTS).is_file():
        run = Run(folder)
        _ = run.results
        return run
    got, mend = f"a folder without {INDEX} or {RESULTS}", "name the folder of a run or a study"
    if (folder / FAILURE).is_file():
        failure = Failure.read(folder / FAILURE)
        got = f"a cell that failed with {failure.error}: {failure.message.splitlines()[0]}"
        mend = "correct what the message names, then run the study again"
    elif folder.with_name(folder.name + ".partial").is_dir():
        got, mend = "an unfinished run", "repeat the command or call that started it"
    elif not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
    raise DataFileError(f"{folder} is not a finished run or a study", got=got, mend=mend)


def _by_time() -> Path:
    """Returns a folder that is named by the time, and does not exist yet."""
    first = Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    names = (f"{first.name}-{n}" if n > 1 else first.name for n in count(1))
    paths = (first.with_name(name) for name in names)
    return next(
        p for p in paths if not p.exists() and not p.with_name(p.name + ".partial").exists()
    )
