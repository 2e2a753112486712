"""`instil.distill`: the main job as one call."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instil import experiment
from instil.config import Recipe
from instil.context import Context, ContextPart
from instil.progress import Display
from instil.rows import Row, as_rows
from instil.run import Run
from instil.split import Given


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
    recipe = Recipe.parse({"model": str(model), **settings})
    folder = Path(output) if output else Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    given = Given(
        context=Context.of(context),
        inputs=as_rows(inputs, name="inputs", need_output=recipe.teacher.completions == "gold"),
        held_out=None if eval is None else as_rows(eval, name="eval", need_output=True),
    )
    display = Display(quiet=quiet)
    return experiment.run(recipe, given, output=folder, overwrite=overwrite, display=display)
