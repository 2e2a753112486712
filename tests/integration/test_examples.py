"""The scripts and the notebook of `examples/`, on a tiny model: they run, and print what they say."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_script(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, str(model)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_prompt_of_ones_own_and_its_adapter_in_plain_peft(
    elsewhere: Path,
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_script("own_prompt.py", model_folders["llama"], monkeypatch)
    out = capsys.readouterr().out
    for method in ("zero_shot", "in_context", "distillation"):
        assert f"{method} " in out
    assert "bottle -> " in out
    assert (elsewhere / "runs/own_prompt/report.html").is_file()
    run_script("plain_peft.py", model_folders["llama"], monkeypatch)
    out = capsys.readouterr().out
    assert all(f"{word} -> " in out for word in ("bottle", "story", "shelf"))


@pytest.mark.slow
def test_methods_are_compared(
    elsewhere: Path,
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_script("compare_methods.py", model_folders["llama"], monkeypatch)
    out = capsys.readouterr().out
    for method in ("zero_shot", "in_context", "distillation"):
        assert f"{method} " in out
    assert "The lamp blinks -> billing" in out or "The lamp blinks -> fault" in out
    assert (elsewhere / "runs/compare_methods/report.html").is_file()


def test_a_metric_of_ones_own(
    elsewhere: Path,
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_script("own_metric.py", model_folders["llama"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.endswith("of 2 have the same words") for line in lines)


def test_the_notebook(
    elsewhere: Path,
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("INSTIL_MODEL", str(model_folders["llama"]))
    text = (EXAMPLES / "look_inside.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        assert cell["outputs"] or "print(" not in "".join(cell["source"]), "run the notebook, save"
        exec(compile("".join(cell["source"]), "look_inside.ipynb", "exec"), names)
    out = capsys.readouterr().out
    assert "step  20" in out
    assert "tokens per prompt" in out


def test_every_example_is_listed() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.[pi]*"):
        assert f"({path.name})" in text
