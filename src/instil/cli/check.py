"""The command `instil check`, which judges a finished run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from instil.engines.chat import Chat
    from instil.metrics import Metric
    from instil.metrics.rules import Rule
    from instil.results.schema import Prediction, Results
    from instil.results.scores import HarnessScore

JUDGED = 100
"""Rows of a set that a judge is shown, if nobody says how many."""


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
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|URL",
            help="Let a model compare the student's answers with in-context, in both orders: a local "
            "model as in --model of distill, or the address of an OpenAI-compatible server.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Name of the judge's model on its server.")
    ] = None,
    judge_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with the key of the judge's server. Default: OPENAI_API_KEY."
        ),
    ] = None,
    judge_prompt: Annotated[
        Path | None,
        typer.Option(
            help="Jinja2 template of the judge's prompt, with context, chat, a and b. Default: the one "
            "that comes with the package."
        ),
    ] = None,
    judge_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Most rows of a set that are judged. Default: 100."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="vllm|merged|merged+4bit|merged+8bit",
            help="Let the student answer the run's rows again where it will be served: on vLLM, or with "
            "the adapter merged into the weights, which may then be quantised.",
        ),
    ] = None,
    engine_url: Annotated[
        str | None,
        typer.Option(help="Address of a server that runs. Default: one is started for the check."),
    ] = None,
    lm_eval: Annotated[
        list[str],
        typer.Option(
            metavar="TASK",
            help="Compare student and base on a task of lm-evaluation-harness. May be given several "
            "times.",
        ),
    ] = [],  # noqa: B006
    lm_eval_path: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder with further tasks, as YAML files of lm_eval."),
    ] = None,
    lm_eval_limit: Annotated[
        int | None, typer.Option(min=1, help="Most examples of a task. Default: all.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the new results and report. Default: RUN/checks/NAME, by the file of "
            "--eval, the engine, or lm-eval; else nothing is written."
        ),
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

    Without --eval, --engine, --lm-eval and --judge, no model is loaded: the stored answers are judged.
    Without any limit, the gate is the default one.

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
        from instil.errors import ConfigError
        from instil.metrics import comparing
        from instil.metrics.rules import read_rules
        from instil.results.gate import Gate
        from instil.results.schema import RESULTS, Results
        from instil.system.disk import from_home

        folder = from_home(run)
        results = Results.read(folder / RESULTS)
        metrics = [comparing(name) for name in metric]
        obeyed = read_rules(from_home(rules)) if rules else []
        judging = _JudgeOptions.of(judge, judge_model, judge_key_env, judge_prompt, judge_rows)
        if engine is not None and eval is not None:
            raise ConfigError(
                "--engine and --eval cannot both be given",
                mend="check the rows first, then the engine, in a command each",
            )
        if engine_url is not None and engine != "vllm":
            raise ConfigError("--engine-url needs --engine vllm")
        if lm_eval and eval is not None:
            raise ConfigError(
                "--lm-eval and --eval cannot both be given", mend="run a command for each"
            )
        if not lm_eval and (lm_eval_path or lm_eval_limit):
            raise ConfigError("--lm-eval-path and --lm-eval-limit need --lm-eval")
        named = eval.stem if eval else engine or ("lm-eval" if lm_eval else None)
        place = from_home(output) if output else folder / "checks" / named if named else None
        predictions, staging = None, None
        if eval is None and place is not None:  # refused before a judge is asked
            from instil.pipeline.folder import Staging

            staging = Staging(place, overwrite=overwrite, reads=[folder / RESULTS])
        if eval is not None:
            assert place is not None
            results = _on(folder, eval, field, metric, rules, place, overwrite, quiet)
        elif metrics or obeyed:
            from instil.pipeline.checking import check_stored

            results, predictions = check_stored(folder, metrics=metrics, rules=obeyed)
        if lm_eval:
            scores = _harness(folder, lm_eval, lm_eval_path, lm_eval_limit, quiet)
            results = results.model_copy(update={"harness": scores})
        if engine is not None:
            results = _served(
                folder, results, engine, engine_url, metrics, obeyed, predictions, quiet
            )
        if judging is not None:
            results = judging.judged(place if eval and place else folder, results, quiet)
        if eval is not None and place is not None and judging is not None:
            from instil.report import write_report

            results.write(place / RESULTS)
            write_report(place)
        elif staging is not None:
            from instil.pipeline.checking import write_checked

            write_checked(folder, staging, results, predictions)
        print_results(results)
        if place or not (metrics or obeyed or judging):  # else the report knows nothing of these
            typer.echo(f"report   {Run(place or folder).report()}")
        check_results(results, None if limits == Gate() else limits)


def _served(
    folder: Path,
    results: Results,
    engine: str,
    url: str | None,
    metrics: Sequence[Metric],
    rules: Sequence[Rule],
    predictions: Sequence[Prediction] | None,
    quiet: bool,
) -> Results:
    """The results with those of the student where it will be served."""
    from instil.metrics import comparing
    from instil.models.load import quiet_libraries
    from instil.pipeline.serving import served
    from instil.recipe.recipe import Recipe
    from instil.recipe.sections import Engine
    from instil.results.schema import PREDICTIONS, Prediction
    from instil.system.files import read_lines
    from instil.system.progress import Display

    quiet_libraries()
    evaluation = Recipe.parse(results.recipe).evaluation
    found = served(
        folder,
        engine,
        Engine(url=url),
        metrics=metrics or [*map(comparing, evaluation.metrics)],
        rules=rules or evaluation.ruled(),
        before=predictions or read_lines(Prediction, folder / PREDICTIONS),
        display=Display(quiet=quiet),
    )
    for one in found:
        right = f", {one.accuracy.value:.3f} right" if one.accuracy else ""
        before = one.accuracy_in_process
        typer.echo(
            f"served   {one.where}: {one.set}, {one.same_answer.value:.0%} of {one.rows:,} answers as "
            f"in the run{right}{f' ({before.value:.3f} in the run)' if before else ''}, "
            f"{one.rows / one.seconds:.1f} a second"
        )
    return results.model_copy(update={"served": [*results.served, *found]})


def _harness(
    folder: Path, tasks: list[str], path: Path | None, limit: int | None, quiet: bool
) -> list[HarnessScore]:
    """The scores of student and base on tasks of lm-evaluation-harness."""
    from instil.models.load import quiet_libraries
    from instil.pipeline.harness import harness
    from instil.system.disk import from_home
    from instil.system.progress import Display

    quiet_libraries()
    found = harness(
        folder, tasks, include=path and from_home(path), limit=limit, display=Display(quiet=quiet)
    )
    for one in found:
        typer.echo(
            f"lm-eval  {one.task}, {one.metric}: {one.base:.3f} of the base, {one.student:.3f} of the "
            "student"
        )
    return found


@dataclass(frozen=True)
class _JudgeOptions:
    """The judge that the options name.

    Attributes:
        make: Makes the judge, when it is needed.
        template: Template of its prompt.
        rows: Most rows of a set.
    """

    make: Callable[[], Chat]
    template: str
    rows: int

    @classmethod
    def of(
        cls,
        judge: str | None,
        model: str | None,
        key_env: str | None,
        prompt: Path | None,
        rows: int | None,
    ) -> _JudgeOptions | None:
        """Checks the options; None if there is no judge.

        Raises:
            ConfigError: a server has no model, or options need a judge.
        """
        from instil.engines.chat import KEY_ENV, chat_of
        from instil.errors import ConfigError
        from instil.evaluation.judge import shipped_prompt
        from instil.system.disk import from_home
        from instil.tasks.text_files import read_text

        if judge is None:
            given = {"model": model, "key-env": key_env, "prompt": prompt, "rows": rows}
            alone = [f"--judge-{name}" for name, value in given.items() if value is not None]
            if alone:
                raise ConfigError(f"{', '.join(alone)}: there is no --judge to which this belongs")
            return None
        template = read_text(from_home(prompt)) if prompt else shipped_prompt()
        asked = chat_of(judge, model, key_env or KEY_ENV, option="--judge")
        return cls(asked, template, rows or JUDGED)

    def judged(self, folder: Path, results: Results, quiet: bool) -> Results:
        """The results of a run with the verdicts of the judge."""
        from instil.models.load import quiet_libraries
        from instil.pipeline.checking import judged_stored
        from instil.system.progress import Display

        quiet_libraries()
        return judged_stored(
            folder,
            results,
            self.make(),
            most=self.rows,
            template=self.template,
            display=Display(quiet=quiet),
        )


def _on(
    folder: Path,
    eval: Path,
    field: list[str],
    metric: list[str],
    rules: Path | None,
    place: Path,
    overwrite: bool,
    quiet: bool,
) -> Results:
    """The results of the student on other rows."""
    from instil.cli.typed import named_fields
    from instil.models.load import quiet_libraries
    from instil.pipeline.checking import check_on
    from instil.recipe.recipe import Recipe
    from instil.results.schema import RESULTS, Results
    from instil.system.disk import from_home
    from instil.system.progress import Display
    from instil.tasks.files import Files
    from instil.tasks.logs import read_pile
    from instil.tasks.places import read_place

    task = Recipe.parse(Results.read(folder / RESULTS).recipe).task
    names = named_fields(field) or (task.fields if isinstance(task, Files) else {})
    reading = Files(inputs=eval, fields=names).reading(gold=False)
    pile = read_pile(read_place(from_home(eval)), str(eval), reading)
    changes: dict[str, Any] = {"metrics": metric} if metric else {}
    if rules:
        changes["rules"] = str(rules)
    quiet_libraries()
    return check_on(
        folder, pile, place, changes=changes, overwrite=overwrite, display=Display(quiet=quiet)
    )
