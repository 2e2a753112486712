"""A study that a plain script runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import instil

SCRIPT = """
import sys, instil
study = instil.run(
    {"model": sys.argv[1], "task": {"name": "files", "inputs": "inputs.jsonl", "demos": "demos.jsonl"}},
    grid={"method": ["zero_shot", "distillation"]},
    prompt={"format": "plain"}, training={"max_steps": 2}, dtype="float32", output="study", quiet=True,
)
assert not study.failures, study.failures
print(len(study.table()), study.report(), study.best("distillation").student.answer(["one"]))
"""


@pytest.mark.slow
def test_a_script_runs_a_study_without_a_main_guard(
    tmp_path: Path, model_folders: dict[str, Path], jsonl: Callable[..., Path]
) -> None:
    words = ("four", "twelve", "a", "eleven", "six")
    jsonl("inputs.jsonl", [{"input": word, "output": str(len(word))} for word in words])
    jsonl("demos.jsonl", [{"input": "three", "output": "5"}])
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, "script.py", str(model_folders["llama"])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"2 {Path('study') / 'report.html'} [")
    assert instil.load(tmp_path / "study").path == tmp_path / "study"
