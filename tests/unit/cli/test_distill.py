"""The command as a process: what it prints, how it ends, what it leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from tests.conftest import save_tiny
from tests.finished import method_result, results, run_results, score, write_run
from tests.small import reused
from typer.testing import CliRunner

import instil.pipeline
from instil import cli
from instil.cli.typed import unescape
from instil.recipe.recipe import Recipe
from instil.results.schema import RESULTS, Message, Results
from instil.tasks import Files

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


SCRATCH, CHECKPOINTS = "scratch", "checkpoints"  # what an interrupted run resumes from


def results_of(command: dict[str, str]) -> Results:
    return Results.read(Path(command["--output"]) / RESULTS)


def test_a_run_ends_in_a_table_and_a_whole_folder(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(command, capfd=capfd)
    assert status == 0
    for row in ("zero-shot", "in-context", "distillation"):
        assert row in out
    assert str(tmp_path / "runs" / "one" / "report.html") in out
    assert "training the student" in err
    names = sorted(path.name for path in (tmp_path / "runs" / "one").iterdir())
    assert names == [
        "adapter",
        "config.yaml",
        "context.json",
        "context.txt",
        "environment.json",
        "evaluation.jsonl",
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
    assert "distillation" in out
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
        "--max-new-tokens": "5",
    }
    thinking = ("--set", "prompt.chat_template_kwargs.enable_thinking=false")
    status, _, _ = run(command, *thinking, capfd=capfd)
    assert status == 0
    results = results_of(command)
    assert results.prompt.messages == [Message(role="user", content="{input}")]
    assert results.prompt.pattern is None
    assert results.prompt.template_kwargs == {"enable_thinking": False}
    assert results.training is not None
    assert results.training.rows == 2 * len(INPUTS)
    assert "teach" not in results.phases or results.phases["teach"].wall_seconds == 0
    assert results.context is not None
    assert results.context.k == 2
    card = (Path(command["--output"]) / "adapter" / "README.md").read_text()
    assert "enable_thinking=False" in card


def test_without_evaluation_rows_some_inputs_are_held_out(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    del command["--eval"]
    status, _, _ = run(command, capfd=capfd)
    assert status == 0
    results = results_of(command)
    (score,) = results.methods[0].scores
    assert results.method == "distillation"
    assert score.accuracy is None
    assert results.recovery is None
    assert score.completions == "teacher"
    assert results.training is not None
    assert results.training.rows == len(INPUTS) - 1


def test_a_setting_that_nothing_reads_is_named(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(command, "--set", "method=zero_shot", capfd=capfd)
    assert status == 0
    assert "warning: training.max_steps is set, but with the other settings nothing reads it" in err
    command["--output"] += "-2"
    assert "nothing reads" not in run(command, capfd=capfd)[2]


def test_another_teacher_teaches(
    command: dict[str, str], model_folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    command["--teacher-model"] = str(model_folders["opt"])
    status, _, _ = run(command, capfd=capfd)
    assert status == 0
    results = results_of(command)
    assert results.teacher_model == str(model_folders["opt"])
    zero_shot = results.result("zero_shot")
    assert zero_shot is not None
    assert zero_shot.scores[0].fidelity is not None
    assert zero_shot.scores[0].fidelity.kl_to_teacher > 0


def test_falling_short_ends_with_status_three_and_keeps_the_run(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(command, "--min-recovery", "0.9", capfd=capfd)
    assert status == 3
    assert "GateError" in err
    assert "distillation" in out
    assert (Path(command["--output"]) / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (["--min-recovery", "1.2"], 0),
        (["--min-recovery", "1.3"], 3),
        (["--min-recovery", "0.8", "--recovery-bound", "estimate"], 0),
        (["--min-recovery", "0.9", "--recovery-bound", "estimate"], 3),
        (["--min-recovery", "0.4", "--recovery-bound", "lower"], 0),
        (["--min-recovery", "0.5", "--recovery-bound", "lower"], 3),
    ],
)
def test_the_gate_reads_the_bound_that_is_named(
    command: dict[str, str],
    cell: SimpleNamespace,
    flags: list[str],
    status: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(command, *flags, capfd=capfd)[0] == status


def test_all_gates_that_fail_are_named(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(command, "--min-recovery", "1.3", "--max-drift", "0.001", capfd=capfd)
    assert status == 3
    first, second = (line for line in err.splitlines() if "Error: " in line)
    assert first.startswith("GateError: ")
    assert "got: recovery 0.857" in first
    assert second.startswith("GateError: ")
    assert "got: drift 0.010" in second


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-recovery", "nan"], "Input should be a finite number (got nan)"),
        (["--min-recovery", "0.9", "--recovery-bound", "low"], "allowed: upper, estimate, lower"),
        (["--recovery-bound", "lower"], "has no effect without --min-recovery"),
        (["--max-drift", "inf"], "--max-drift: max_drift: Input should be a finite number"),
        (["--min-rule", "greeting"], "--min-rule greeting; allowed: NAME=VALUE"),
        (["--min-metric", "exact=much"], "--min-metric exact=much; allowed: NAME=VALUE"),
        (["--gate", "default", "--max-leak", "0"], "--gate default has limits of its own"),
        (["--gate", "none.yaml"], "none.yaml: the gate cannot be read"),
        (["--metric", "exat"], "there is no metric 'exat'; mend: did you mean 'exact'?"),
        (["--metric", "max_words"], "it is for rules"),
        (["--rules", "none.yaml"], "none.yaml: the rules cannot be read"),
    ],
)
def test_a_wrong_gate_is_refused_before_any_work(
    command: dict[str, str],
    flags: list[str],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    status, _, err = run(command, *flags, capfd=capfd)
    assert status == 2
    assert message in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("some", "keep.share: Input should be a valid number"),
        ("1", "keep.share: Input should be less than 1"),
        ("0", "keep.share: Input should be greater than 0"),
    ],
)
def test_a_wrong_share_is_refused_before_any_work(
    command: dict[str, str],
    share: str,
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    status, _, err = run(command, "--keep", share, capfd=capfd)
    assert status == 2
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_run_keeps_texts_or_nothing(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    computed = []
    for share in ("0.9", "none"):
        command["--output"] = str(tmp_path / share)
        status, _, err = run(command, "--keep", share, "--max-drift", "0", capfd=capfd)
        assert (status, "GateError: the student has changed" in err) == (3, True)
        said = "keep.share is 0.9, which is 144 texts per batch, but there are only 48"
        assert (said in " ".join(err.split())) == (share != "none")
        results = results_of(command)
        computed.append(results.phases["train"].tokens)
        assert ("keep" in results.phases) == (share != "none")
        drift = results.methods[0].drift
        assert drift is not None
        assert set(drift.kinds) == {"prose", "code", "sums", "languages", "chat", "tasks"}
        card = (tmp_path / share / "adapter" / "README.md").read_text(encoding="utf-8")
        assert f"At {100 * (drift.same_top or 0):.0f} % of the positions" in card
    assert computed[0] > computed[1]


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
        "DataFormatError",
        "line 2",
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
        "allowed: at most 40",
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
    "change without a value": (
        lambda c, t: {"--set": "seed"},
        "ConfigError",
        "not of the form KEY=VALUE",
    ),
    "change that is not YAML": (lambda c, t: {"--set": "seed=[0"}, "ConfigError", "not YAML"),
    "change of an unknown key": (
        lambda c, t: {"--set": "teacher.topk=3"},
        "ConfigError",
        "did you mean 'top_k'?",
    ),
    "grid": (lambda c, t: {"--set": "grid.seed=[0, 1]"}, "ConfigError", "has no grid"),
    "other task": (
        lambda c, t: {"--set": "task={name: gsm8k}"},
        "ConfigError",
        "runs only the task 'files'",
    ),
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


def test_allow_overlap_permits_it(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    command["--eval"] = command["--demos"]
    status, _, _ = run(command, "--allow-overlap", capfd=capfd)
    assert status == 0


def test_after_a_loss_that_is_not_finite_another_rate_uses_the_teacher_s_work(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command["--learning-rate"] = "1e30"
    status, _, err = run(command, capfd=capfd)
    assert status == 1
    assert "NotFiniteLossError: the loss is" in err
    assert "what the teacher wrote and predicted is kept in" in err
    (staged,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in staged.iterdir()} == {SCRATCH, ".lock"}
    _written(staged)
    command["--learning-rate"] = "1e-3"
    command["--set"] = f"teacher.store={staged / SCRATCH / 'targets'}"
    assert run(command, capfd=capfd)[0] == 0
    assert reused(results_of(command)) == ["generate", "teach"]


def _written(staged: Path) -> int:
    """When the run's only shard was written."""
    (shard,) = (staged / SCRATCH / "targets").glob("*/shard-*.arrow")
    return os.stat(shard).st_mtime_ns


def _taught(staged: Path) -> bool:
    """Whether the teacher is done, so that training has begun."""
    return any((staged / SCRATCH / "targets").glob("*.spent.json"))


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
    while not _taught(staged) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "repeat the same command to resume" in err
    (checkpoint,) = (staged / CHECKPOINTS).glob("checkpoint-*")
    steps = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 0 < steps < 2000
    targets = _written(staged)

    # The rest, with the end in sight: training must take up at the checkpoint, on the stored targets.
    state = checkpoint / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == steps
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not any(
        int(p.name.removeprefix("checkpoint-")) > steps
        for p in (staged / CHECKPOINTS).glob("checkpoint-*")
    ):
        assert _written(staged) == targets
        time.sleep(0.1)
    process.communicate(timeout=120)
    assert process.returncode == 0
    results = results_of(command)
    assert results.training is not None
    assert results.training.steps == results.phases["train"].steps == 2000
    assert not staged.exists()


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Takes the place of the cell that the command runs: remembers its recipe, and finishes at once."""
    seen = SimpleNamespace(results=run_results())

    def run(recipe: Recipe, output: Path, **more: Any) -> Path:
        seen.recipe, seen.given = recipe, more["given"]
        return write_run(output, seen.results)

    made = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "instil.pipeline.cell", made)
    monkeypatch.setattr(instil.pipeline, "cell", made, raising=False)
    return seen


def test_the_options_are_a_recipe_with_the_task_files(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    command |= {
        "--make-inputs": "7",
        "--lora-r": "4",
        "--pattern": r"{input}\n=",
        "--temperature": "2",
        "--k": "2",
    }
    assert run(command, "--allow-overlap", capfd=capfd)[0] == 0
    assert cell.recipe == Recipe.parse(
        {
            "model": command["--model"],
            "task": {
                "name": "files",
                "inputs": command["--inputs"],
                "eval": command["--eval"],
                "demos": command["--demos"],
                "k": 2,
                "allow_overlap": True,
            },
            "prompt": {"format": "plain", "pattern": "{input}\n="},
            "objective": {"temperature": 2.0},
            "tuning": {"r": 4},
            "training": {"max_steps": 3, "make_inputs": 7},
            "evaluation": {"baselines": ["zero_shot", "in_context"]},
            "dtype": "float32",
        }
    )
    assert [row.input for row in cell.given.inputs] == WORDS[6:]


def test_options_that_are_not_given_leave_the_recipe_its_defaults(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    needed = {key: command[key] for key in ("--model", "--inputs", "--demos", "--output")}
    assert run(needed, capfd=capfd)[0] == 0
    task = {"name": "files", "inputs": needed["--inputs"], "demos": needed["--demos"]}
    baselines = {"baselines": ["zero_shot", "in_context"]}
    expected = {"model": needed["--model"], "task": task, "evaluation": baselines}
    expected["training"] = {"until": "plateau"}
    assert cell.recipe == Recipe.parse(expected)


def test_set_changes_any_setting_and_is_applied_after_the_other_options(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = (
        "training.max_steps=7",
        "teacher.top_k=64",
        "evaluation.batch_size=2",
        "tuning={name: lora, alpha: 4}",
        "training.max_steps=9",
    )
    flags = [part for change in changes for part in ("--set", change)]
    assert run(command, *flags, capfd=capfd)[0] == 0
    made = cell.recipe
    assert made.training.max_steps == 9
    assert (made.teacher.top_k, made.tuning.alpha) == (64, 4)
    assert made.evaluation.batch_size == 2
    assert made.evaluation.baselines == ("zero_shot", "in_context")


def test_a_change_that_does_not_go_with_an_option_is_refused(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(command, "--set", "training.epochs=2", capfd=capfd)
    assert (status, "epochs and max_steps cannot both be set" in err) == (2, True)
    status, _, err = run(command, "--set", "seed.x=2", capfd=capfd)
    assert (status, "seed is not a section, so it has no keys" in err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_several_sets_to_judge_on_have_names(
    command: dict[str, str],
    tmp_path: Path,
    cell: SimpleNamespace,
    capfd: pytest.CaptureFixture[str],
) -> None:
    near = command.pop("--eval")
    far = write(tmp_path / "data" / "far.jsonl", [{"input": "twelve", "output": "12"}])
    sets = ("--eval", f"near={near}", "--eval", f"far={far}")
    assert run(command, *sets, capfd=capfd)[0] == 0
    assert cell.recipe.task.eval == {"near": Path(near), "far": Path(far)}
    assert {name: len(rows) for name, rows in cell.given.held_out.items()} == {"near": 3, "far": 1}
    for wrong in ((near, far), (f"a={near}", f"a={far}"), (f"a={near}", far)):
        flags = [part for value in wrong for part in ("--eval", value)]
        status, _, err = run(command, *flags, capfd=capfd)
        assert (status, "NAME=FILE for each of several sets" in err) == (2, True)


def test_a_path_may_hold_an_equals_sign(
    command: dict[str, str],
    tmp_path: Path,
    cell: SimpleNamespace,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lr=1").mkdir()
    command["--eval"] = write(tmp_path / "lr=1" / "eval.jsonl", EVAL)
    assert run(command, capfd=capfd)[0] == 0
    assert cell.recipe.task.eval == Path(command["--eval"])


def test_the_table_shows_every_method_and_what_it_costs(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(command, capfd=capfd)
    cells = [[word.strip() for word in line.split("│")[1:-1]] for line in out.splitlines()]
    assert [row for row in cells if row] == [
        ["zero-shot", "0.200", "0.057 – 0.510", "20", "0.250"],
        ["in-context", "0.900", "0.596 – 0.982", "50", "0.250"],
        ["distillation", "0.800", "0.490 – 0.943", "20", "0.250"],
    ]
    assert "tiny, 3 demonstrations" in out
    assert (
        "recovery 0.857 (0.471 – 1.250); KL to the teacher 1.500 -> 0.125 nats per token; drift 0.010\n"
        in out
    )
    assert f"adapter  {command['--output']}/adapter\n" in out


def test_the_table_names_several_sets_and_what_is_unknown(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    far = score(None, name="far", domain="out")
    cell.results = results(method_result("distillation", score(8), far), context=None)
    _, out, _ = run(command, capfd=capfd)
    cells = [[word.strip() for word in line.split("│")[1:-1]] for line in out.splitlines()]
    assert [row[:4] for row in cells if row] == [
        ["distillation", "words", "0.800", "0.490 – 0.943"],
        ["distillation", "far", "–", "–"],
    ]
    assert "recovery undefined\n" in out


def test_without_training_there_is_no_adapter_to_name(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    cell.results = results(method_result("zero_shot", score(2)))
    status, out, _ = run(command, "--set", "method=zero_shot", capfd=capfd)
    assert (status, cell.recipe.method) == (0, "zero_shot")
    assert "report" in out
    assert "adapter" not in out
    assert "recovery" not in out


def test_the_demo_distils_the_bundled_rows(
    tmp_path: Path, cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    cli.app(["demo", "--output", str(tmp_path / "demo"), "--quiet"], standalone_mode=False)
    made = cell.recipe
    assert isinstance(made.task, Files)
    assert (made.model, made.prompt.format) == ("bundled:smollm2-135m-instruct", "plain")
    assert made.training.batch_size == 8
    assert made.evaluation.baselines == ("zero_shot", "in_context")
    assert set(cell.given.held_out) == {"evaluation rows"}
    assert "distillation" in capfd.readouterr().out


def panels() -> dict[str, list[str]]:
    """The panels of the command's help, with their options, in order."""
    text = CliRunner().invoke(cli.app, ["distill", "--help"], env={"COLUMNS": "200"}).output
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+?) ─", line):
            found[title[1]] = []
        elif option := re.match(r"│ [* ]*(--[a-z-]+)", line):
            list(found.values())[-1].append(option[1])
    return found


def test_the_help_begins_with_what_a_beginner_needs() -> None:
    found = panels()
    assert list(found) == [
        "What to bake in",
        "Rows",
        "Where to",
        "Prompt",
        "Teacher",
        "Training",
        "Any other setting",
        "Gate and output",
    ]
    assert found["What to bake in"] == [
        *("--model", "--demos", "--instruction", "--document", "--k"),
        *("--context-from-logs", "--bake-tools", "--student-system"),
    ]
    assert found["Rows"] == [
        *("--inputs", "--field", "--turns", "--on-bad-row", "--eval", "--make-inputs"),
        *("--allow-overlap", "--metric", "--rules"),
    ]
    assert found["Where to"] == ["--output", "--overwrite"]
    assert found["Any other setting"] == ["--set"]
    assert found["Gate and output"][-1] == "--help"


def test_every_help_text_is_a_sentence() -> None:
    group: Any = typer.main.get_command(cli.app)
    commands = [*group.commands.values()]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        assert command.help, command.name
        for option in command.params:
            text = option.help or ""
            assert re.match(r"[A-Z].{7,}\.$", text), f"{command.name} {option.opts}: {text!r}"
            assert not text.startswith(("Of ", "A ", "In ", "With ")), text


def test_help_is_fast_and_does_not_load_torch() -> None:
    code = "import sys; from instil.cli import app; app(['--help'], standalone_mode=False); "
    code += "assert not {'torch', 'transformers', 'pyarrow', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    ours = min(_cpu_seconds([sys.executable, "-m", "instil", "--help"]) for _ in range(3))
    plain = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"
    library = min(_cpu_seconds([sys.executable, "-c", plain]) for _ in range(3))
    assert ours <= 2.5 * library, (
        "beside the help of an empty command, which takes what typer takes"
    )


def _cpu_seconds(command: list[str]) -> float:
    """Of the processor, which other workers do not lengthen."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


def test_importing_instil_does_no_work() -> None:
    code = "import sys, instil; assert not {'torch', 'pydantic', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    cli.app(["--version"], standalone_mode=False)
    assert re.fullmatch(r"\d+\.\d+\.\d+", capfd.readouterr().out.strip())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"Q: {input}\nA:\t", "Q: {input}\nA:\t"),
        (r"a\\nb", r"a\nb"),
        (r"C:\dir {input}", r"C:\dir {input}"),
        (r"\\ {input}", r"\\ {input}"),
        (None, None),
    ],
)
def test_a_pattern_is_what_was_typed(typed: str | None, meant: str | None) -> None:
    assert unescape(typed) == meant


def test_a_pattern_that_would_not_be_read_is_refused(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command |= {"--format": "auto", "--pattern": "{input}:"}
    status, out, err = run(command, capfd=capfd)
    assert (status, out) == (2, "")
    assert "ConfigError: prompt.pattern: has no effect in the chat format" in err
    assert not (tmp_path / "runs").exists()


def test_settings_without_effect_are_told(
    command: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    command |= {"--objective": "cross_entropy", "--set": "teacher.top_k=64"}
    status, _, err = run(command, "--quiet", capfd=capfd)
    assert status == 0
    assert "teacher.top_k is set, but with the other settings nothing reads it" in err.replace(
        "\n", " "
    )


def test_a_template_without_a_system_turn_leaves_nothing_behind(
    command: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(command["--model"], tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text(
        "{% for m in messages if m['role'] != 'system' %}" + template.read_text().partition("%}")[2]
    )
    (tmp_path / "instruction.txt").write_text("Write the number.")
    command |= {
        "--model": str(model),
        "--format": "chat",
        "--instruction": str(tmp_path / "instruction.txt"),
    }
    status, out, err = run(command, capfd=capfd)
    assert (status, out) == (2, "")
    assert "the chat template leaves out the system turn" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_recovery_that_cannot_be_compared_is_refused_before_the_work(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str], value: str
) -> None:
    command["--min-recovery"] = value
    status, _, err = run(command, capfd=capfd)
    assert (status, hasattr(cell, "recipe")) == (2, False)
    assert f"Input should be a finite number (got {value})" in err


def test_names_that_look_like_markup_are_printed_as_they_are(
    command: dict[str, str], cell: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    sets = [score(8, name="[/red]"), score(8, name="[bold]b")]
    cell.results = results(method_result("zero_shot", *sets), model="models/[/x]")
    status, out, _ = run(command, "--quiet", capfd=capfd)
    assert status == 0
    assert all(name in out for name in ("[/red]", "[bold]b", "models/[/x]"))


def test_a_full_disk_is_told_in_one_line(
    command: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run_out(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli.distill, "run_one", run_out)
    status, _, err = run(command, capfd=capfd)
    assert status == 2
    assert err.startswith("DiskFullError: a disk is full; got: [Errno 28] No space left")
