"""Students of labels that read a prompt once, against plain forwards of every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.small import QUIET, models_of, nothing

from instil.losses import LabelKL
from instil.losses.label_kl import LabelTargets
from instil.models import chunked
from instil.models.load import LanguageModel
from instil.prompts.labels import LabelTokens
from instil.recipe.sections import Training
from instil.targets.prediction import Targets
from instil.teacher.labels import LabelLesson
from instil.training import branching, trainer
from instil.training.branching import branch_collator
from instil.training.collation import Collator

CHOICES = LabelTokens(
    ("a", "b", "c"), (((70, 71, 72), (90, 91)), ((70, 73, 74),), ((80, 81), (80, 82, 83)))
)
PROMPTS = [list(b"a prompt that is long"), list(b"a prompt"), list(b"a p"), list(b"a prompt, too")]
Over = Literal["labels", "labels_and_mass", "vocabulary"]


def lessons(vocabulary: int, over: Over) -> list[LabelLesson]:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.4, 0.3, 0.3]])
    generator = torch.Generator().manual_seed(0)
    made = []
    for n, prompt in enumerate(PROMPTS):
        logits = torch.randn(CHOICES.positions, vocabulary, generator=generator)
        kept = Targets.of(logits, top_k=5, temperature=1.0) if over == "vocabulary" else None
        targets = LabelTargets(
            torch.tensor([n % 3]), probs[n : n + 1], kept, CHOICES, torch.tensor([0.5 + n / 10])
        )
        made.append(LabelLesson(prompt, CHOICES.branches, targets))
    return made


def plain_loss(network: Any, rows: list[LabelLesson], objective: LabelKL) -> torch.Tensor:
    """A forward pass for each node, and no batch."""
    total = torch.zeros(())
    for row in rows:
        logits = [
            network(input_ids=torch.tensor([[*row.prompt, *node]])).logits[0, -1]
            for node in CHOICES.branches.nodes
        ]
        total = total + objective(torch.stack(logits), torch.empty(0), row.targets).sum()
    return total


def gradients(network: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunks", ["one chunk", "several chunks"])
@pytest.mark.parametrize("over", ["labels", "labels_and_mass", "vocabulary"])
def test_the_gradient_is_that_of_plain_forwards(
    any_model: LanguageModel, over: Over, chunks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = len(any_model.tokenizer)
    if chunks == "several chunks":
        monkeypatch.setattr(chunked, "MOST_LOGITS", 5 * vocabulary)
        monkeypatch.setattr(trainer, "MOST_LOGITS", 5 * vocabulary)
    network: Any = models_of(any_model).student.network
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    rows, objective = lessons(vocabulary, over), LabelKL(alpha=0.7, over=over)
    collator = branch_collator(network, rows, pad_id=0)
    assert collator is not None
    one = trainer.DistillationTrainer.__new__(trainer.DistillationTrainer)
    one.objective, one.online, one.chunks = objective, None, True
    loss = torch.zeros(())
    for part in collator(range(len(rows)))["parts"]:
        loss = loss + one._weighted(network, part, 1.0)
    loss.backward()
    got = gradients(network)
    network.zero_grad()
    expected = plain_loss(network, rows, objective)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    assert len(got) > 4
    for name, gradient in gradients(network).items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4)


def test_a_prompt_is_in_a_batch_once(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = lessons(len(llama.tokenizer), "labels")
    collator = branch_collator(llama.network, rows, pad_id=0)
    assert collator is not None
    own = [len(row.prompt) + CHOICES.positions - 1 for row in rows]
    (part,) = collator(range(len(rows)))["parts"]
    assert part.batch.tokens == sum(own)
    monkeypatch.setattr(branching, "PASS_TOKENS", 40)
    parts = collator(range(len(rows)))["parts"]
    assert len(parts) > 1
    assert sorted(part.batch.tokens for part in parts) != [sum(own)]
    assert sum(part.batch.tokens for part in parts) == sum(own)
    gold = sorted(int(g) for part in parts for g in part.targets.gold_R)
    assert gold == [0, 0, 1, 2]


def test_one_path_needs_no_branches(llama: LanguageModel) -> None:
    simple = LabelTokens(("a", "b"), (((70,),), ((71,),)))
    targets = LabelTargets(torch.tensor([0]), None, None, simple)
    rows = [LabelLesson(prompt, simple.branches, targets) for prompt in PROMPTS]
    assert branch_collator(llama.network, rows, pad_id=0) is None


def test_students_by_branches_and_by_paths_are_the_same(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, ends = lessons(len(llama.tokenizer), "labels_and_mass"), []
    real, made = Collator._part, list[int]()

    def counted(self: Collator, *args: Any) -> Any:
        part = real(self, *args)
        made.append(part.batch.tokens)
        return part

    monkeypatch.setattr(Collator, "_part", counted)
    models = models_of(llama)
    network: Any = models.student.network
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    for reach in (float("inf"), 0):
        network.load_state_dict(start, strict=False)
        monkeypatch.setattr(branching, "reach", lambda network, reach=reach: reach)
        trainer.train(
            network,
            rows,  # type: ignore[arg-type]
            objective=LabelKL(),
            settings=Training(max_steps=3, batch_size=4, learning_rate=1e-2),
            seed=0,
            pad_id=0,
            checkpoints=tmp_path / f"{reach}",
            resumable=False,
            advance=nothing,
            display=QUIET,
        )
        ends.append({n: p.detach().clone() for n, p in network.named_parameters()})
        assert bool(made) == (reach == 0)
    changed = [name for name, p in ends[0].items() if not torch.equal(p, start[name])]
    assert changed
    for name in changed:
        torch.testing.assert_close(ends[0][name], ends[1][name], atol=1e-4, rtol=1e-3)
