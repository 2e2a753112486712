"""`instil.distill`: the main job as one call."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instil.errors import (
    RecoveryError,
)
from instil.prompts.context import Context, ContextPart
from instil.recipe.recipe import Recipe
from instil.results.schema import RESULTS, Prediction, Results
from instil.system.files import read_lines
from instil.tasks.rows import Row, as_rows

if TYPE_CHECKING:
    from instil.pipeline.student import Student


@dataclass(frozen=True, init=False)
class Run:
    """A finished run.

    Args:
        path: Its folder.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    @cached_property
    def results(self) -> Results:
        """What `results.json` holds."""
        return Results.read(self.path / RESULTS)

    @cached_property
    def predictions(self) -> list[Prediction]:
        """What `predictions.jsonl` holds."""
        return read_lines(Prediction, self.path / "predictions.jsonl")

    @cached_property
    def student(self) -> Student:
        """The base model with the adapter, ready to answer."""
        from instil.pipeline.student import Student

        return Student.load(self.path)

    @property
    def adapter(self) -> Path:
        """The adapter's folder, in PEFT's format."""
        return self.path / "adapter"

    def report(self) -> Path:
        """The report, one HTML file; drawn again if it is gone."""
        path = self.path / "report.html"
        if not path.exists():
            from instil.report import render

            environment = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
            path.write_text(
                render(self.results, self.predictions, environment=environment), encoding="utf-8"
            )
        return path

    def check_recovery(self, least: float) -> None:
        """Refuses a student that falls short.

        Args:
            least: The recovery that is asked for.

        Raises:
            RecoveryError: recovery is less, or cannot be told because the context gains nothing.
        """
        recovery = self.results.recovery
        if recovery is None:
            raise RecoveryError(
                "recovery cannot be told: the context gains nothing on these rows, or they have no outputs",
                allowed=f"at least {least}",
                mend="use a better context, or evaluation rows with outputs",
            )
        if recovery < least:
            raise RecoveryError(
                "the student falls short of the context it was to replace",
                got=f"recovery {recovery:.3f}",
                allowed=f"at least {least}",
                mend="give more inputs or more steps; the report shows where it differs",
            )


def distill(
    model: str | Path,
    *,
    context: ContextPart | Sequence[ContextPart],
    inputs: Iterable[Row | str | Mapping[str, object]],
    eval: Iterable[Row | Mapping[str, object]] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Bakes a context into an adapter and judges it against zero-shot and in-context learning.

    Args:
        model: Hub id, local folder, or `bundled:NAME`.
        context: What the teacher reads: `FewShot`, `Instruction`, `Document`, or a list of them.
        inputs: Queries to learn from: texts, or rows with `input` and, for `teacher={"completions": "gold"}`, `output`.
        eval: Rows with `input` and `output` to judge on. Without them a fifth of the inputs, at most 100, is held out;
            accuracy is then told only if those have outputs.
        output: Folder of the run; `runs/` and the time if not given.
        overwrite: Replace what is at `output`.
        quiet: Show no progress.
        **settings: Sections of the recipe, for example `seed=1`, `prompt={"format": "plain"}`,
            `training={"epochs": 3}`, `tuning={"name": "lora", "r": 16}`; see docs/reference/recipe.md.

    Returns:
        The finished run.

    Raises:
        InstilError: something does not allow the run; nothing is left behind.
        KeyboardInterrupt: Ctrl-C; the same call with the same `output` goes on from there.
    """
    from instil.pipeline import experiment
    from instil.pipeline.given import Given
    from instil.system.progress import Display

    recipe = Recipe.parse({"model": str(model), **settings})
    folder = Path(output) if output else Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    given = Given(
        context=Context.of(context),
        inputs=as_rows(inputs, name="inputs", need_output=recipe.teacher.completions == "gold"),
        held_out=None if eval is None else as_rows(eval, name="eval", need_output=True),
    )
    display = Display(quiet=quiet)
    return Run(experiment.run(recipe, given, output=folder, overwrite=overwrite, display=display))
