"""`instil targets`: compute a teacher's targets, look at a store of them, check it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instil.cli.options import Debug, Quiet, errors
from instil.cli.study import RecipeName, Set
from instil.errors import ConfigError

if TYPE_CHECKING:
    from instil.recipe.recipe import Recipe
    from instil.system.progress import Display
    from instil.targets.index import StoreInfo
    from instil.targets.store import TargetStore

app = typer.Typer(
    help="Compute a teacher's targets, look at stored ones, check them.", no_args_is_help=True
)

Store = Annotated[
    Path, typer.Argument(help="Folder of a target store, or of several.", show_default=False)
]


@app.command()
def build(
    recipe: RecipeName,
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of target stores, one in it for each set of targets. "
            "`--set teacher.store=FOLDER` lets a run or a study read them.",
            show_default=False,
        ),
    ],
    changes: Set = [],  # noqa: B006 - typer reads the default, nobody changes it
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Do the teacher's part of a recipe: compute and store its targets, for every cell that learns from some.

    Prints the folder of each store. What is there and whole is not computed again.
    """
    with errors(debug):
        from instil.cli.study import plan_of
        from instil.system.processes import is_main
        from instil.system.progress import Display

        cells = [one.recipe for one in plan_of(recipe, changes).cells]
        taught = [one for one in cells if one.method == "distillation" and _stores(one)]
        if not taught:
            raise ConfigError(
                f"no cell of {recipe} stores targets",
                allowed="runs, and tasks whose answers are written, with a loss that reads targets",
                mend="label tasks store their predictions by themselves: use `instil run`",
            )
        built: dict[Path, StoreInfo] = {}
        for one in taught:
            named = one.teacher.model_copy(update={"store": output})
            store = _build(one.model_copy(update={"teacher": named}), output, Display(quiet=quiet))
            built[store.path] = store.info
        if is_main():
            for path, made in built.items():
                typer.echo(f"{path}: {made.stored_tokens:,} tokens, {made.stored_bytes:,} bytes")


def _stores(recipe: Recipe) -> bool:
    from instil.tasks.free_text import FreeText

    known = recipe.task is None or isinstance(recipe.task, FreeText)
    return known and recipe.objective.needs_targets


def _build(recipe: Recipe, output: Path, display: Display) -> TargetStore:
    if recipe.task is None:
        from instil.pipeline import experiment
        from instil.pipeline.given import Given

        lessons = experiment.teach(recipe, Given.read(recipe), store=output, display=display)
    else:
        from instil.pipeline import text

        lessons = text.WritingCell.prepare(recipe, output, display).teach()
    assert lessons.store is not None
    return lessons.store


def _stores_in(path: Path) -> list[Path]:
    """The stores that a folder is or holds; the folder itself if there are none, to be told what is wrong with it."""
    from instil.targets.index import exists

    held = sorted(one for one in path.glob("*") if exists(one))
    return [path] if exists(path) or not held else held


@app.command()
def info(
    path: Store,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """What a target store holds and how large it is; its shards are not read. Of a folder of stores: each of them."""
    from instil.targets.index import INDEX, StoreInfo

    with errors(debug):
        stores = {one: _told(StoreInfo.latest(one / INDEX)) for one in _stores_in(path)}
    if not as_json:
        for one, told in stores.items():
            _print(one, told)
    elif path in stores:
        typer.echo(json.dumps(stores[path], indent=1))
    else:
        typer.echo(json.dumps({one.name: told for one, told in stores.items()}, indent=1))


@app.command()
def verify(path: Store, debug: Debug = False) -> None:
    """Read every shard of a target store, or of each in a folder of stores, and compare its checksum.

    Exit status: 0 the store is whole, 1 a shard is damaged or missing, 2 there is no store.
    """
    from instil.targets.index import INDEX, StoreInfo
    from instil.targets.index import verify as problems_of

    with errors(debug):
        stores = {one: problems_of(one) for one in _stores_in(path)}
        for one, problems in stores.items():
            for problem in problems:
                typer.echo(problem if one == path else f"{one.name}: {problem}", err=True)
            if not problems:
                shards = len(StoreInfo.read(one / INDEX).shards)
                typer.echo(f"{one}: {shards} shard{'s' * (shards != 1)}, no problem found")
        if any(stores.values()):
            sys.exit(1)


def _told(info: StoreInfo) -> dict[str, Any]:
    tokens = info.stored_tokens
    kept = sum(shard.kept for shard in info.shards)
    return {
        "whole": info.whole,
        "teacher": info.teacher,
        "rows": info.rows,
        "rows_stored": sum(shard.rows for shard in info.shards),
        "tokens": info.tokens,
        "tokens_stored": tokens,
        "kept_mean": kept / tokens if tokens else None,
        "kept_max": max((shard.most_kept for shard in info.shards), default=None),
        "bytes": info.stored_bytes,
        "bytes_per_token": info.stored_bytes / tokens if tokens else None,
        "vocabulary": info.vocabulary,
        "temperature": info.temperature,
        **info.kept.model_dump(),
        "fingerprint": info.fingerprint,
        "shards": len(info.shards),
    }


def _rule(told: dict[str, Any]) -> str:
    """What of a token is kept, in words."""
    rules = [f"at most {told['top_k']:,} of {told['vocabulary']:,}"]
    if told["min_probability"]:
        rules.append(f"of probability {told['min_probability']:g} or more")
    if told["mass"] < 1:
        rules.append(f"none beyond a mass of {told['mass']:g}")
    if told["at_least"] > 1:
        rules.append(f"the first {told['at_least']:,} in any case")
    if told["mass_per_draw"]:
        rules.append(f"and one drawn for each {told['mass_per_draw']:g} of the rest")
    return ", ".join(rules)


def _print(path: Path, told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    table = Table(title=escape(str(path)), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "whole": "yes" if told["whole"] else "no",
        "teacher": escape(told["teacher"]) or "–",
        "rows": f"{told['rows_stored']:,} of {told['rows']:,}",
        "tokens": f"{told['tokens_stored']:,} of {told['tokens']:,}",
        "kept a token": f"{shown(told['kept_mean'], '.1f')}, at most {shown(told['kept_max'], ',')}",
        "kept are": _rule(told),
        "bytes a token": shown(told["bytes_per_token"], ".1f"),
        "bytes": f"{told['bytes']:,}",
        "shards": f"{told['shards']:,}",
        "temperature": f"{told['temperature']}",
        "fingerprint": escape(told["fingerprint"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
