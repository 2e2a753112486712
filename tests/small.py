"""What a small distillation is made of: a form, a context, pairs, a student on its teacher's weights, its training."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from instil import config, training
from instil.alignment import AlignedPair
from instil.context import Context, FewShot
from instil.evaluation import Judged
from instil.kept_outcomes import Kept
from instil.model import LanguageModel
from instil.objective import ForwardKL
from instil.progress import Display
from instil.prompt import PlainPrompt
from instil.rows import Row
from instil.targets import TargetRow
from instil.teacher import Scorer
from instil.tuning import LoRA

CONTEXT = Context.of(FewShot([{"input": "one", "output": "1"}, {"input": "seven", "output": "7"}]))
ROWS = [
    Row("two", "2"),
    Row("eleven", "11"),
    Row("a hundred", "100"),
    Row("six", "6"),
    Row("nine", "9"),
]
QUIET = Display(quiet=True)


def nothing(rows: int, tokens: int) -> None:
    pass


def form_of(model: LanguageModel) -> PlainPrompt:
    return PlainPrompt(
        model.tokenizer, pattern="Q: {input}\nA:", completion=" {output}\n", separator="\n"
    )


def pairs_of(model: LanguageModel, context: Context = CONTEXT) -> list[AlignedPair]:
    form = form_of(model)
    return [
        AlignedPair(
            n, form.prompt_ids(r.input, context), form.prompt_ids(r.input), form.completion_ids(r)
        )
        for n, r in enumerate(ROWS)
    ]


@torch.no_grad()
def plain_logits(network: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The textbook way: one row, no padding, no cache, logits everywhere, shifted by one."""
    ids = torch.tensor([prompt + completion])
    logits = network(input_ids=ids).logits[0].float()
    return logits[len(prompt) - 1 : -1]


def judged_of(model: LanguageModel, context: Context, *, dropout: float = 0.0) -> Judged:
    network = LoRA(r=4, alpha=8, dropout=dropout).apply(model.network, seed=0)
    network.eval()
    student = replace(model, network=network)  # type: ignore[arg-type]
    return Judged(student, student, form_of(model), context)


def target_rows(judged: Judged, *, top_k: int = 64) -> list[TargetRow]:
    with judged.adapter(on=False):
        pairs = pairs_of(judged.teacher)
        scorer = Scorer.of(
            judged.teacher,
            pairs,
            vocabulary=len(judged.teacher.tokenizer),
            kept=Kept(top_k=top_k),
            temperature=1.0,
            batch_size=4,
            advance=nothing,
        )
        scored = dict(scorer.score(range(len(pairs))))
    return [
        TargetRow(p.row, p.student_prompt, p.completion, scored[n]) for n, p in enumerate(pairs)
    ]


def train_on(
    judged: Judged,
    rows: list[TargetRow],
    *,
    steps: int,
    batch_size: int = 5,
    grad_accumulation: int = 1,
    folder: Path | None = None,
    objective: Any = None,
    **more: Any,
) -> training.TrainingReport:
    with tempfile.TemporaryDirectory() as name:
        return training.train(
            judged.student.network,  # type: ignore[arg-type]
            rows,
            objective=objective or ForwardKL(),
            settings=config.Training(
                max_steps=steps,
                batch_size=batch_size,
                grad_accumulation=grad_accumulation,
                learning_rate=1e-2,
            ),
            seed=0,
            pad_id=judged.student.pad_id,
            checkpoints=folder or Path(name),
            advance=nothing,
            display=QUIET,
            **more,
        )


def weights(judged: Judged) -> dict[str, torch.Tensor]:
    return {
        n: p.detach().clone()
        for n, p in judged.student.network.named_parameters()
        if p.requires_grad
    }


SHOTS = [{"question": f"Shot {n}?", "answer": f"It is {n}. The answer is {n}."} for n in range(8)]


def write_gsm8k(root: Path) -> Path:
    """A local copy of the sets of `gsm8k`: every question and answer occurs once."""

    def write(file: str, rows: list[dict[str, Any]]) -> None:
        path = root / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def solved(word: str, n: int) -> dict[str, str]:
        return {"question": f"{word} {n}?", "answer": f"It is {n}.\n#### {n}"}

    write("gsm8k/train.jsonl", [solved("Train", n) for n in range(30)])
    write("gsm8k/test.jsonl", [solved("Test", n) for n in range(100, 120)])
    svamp = ({"body": "He has", "question": f"{n}?", "answer": str(n)} for n in range(200, 210))
    write("svamp/test.jsonl", list(svamp))
    write("gsm8k/cot_8shot.jsonl", SHOTS)
    return root
