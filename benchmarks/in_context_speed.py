"""Measures in-context evaluation against EleutherAI's lm-evaluation-harness on the same rows.

    python benchmarks/in_context_speed.py --data FOLDER --lm-eval PYTHON
        [--rows 300] [--k 16] [--output FILE]

FOLDER holds `ag_news/{train,eval}.jsonl` (Zhang et al. 2015) with the fields `text` and `label`.
PYTHON is the interpreter of an environment of its own, so that the harness's pins do not change
ours:

    python -m venv harness
    harness/bin/pip install torch==2.13.0 'lm-eval[hf]'

Both sides have the same weights, prompts and choices. The same demonstrations stand before every
row. Each of four labels has one surface form. Its score is the log-probability of the form's whole
token sequence, and the label with the highest score is the answer. The script checks on every row
that the harness scores the same token ids as instil. instil runs with its defaults, the harness
with `--batch-size` rows at a time.

Every run is a process of its own: instil, the harness, instil again. Seconds are from loaded
weights to scores, with tokenisation. Imports, loading and reading the rows count only in the
seconds of the process. The ratio takes the slower run of instil. Run it on an idle machine, or with
OMP_NUM_THREADS=1: with several threads on a busy machine, instil slows down more than the harness.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

# The harness's interpreter also runs this file, without instil: each side imports what it needs.

MODEL = "bundled:smollm2-135m-instruct"
FORMS = {"World": "World", "Sports": "Sports", "Business": "Business", "Sci/Tech": "Technology"}
TASK = "in_context_speed"
HARNESS_PACKAGES = ("lm_eval", "torch", "transformers", "tokenizers", "datasets")


class Prepared:
    """Rows, demonstrations and prompts of a study's in-context cell; no weights are loaded.

    Args:
        settings: The recipe's.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from instil.models.load import outline
        from instil.prompts.demonstrations import Demonstrator
        from instil.prompts.format import PlainPrompt
        from instil.prompts.labels import LabelTokens
        from instil.recipe.recipe import Recipe
        from instil.tasks.classification import ClassificationTask
        from instil.tasks.split import draw_rows

        self.recipe = Recipe.parse(settings)
        task, prompt = self.recipe.task, self.recipe.prompt
        assert isinstance(task, ClassificationTask)
        drawn = draw_rows(
            task.read(),
            seed=self.recipe.seed,
            training=self.recipe.training.rows,
            pool=self.recipe.demonstrations.pool,
            evaluation=self.recipe.evaluation.rows,
            out_of_domain=self.recipe.evaluation.rows_out_of_domain,
        )
        self.name, self.rows = drawn.sets[0].name, drawn.sets[0].rows
        self.outline = outline(self.recipe.model)
        self.form = PlainPrompt(
            self.outline.tokenizer,
            pattern="{input}",  # the task has filled in its own
            completion=prompt.completion,
            separator=prompt.separator,
        )
        self.choices = LabelTokens.of(task.verbalizer, self.form, self.rows[0].input)
        self.labels = list(self.choices.labels)
        self.gold = [self.labels.index(row.output or "") for row in self.rows]
        self.contexts = Demonstrator(
            settings=self.recipe.demonstrations,
            pool=drawn.pool,
            prefix=task.prefix,
            forms={label: forms[0] for label, forms in task.verbalizer.items()},
            seed=self.recipe.seed,
        ).contexts(0, self.rows, self.name)

    def prompts(self) -> list[list[int]]:
        """Whole prompts in token ids."""
        pairs = zip(self.rows, self.contexts, strict=True)
        return [self.form.prompt_ids(row.input, context) for row, context in pairs]

    def write(self, folder: Path, batch_size: int) -> None:
        """Writes rows, task and model for the harness, and the token ids that it should score."""
        from instil.models import bundled
        from instil.models.number_format import default_device

        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for row, context, gold in zip(self.rows, self.contexts, self.gold, strict=True):
                doc = {
                    "prompt": self.form.text(row.input, context),
                    "choices": [FORMS[label] for label in self.labels],
                    "gold": gold,
                }
                file.write(json.dumps(doc) + "\n")
        task = {
            "task": TASK,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "num_fewshot": 0,  # the prompt holds the demonstrations
            "doc_to_text": "prompt",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": self.recipe.prompt.completion.partition("{output}")[0],
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        harness = {
            "model": {
                "pretrained": str(bundled.folder(MODEL)),
                "dtype": self.recipe.dtype,
                "device": str(default_device()),
                "batch_size": batch_size,
            },
            "prompts": self.prompts(),
            "forms": [ids for forms in self.choices.forms for ids in forms],
        }
        (folder / "task.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
        (folder / "harness.json").write_text(json.dumps(harness), encoding="utf-8")


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call returns; its wall time, and the processor time that it got."""
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    ended = time.perf_counter(), time.process_time()
    return result, {"seconds": ended[0] - start, "cpu_seconds": ended[1] - cpu}


def score_with_instil(folder: Path) -> dict[str, Any]:
    from instil.system import environment
    from instil.system.costs import Recorder
    from instil.system.progress import Display
    from instil.teacher.labels import LabelTeacher

    one = Prepared(json.loads((folder / "recipe.json").read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as store:  # empty: there is nothing to be used again
        teacher = LabelTeacher(
            outline=one.outline,
            dtype=one.recipe.dtype,
            form=one.form,
            choices=one.choices,
            store=Path(store),
            batch_size=one.recipe.evaluation.batch_size,
            display=Display(quiet=True),
        )
        assert teacher.model.dtype == one.recipe.dtype  # which loads the weights
        (scores, _), cost = timed(
            lambda: teacher.score(
                one.name, one.rows, one.contexts, recorder=Recorder(), phase="evaluate"
            )
        )
    return {
        **cost,
        "logprobs": scores.logprobs_RL.tolist(),
        "environment": environment.describe(),
    }


def score_with_harness(folder: Path) -> dict[str, Any]:
    import torch
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    scored = []

    class Recording(HFLM):  # type: ignore[misc]
        """Remembers the token ids that it was asked about."""

        def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
            scored.extend((prompt, choice) for _, prompt, choice in requests)
            return super()._loglikelihood_tokens(requests, **options)

    settings = json.loads((folder / "harness.json").read_text(encoding="utf-8"))
    model = Recording(**settings["model"])
    tasks = TaskManager(include_path=folder, include_defaults=False).load([TASK])
    # The part of `simple_evaluate` that evaluates, without finding tasks and the environment.
    results, cost = timed(lambda: evaluate(lm=model, task_dict=tasks, bootstrap_iters=0))
    if scored != [(p, form) for p in settings["prompts"] for form in settings["forms"]]:
        raise SystemExit("the harness cuts a prompt or a choice into other tokens than instil")
    samples = sorted(results["samples"][TASK], key=lambda sample: sample["doc_id"])
    return {
        **cost,
        "logprobs": [[value for value, _ in sample["filtered_resps"]] for sample in samples],
        "accuracy": results["results"][TASK]["acc,none"],
        "environment": {
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in HARNESS_PACKAGES},
            "threads": torch.get_num_threads(),
        },
    }


SIDES = {"instil": score_with_instil, "lm_eval": score_with_harness}


def measure(side: str, interpreter: str, folder: Path) -> dict[str, Any]:
    """One side in a process of its own: what it says, and what the whole process cost."""
    answer, log = folder / "answer.json", folder / "log.txt"
    answer.unlink(missing_ok=True)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    caches = {"HF_DATASETS_CACHE": str(folder / "datasets")}
    command = [interpreter, str(Path(__file__).resolve()), "--side", side, str(folder), str(answer)]
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **offline, **caches}, stdout=file, stderr=file
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise SystemExit(f"{log.read_text(encoding='utf-8')}\n{side}: failed with status {code}")
    found = json.loads(answer.read_text(encoding="utf-8"))
    return {**found, "process_seconds": wall, "peak_rss_mb": usage.ru_maxrss / 1024}


def compare(one: Prepared, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Accuracies, and every row on which the two sides name different labels."""

    def named(logprobs_RL: list[list[float]]) -> list[int]:
        return [
            row.index(max(row)) for row in logprobs_RL
        ]  # of equal ones the first, on both sides

    def right(predicted: list[int]) -> int:
        return sum(p == g for p, g in zip(predicted, one.gold, strict=True))

    mine, other = ours["logprobs"], theirs["logprobs"]
    pairs = list(zip(named(mine), named(other), strict=True))
    counts = {"instil": right(named(mine)), "lm_eval": right(named(other))}
    if abs(counts["lm_eval"] / len(pairs) - theirs["accuracy"]) > 1e-9:
        raise SystemExit(f"the harness reports {theirs['accuracy']}, its scores say {counts}")
    differing = [number for number, (a, b) in enumerate(pairs) if a != b]
    gaps = [
        abs(side[n][pairs[n][0]] - side[n][pairs[n][1]])
        for n in differing
        for side in (mine, other)
    ]
    return {
        "accuracy": {side: count / len(pairs) for side, count in counts.items()},
        "rows_right": counts,
        "rows_named_differently": len(differing),
        "largest_gap_between_their_labels": max(gaps, default=None),
        "largest_logprob_difference": max(
            abs(a - b) for m, o in zip(mine, other, strict=True) for a, b in zip(m, o, strict=True)
        ),
        "named_differently": [
            {
                "row": number,
                "expected": one.labels[one.gold[number]],
                "instil": dict(zip(one.labels, mine[number], strict=True)),
                "lm_eval": dict(zip(one.labels, other[number], strict=True)),
            }
            for number in differing
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lm-eval", required=True, metavar="PYTHON")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--k", type=int, default=16, help="demonstrations")
    parser.add_argument("--batch-size", type=int, default=8, help="of the harness")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    from instil.models.batch import shared_prefix

    recipe = {
        "model": MODEL,
        "dtype": arguments.dtype,
        "method": "in_context",
        "task": {
            "name": "topic",
            "folder": str(arguments.data.resolve()),
            "verbalizer": {label: [form] for label, form in FORMS.items()},
        },
        "demonstrations": {"k": arguments.k},
        "evaluation": {"rows": arguments.rows},
    }
    load = os.getloadavg()
    one = Prepared(recipe)
    prompts = one.prompts()
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one.write(folder, arguments.batch_size)
        (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
        for side in ("instil", "lm_eval", "instil"):
            interpreter = sys.executable if side == "instil" else arguments.lm_eval
            run = measure(side, interpreter, folder)
            runs[side].append(run)
            print(
                f"{side:8} {run['seconds']:7.2f} s  (processor {run['cpu_seconds']:.1f} s, "
                f"whole process {run['process_seconds']:.1f} s)  {run['peak_rss_mb']:.0f} MiB",
                flush=True,
            )
    environments = {side: of_side[0]["environment"] for side, of_side in runs.items()}
    kept = ("seconds", "cpu_seconds", "process_seconds", "peak_rss_mb")
    results = {
        "rows": len(one.rows),
        "demonstrations": arguments.k,
        "dtype": arguments.dtype,
        "batch_size_lm_eval": arguments.batch_size,
        "prompt_tokens_mean": sum(map(len, prompts)) / len(prompts),
        "shared_tokens": shared_prefix(prompts) if len(prompts) > 1 else 0,
        "load_average_before": load[0],
        "runs": {
            side: [{k: run[k] for k in kept} for run in of_side] for side, of_side in runs.items()
        },
        "ratio": runs["lm_eval"][0]["seconds"] / max(run["seconds"] for run in runs["instil"]),
        **compare(one, runs["instil"][0], runs["lm_eval"][0]),
    }
    print(json.dumps({k: v for k, v in results.items() if k != "named_differently"}, indent=1))
    if arguments.output:
        changed = [
            f"--{option.replace('_', '-')} {getattr(arguments, option)}"
            for option in ("rows", "k", "batch_size", "dtype")
            if getattr(arguments, option) != parser.get_default(option)
        ]
        command = "python benchmarks/in_context_speed.py --data FOLDER --lm-eval PYTHON"
        threads = os.environ.get("OMP_NUM_THREADS")
        prefix = [f"OMP_NUM_THREADS={threads}"] if threads else []
        record = {
            "command": " ".join([*prefix, command, *changed]),
            "results": results,
            "environment": environments["instil"],
            "environment_lm_eval": environments["lm_eval"],
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        _, _, side, folder, answer = sys.argv
        Path(answer).write_text(json.dumps(SIDES[side](Path(folder))), encoding="utf-8")
    else:
        main()
