"""The inputs that a cell learns from: those that are given, and those that the teacher writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instil.errors import InstilError
from instil.prompts.rendered import RenderedRows
from instil.prompts.windows import Windows
from instil.system.files import written_whole
from instil.tasks.rows import Row
from instil.teacher.inputs import Made, make_inputs

if TYPE_CHECKING:
    from instil.pipeline.text import TextSteps

MADE = "made_inputs.jsonl"


def with_made_inputs(steps: TextSteps) -> tuple[RenderedRows, Made | None]:
    """The training rows, and the inputs that the teacher wrote, which are the last of them.

    All processes of a launch must call this.

    Args:
        steps: The cell.
    """
    recipe, given = steps.recipe, steps.learnt
    count = recipe.training.make_inputs
    if not count:
        return given, None
    drawn, context, form = steps.rows.drawn, steps.rows.context, steps.form
    teacher, student = steps.models.teacher, steps.models.student
    windows = Windows.of(teacher, student)

    def rendered(rows: Sequence[Row]) -> RenderedRows:
        contexts = steps.rows.contexts.contexts(0, rows, "inputs")
        return RenderedRows.of(
            given.name, rows, form, contexts, gold=False, student=steps.rows.alone
        )

    def fits(text: str) -> bool:
        try:
            row = rendered([Row(text)])
            row.check(steps.max_new_tokens, windows)
            row.check_ids(teacher, student)
        except InstilError:
            return False
        return True

    made = make_inputs(
        given.rows,
        count,
        others=[*drawn.pool, *drawn.validation, *(context.demonstrations if context else ())],
        judged=[row for rows in drawn.sets for row in rows.rows],
        seed=recipe.seed,
        tokens=form.tokens,
        write=lambda prompts, ending, decoding: steps.writer.with_ending(ending).stored(
            prompts, decoding, what="teacher writes inputs"
        ),
        fits=fits,
    )
    if len(made.rows) < count:
        steps.display.warn(
            f"only {len(made.rows)} of {count} inputs were made: the others were there already "
            f"({made.facts.repeated}), much like an evaluation row ({made.facts.near}), or empty or "
            f"too long ({made.facts.unfit}); give more inputs, or lower training.make_inputs"
        )
    return rendered([*given.rows, *made.rows]), made


def write_made(made: Made, folder: Path) -> None:
    """Writes the inputs that were made as a file that can be given as inputs."""
    with written_whole(folder / MADE) as work:
        lines = (json.dumps({"input": row.input}, ensure_ascii=False) for row in made.rows)
        work.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
