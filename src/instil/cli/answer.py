"""The command `instil answer`, which lets a model on a server answer rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.options import Debug, Quiet, errors

if TYPE_CHECKING:
    from instil.pipeline.answering import Spent
    from instil.recipe.sections import Prices


def answer(
    rows: Annotated[
        str,
        typer.Argument(
            help="Rows without outputs, or conversations that end with the user, as --inputs of "
            "instil distill.",
            show_default=False,
        ),
    ],
    url: Annotated[
        str,
        typer.Option(
            help="Address of an OpenAI-compatible server, with /v1 where it has it.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Name of the model on the server.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option(help="New file for the answered rows.", show_default=False)
    ],
    key_env: Annotated[
        str, typer.Option(help="Environment variable with the key of the server.")
    ] = "OPENAI_API_KEY",
    demos: Annotated[
        Path | None, typer.Option(help="Rows with input and output, shown before each query.")
    ] = None,
    instruction: Annotated[
        Path | None, typer.Option(help="Text file with an instruction: a system prompt.")
    ] = None,
    document: Annotated[
        Path | None, typer.Option(help="Text file that the answers should come from.")
    ] = None,
    field: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=NAME",
            help="Name of a field in the file, if it is another one: input=question.",
        ),
    ] = [],  # noqa: B006 - typer reads the default; it is never changed
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature. 0 is greedy.")
    ] = 0.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of an answer. Default: what the server allows."),
    ] = None,
    logprobs: Annotated[
        int,
        typer.Option(
            min=0,
            max=20,
            help="Also ask for the log-probabilities of this many likeliest tokens at each token.",
        ),
    ] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 8,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="INPUT,CACHED,OUTPUT",
            help="Prices of a million tokens, in any currency: 0.15,0.015,0.6.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will take, and ask nothing.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Let a model on a server answer rows, so that a student can learn what it writes.

    An interrupted command resumes: no answer is asked for twice. The student then learns text:
    instil distill --completions gold --set objective=cross_entropy. If the server's model has the
    student's tokenizer, --logprobs 20 lets it learn predictions: instil distill --completions gold
    --set teacher.targets=logged.
    """
    with errors(debug):
        from instil.cli.typed import named_fields
        from instil.pipeline.answering import Asked, foretold, unanswered_rows
        from instil.pipeline.answering import answer as ask
        from instil.prompts.context import Context
        from instil.system.disk import from_home
        from instil.system.progress import Display
        from instil.tasks.files import Files
        from instil.tasks.logs import read_pile
        from instil.tasks.places import read_place, spooled

        asked = Asked(url, model, key_env, temperature, max_tokens, at_once, logprobs)
        money = _prices(prices)
        task = Files(
            inputs=spooled(from_home(Path(rows))),
            demos=demos and from_home(demos),
            instruction=instruction and from_home(instruction),
            document=document and from_home(document),
            fields=named_fields(field),
            on_bad_row="error",
        )
        assert task.inputs is not None
        pile = read_pile(
            read_place(task.inputs), rows, task.reading(gold=False, logprobs=True), copies=True
        )
        context = Context.read(task)
        todo = unanswered_rows(pile.items)
        if dry_run:
            told = foretold(todo, context, asked)
            most = "" if max_tokens is None else f", and at most {told.written:,} to write"
            whole = "for reading alone" if max_tokens is None else "at most"
            typer.echo(f"{_rows(len(todo))} to answer: about {told.prompt:,} tokens to read{most}")
            if money is not None:
                typer.echo(f"price    about {told.price(money):,.2f} {whole}, without a cache")
            return
        place = from_home(output)
        display = Display(quiet=quiet)
        with display.bar(f"{model} answers", len(todo)) as bar:
            spent = ask(pile.items, context, asked, place, advance=bar.advance)
        typer.echo(f"answers  {place}: {_told(spent, money)}")
        if "temperature" in spent.refused:
            typer.echo(f"warning: {model} takes no temperature, so it used its own", err=True)
        if logprobs and spent.without_logprobs:
            typer.echo(
                f"warning: {_rows(spent.without_logprobs)} came without log-probabilities", err=True
            )


def _told(spent: Spent, prices: Prices | None) -> str:
    reused = f" ({spent.reused:,} were there already)" if spent.reused else ""
    cut = f"; {spent.cut:,} answers reached --max-tokens" if spent.cut else ""
    cached = f", {spent.cached:,} of them from a cache" if spent.cached else ""
    price = "" if prices is None else f"; price {spent.price(prices):,.2f}"
    return (
        f"{_rows(spent.rows)}{reused}, {spent.prompt:,} tokens read{cached}, {spent.written:,} "
        f"written{price}{cut}"
    )


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _prices(given: str | None) -> Prices | None:
    """Prices of the option.

    Raises:
        ConfigError: they are not three numbers.
    """
    from instil.errors import ConfigError
    from instil.recipe.sections import Prices

    if given is None:
        return None
    try:
        read, cached, written = (float(part) for part in given.split(","))
        return Prices(input=read, cached_input=cached, output=written)
    except ValueError:
        raise ConfigError(
            "--prices: three numbers are expected", got=repr(given), allowed="0.15,0.015,0.6"
        ) from None
