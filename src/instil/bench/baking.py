"""Bakes five production prompts into a model, and says how close the student is to its teacher.

For each prompt there are 300 conversations to learn from, and 100 held out. The model, with the prompt,
writes the answers of both, turn by turn, as it would in production. Then the logs are baked as a
user would do it: `instil distill --inputs learn.jsonl --context-from-logs --completions gold`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from instil.api import Run, distill
from instil.bench.conversations import NAMES, Product, Split
from instil.models.generate import Decoding, generate
from instil.models.load import LanguageModel, load, quiet_libraries
from instil.prompts.context import Context
from instil.prompts.format import ChatPrompt
from instil.system.files import written_whole
from instil.tasks.conversation import Conversation, Message, Turn
from instil.tasks.rows import Row

LEARN, HELD_OUT = 300, 100
STEPS = 25
LEAST_KEPT = 0.2
"""Share of the teacher's answers that obey a rule, from which the student is judged by it."""
BATCH = 128
"""Most rows that are decoded together; the prompt's keys and values are there once."""


@dataclass(frozen=True)
class Outcome:
    """How close the student of a prompt is to its teacher, on held-out conversations.

    Attributes:
        name: Name of the prompt.
        prompt_tokens: Tokens that the prompt adds to each query.
        answers: Number of answers that are compared.
        kl_zero_shot: KL to the teacher without the prompt, in nats per token.
        kl_student: The same of the student.
        agreement: Share of tokens that the student expects as the teacher does.
        same: Share of answers that are the teacher's, token by token.
        length: Mean length of the student's answers, of the teacher's, in tokens.
        own_share: The student's KL on its own answers, of zero-shot's on the same.
        rules: Mean share of the student's answers that obey a rule, over the rules that the teacher
            keeps at all (`LEAST_KEPT`).
        rules_teacher: The same of the teacher.
        rules_zero_shot: The same without the prompt.
        leaks: Share of the answers with a phrase of the context that the teacher does not write.
        drift: KL to the base on unrelated text, in nats per token.
        evaluating: Share of the run's time that evaluation took.
        seconds: Wall time of all, with the answers of the logs.
    """

    name: str
    prompt_tokens: float
    answers: int
    kl_zero_shot: float
    kl_student: float
    agreement: float
    same: float
    length: float
    own_share: float
    rules: float
    rules_teacher: float
    rules_zero_shot: float
    leaks: float
    drift: float
    evaluating: float
    seconds: float

    @property
    def kl_share(self) -> float:
        """The student's KL, of zero-shot's."""
        return self.kl_student / self.kl_zero_shot


def bench(
    model: str,
    folder: Path,
    *,
    names: Sequence[str] = NAMES,
    learn: int = LEARN,
    held_out: int = HELD_OUT,
    steps: int = STEPS,
    seed: int = 0,
    quiet: bool = False,
) -> list[Outcome]:
    """Runs the benchmark. What is there already is not made again.

    Args:
        model: Model to train, as in `instil distill`.
        folder: Where the logs and the runs are written.
        names: Prompts.
        learn: Conversations to learn from.
        held_out: Conversations that are held out.
        steps: Optimiser steps.
        seed: Seed of the training. The conversations are always the same.
        quiet: Show no progress.
    """
    quiet_libraries()
    outcomes = []
    for name in names:
        product, place, start = Product.read(name), folder / name, time.perf_counter()
        logs = _logs(model, product, place, {"learn": learn, "held_out": held_out})
        run = Run(place / f"run-{seed}")
        if not (run.path / "results.json").is_file():
            run = distill(
                model,
                inputs=_rows(logs["learn"]),
                eval=_rows(logs["held_out"]),
                output=run.path,
                logs={"context_from_logs": True},
                teacher={"completions": "gold", "max_new_tokens": product.max_new_tokens},
                training={"max_steps": steps},
                evaluation={"batch_size": BATCH, "rules": product.rules},
                seed=seed,
                quiet=quiet,
            )
        outcomes.append(outcome(name, run, time.perf_counter() - start))
    return outcomes


def outcome(name: str, run: Run, seconds: float) -> Outcome:
    """Reads a finished run."""
    results = run.results
    student, before = results.methods[0], results.result("zero_shot")
    teacher = results.result("in_context")
    assert before is not None
    assert teacher is not None
    assert student.drift is not None
    kl_before, kl_after = before.scores[0].fidelity, student.scores[0].fidelity
    written = [one.scores[0].written for one in (before, teacher, student)]
    zero, theirs, own = written
    assert kl_before is not None
    assert kl_after is not None
    assert zero is not None
    assert theirs is not None
    assert own is not None
    assert own.on_own is not None
    assert zero.on_own is not None
    assert own.same_answer is not None
    assert own.leaks is not None
    kept = [name for name, share in theirs.rules.items() if share.value >= LEAST_KEPT]
    rules = [mean(one.rules[name].value for name in kept) for one in (zero, theirs, own)]
    costs = {name: cost.wall_seconds for name, cost in results.phases.items()}
    return Outcome(
        name=name,
        prompt_tokens=results.tokens_saved or 0.0,
        answers=student.scores[0].rows,
        kl_zero_shot=kl_before.kl_to_teacher,
        kl_student=kl_after.kl_to_teacher,
        agreement=kl_after.agreement,
        same=own.same_answer.value,
        length=own.ends.tokens_mean / theirs.ends.tokens_mean,
        own_share=own.on_own.kl_to_teacher / zero.on_own.kl_to_teacher,
        rules=rules[2],
        rules_teacher=rules[1],
        rules_zero_shot=rules[0],
        leaks=own.leaks.share.value,
        evaluating=costs["evaluate"] / sum(costs.values()),
        drift=student.drift.kl_to_base,
        seconds=seconds,
    )


def _logs(
    model: str, product: Product, folder: Path, counts: Mapping[Split, int]
) -> dict[Split, Path]:
    """The files of conversations; the model answers them if they are not there yet."""
    paths = {split: folder / f"{split}-{count}.jsonl" for split, count in counts.items()}
    if all(path.is_file() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    users = {split: product.users(count, split) for split, count in counts.items()}
    # All are answered together, so that the prompt is read as seldom as possible.
    whole = iter(answered(load(model), product, [said for of in users.values() for said in of]))
    for split, path in paths.items():
        with written_whole(path) as work:
            work.write_text(
                "".join(
                    json.dumps({"messages": [one.sent() for one in next(whole)]}) + "\n"
                    for _ in users[split]
                ),
                encoding="utf-8",
            )
    return paths


def answered(
    model: LanguageModel, product: Product, users: Sequence[Sequence[str]]
) -> list[list[Message]]:
    """Conversations in which the model answers, with the prompt before it, turn by turn.

    Args:
        model: The model.
        product: The prompt.
        users: The messages of the user of each conversation.
    """
    form = ChatPrompt(model.tokenizer, template_kwargs={}, ends=model.end_ids)
    context, whole = Context(head=product.head), [list[Message]() for _ in users]
    decoding = Decoding(product.max_new_tokens, batch_size=BATCH)
    for turn in range(max(map(len, users))):
        asked = [number for number, said in enumerate(users) if len(said) > turn]
        rows = []
        for number in asked:
            whole[number].append(Message("user", users[number][turn]))
            said = Conversation(tuple(whole[number]))
            rows.append(Row(users[number][turn], turn=Turn(said, len(said.messages))))
        made = generate(
            model,
            form.prompts(rows, [context] * len(rows)),
            form.ending,
            decoding,
            advance=lambda rows, tokens: None,
        )
        for number, answer in zip(asked, made, strict=True):
            text = form.decode(answer.ids) or "."  # a conversation has no empty answers
            whole[number].append(Message("assistant", text))
    return [[*product.head, *said] for said in whole]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line for each prompt."""
    lines = [
        "| prompt | tokens | answers | KL, nats per token | of zero-shot's | on own answers | rules: "
        "zero-shot, teacher, student | same answer | length | leaks | drift | minutes |",
        "| --- |" + " --- |" * 11,
    ]
    for one in outcomes:
        lines.append(
            f"| {one.name} | {one.prompt_tokens:,.0f} | {one.answers} | {one.kl_zero_shot:.3f} to "
            f"{one.kl_student:.3f} | {one.kl_share:.1%} | {one.own_share:.1%} | "
            f"{one.rules_zero_shot:.3f}, {one.rules_teacher:.3f}, {one.rules:.3f} | {one.same:.0%} | "
            f"{one.length:.0%} | {one.leaks:.1%} | {one.drift:.3f} | {one.seconds / 60:.1f} |"
        )
    return "\n".join(lines)
