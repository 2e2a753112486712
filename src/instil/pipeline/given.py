"""What a run is given to work on."""

from __future__ import annotations

from dataclasses import dataclass

from instil.errors import ConfigError
from instil.prompts.context import Context
from instil.recipe.recipe import Recipe
from instil.tasks.rows import Row, read_rows


@dataclass(frozen=True)
class Given:
    """What a run is given to work on.

    Attributes:
        context: What the teacher reads.
        inputs: Queries to learn from.
        held_out: Rows to judge on; None: some of the inputs are held out.
    """

    context: Context
    inputs: list[Row]
    held_out: list[Row] | None

    @classmethod
    def read(cls, recipe: Recipe) -> Given:
        """Reads the files that a recipe names.

        Raises:
            ConfigError: it names no inputs.
            InstilError: a file is at fault.
        """
        if recipe.data.inputs is None:
            raise ConfigError(
                "a recipe without a task needs data.inputs",
                allowed="a .jsonl, .csv or .parquet file with a field `input`",
                mend="name the file, or a task",
            )
        gold = recipe.teacher.completions == "gold"
        return cls(
            context=Context.read(recipe.context),
            inputs=read_rows(recipe.data.inputs, need_output=gold),
            held_out=read_rows(recipe.data.eval, need_output=True) if recipe.data.eval else None,
        )
