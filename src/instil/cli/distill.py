"""The command `instil distill`, which bakes one context into one adapter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from instil.cli.gates import check_results, gate_of
from instil.cli.options import (
    debug_option,
    errors,
    gate_option,
    kl_share_option,
    leak_option,
    metric_option,
    overwrite_option,
    quiet_option,
    rule_option,
)
from instil.cli.summary import print_run
from instil.cli.typed import named_fields, only_given, sets_of, text_of, unescape
from instil.errors import ConfigError
from instil.system import processes
from instil.system.disk import from_home

if TYPE_CHECKING:
    from instil.api import Run
    from instil.pipeline.given import Given
    from instil.recipe.recipe import Recipe
    from instil.system.progress import Display

OUTPUT_PANEL, LAST_PANEL = "Where to", "Gate and output"


class Panels(TyperCommand):
    """A command whose help groups all options in named panels, with `--help` in the last."""

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        """Returns the option `--help`."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = LAST_PANEL
        return option


_baked = partial(typer.Option, rich_help_panel="What to bake in")
_rows = partial(typer.Option, rich_help_panel="Rows")
_place = partial(typer.Option, rich_help_panel=OUTPUT_PANEL)
_prompt = partial(typer.Option, rich_help_panel="Prompt")
_teacher = partial(typer.Option, rich_help_panel="Teacher")
_training = partial(typer.Option, rich_help_panel="Training")
_other = partial(typer.Option, rich_help_panel="Any other setting")
_last = partial(typer.Option, rich_help_panel=LAST_PANEL)


def distill(
    *,
    model: Annotated[
        str,
        _baked(
            help="Model to train: hub id (or OWNER/NAME@REVISION), local folder, or bundled:NAME.",
            show_default=False,
        ),
    ],
    demos: Annotated[
        Path | None, _baked(help="File of demonstrations: rows with input and output.")
    ] = None,
    instruction: Annotated[
        Path | None, _baked(help="Text file with an instruction to the model.")
    ] = None,
    document: Annotated[
        Path | None, _baked(help="Text file with a document that answers are based on.")
    ] = None,
    k: Annotated[
        int | None, _baked(help="Use only the first K demonstrations. Default: all.")
    ] = None,
    context_from_logs: Annotated[
        bool,
        _baked(
            "--context-from-logs",
            help="Take the context out of the conversations: their system message, and the example "
            "turns that all of them begin with.",
        ),
    ] = False,
    bake_tools: Annotated[
        bool,
        _baked("--bake-tools", help="Leave the definitions of tools out of the student's prompt."),
    ] = False,
    student_system: Annotated[
        str | None,
        _baked(
            metavar="TEXT|FILE", help="Short system prompt that the student keeps. Default: none."
        ),
    ] = None,
    inputs: Annotated[
        Path,
        _rows(
            help="Rows to learn from, with a field input, or conversations, with a field messages: "
            "a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow), a folder, a pattern, "
            "hub:OWNER/NAME:SPLIT, or - for standard input. With --completions gold they also need "
            "a field output.",
            show_default=False,
        ),
    ],
    field: Annotated[
        list[str],
        _rows(
            metavar="NAME=NAME",
            help="Name of a field in the files, if it is another one: input=question. May be given "
            "several times.",
        ),
    ] = [],  # noqa: B006 - typer reads the default; it is never changed
    turns: Annotated[
        str, _rows(help="Answers of a conversation to learn: all, last or first.")
    ] = "all",
    on_bad_row: Annotated[
        str | None,
        _rows(
            help="What a row that cannot be used does: error (it ends the run) or drop (it is left "
            "out). Default: error for up to 1,000 rows, else drop.",
        ),
    ] = None,
    eval: Annotated[
        list[str],
        _rows(
            metavar="[NAME=]FILE",
            help="Evaluation rows, with the fields input and output. For several sets, repeat "
            "the option with a NAME for each. Default: a fifth of the inputs is held out.",
        ),
    ] = [],  # noqa: B006 - typer reads the default; it is never changed
    make_inputs: Annotated[
        int | None,
        _rows(
            metavar="N",
            help="Let the teacher write N more inputs like those that are given. For a few dozen "
            "inputs or fewer.",
        ),
    ] = None,
    allow_overlap: Annotated[
        bool,
        _rows(
            "--allow-overlap", help="Allow evaluation rows that are also inputs or demonstrations."
        ),
    ] = False,
    output: Annotated[
        Path,
        _place(
            help="Folder for the run: adapter, report, scores and predictions.", show_default=False
        ),
    ],
    overwrite: Annotated[bool, overwrite_option(OUTPUT_PANEL)] = False,
    format: Annotated[
        str,
        _prompt(
            help="Format of the prompts: chat, plain, or auto (chat if the model has a chat "
            "template)."
        ),
    ] = "auto",
    pattern: Annotated[
        str | None,
        _prompt(help=r"Prompt of the plain format; \n is a line break. Default: 'Q: {input}\nA:'."),
    ] = None,
    completion_pattern: Annotated[
        str | None, _prompt(help=r"Completion of the plain format. Default: ' {output}\n'.")
    ] = None,
    separator: Annotated[
        str | None,
        _prompt(help=r"Text between two demonstrations in the plain format. Default: '\n'."),
    ] = None,
    teacher_model: Annotated[
        str | None,
        _teacher(help="Larger model that teaches. Default: the same weights without the adapter."),
    ] = None,
    completions: Annotated[
        str,
        _teacher(
            help="Completions to learn: teacher (written by the teacher) or gold (the rows' "
            "outputs)."
        ),
    ] = "teacher",
    thinking: Annotated[
        str,
        _teacher(
            help="What the assistant thought before a logged answer: learn, drop, or forbid (such a "
            "row cannot be used)."
        ),
    ] = "learn",
    samples: Annotated[
        int | None, _teacher(help="Completions to sample per input. Default: 1.")
    ] = None,
    sampling_temperature: Annotated[
        float | None,
        _teacher(help="Temperature for sampling completions. Default: 0, which decodes greedily."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        _teacher(
            help="Maximum number of tokens per answer. Default: derived from the longest known "
            "answer."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        _teacher(
            metavar="vllm",
            help="Let a server write for the teacher, and answer the evaluation rows at the end. "
            "Default: this process does.",
        ),
    ] = None,
    objective: Annotated[
        str,
        _training(
            help="Loss: forward_kl, reverse_kl, jensen_shannon, logit_mse, cross_entropy or "
            "hidden_state."
        ),
    ] = "forward_kl",
    temperature: Annotated[
        float | None,
        _training(
            help="Temperature of the loss. Only for forward_kl, reverse_kl and jensen_shannon. "
            "Default: 1."
        ),
    ] = None,
    lora_r: Annotated[int | None, _training(help="Rank of the adapter. Default: 8.")] = None,
    learning_rate: Annotated[
        float | None, _training(help="Learning rate after the warm-up. Default: 0.001.")
    ] = None,
    epochs: Annotated[
        float | None,
        _training(help="Passes over the inputs. Default: until the student learns no more."),
    ] = None,
    max_steps: Annotated[
        int | None,
        _training(
            help="Number of optimiser steps. Cannot be used with --epochs. Default: until the "
            "student learns no more."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        _training(help="Rows per forward pass, summed over all processes. Default: 16."),
    ] = None,
    keep: Annotated[
        str | None,
        _training(
            metavar="SHARE|none",
            help="Share of each batch that is text on which the model must not change. Default: "
            "0.2. For your own text, see --set keep.source=FILE.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        _training(
            help="Number format of the weights: float32, bfloat16, float16, or auto "
            "(bfloat16 if the machine is fast in it)."
        ),
    ] = "auto",
    seed: Annotated[int, _training(help="Seed for all randomness.")] = 0,
    changes: Annotated[
        list[str],
        _other(
            "--set",
            metavar="KEY=VALUE",
            help="Change any setting of the recipe, such as teacher.top_k=64. The value is YAML. "
            "May be given several times. Applied after all other options.",
        ),
    ] = [],  # noqa: B006
    min_recovery: Annotated[
        float | None,
        _last(
            help="Exit with status 3 if recovery is clearly below this value: if even the upper "
            "end of its 95 % interval is. See --recovery-bound."
        ),
    ] = None,
    recovery_bound: Annotated[
        str | None,
        _last(
            help="What must reach --min-recovery: upper or lower (an end of the 95 % interval), or "
            "estimate (recovery itself). With lower, only a student passes that is clearly good "
            "enough. Default: upper."
        ),
    ] = None,
    metric: Annotated[
        list[str],
        _rows(
            metavar="NAME",
            help="How an answer is compared with the output of its row: exact, number, json_fields, "
            "token_f1 and others (see docs/how-to/judge-answers.md). May be given several times; "
            "the first one decides accuracy. Default: exact.",
        ),
    ] = [],  # noqa: B006
    rules: Annotated[
        Path | None,
        _rows(metavar="FILE", help="YAML file with rules that answers must obey."),
    ] = None,
    max_drift: Annotated[
        float | None,
        _last(
            help="Exit with status 3 if the model has changed more than this on unrelated text, in "
            "nats per token. 0.05 is little."
        ),
    ] = None,
    max_kl_share: Annotated[float | None, kl_share_option(LAST_PANEL)] = None,
    max_leak: Annotated[float | None, leak_option(LAST_PANEL)] = None,
    min_rule: Annotated[list[str], rule_option(LAST_PANEL)] = [],  # noqa: B006
    min_metric: Annotated[list[str], metric_option(LAST_PANEL)] = [],  # noqa: B006
    gate: Annotated[str | None, gate_option(LAST_PANEL)] = None,
    plan: Annotated[
        bool,
        _last(
            "--plan",
            help="Run only a small part, say what time and memory all of it will need, and end.",
        ),
    ] = False,
    quiet: Annotated[bool, quiet_option(LAST_PANEL)] = False,
    debug: Annotated[bool, debug_option(LAST_PANEL)] = False,
) -> None:
    """Distil a context into a LoRA adapter, and measure how well the adapter replaces it.

    The teacher is the model with the context. The student is the model without it.
    After an interruption (Ctrl-C), the same command resumes the run.

    Exit status: 0 the run is complete, 2 an input is wrong,
    3 a limit of the gate is not kept; the message names each, with its number.
    """
    with errors(debug):
        from instil.tasks.places import spooled

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
        recipe: dict[str, Any] = {
            "model": model,
            "task": only_given(
                name="files",
                inputs=str(spooled(inputs)),
                fields=named_fields(field),
                context_from_logs=context_from_logs,
                student_system=text_of(student_system),
                bake_tools=bake_tools,
                turns=turns,
                thinking=thinking,
                on_bad_row=on_bad_row,
                eval=sets_of(eval),
                demos=demos and str(demos),
                k=k,
                instruction=instruction and str(instruction),
                document=document and str(document),
                allow_overlap=allow_overlap,
            ),
            "prompt": only_given(
                format=format,
                pattern=unescape(pattern),
                completion=unescape(completion_pattern),
                separator=unescape(separator),
            ),
            "teacher": only_given(
                model=teacher_model,
                completions=completions,
                samples=samples,
                sampling_temperature=sampling_temperature,
                max_new_tokens=max_new_tokens,
                engine=engine and {"name": engine},
            ),
            "objective": only_given(name=objective, temperature=temperature),
            "tuning": only_given(name="lora", r=lora_r),
            "training": only_given(
                make_inputs=make_inputs,
                learning_rate=learning_rate,
                epochs=epochs,
                max_steps=max_steps,
                batch_size=batch_size,
            ),
            "evaluation": only_given(
                metrics=metric or None,
                rules=rules and str(rules),
                engine=engine and {"name": engine},
            ),
            "keep": only_given(share=keep) if keep != "none" else {"source": keep},
            "dtype": dtype,
            "seed": seed,
        }
        if plan:
            from instil.cli.plan import CARDS, print_plan
            from instil.pipeline.planning import foretell

            wanted, rows = checked(recipe, changes)
            print_plan(foretell(wanted, given=rows, display=begun(quiet)), CARDS)
            return
        run = run_one(recipe, changes, output=output, overwrite=overwrite, quiet=quiet)
        if processes.is_main():
            print_run(run)
            check_results(run.results, limits)


def run_one(
    settings: dict[str, Any],
    changes: Sequence[str],
    *,
    output: Path,
    overwrite: bool,
    quiet: bool,
) -> Run:
    """Checks the settings and the rows, then imports torch and runs.

    Raises:
        ConfigError: a setting is wrong, or `--set` changes a grid.
        InstilError: the data, the model or the disk does not allow the run.
    """
    recipe, given = checked(settings, changes)
    display = begun(quiet)
    from instil.api import Run
    from instil.pipeline import cell

    folder = from_home(output)
    return Run(cell.run(recipe, folder, given=given, overwrite=overwrite, display=display))


def checked(settings: dict[str, Any], changes: Sequence[str]) -> tuple[Recipe, Given]:
    """Returns the recipe and its rows.

    Raises:
        ConfigError: a setting is wrong, or `--set` changes a grid.
        InstilError: the rows cannot be read.
    """
    for change in changes:
        if change.startswith(("grid.", "grid=")):
            raise ConfigError(
                f"--set {change}: instil distill trains one adapter and has no grid",
                mend="write a recipe with the task `files`, and use instil run",
            )
    from instil.pipeline.given import Given
    from instil.recipe.grid import override
    from instil.recipe.recipe import Recipe
    from instil.recipe.usual import usual
    from instil.tasks.files import Files

    recipe = Recipe.parse(usual(override(settings, changes)))
    if not isinstance(recipe.task, Files):
        raise ConfigError(
            f"task: instil distill runs only the task 'files' (got {recipe.task.name!r})",
            mend="write a recipe with this task, and use instil run",
        )
    return recipe, Given.read(recipe, recipe.task)


def begun(quiet: bool) -> Display:
    """Prepares the libraries for work with a model, and returns what shows its progress."""
    from instil.system.progress import Display

    display = Display(quiet=quiet)
    display.note("starting")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from instil.models.load import quiet_libraries

    quiet_libraries()
    return display
