"""Varies one setting of distillation at a time: recovery and held-out KL on small tasks.

    python benchmarks/ablation.py --data FOLDER
        [--only VARIANT ...] [--tasks TASK ...] [--seeds 0] [--output FILE]

FOLDER holds three kinds of tasks:

- `function_vectors/*.jsonl` (Todd et al. 2024): the context is 8 demonstrations;
- `instruction_induction/{*.train,*.test}.jsonl` with `instructions.jsonl` (Honovich et al. 2022):
  the context is the task's first instruction;
- `ifeval/single_format_instruction.jsonl` (Zhou et al. 2023): prompts with and without an
  instruction about the form of the answer. The instruction of one row is the context, the prompts
  of all rows without theirs are the queries, and an answer is right if it has that form.

Every run has up to 150 unlabelled inputs and 60 held-out rows. All settings that a variant does not
name are the defaults, except for `bullet_points` and `highlighted_section` (see `FORMS`). Equal
targets are computed once. Each run adds a line to the output when it ends, and a run that has a
line is not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from function_vectors import accuracies, distances
from instil.api import Run
from instil.models.load import quiet_libraries
from instil.pipeline import cell
from instil.pipeline.rows import Given
from instil.prompts.context import Context, FewShot, Instruction
from instil.recipe.recipe import Recipe
from instil.results.schema import SPENT
from instil.system import environment
from instil.system.progress import Display
from instil.tasks.files import ROWS
from instil.tasks.rows import Row

MODEL = "bundled:smollm2-135m-instruct"
DEMONSTRATIONS, HELD_OUT, INPUTS = 8, 60, 150
SHOTS = ("singular-plural", "country-capital", "capitalize")
INSTRUCTIONS = ("num_to_verbal", "letters_list", "larger_animal")
# The row whose instruction is the context, and a pattern of answers of that form. Answers are long:
# they are cut, and batches are halved.
FORMS = {"bullet_points": (2078, r"^\* ."), "highlighted_section": (2515, r"\*[^\s*][^\n*]*\*")}
ANSWER_TOKENS, BATCH = 32, 8

DENSE = {"teacher": {"top_k": 49_152, "min_probability": 0.0, "mass_per_draw": 0.0}}
MSE = {"name": "logit_mse", "top_k": 256}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "reverse_kl": {"objective": {"name": "reverse_kl"}},
    "jensen_shannon": {"objective": {"name": "jensen_shannon"}},
    "cross_entropy": {"objective": {"name": "cross_entropy"}},
    "logit_mse": {"objective": MSE},
    "cross_entropy+logit_mse": {"objective": [{"name": "cross_entropy"}, {**MSE, "weight": 0.5}]},
    "cross_entropy+forward_kl": {"objective": [{"name": "cross_entropy"}, {"name": "forward_kl"}]},
    "forward_kl+hidden_state": {"objective": [{"name": "forward_kl"}, {"name": "hidden_state"}]},
    "temperature 2": {"objective": {"name": "forward_kl", "temperature": 2.0}},
    "temperature 0.5": {"objective": {"name": "forward_kl", "temperature": 0.5}},
    "gold completions": {"teacher": {"completions": "gold"}},
    "4 sampled completions": {"teacher": {"samples": 4, "sampling_temperature": 1.0}},
    "4 sampled completions, 40 steps": {
        "teacher": {"samples": 4, "sampling_temperature": 1.0},
        "training": {"max_steps": 40},
    },
    "dense targets": DENSE,
    "tail as one outcome": {
        "teacher": {"top_k": 1024, "min_probability": 2e-4, "mass_per_draw": 0.0}
    },
    "8 log-probabilities": {"teacher": {"top_k": 8, "min_probability": 0.0, "mass_per_draw": 0.0}},
    "mass 0.99": {
        "teacher": {"top_k": 64, "min_probability": 0.0, "mass": 0.99, "mass_per_draw": 0.0}
    },
    "30 steps": {"training": {"max_steps": 30}},
    "120 steps": {"training": {"max_steps": 120}},
}


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def given(data: Path, task: str, seed: int, *, gold: bool) -> Given:
    """Context, inputs and held-out rows of a task; no input text is in two of them."""
    rng = random.Random(seed)
    if task in SHOTS:
        rows = list(
            {
                row["input"]: row for row in lines(data / "function_vectors" / f"{task}.jsonl")
            }.values()
        )
        rng.shuffle(rows)
        shown, rows = rows[:DEMONSTRATIONS], rows[DEMONSTRATIONS:]
        held_out, inputs = rows[:HELD_OUT], rows[HELD_OUT : HELD_OUT + INPUTS]
        context = Context.of(FewShot(shown))
    elif task in FORMS:
        pairs = lines(data / "ifeval" / "single_format_instruction.jsonl")
        (chosen,) = (pair for pair in pairs if pair["key"] == FORMS[task][0])
        alone = chosen["prompt_without_instruction"]
        instruction = chosen["prompt"].removeprefix(alone).strip()
        asked = [{"input": pair["prompt_without_instruction"], "output": None} for pair in pairs]
        rng.shuffle(asked)
        held_out, inputs = asked[:HELD_OUT], asked[HELD_OUT : HELD_OUT + INPUTS]
        context = Context.of(Instruction(instruction))
    else:
        folder = data / "instruction_induction"
        (known,) = (one for one in lines(folder / "instructions.jsonl") if one["task"] == task)
        held_out = rng.sample(lines(folder / f"{task}.test.jsonl"), HELD_OUT)
        judged = {row["input"] for row in held_out}
        others = [
            row for row in lines(folder / f"{task}.train.jsonl") if row["input"] not in judged
        ]
        inputs = rng.sample(others, INPUTS)
        context = Context.of(Instruction(known["instructions"][0]))
    return Given(
        context=context,
        inputs=[Row(row["input"], row["output"] if gold else None) for row in inputs],
        held_out={ROWS: [Row(row["input"], row["output"]) for row in held_out]},
    )


def measure(data: Path, task: str, variant: str, seed: int, work: Path) -> dict[str, Any]:
    """One run: its scores and costs."""
    settings = json.loads(json.dumps(VARIANTS[variant]))
    settings.setdefault("teacher", {})["store"] = str(work / "targets")
    prompt = {"format": "plain"} if task in SHOTS else {}
    if task in FORMS:
        settings["teacher"]["max_new_tokens"] = ANSWER_TOKENS
        settings.setdefault("training", {})["batch_size"] = BATCH
    recipe = Recipe.parse(
        {
            "model": MODEL,
            "task": {"name": "files"},
            "seed": seed,
            "prompt": prompt,
            "evaluation": {"baselines": ["zero_shot", "in_context"]},
            **settings,
        }
    )
    rows = given(data, task, seed, gold=recipe.teacher.completions == "gold")
    with tempfile.TemporaryDirectory() as folder:
        # Not `instil.distill`, which wants rows to judge on to have outputs.
        output, display = Path(folder) / "run", Display(quiet=True)
        run = Run(cell.run(recipe, output, given=rows, display=display))
        results = run.results
        accuracy = formed(run, FORMS[task][1]) if task in FORMS else accuracies(results)
    spent = (cost for phase, cost in results.phases.items() if phase in SPENT)
    return {
        "variant": variant,
        "task": task,
        "seed": seed,
        **accuracy,
        "recovery": results.recovery,
        **distances(results),
        "seconds": sum(cost.wall_seconds for cost in spent),
    }


def formed(run: Run, pattern: str) -> dict[str, float]:
    """Share of each method's answers that have a form."""
    right: dict[str, list[bool]] = {}
    for one in run.predictions:
        found = re.search(pattern, one.text or "", re.MULTILINE)
        right.setdefault(one.method, []).append(bool(found))
    return {method: statistics.mean(answers) for method, answers in right.items()}


def table(done: list[dict[str, Any]], variants: list[str], tasks: list[str]) -> str:
    """Markdown: accuracy, share of zero-shot's KL, and drift by variant and task, and means."""

    def shown(variant: str, chosen: list[str]) -> str:
        runs = [run for run in done if run.get("variant") == variant and run["task"] in chosen]
        if {run["task"] for run in runs} != set(chosen):
            return "–"
        accuracy, share, drift = (
            statistics.mean(run[name] for run in runs)
            for name in ("distillation", "kl_share", "drift")
        )
        return f"{accuracy:.2f}, {share:.1%}, {drift:.2f}"

    columns = [*([task] for task in tasks), tasks]
    lines = [f"| variant | {' | '.join(tasks)} | mean |", "| --- |" + " --- |" * len(columns)]
    for variant in variants:
        cells = (shown(variant, chosen) for chosen in columns)
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--tasks", nargs="*", default=[*SHOTS, *INSTRUCTIONS, *FORMS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--output", type=Path, default=Path("ablation.jsonl"))
    arguments = parser.parse_args()
    quiet_libraries()
    done = lines(arguments.output) if arguments.output.exists() else []
    known = {(run["variant"], run["task"], run["seed"]) for run in done if "variant" in run}
    if not done:
        head = {"environment": environment.describe()}
        arguments.output.write_text(json.dumps(head) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as work:
        for seed in arguments.seeds:
            for variant in arguments.only:
                for task in arguments.tasks:
                    if (variant, task, seed) in known or (
                        variant == "gold completions" and task in FORMS  # which have none
                    ):
                        continue
                    run = measure(arguments.data, task, variant, seed, Path(work))
                    done.append(run)
                    with arguments.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(run) + "\n")
                    print(run, flush=True)
    print(table(done, arguments.only, arguments.tasks))


if __name__ == "__main__":
    main()
