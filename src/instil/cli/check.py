"""The command `instil check`, which judges a finished run again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from instil.cli.gates import check_results, gate_of
from instil.cli.options import (
    Debug,
    Quiet,
    errors,
    gate_option,
    kl_share_option,
    leak_option,
    metric_option,
    rule_option,
)


def check(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    eval: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Judge the student on these rows or conversations, in place of the run's own. "
            "They need no outputs.",
        ),
    ] = None,
    field: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=NAME",
            help="Name of a field in the file, if it is another one: input=question.",
        ),
    ] = [],  # noqa: B006 - typer reads the default; it is never changed
    metric: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="How answers are compared with outputs. Default: as in the run."
        ),
    ] = [],  # noqa: B006
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with rules. Default: those of the run."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the new results. Default: RUN/checks/NAME of the file."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results at --output.")
    ] = False,
    min_recovery: Annotated[
        float | None,
        typer.Option(help="Exit with status 3 if recovery is clearly below this value."),
    ] = None,
    recovery_bound: Annotated[
        str | None,
        typer.Option(help="What must reach --min-recovery: upper, lower, or estimate."),
    ] = None,
    max_kl_share: Annotated[float | None, kl_share_option()] = None,
    max_drift: Annotated[
        float | None,
        typer.Option(
            help="Exit with status 3 if the model has changed more than this on unrelated text, in "
            "nats per token."
        ),
    ] = None,
    max_leak: Annotated[float | None, leak_option()] = None,
    min_rule: Annotated[list[str], rule_option()] = [],  # noqa: B006
    min_metric: Annotated[list[str], metric_option()] = [],  # noqa: B006
    gate: Annotated[str | None, gate_option()] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge a finished run again, without training: by other limits, rules, metrics, or rows.

    Without --eval, no model is loaded: the stored answers are judged. Without any limit, the gate is
    the default one.

    Exit status: 0 all limits are kept, 2 an input is wrong, 3 a limit is not kept.
    """
    with errors(debug):
        limits = gate_of(
            gate,
            min_recovery=min_recovery,
            recovery_bound=recovery_bound,
            max_kl_share=max_kl_share,
            max_drift=max_drift,
            max_leak=max_leak,
            min_rule=min_rule,
            min_metric=min_metric,
        )
        from instil.api import Run
        from instil.cli.summary import print_results
        from instil.metrics import comparing
        from instil.metrics.rules import read_rules
        from instil.results.gate import Gate
        from instil.results.schema import RESULTS, Results
        from instil.system.disk import from_home

        folder = from_home(run)
        results = Results.read(folder / RESULTS)
        metrics = [comparing(name) for name in metric]
        obeyed = read_rules(from_home(rules)) if rules else []
        if eval is not None:
            results = _on(folder, eval, field, metric, rules, output, overwrite, quiet)
        elif metrics or obeyed:
            from instil.pipeline.checking import check_stored

            results, _ = check_stored(folder, metrics=metrics, rules=obeyed)
        print_results(results)
        if eval is None:
            typer.echo(f"report   {Run(folder).report()}")
        check_results(results, None if limits == Gate() else limits)


def _on(
    folder: Path,
    eval: Path,
    field: list[str],
    metric: list[str],
    rules: Path | None,
    output: Path | None,
    overwrite: bool,
    quiet: bool,
) -> Any:
    from instil.cli.distill import named_fields
    from instil.errors import OutputExistsError
    from instil.models.load import quiet_libraries
    from instil.pipeline.checking import check_on
    from instil.recipe.recipe import Recipe
    from instil.results.schema import REPORT, RESULTS, Results
    from instil.system.disk import from_home
    from instil.system.progress import Display
    from instil.tasks.files import Files
    from instil.tasks.logs import read_pile
    from instil.tasks.places import read_place

    place = output or folder / "checks" / eval.stem
    if place.exists() and not overwrite:
        raise OutputExistsError(
            f"{place} already exists", mend="pass --overwrite, or another --output"
        )
    task = Recipe.parse(Results.read(folder / RESULTS).recipe).task
    names = named_fields(field) or (task.fields if isinstance(task, Files) else {})
    reading = Files(inputs=eval, fields=names).reading(gold=False)
    pile = read_pile(read_place(from_home(eval)), str(eval), reading)
    changes: dict[str, Any] = {"metrics": metric} if metric else {}
    if rules:
        changes["rules"] = str(rules)
    quiet_libraries()
    work = place.with_name(place.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    results = check_on(folder, pile, work, changes=changes, display=Display(quiet=quiet))
    shutil.rmtree(place, ignore_errors=True)
    work.rename(place)
    typer.echo(f"report   {place / REPORT}")
    return results
