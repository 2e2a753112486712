"""The command as a process: what it prints, how it ends, what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import save_tiny

from instil import cli

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DEMOS = [{"input": word, "output": str(n)} for n, word in enumerate(WORDS[:3], 1)]
EVAL = [{"input": word, "output": str(n)} for n, word in enumerate(WORDS[3:6], 4)]
INPUTS = [{"input": word} for word in WORDS[6:]]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def command(tmp_path: Path, model_folders: dict[str, Path]) -> dict[str, str]:
    """Options of a small run; tests change them."""
    data = tmp_path / "data"
    data.mkdir()
    return {
        "--model": str(model_folders["llama"]),
        "--demos": write(data / "demos.jsonl", DEMOS),
        "--inputs": write(data / "inputs.jsonl", INPUTS),
        "--eval": write(data / "eval.jsonl", EVAL),
        "--format": "plain",
        "--output": str(tmp_path / "runs" / "one"),
        "--max-steps": "3",
        "--dtype": "float32",
    }


def run(
    options: dict[str, str], *flags: str, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """The command, in this process: status, standard output, standard error."""
    arguments = ["distill", *(part for option in options.items() for part in option), *flags]
    capfd.readouterr()
    try:
        cli.app(arguments, standalone_mode=False)
        status = 0
    except SystemExit as exit:
        status = int(exit.code or 0)
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def test_a_run_ends_in_a_table_and_a_whole_folder(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(command, capfd=capfd)
    assert status == 0
    for row in ("zero-shot", "in-context", "distilled"):
        assert row in out
    assert str(tmp_path / "runs" / "one" / "report.html") in out
    assert "training the student" in err
    names = sorted(path.name for path in (tmp_path / "runs" / "one").iterdir())
    assert names == [
        "adapter",
        "config.yaml",
        "environment.json",
        "predictions.jsonl",
        "report.html",
        "results.json",
    ]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["one"]


def test_quiet_prints_the_result_only(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(command, "--quiet", capfd=capfd)
    assert status == 0
    assert "distilled" in out
    assert err.startswith("warning: ") or not err  # a tiny model never ends its answers
    assert "training" not in err


def test_every_format_of_context_and_objective_runs(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "instruction.txt").write_text("Write the number.")
    (tmp_path / "document.txt").write_text("Numbers have names.")
    command |= {
        "--format": "chat",
        "--instruction": str(tmp_path / "instruction.txt"),
        "--document": str(tmp_path / "document.txt"),
        "--k": "2",
        "--objective": "cross_entropy",
        "--sampling-temperature": "1.0",
        "--samples": "2",
        "--chat-template-kwargs": '{"enable_thinking": false}',
        "--max-new-tokens": "5",
    }
    status, _, _ = run(command, capfd=capfd)
    assert status == 0
    results = json.loads((Path(command["--output"]) / "results.json").read_text())
    assert results["student_messages"] == [{"role": "user", "content": "{input}"}]
    assert results["student_prompt"] is None
    assert results["training"]["rows"] == 2 * len(INPUTS)
    assert results["phases"]["teach"]["wall_seconds"] == 0
    assert results["context"]["k"] == 2
    card = (Path(command["--output"]) / "adapter" / "README.md").read_text()
    assert "enable_thinking=False" in card


def test_without_evaluation_rows_some_inputs_are_held_out(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    del command["--eval"]
    status, _, _ = run(command, capfd=capfd)
    assert status == 0
    results = json.loads((Path(command["--output"]) / "results.json").read_text())
    assert results["methods"]["distilled"]["accuracy"] is None
    assert results["recovery"] is None
    assert results["fidelity"]["completions"] == "teacher"
    assert results["training"]["rows"] == len(INPUTS) - 1


def test_another_teacher_teaches(
    command: dict[str, str], model_folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    command["--teacher-model"] = str(model_folders["opt"])
    status, _, _ = run(command, capfd=capfd)
    assert status == 0
    results = json.loads((Path(command["--output"]) / "results.json").read_text())
    assert results["teacher_model"] == str(model_folders["opt"])
    assert results["fidelity"]["kl_to_teacher"]["zero_shot"] > 0


def test_falling_short_ends_with_status_three_and_keeps_the_run(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(command, "--min-recovery", "0.9", capfd=capfd)
    assert status == 3
    assert "RecoveryError" in err
    assert "distilled" in out
    assert (Path(command["--output"]) / "results.json").exists()


def _without_template(tmp_path: Path) -> str:
    return str(save_tiny(tmp_path / "no-template", "llama", chat=False))


def _short_window(tmp_path: Path) -> str:
    return str(save_tiny(tmp_path / "short", "llama", window=40))


def _other_tokenizer(tmp_path: Path) -> str:
    from transformers import AutoTokenizer

    folder = save_tiny(tmp_path / "other", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["something"])
    tokenizer.save_pretrained(folder)
    return str(folder)


BAD: dict[str, tuple[Any, str, str]] = {
    "missing file": (
        lambda c, t: {"--inputs": str(t / "gone.jsonl")},
        "DataFileError",
        "no such file",
    ),
    "malformed line": (
        lambda c, t: {"--eval": _text(t / "e.jsonl", "{}\nx\n")},
        "FieldError",
        "line 1",
    ),
    "no rows": (
        lambda c, t: {"--inputs": _text(t / "i.csv", "input\n")},
        "DataFileError",
        "no rows",
    ),
    "k too large": (lambda c, t: {"--k": "4"}, "ContextError", "k = 4"),
    "leak": (lambda c, t: {"--eval": c["--demos"]}, "OverlapError", "3 of 3 evaluation rows"),
    "context too long": (
        lambda c, t: {"--model": _short_window(t)},
        "AlignmentError",
        "allowed: 40",
    ),
    "chat without template": (
        lambda c, t: {"--model": _without_template(t), "--format": "chat"},
        "ChatTemplateError",
        "--format plain",
    ),
    "other tokenizer": (
        lambda c, t: {"--teacher-model": _other_tokenizer(t)},
        "TokenizerMismatchError",
        "'something'",
    ),
    "unknown model": (lambda c, t: {"--model": str(t / "gone")}, "UnknownModelError", "gone"),
    "output below a file": (
        lambda c, t: {"--output": _text(t / "file", "x") + "/run"},
        "OutputError",
        "a file",
    ),
    "existing output": (
        lambda c, t: {"--output": _folder(t / "there")},
        "OutputExistsError",
        "--overwrite",
    ),
    "bad setting": (lambda c, t: {"--batch-size": "0"}, "ConfigError", "batch_size"),
    "unknown objective": (lambda c, t: {"--objective": "forward"}, "ConfigError", "forward_kl"),
    "bad JSON": (lambda c, t: {"--chat-template-kwargs": "{x}"}, "ConfigError", "JSON object"),
    "gold without outputs": (lambda c, t: {"--completions": "gold"}, "FieldError", "'output'"),
    "no context": (lambda c, t: {"--demos": None}, "ContextError", "--demos"),
    "stop string in an output": (
        lambda c, t: {"--eval": write(t / "e.jsonl", [{"input": "x", "output": "a\nb"}])},
        "FieldError",
        "--format chat",
    ),
}


def _text(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def _folder(path: Path) -> str:
    path.mkdir()
    return str(path)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_status_two_one_line_and_nothing_left(
    case: str, command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, error, words = BAD[case]
    for option, value in change(command, tmp_path).items():
        if value is None:
            del command[option]
        else:
            command[option] = value
    status, _, err = run(command, "--quiet", capfd=capfd)
    assert status == 2
    assert err.startswith(f"{error}: ")
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "there.partial").exists()


def test_debug_shows_the_traceback(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    command["--k"] = "9"
    status, _, err = run(command, "--debug", capfd=capfd)
    assert status == 2
    assert "Traceback" in err
    assert "ContextError: k = 9" in err


def test_allow_overlap_goes_on(command: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    command["--eval"] = command["--demos"]
    status, _, _ = run(command, "--allow-overlap", capfd=capfd)
    assert status == 0


def test_a_loss_that_is_not_finite_ends_with_status_one_and_nothing_left(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command["--learning-rate"] = "1e30"
    status, _, err = run(command, capfd=capfd)
    assert status == 1
    assert "NotFiniteLossError: the loss is" in err
    assert list((tmp_path / "runs").iterdir()) == []


def _written(staged: Path) -> int:
    """When the run's only shard was written."""
    (shard,) = (staged / "targets").glob("*/shard-*.arrow")
    return os.stat(shard).st_mtime_ns


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_the_same_command_resumes(
    command: dict[str, str], tmp_path: Path
) -> None:
    command["--max-steps"] = "2000"
    arguments = [sys.executable, "-m", "instil", "distill"]
    arguments += [part for option in command.items() for part in option]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    staged = Path(command["--output"]).with_name("one.partial")
    deadline = time.monotonic() + 90
    while not (staged / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command goes on from here" in err
    (checkpoint,) = (staged / "checkpoints").iterdir()
    steps = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 0 < steps < 2000
    targets = _written(staged)

    # The rest, with the end in sight: training must take up at the checkpoint, on the stored targets.
    state = checkpoint / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == steps
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not any(
        int(p.name.removeprefix("checkpoint-")) > steps
        for p in (staged / "checkpoints").glob("checkpoint-*")
    ):
        assert _written(staged) == targets
        time.sleep(0.1)
    process.communicate(timeout=120)
    assert process.returncode == 0
    results = json.loads((Path(command["--output"]) / "results.json").read_text())
    assert results["training"]["steps"] == results["phases"]["train"]["steps"] == 2000
    assert not staged.exists()


def test_help_is_fast_and_does_not_load_torch() -> None:
    code = "import sys; from instil.cli import app; app(['--help'], standalone_mode=False); "
    code += "assert not {'torch', 'transformers', 'pyarrow', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    best = min(_seconds([sys.executable, "-m", "instil", "--help"]) for _ in range(3))
    assert best <= 0.5


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def test_importing_instil_does_no_work() -> None:
    code = "import sys, instil; assert not {'torch', 'pydantic', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    cli.app(["--version"], standalone_mode=False)
    assert re.fullmatch(r"\d+\.\d+\.\d+", capfd.readouterr().out.strip())
