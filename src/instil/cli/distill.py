"""`instil distill` and `instil demo`: one context into one adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instil.cli.options import Debug, Overwrite, Quiet, errors
from instil.errors import ConfigError
from instil.system import processes

if TYPE_CHECKING:
    from instil.api import Run

DEMO_MODEL = "bundled:smollm2-135m-instruct"


def distill(
    model: Annotated[
        str, typer.Option(help="Hub id, local folder, or bundled:NAME.", show_default=False)
    ],
    inputs: Annotated[
        Path,
        typer.Option(
            help="Rows to learn from (.jsonl, .csv, .parquet): input, and output for --completions gold.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    eval: Annotated[
        Path | None,
        typer.Option(help="Rows to judge on: input and output. Without it, inputs are held out."),
    ] = None,
    demos: Annotated[Path | None, typer.Option(help="Demonstrations: input and output.")] = None,
    instruction: Annotated[Path | None, typer.Option(help="A text file.")] = None,
    document: Annotated[Path | None, typer.Option(help="A text file.")] = None,
    k: Annotated[int | None, typer.Option(help="Take the first k demonstrations.")] = None,
    allow_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-overlap", help="Go on if evaluation rows are also inputs or demonstrations."
        ),
    ] = False,
    teacher_model: Annotated[
        str | None, typer.Option(help="Another teacher. Default: the same weights, adapter off.")
    ] = None,
    format: Annotated[str, typer.Option(help="auto, chat or plain.")] = "auto",
    pattern: Annotated[
        str | None, typer.Option(help=r"Plain prompt. Default: 'Q: {input}\nA:'.")
    ] = None,
    completion_pattern: Annotated[
        str | None, typer.Option(help=r"Plain completion. Default: ' {output}\n'.")
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help=r"Plain, between demonstrations. Default: '\n'.")
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(help="JSON object, passed to the chat template as keyword arguments."),
    ] = None,
    completions: Annotated[
        str, typer.Option(help="teacher writes them, or gold: the inputs' outputs.")
    ] = "teacher",
    samples: Annotated[int | None, typer.Option(help="Completions an input.")] = None,
    sampling_temperature: Annotated[
        float | None, typer.Option(help="Of the teacher's completions; 0 is greedy.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Limit of an answer. Default: from the longest known answer."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Most teacher log-probabilities kept a token.")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="forward_kl, reverse_kl, jensen_shannon, logit_mse, cross_entropy or hidden_state."
        ),
    ] = "forward_kl",
    temperature: Annotated[
        float | None,
        typer.Option(help="Of a divergence: forward_kl, reverse_kl or jensen_shannon."),
    ] = None,
    lora_r: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    lora_alpha: Annotated[int | None, typer.Option(help="Scale of the adapter, times r.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the inputs.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Optimiser steps, in place of epochs.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows in a forward pass, all processes together.")
    ] = None,
    grad_accumulation: Annotated[int | None, typer.Option(help="Forward passes in a step.")] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute activations again in backward: slower, in less memory.",
        ),
    ] = None,
    report_to: Annotated[
        str | None, typer.Option(help="tensorboard: the loss curve, in the run folder.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (measured), float32, bfloat16 or float16.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    min_recovery: Annotated[
        float | None, typer.Option(help="Exit with status 3 if the student recovers less.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil a context into a LoRA adapter, and judge it.

    The teacher is the model with the context, the student the model without. An interrupted run (Ctrl-C) goes on when
    the same command is given again. Exit status: 0 done, 2 something in the input is wrong, 3 recovery is below
    --min-recovery.
    """
    recipe: dict[str, Any] = {
        "model": model,
        "context": {"demos": demos, "instruction": instruction, "document": document, "k": k},
        "data": {"inputs": inputs, "eval": eval, "allow_overlap": allow_overlap},
        "prompt": _given(
            format=format,
            pattern=_unescape(pattern),
            completion=_unescape(completion_pattern),
            separator=_unescape(separator),
        ),
        "teacher": _given(
            model=teacher_model,
            completions=completions,
            samples=samples,
            sampling_temperature=sampling_temperature,
            max_new_tokens=max_new_tokens,
            top_k=top_k,
        ),
        "objective": _given(name=objective, temperature=temperature),
        "tuning": _given(name="lora", r=lora_r, alpha=lora_alpha),
        "training": _given(
            learning_rate=learning_rate,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            grad_accumulation=grad_accumulation,
            gradient_checkpointing=gradient_checkpointing,
            report_to=report_to,
        ),
        "dtype": dtype,
        "seed": seed,
    }
    with errors(debug):
        if chat_template_kwargs is not None:
            recipe["prompt"]["chat_template_kwargs"] = _json_object(chat_template_kwargs)
        run = _run(recipe, output=output, overwrite=overwrite, quiet=quiet)
        if processes.is_main():
            _print_run(run)
            if min_recovery is not None:
                run.check_recovery(min_recovery)


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the main job on the bundled model and the bundled rows: under two minutes on two cores."""
    from importlib.resources import files

    folder = Path(str(files("instil") / "demo"))
    recipe = {
        "model": DEMO_MODEL,
        "context": {"demos": folder / "demonstrations.jsonl"},
        "data": {"inputs": folder / "inputs.jsonl", "eval": folder / "eval.jsonl"},
        "prompt": {"format": "plain"},
        "training": {"batch_size": 8},  # half the default: the demo is to end within two minutes
    }
    with errors(debug):
        run = _run(recipe, output=output, overwrite=overwrite, quiet=quiet)
        if processes.is_main():
            _print_run(run)


def _run(settings: dict[str, Any], *, output: Path, overwrite: bool, quiet: bool) -> Run:
    """Checks what can be checked cheaply, then loads torch and goes."""
    from instil.pipeline.given import Given
    from instil.recipe.recipe import Recipe
    from instil.system.progress import Display

    recipe = Recipe.parse(settings)
    given = Given.read(recipe)
    display = Display(quiet=quiet)
    display.note("starting")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from instil.api import Run
    from instil.models.load import quiet_libraries
    from instil.pipeline import experiment

    quiet_libraries()
    return Run(experiment.run(recipe, given, output=output, overwrite=overwrite, display=display))


def _print_run(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    from instil.methods import RUN_METHODS

    results = run.results
    table = Table(title=f"{results.model}, {results.context['description']}")
    table.add_column("method")
    for column in ("accuracy", "95 % interval", "prompt tokens", "seconds a query"):
        table.add_column(column, justify="right")
    for name, method in RUN_METHODS.items():
        scored = results.methods[name]
        score = scored.accuracy
        table.add_row(
            method.label,
            f"{score.value:.3f}" if score else "–",
            f"{score.low:.3f} – {score.high:.3f}" if score else "–",
            f"{scored.prompt_tokens_mean:.0f}",
            f"{scored.seconds_per_query:.3f}",
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    kl = results.fidelity.kl_to_teacher
    recovered = "cannot be told" if results.recovery is None else f"{results.recovery:.3f}"
    console.print(
        f"recovery {recovered}; KL to the teacher {kl.zero_shot:.3f} -> {kl.distilled:.3f} nats a token; "
        f"drift {results.drift.kl_to_base:.3f}",
    )
    console.print(f"report   {run.report()}", markup=False)
    console.print(f"adapter  {run.adapter}", markup=False)


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _unescape(text: str | None) -> str | None:
    r"""Lets a shell user write a line break as \n."""
    return None if text is None else text.replace("\\n", "\n").replace("\\t", "\t")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        value, problem = None, f"{error.msg} at column {error.colno} of {text!r}"
    else:
        problem = f"{type(value).__name__}: {text!r}"
    if not isinstance(value, dict):
        raise ConfigError(
            "--chat-template-kwargs is not a JSON object",
            got=problem,
            allowed='for example {"enable_thinking": false}',
            mend="put it in single quotes, names in double quotes",
        )
    return value
