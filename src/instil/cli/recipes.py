"""The command `instil recipes`, which lists, shows and copies the shipped recipes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import Debug, errors
from instil.errors import OutputExistsError

app = typer.Typer(help="List, show or copy the shipped recipes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of a shipped recipe.", show_default=False)]


@app.command("list")
def list_recipes() -> None:
    """List the names and titles of the shipped recipes."""
    from instil.recipe.grid import read_recipe
    from instil.recipe.shipped import shipped

    known = shipped()
    width = max(map(len, known))
    for name, path in known.items():
        typer.echo(f"{name:<{width}}  {read_recipe(path)['title']}")


@app.command()
def show(name: Name, debug: Debug = False) -> None:
    """Print a recipe."""
    from instil.recipe.shipped import find

    with errors(debug):
        typer.echo(find(name).read_text(encoding="utf-8"), nl=False)


@app.command()
def copy(
    name: Name,
    destination: Annotated[
        Path | None,
        typer.Argument(
            help="File or folder to write to. Default: NAME.yaml in the current folder."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Copy a shipped recipe, so that you can change it."""
    from instil.recipe.shipped import find

    with errors(debug):
        source = find(name)
        target = destination or Path(source.name)
        if target.is_dir():
            target = target / source.name
        if target.exists():
            raise OutputExistsError(f"{target} already exists", mend="name another file")
        target.parent.mkdir(parents=True, exist_ok=True)
        schema = files("instil") / "schemas" / "recipe.schema.json"
        # With this line, editors check the recipe and complete its keys.
        header = f"# yaml-language-server: $schema={schema}\n"
        target.write_text(header + source.read_text(encoding="utf-8"), encoding="utf-8")
        typer.echo(target)
