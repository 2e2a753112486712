"""The commands `instil rules`: try a file of rules on answers, and draft one from a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import Debug, errors

app = typer.Typer(help="Try and draft rules that answers must obey.", no_args_is_help=True)
SHOWN = 2


@app.command("check")
def check(
    rules: Annotated[Path, typer.Argument(help="YAML file of rules.", show_default=False)],
    logs: Annotated[
        Path,
        typer.Argument(
            help="Rows with input and output, or conversations, as --inputs of instil distill.",
            show_default=False,
        ),
    ],
    debug: Debug = False,
) -> None:
    """Say how many logged answers obey each rule, with the first ones that do not."""
    with errors(debug):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from instil.metrics.rules import read_rules
        from instil.pipeline.verdicts import asked_of, means, verdicts
        from instil.system.disk import from_home
        from instil.tasks.files import Files
        from instil.tasks.logs import read_pile, rows_of
        from instil.tasks.places import read_place

        known = read_rules(from_home(rules))
        reading = Files(inputs=logs, on_bad_row="drop").reading(gold=True)
        pile = read_pile(read_place(from_home(logs)), str(logs), reading)
        rows = [row for row in rows_of(pile.items, reading) if row.output is not None]
        texts = [row.output or "" for row in rows]
        told = verdicts(
            texts,
            [None] * len(rows),
            [asked_of(row) for row in rows],
            metrics=[],
            rules=known,
            right=lambda text, gold: False,
            name=f"{logs}, answer",
        )
        left = f"; {len(pile.dropped):,} rows that cannot be read" if pile.dropped else ""
        table = Table(title=escape(f"{len(rows):,} answers of {logs}{left}"))
        table.add_column("rule")
        for column in ("applies to", "obeyed by", "95 % interval"):
            table.add_column(column, justify="right", no_wrap=True)
        found = means(told.rules)
        for rule in known:
            share = found.get(rule.name)
            table.add_row(
                escape(rule.name),
                str(share.n) if share else "0",
                f"{share.value:.1%}" if share else "–",
                f"{share.low:.1%} – {share.high:.1%}" if share else "–",
            )
        console = Console(highlight=False, soft_wrap=True)
        console.print(table)
        for rule in known:
            broken = [n for n, of in enumerate(told.rules) if of.get(rule.name) is False]
            for number in broken[:SHOWN]:
                console.print(f"[bold]{escape(rule.name)}[/bold]  {escape(rule.text)}")
                console.print(f"  asked     {escape(_line(rows[number].input))}")
                console.print(f"  answered  {escape(_line(texts[number]))}")


@app.command("draft")
def draft(
    prompt: Annotated[
        Path, typer.Argument(help="Text file with a system prompt.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option(help="YAML file to write. Default: print the rules.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|URL",
            help="Let a model propose the rules: a local one as in --model of distill, or the address "
            "of an OpenAI-compatible server. Default: only sentences of usual forms, without a model.",
        ),
    ] = None,
    by_model: Annotated[str | None, typer.Option(help="Name of the model on its server.")] = None,
    by_key_env: Annotated[
        str, typer.Option(help="Environment variable with the key of the server.")
    ] = "OPENAI_API_KEY",
    debug: Debug = False,
) -> None:
    """Propose rules from the sentences of a prompt. It is a draft: read it before you trust it.

    Without --by, only sentences of usual forms become rules: what an answer begins or ends with, how
    long it is, words that it must not have, its language, JSON. The others are listed as comments.
    """
    with errors(debug):
        from instil.errors import ConfigError, DataFileError, OutputExistsError
        from instil.metrics.draft import drafted
        from instil.system.disk import from_home
        from instil.tasks.text_files import read_text

        if output is not None and output.exists():  # refused before a model is asked
            raise OutputExistsError(f"{output} already exists", mend="name another file")
        if output is not None and not from_home(output).parent.is_dir():
            raise DataFileError(f"there is no folder {output.parent}", mend="create it first")
        text = read_text(from_home(prompt))
        if by is not None:
            from instil.engines.chat import chat_of
            from instil.evaluation.drafting import drafted_by
            from instil.models.load import quiet_libraries

            quiet_libraries()
            made = drafted_by(chat_of(by, by_model, by_key_env, option="--by")(), text)
        elif by_model is not None:
            raise ConfigError("--by-model needs --by")
        else:
            made = drafted(text)
        if output is None:
            typer.echo(made, nl=False)
            return
        output.write_text(made, encoding="utf-8")
        typer.echo(f"rules    {output}")


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:159]}…"
