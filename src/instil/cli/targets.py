"""The command `instil targets`, which computes, describes and checks a teacher's targets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instil.cli.options import Debug, Quiet, RecipeName, Set, errors
from instil.errors import ConfigError
from instil.system.disk import from_home

if TYPE_CHECKING:
    from instil.recipe.recipe import Recipe
    from instil.targets.index import StoreInfo

app = typer.Typer(
    help="Compute the targets of a teacher, describe a target store, or check it.",
    no_args_is_help=True,
)

Store = Annotated[
    Path,
    typer.Argument(
        help="Folder of a target store, or a folder that holds several.", show_default=False
    ),
]


@app.command()
def build(
    recipe: RecipeName,
    output: Annotated[
        Path,
        typer.Option(
            help="Folder for the target stores. Each set of targets gets its own store. "
            "A run or a study reads them with `--set teacher.store=FOLDER`.",
            show_default=False,
        ),
    ],
    changes: Set = [],  # noqa: B006 - typer reads the default; it is never changed
    on: Annotated[
        str | None,
        typer.Option(
            metavar="ray",
            help="Compute them on the workers of a Ray cluster: that of RAY_ADDRESS, or one on this "
            "machine. Default: in this process.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of workers of --on ray, each with a teacher. Default: 2."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compute and store the targets of a recipe, for every cell that learns from targets.

    Prints the folder of each store. Complete stores are not computed again.
    """
    with errors(debug):
        from instil.cli.study import plan_of
        from instil.system.processes import is_main
        from instil.system.progress import Display

        recipes = [cell.recipe for cell in plan_of(recipe, changes).cells]
        storing = [r for r in recipes if r.method == "distillation" and _stores(r)]
        if not storing:
            raise ConfigError(
                f"no cell of {recipe} stores targets",
                allowed="distillation with free-text answers and a loss that reads targets",
                mend="for a classification task, use `instil run`, which stores the predictions",
            )
        if on not in (None, "ray"):
            raise ConfigError(f"--on {on}: there is no such cluster", allowed="ray")
        if workers is not None and on is None:
            raise ConfigError("--workers needs --on ray")
        from instil.models.load import quiet_libraries
        from instil.pipeline import cell

        quiet_libraries()
        folder = from_home(output)
        built: dict[Path, StoreInfo] = {}
        for settings in storing:
            teacher = settings.teacher.model_copy(update={"store": folder})
            with_store = settings.model_copy(update={"teacher": teacher})
            display = Display(quiet=quiet)
            if on is None:
                store = cell.teach(with_store, store=folder, display=display).store
            else:
                from instil.pipeline.cluster import teach_on_ray

                store = teach_on_ray(with_store, folder, workers=workers or 2, display=display)
            assert store is not None
            built[store.path] = store.info
        if is_main():
            for path, info in built.items():
                typer.echo(f"{path}: {info.stored_tokens:,} tokens, {info.stored_bytes:,} bytes")


def _stores(recipe: Recipe) -> bool:
    """Whether the recipe writes its targets to a store."""
    return recipe.task.answers == "text" and recipe.objective.needs_targets


def _stores_in(path: Path) -> list[Path]:
    """Returns the stores in a folder, or the folder itself if it is a store.

    If there is no store, it also returns the folder itself: reading it then raises the error
    that says what is wrong.
    """
    from instil.targets.index import exists

    stores = sorted(folder for folder in path.glob("*") if exists(folder))
    return [path] if exists(path) or not stores else stores


@app.command()
def info(
    path: Store,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Show the content and the size of a target store, without reading its shards.

    For a folder that holds several stores, show each of them.
    """
    from instil.targets.index import INDEX, StoreInfo

    with errors(debug):
        stores = {store: _facts(StoreInfo.latest(store / INDEX)) for store in _stores_in(path)}
    if not as_json:
        for store, facts in stores.items():
            _print(store, facts)
    elif path in stores:
        typer.echo(json.dumps(stores[path], indent=1))
    else:
        typer.echo(json.dumps({store.name: facts for store, facts in stores.items()}, indent=1))


@app.command()
def verify(path: Store, debug: Debug = False) -> None:
    """Read every shard of a target store and compare its checksum.

    For a folder that holds several stores, check each of them.

    Exit status: 0 no problem was found, 1 a shard is damaged or missing, 2 there is no store.
    """
    from instil.targets.index import INDEX, StoreInfo
    from instil.targets.index import verify as problems_of

    with errors(debug):
        stores = {store: problems_of(store) for store in _stores_in(path)}
        for store, problems in stores.items():
            for problem in problems:
                typer.echo(problem if store == path else f"{store.name}: {problem}", err=True)
            if not problems:
                shards = len(StoreInfo.read(store / INDEX).shards)
                typer.echo(f"{store}: {shards} shard{'s' * (shards != 1)}, no problem found")
        if any(stores.values()):
            sys.exit(1)


def _facts(info: StoreInfo) -> dict[str, Any]:
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


def _rule(facts: dict[str, Any]) -> str:
    """Describes which outcomes are stored per token."""
    rules = [f"at most {facts['top_k']:,} of {facts['vocabulary']:,}"]
    if facts["min_probability"]:
        rules.append(f"with probability {facts['min_probability']:g} or more")
    if facts["mass"] < 1:
        rules.append(f"until they cover a mass of {facts['mass']:g}")
    if facts["at_least"] > 1:
        rules.append(f"always the first {facts['at_least']:,}")
    if facts["mass_per_draw"]:
        rules.append(f"plus one sampled per {facts['mass_per_draw']:g} of the remaining mass")
    return ", ".join(rules)


def _print(path: Path, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    table = Table(title=escape(str(path)), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "complete": "yes" if facts["whole"] else "no",
        "teacher": escape(facts["teacher"]) or "–",
        "rows": f"{facts['rows_stored']:,} of {facts['rows']:,}",
        "tokens": f"{facts['tokens_stored']:,} of {facts['tokens']:,}",
        "stored per token": f"mean {shown(facts['kept_mean'], '.1f')}, "
        f"maximum {shown(facts['kept_max'], ',')}",
        "stored outcomes": _rule(facts),
        "bytes per token": shown(facts["bytes_per_token"], ".1f"),
        "bytes": f"{facts['bytes']:,}",
        "shards": f"{facts['shards']:,}",
        "temperature": f"{facts['temperature']}",
        "fingerprint": escape(facts["fingerprint"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
