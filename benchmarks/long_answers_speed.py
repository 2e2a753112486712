"""Measures distillation of long answers against the usual loop and TRL's self-distillation trainer.

    python benchmarks/long_answers_speed.py --data FOLDER [--k 8 24] [--rows 80] [--epochs 3]
        [--output FILE]

FOLDER holds `gsm8k/train.jsonl` (Cobbe et al. 2021) with the fields `question` and `answer`. `trl`
must be installed. Every arm has the same rows, the same token ids (demonstrations as chat turns,
the gold answer as the completion), batches of 4 and LoRA of rank 16 on all linear layers. Each is a
process of its own:

- `plain`: a second copy of the weights reads the whole teacher prompt at every step, with logits at
  every position on both sides;
- `trl`: `trl.experimental.sdft` with the base, its adapter off, as the teacher; the given
  completions replace its generation;
- `instil`: targets are computed once and the context is read once, then `--epochs` epochs of
  training on them. All of it is counted.

instil's seconds per step are those of the whole work, with the teacher and the target store, over
all its steps. Of the other two, `--steps` steps after a first one are timed, on the batches whose
sizes are nearest to the mean of all. `cheap` is instil with 4 demonstrations, to see what a longer
context adds.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

MODEL = "bundled:smollm2-135m-instruct"
BATCH, RANK, RATE = 4, 16, 2e-4
DEMONSTRATIONS_FROM = 1000  # a row's number in the training set; those before are learnt from


@dataclass(frozen=True)
class Given:
    """What all arms get, in token ids."""

    teacher_prompts: list[list[int]]
    student_prompts: list[list[int]]
    completions: list[list[int]]
    messages: list[tuple[list[dict[str, str]], list[dict[str, str]]]]

    @classmethod
    def read(cls, data: Path, k: int, count: int) -> Given:
        """Renders `count` rows with k demonstrations."""
        from instil.models.load import outline
        from instil.prompts.context import Context
        from instil.prompts.format import ChatPrompt, prompt_format
        from instil.recipe.sections import Prompt
        from instil.tasks.rows import Row

        lines = (data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [Row(r["question"], r["answer"]) for r in map(json.loads, lines)]
        context = Context(demonstrations=tuple(rows[DEMONSTRATIONS_FROM : DEMONSTRATIONS_FROM + k]))
        form = prompt_format(outline(MODEL).tokenizer, Prompt(format="chat"))
        assert isinstance(form, ChatPrompt)
        learnt = rows[:count]
        return cls(
            teacher_prompts=[form.prompt_ids(row.input, context) for row in learnt],
            student_prompts=[form.prompt_ids(row.input) for row in learnt],
            completions=[form.completion_ids(row) for row in learnt],
            messages=[
                (form.messages(row.input), form.messages(row.input, context)) for row in learnt
            ],
        )

    def typical(self, steps: int) -> Given:
        """The same rows, with `steps` batches of typical size after a first one."""
        rows = list(zip(self.teacher_prompts, self.student_prompts, self.completions, strict=True))
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        sizes = [
            (
                max(len(teacher) + len(completion) for teacher, _, completion in batch),
                max(len(student) + len(completion) for _, student, completion in batch),
                sum(len(completion) for _, _, completion in batch),
            )
            for batch in batches
        ]
        means = [statistics.mean(column) for column in zip(*sizes, strict=True)]

        def apart(first: int) -> float:
            window = zip(*sizes[first : first + steps], strict=True)
            return sum(
                abs(statistics.mean(column) / mean - 1)
                for column, mean in zip(window, means, strict=True)
            )

        first = BATCH * (min(range(1, len(batches) - steps + 1), key=apart) - 1)
        return Given(
            *(
                part[first:] + part[:first]
                for part in (
                    self.teacher_prompts,
                    self.student_prompts,
                    self.completions,
                    self.messages,
                )
            )
        )


def plain(given: Given, steps: int) -> dict[str, Any]:
    """The loop that everybody writes first."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import kl_div

    from instil.models.load import load

    teacher, student = load(MODEL), load(MODEL)
    device = student.device
    network = get_peft_model(
        student.network,
        LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).train()
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=RATE)

    def logits(model: Any, prompts: list[list[int]], completions: list[list[int]]) -> Any:
        rows = [p + c for p, c in zip(prompts, completions, strict=True)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device
        )
        made = model(input_ids=ids, attention_mask=mask).logits
        return torch.cat(
            [
                made[i, len(p) - 1 : len(p) + len(c) - 1]
                for i, (p, c) in enumerate(zip(prompts, completions, strict=True))
            ]
        )

    seconds = []
    for step in range(steps + 1):
        start = time.perf_counter()
        chosen = [(step * BATCH + i) % len(given.completions) for i in range(BATCH)]
        completions = [given.completions[i] for i in chosen]
        with torch.no_grad():
            p = (
                logits(teacher.network, [given.teacher_prompts[i] for i in chosen], completions)
                .float()
                .log_softmax(-1)
            )
        q = (
            logits(network, [given.student_prompts[i] for i in chosen], completions)
            .float()
            .log_softmax(-1)
        )
        loss = kl_div(q, p, reduction="batchmean", log_target=True)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        _wait()
        seconds.append(time.perf_counter() - start)
    return {"seconds_a_step": statistics.mean(seconds[1:]), "steps": steps}


def trl(given: Given, steps: int) -> dict[str, Any]:
    """TRL's self-distillation, fed with the given completions."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    from instil.models.load import load

    model = load(MODEL)
    known = {tuple(p): c for p, c in zip(given.student_prompts, given.completions, strict=True)}
    seen = set()
    teacher_ids = {tuple(p) for p in given.teacher_prompts}

    class GivenCompletions(SDFTTrainer):
        def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
            return prompt_ids, [known[tuple(ids)] for ids in prompt_ids]

        def _tokenize_prompts(self, prompts: list[Any]) -> list[list[int]]:
            made = super()._tokenize_prompts(prompts)
            seen.update(map(tuple, made))
            return made

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ticks: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _wait()
            self.ticks.append(time.perf_counter())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GivenCompletions(
            model=model.network,
            args=SDFTConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                gradient_accumulation_steps=1,
                max_steps=steps + 1,
                learning_rate=RATE,
                bf16=model.dtype == "bfloat16",
                use_cpu=not torch.cuda.is_available(),
                max_prompt_length=None,
                max_completion_length=1024,
                num_generations=1,
                distillation_mode="topk_logits",
                distillation_topk=64,
                distillation_alpha=0.0,
                distillation_add_tail=True,
                report_to="none",
                save_strategy="no",
                shuffle_dataset=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(
                [
                    {"prompt": student, "privileged_context": teacher}
                    for student, teacher in given.messages
                ]
            ),
            processing_class=model.tokenizer,
            callbacks=[clock],
            peft_config=LoraConfig(
                r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
        )
        # It writes the context into the user's turn; ours are turns of their own.
        trainer.teacher_context_builder._compose_teacher_prompt = lambda prompt, context: context
        trainer.train()
    # The very same token ids on both sides, or the comparison is none.
    assert seen
    assert all(ids in known or ids in teacher_ids for ids in seen)
    gaps = [b - a for a, b in zip(clock.ticks, clock.ticks[1:], strict=False)]
    return {"seconds_a_step": statistics.mean(gaps), "steps": steps}


def _wait() -> None:
    """Waits until the accelerator has done what it was given, if there is one."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def instil(given: Given, epochs: int) -> dict[str, Any]:
    """Our own path, from prompts to a trained adapter."""
    from instil.models.roles import Models
    from instil.models.tuning import LoRA
    from instil.prompts.pair import AlignedPair
    from instil.recipe.recipe import Recipe
    from instil.system.costs import Recorder
    from instil.system.progress import Display
    from instil.teacher.lessons import Teaching
    from instil.training.trainer import train

    recipe = Recipe.parse(
        {
            "model": MODEL,
            "task": {"name": "files"},
            "tuning": {"r": RANK, "alpha": 2 * RANK},
            "training": {"batch_size": BATCH, "epochs": epochs, "learning_rate": RATE},
        }
    )
    display = Display(quiet=True)
    assert isinstance(recipe.tuning, LoRA)
    models = Models.load(
        MODEL, None, dtype=recipe.dtype, tuning=recipe.tuning, seed=0, display=display
    )
    begun = time.perf_counter()
    rows = zip(given.teacher_prompts, given.student_prompts, given.completions, strict=True)
    pairs = [AlignedPair(number, *row) for number, row in enumerate(rows)]
    recorder = Recorder()
    teaching = Teaching(recipe, models, recorder, display)
    with tempfile.TemporaryDirectory() as folder:
        lessons = teaching.lessons(pairs, recipe.objective, Path(folder) / "targets")
        taught = time.perf_counter()
        with recorder.phase("train"):
            report = train(
                models.student.network,
                lessons,
                objective=recipe.objective,
                settings=recipe.training,
                seed=0,
                pad_id=models.student.pad_id,
                checkpoints=Path(folder) / "checkpoints",
                advance=lambda rows, tokens: None,
                display=display,
            )
        _wait()
        done = time.perf_counter()
    return {
        "seconds_a_step": (done - begun) / report.steps,
        "steps": report.steps,
        "teacher_seconds": taught - begun,
        "training_seconds_a_step": (done - taught) / report.steps,
        "seconds": done - begun,
    }


def arithmetic(given: Given) -> dict[str, float]:
    """Seconds of the matrix products of a student's mean step, forward and backward, with torch."""
    import torch

    from instil.models.load import load

    network = load(MODEL).network
    config, dtype = network.config, network.dtype
    rows = list(zip(given.student_prompts, given.completions, strict=True))
    tokens = round(BATCH * statistics.mean(len(p) + len(c) - 1 for p, c in rows))
    scored = round(BATCH * statistics.mean(len(c) for _, c in rows))
    width, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_dim
    shapes = [(width, width)] * 2 + [(width, keys)] * 2 + [(width, inner)] * 3
    products = [(tokens, a, b) for a, b in shapes] * config.num_hidden_layers
    products.append((scored, width, config.vocab_size))
    flops = sum(2 * 2 * n * a * b for n, a, b in products)
    # For frozen weights only the inputs' gradient is computed: two products per layer in all.
    makers = {
        shape: (
            torch.randn(shape[0], shape[1], dtype=dtype, device=network.device),
            torch.randn(shape[1], shape[2], dtype=dtype, device=network.device),
        )
        for shape in set(products)
    }
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        for shape in products:
            x, w = makers[shape]
            y = x @ w
            y @ w.T
        _wait()
        best = min(best, time.perf_counter() - start)
    return {"seconds": best, "gigaflops": flops / 1e9, "tokens": tokens}


ARMS = ("plain", "trl", "instil")


@dataclass(frozen=True)
class Size:
    """How much an arm does."""

    data: Path
    k: int
    steps: int
    rows: int
    epochs: int


def measure(arm: str, size: Size) -> dict[str, Any]:
    """One arm, in this process."""
    import torch

    given = Given.read(size.data, size.k, size.rows)
    if arm == "arithmetic":
        return arithmetic(given)
    if arm == "instil":
        made = instil(given, size.epochs)
    else:
        made = {"plain": plain, "trl": trl}[arm](given.typical(size.steps), size.steps)
    if torch.cuda.is_available():
        made["peak_device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = statistics.mean(map(len, given.teacher_prompts))
    return {**made, "peak_rss_mb": peak / 1024, "teacher_prompt_tokens": tokens}


def apart(arm: str, size: Size) -> dict[str, Any]:
    """One arm, in a process of its own."""
    options = [part for name, value in vars(size).items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, __file__, "--arm", arm, *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(arm, size.k, {name: round(value, 2) for name, value in found.items()}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--arm", choices=[*ARMS, "arithmetic"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    def size(k: int) -> Size:
        return Size(arguments.data, k, arguments.steps, arguments.rows, arguments.epochs)

    if arguments.arm:
        print(json.dumps(measure(arguments.arm, size(arguments.k[0]))))
        return
    from instil.system import environment

    ks = " ".join(map(str, arguments.k))
    results: dict[str, Any] = {
        "command": "python benchmarks/long_answers_speed.py "
        f"--data FOLDER --k {ks} --steps {arguments.steps} "
        f"--rows {arguments.rows} --epochs {arguments.epochs}",
        "rows": arguments.rows,
        "epochs": arguments.epochs,
        "batch": BATCH,
        "runs": {},
    }
    limit = apart("arithmetic", size(0))
    cheap = apart("instil", size(4))
    for k in arguments.k:
        runs = {arm: apart(arm, size(k)) for arm in ("instil", "plain", "trl")}
        ours = runs["instil"]
        runs["ratios"] = {
            "plain_to_instil": runs["plain"]["seconds_a_step"] / ours["seconds_a_step"],
            "trl_to_instil": runs["trl"]["seconds_a_step"] / ours["seconds_a_step"],
            "peak_memory_to_trl": ours["peak_rss_mb"] / runs["trl"]["peak_rss_mb"],
            "cost_to_4_demonstrations": ours["seconds"] / cheap["seconds"],
            "training_to_arithmetic": ours["training_seconds_a_step"] / limit["seconds"],
        }
        print(k, runs["ratios"], flush=True)
        results["runs"][k] = runs
    results |= {"arithmetic": limit, "instil_4_demonstrations": cheap}
    results |= {"trl": metadata.version("trl"), "environment": environment.describe()}
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
