"""What a small distillation is made of: a form, a context, pairs, a student on its teacher's weights, its training."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from instil.losses import ForwardKL
from instil.models import proof
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.models.tuning import LoRA
from instil.prompts.context import Context, FewShot
from instil.prompts.format import PlainPrompt
from instil.prompts.pair import AlignedPair
from instil.recipe import sections
from instil.results.schema import Results
from instil.system.progress import Display
from instil.targets.prediction import TargetRow
from instil.targets.selection import Selection
from instil.tasks.rows import Row
from instil.teacher.scorer import Scorer
from instil.training import trainer

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
    ids = torch.tensor([prompt + completion], device=network.device)
    logits = network(input_ids=ids).logits[0].float()
    return logits[len(prompt) - 1 : -1]


def trust(network: torch.nn.Module) -> None:
    """Lets every way to compute pass unproven, so that a test counts only what the work needs."""

    class Every(dict[str, int]):
        def get(self, *_: object) -> int:  # type: ignore[override]
            return 64

    proof._PROVEN[network] = Every()


def models_of(model: LanguageModel, *, dropout: float = 0.0) -> Models:
    network = LoRA(r=4, alpha=8, dropout=dropout).apply(model.network, seed=0)
    network.eval()
    student = replace(model, network=network)  # type: ignore[arg-type]
    return Models(student, student)


def target_rows(models: Models, *, top_k: int = 64, context: Context = CONTEXT) -> list[TargetRow]:
    with models.adapter(on=False):
        pairs = pairs_of(models.teacher, context)
        scorer = Scorer.of(
            models.teacher,
            pairs,
            vocabulary=len(models.teacher.tokenizer),
            kept=Selection(top_k=top_k),
            temperature=1.0,
            batch_size=4,
            advance=nothing,
        )
        scored = dict(scorer.score(range(len(pairs))))
    return [
        TargetRow(p.row, p.student_prompt, p.completion, scored[n]) for n, p in enumerate(pairs)
    ]


def train_on(
    models: Models,
    rows: list[TargetRow],
    *,
    steps: int,
    batch_size: int = 5,
    grad_accumulation: int = 1,
    folder: Path | None = None,
    objective: Any = None,
    **more: Any,
) -> trainer.TrainingReport:
    with tempfile.TemporaryDirectory() as name:
        return trainer.train(
            models.student.network,  # type: ignore[arg-type]
            rows,
            objective=objective or ForwardKL(),
            settings=sections.Training(
                max_steps=steps,
                batch_size=batch_size,
                grad_accumulation=grad_accumulation,
                learning_rate=1e-2,
            ),
            seed=0,
            pad_id=models.student.pad_id,
            checkpoints=folder or Path(name),
            advance=nothing,
            display=QUIET,
            **more,
        )


def weights(models: Models) -> dict[str, torch.Tensor]:
    return {
        n: p.detach().clone()
        for n, p in models.student.network.named_parameters()
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


def reused(results: Results) -> list[str]:
    """The phases that a run has not computed, but for kept texts: another test may have had the model write them."""
    return [phase for phase in results.reused if phase != "keep"]
