"""Benchmarks of lm-evaluation-harness on a student and its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import instil
from instil.cli import app
from instil.results.schema import Results

pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'instil[lm-eval]'")

TASK = """
task: small_opposites
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{word}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> instil.Run:
    return instil.distill(
        str(model_folders["llama"]),
        context=instil.FewShot([{"input": "zero", "output": "0"}]),
        inputs=[{"input": word} for word in ("one", "two", "three", "four")],
        eval=[{"input": "five", "output": "5"}],
        output=tmp_path_factory.mktemp("harness") / "run",
        prompt={"format": "plain"},
        teacher={"max_new_tokens": 6},
        training={"max_steps": 3, "learning_rate": 0.05},
        evaluation={"drift_tokens": 20, "general_prompts": 7},
        keep={"source": "none"},
        dtype="float32",
        quiet=True,
    )


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"word": word, "choices": ["cold", "down", "small"], "answer": n % 3}
        for n, word in enumerate(["hot", "up", "big", "warm", "high", "large"])
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "small_opposites.yaml").write_text(TASK.format(rows=path))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_student_and_base_are_compared(run: instil.Run, tasks: Path) -> None:
    found = CliRunner().invoke(
        app,
        [
            *("check", str(run.path), "--lm-eval", "small_opposites"),
            *("--lm-eval-path", str(tasks), "--lm-eval-limit", "5", "--quiet"),
        ],
    )
    assert found.exit_code in (0, 3), found.output
    place = run.path / "checks" / "lm-eval"
    (score,) = Results.read(place / "results.json").harness
    assert (score.task, score.metric, score.examples) == ("small_opposites", "acc", 5)
    assert 0 <= score.base <= 1
    assert score.student_error is not None
    assert "Benchmarks" in (place / "report.html").read_text(encoding="utf-8")
    # By hand: the choice with the highest log-probability.
    import torch

    student = run.student
    tokenizer, network = student.model.tokenizer, student.model.network
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()][:5]
    right = 0
    for row in rows:
        values = []
        for choice in row["choices"]:
            start = tokenizer(f"Q: {row['word']}\nA:")["input_ids"]
            ids = start + tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = network(torch.tensor([ids])).logits[0].log_softmax(-1)
            values.append(sum(float(logits[n - 1, ids[n]]) for n in range(len(start), len(ids))))
        right += values.index(max(values)) == row["answer"]
    assert score.student == pytest.approx(right / 5)


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_is_refused(run: instil.Run, tmp_path: Path) -> None:
    output = str(tmp_path / "checked")
    found = CliRunner().invoke(
        app, ["check", str(run.path), "--lm-eval", "nothing_like_it", "--output", output]
    )
    assert found.exit_code == 2
    assert "lm_eval knows no task 'nothing_like_it'" in " ".join(found.output.split())
    found = CliRunner().invoke(app, ["check", str(run.path), "--lm-eval-limit", "3"])
    assert "need --lm-eval" in " ".join(found.output.split())
