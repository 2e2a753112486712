"""Measures tasks with many labels, against the way of commit 22d8e68.

    git worktree add OLD 22d8e68
    python benchmarks/many_labels.py --old OLD/src [--rounds 3] [--output FILE]

The labels are what a bank's customers may want, in two to six words: 20, 77 or 150 of them. Scoring
is zero-shot: the log-probability of every label for each of four messages. Training takes two
optimiser steps of a student with LoRA (`label_kl`, two rows in a batch). The old side reads a
message again for each path of the labels' tree. The new side reads it once.

Each run is a process of its own with one thread, and the sides take turns. Seconds are for a row,
from loaded weights, after the first two rows or the first step. With 77 labels, scoring takes
several rounds. The ratio is the median of the rounds' ratios of processor time, so other work on
the machine matters little. Memory is the peak of the process beyond the loaded weights. The new
side also scores sixteen messages, which is enough for full batches with 20 labels, too.

Bars: with 77 labels, scoring takes a fifth of the old processor time at most; in full batches, 150
labels take at most 30 % more memory than 20; the log-probabilities are the old ones. Exit status 1
if one does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = "bundled:smollm2-135m-instruct"
PATTERN = "Message to the bank: {input}\nWhat the customer wants:"
INTENTS = """
open a joint account|close my account|change my home address|update my phone number
reset my online password|unlock a blocked card|report a stolen card|report a lost card
order a replacement card|activate my new card|card has not arrived yet
card was swallowed by the machine|card does not work abroad|card payment was declined
card payment is still pending|card payment was charged twice|card payment I do not recognise
change my card's PIN|forgot my card's PIN|raise my spending limit|lower my spending limit
contactless payments do not work|add a card to my phone|remove a card from my phone
get a virtual card|get a card for my child|cash withdrawal was declined
cash withdrawal is still pending|wrong amount of cash came out|fee for taking out cash
fee for paying abroad|fee for a late payment|monthly fee is too high|exchange rate looks wrong
exchange money between currencies|supported currencies and countries|transfer has not arrived
transfer was declined|transfer went to the wrong person|cancel a transfer|schedule a transfer
time that a transfer takes|limit of a transfer|transfer money from another bank
set up a standing order|cancel a standing order|cancel a direct debit|refund has not arrived
ask a shop for a refund|dispute a charge|balance has not changed|balance looks wrong
download a bank statement|letter for the tax office|proof that I own an account
top up with a card|top up with cash|top up by cheque|top up was declined
top up is still pending|limit of a top up|verify who I am|why you verify who I am
documents were not accepted|verify where my money comes from|interest on my savings
open a savings account|apply for a loan|pay back a loan early|overdraft costs
raise my overdraft|insurance that comes with the card|minimum age for an account
find the nearest cash machine|talk to a person|complain about the service|app does not start
"""
NAMES = [name.strip() for line in INTENTS.strip().splitlines() for name in line.split("|")]
TOPICS = "travel insurance|crypto wallet|business account|mortgage|pension|share dealing|gift card"
ASKED = (
    "price of a {}|rules for a {}|open a new {}|close my old {}|problem with my {}|move my {}|"
    "compare every {}|contract of my {}|date on my {}|name on my {}|share my {}"
)
MORE = [
    ask.format(topic) for topic in TOPICS.split("|") for ask in ASKED.split("|")
]  # 77 more, so that there are enough for 150
QUERIES = [
    "I was on holiday last week and my card would not work at a single shop there, why is that?",
    "How long until the money that I sent to my brother gets to him?",
    "My phone got stolen together with my wallet, what do I do now",
    "There is a payment of forty pounds on my account that I know nothing about",
    "I moved house in March and would like to tell you where I live now",
    "Why do you charge me two euros whenever I take money out of the machine?",
    "My son turns twelve next month. Can he have a card of his own?",
    "I typed in the wrong number three times and the machine kept my card",
]
SIZES = (20, 77, 150)
BARRED = 77
ROWS, STEPS, FULL = 4, 2, 16
LEAST_RATIO, MOST_GROWTH, EXACT = 5.0, 1.3, 1e-3


def peak_mib() -> float:
    """Largest memory of this process since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class New:
    """This commit."""

    def __init__(self, names: list[str]) -> None:
        from instil.models.load import load
        from instil.prompts.format import PlainPrompt
        from instil.prompts.labels import LabelTokens

        self.model = load(MODEL, dtype="float32")
        form = PlainPrompt(
            self.model.tokenizer, pattern=PATTERN, completion=" {output}\n", separator="\n"
        )
        self.tokens = LabelTokens.of({name: [name] for name in names}, form, "a query")
        self.prompts = [form.prompt_ids(query) for query in QUERIES]

    def score(self, prompts: list[list[int]]) -> Any:
        """Log-probabilities of all labels, shape (R, L)."""
        from instil.evaluation.labels import label_logprobs

        return label_logprobs(self.model, prompts, self.tokens, batch_size=16, advance=quiet)

    def train(self, folder: str, told: Callable[[], None]) -> None:
        """Takes some steps, and calls `told` after each."""
        from instil.losses.label_kl import LabelKL, LabelTargets
        from instil.models.tuning import LoRA
        from instil.recipe.sections import Training
        from instil.system.progress import Display
        from instil.teacher.labels import LabelLesson
        from instil.training.trainer import train

        self._train(
            (LabelKL, LabelTargets, LoRA, Training, Display, LabelLesson, train),
            self.tokens.branches,
            folder,
            told,
        )

    def _train(self, of: Any, after: Any, folder: str, told: Callable[[], None]) -> None:
        import torch

        loss, targets_of, lora, training, display, lesson, train = of
        size = len(self.tokens.labels)
        probs = torch.rand(len(self.prompts), size, generator=torch.Generator().manual_seed(0))
        lessons = [
            lesson(
                prompt,
                after,
                targets_of(
                    torch.tensor([0]),
                    probs[n : n + 1] / probs[n].sum(),
                    None,
                    self.tokens,
                    torch.tensor([0.5]),
                ),
            )
            for n, prompt in enumerate(self.prompts)
        ]
        network: Any = lora().apply(self.model.network, seed=0)
        train(
            network.eval(),
            lessons,
            objective=loss(),
            settings=training(max_steps=STEPS, batch_size=2),
            seed=0,
            pad_id=self.model.pad_id,
            checkpoints=Path(folder),
            resumable=False,
            advance=lambda steps, tokens: told() if steps else None,
            display=display(quiet=True),
        )


class Old(New):
    """Commit 22d8e68, whose modules have other names."""

    def __init__(self, names: list[str]) -> None:
        from instil.choices import Choices
        from instil.model import load
        from instil.prompt import PlainPrompt

        self.model = load(MODEL, dtype="float32")
        form = PlainPrompt(
            self.model.tokenizer, pattern=PATTERN, completion=" {output}\n", separator="\n"
        )
        self.tokens = Choices.of({name: [name] for name in names}, form, "a query")
        self.prompts = [form.prompt_ids(query) for query in QUERIES]

    def score(self, prompts: list[list[int]]) -> Any:
        """Log-probabilities of all labels, shape (R, L)."""
        from instil.label_scoring import in_order, scored

        return in_order(
            scored(
                self.model,
                prompts,
                self.tokens.completions,
                batch_size=16,
                advance=quiet,
                make=self.tokens.logprobs,
            )
        )

    def train(self, folder: str, told: Callable[[], None]) -> None:
        """Takes some steps, and calls `told` after each."""
        from instil.config import Training
        from instil.label_student import LabelLesson
        from instil.objective.label_kl import LabelKL, LabelTargets
        from instil.progress import Display
        from instil.tuning import LoRA

        from instil.training import train

        self._train(
            (LabelKL, LabelTargets, LoRA, Training, Display, LabelLesson, train),
            self.tokens.completions,
            folder,
            told,
        )


def quiet(rows: int, tokens: int) -> None:
    """Progress is not shown."""


def run_side(side: str, work: str, labels: int) -> dict[str, Any]:
    """One side in this process."""
    import psutil
    import torch

    torch.set_num_threads(1)
    one = {"old": Old, "new": New}[side]([*NAMES, *MORE][:labels])
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((time.process_time(), time.perf_counter()))

    before = psutil.Process().memory_info().rss / 2**20
    forget_peak()
    logprobs = None
    if work == "score":
        one.score(one.prompts[:2])
        mark()
        logprobs = one.score(one.prompts[:ROWS]).tolist()
        mark()
        rows = ROWS
    elif work == "full":
        mark()
        one.score(one.prompts * (FULL // len(one.prompts)))
        mark()
        rows = FULL
    else:
        with tempfile.TemporaryDirectory() as folder:
            one.train(folder, mark)
        rows = 2 * (STEPS - 1)
    (cpu, wall), (cpu_end, wall_end) = marks[0], marks[-1]
    return {
        "cpu_seconds": (cpu_end - cpu) / rows,
        "seconds": (wall_end - wall) / rows,
        "peak_mib": peak_mib() - before,
        "logprobs": logprobs,
    }


def measure(side: str, work: str, labels: int, source: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side, work, str(labels)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{side} failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{work} {labels:4} labels  {side}  {found['cpu_seconds']:7.2f} s of processor a row, "
        f"{found['seconds']:7.2f} s, {found['peak_mib']:6.0f} MiB",
        flush=True,
    )
    return found


def compare(work: str, labels: int, rounds: int, old: Path) -> dict[str, Any]:
    """Both sides in turn."""
    sources = {"old": old, "new": Path(__file__).resolve().parents[1] / "src"}
    runs: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
    for _ in range(rounds):
        for side, source in sources.items():
            runs[side].append(measure(side, work, labels, source))
    ratios = [
        old["cpu_seconds"] / new["cpu_seconds"]
        for old, new in zip(runs["old"], runs["new"], strict=True)
    ]
    first = {side: of.pop("logprobs") for side in runs for of in runs[side]}
    result = {"work": work, "labels": labels, "ratio": statistics.median(ratios), "runs": runs}
    if work == "score":
        result["largest_logprob_difference"] = max(
            abs(a - b)
            for mine, other in zip(first["new"], first["old"], strict=True)
            for a, b in zip(mine, other, strict=True)
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="src of commit 22d8e68")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    from instil.system import environment

    load = os.getloadavg()[0]
    results = [
        compare("score", size, arguments.rounds if size == BARRED else 1, arguments.old)
        for size in SIZES
    ]
    results.append(compare("train", BARRED, 1, arguments.old))
    source = Path(__file__).resolve().parents[1] / "src"
    full = {size: measure("new", "full", size, source) for size in SIZES}
    peaks = {size: one["peak_mib"] for size, one in full.items()}
    scored = {one["labels"]: one for one in results if one["work"] == "score"}
    bars = {
        f"{BARRED} labels at least {LEAST_RATIO:g} times as fast": scored[BARRED]["ratio"]
        >= LEAST_RATIO,
        f"150 labels at most {MOST_GROWTH:g} times the memory of 20": (
            peaks[150] <= MOST_GROWTH * peaks[20]
        ),
        "the same log-probabilities": all(
            one["largest_logprob_difference"] <= EXACT for one in scored.values()
        ),
    }
    for one in results:
        print(f"{one['work']} {one['labels']} labels: {one['ratio']:.1f} times as fast")
    for bar, held in bars.items():
        print(f"{'held    ' if held else 'NOT HELD'} {bar}")
    if arguments.output:
        record = {
            "command": f"python benchmarks/many_labels.py --old OLD/src --rounds {arguments.rounds}",
            "load_average_before": load,
            "bars": bars,
            "results": results,
            "peak_mib_of_full_batches": peaks,
            "environment": environment.describe(),
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(bars.values()) else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        _, _, side, work, labels = sys.argv
        print(json.dumps(run_side(side, work, int(labels))))
    else:
        main()
