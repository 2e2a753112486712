"""A student where it will be served: merged into the weights, as a model of its own, on the hub."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import instil
from instil.cli import app
from instil.results.schema import Results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> instil.Run:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "rules.yaml").write_text("- {name: short, max_words: 3}\n")
    return instil.distill(
        str(model_folders["llama"]),
        context=instil.FewShot([{"input": "zero", "output": "0"}]),
        inputs=[{"input": word} for word in ("one", "two", "three", "four")],
        eval=[{"input": "five", "output": "5"}, {"input": "six", "output": "6"}],
        output=folder / "run",
        prompt={"format": "plain"},
        teacher={"max_new_tokens": 6},
        training={"max_steps": 3, "learning_rate": 0.01},
        evaluation={"rules": folder / "rules.yaml", "drift_tokens": 20, "general_prompts": 7},
        keep={"source": "none"},
        dtype="float32",
        quiet=True,
    )


def invoke(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*arguments])
    return found.exit_code, found.output


def test_a_merged_student_answers_as_the_adapter_does(run: instil.Run) -> None:
    status, said = invoke("check", str(run.path), "--engine", "merged", "--quiet")
    assert status in (0, 3), said
    assert "served   merged, float32: evaluation rows, 100% of 2 answers as in the run" in said
    place = run.path / "checks" / "merged"
    (score,) = Results.read(place / "results.json").served
    student = run.results.methods[0].scores[0]
    assert score.accuracy == student.accuracy == score.accuracy_in_process
    assert score.p == 1.0
    assert student.written is not None
    assert score.rules == student.written.rules
    page = (place / "report.html").read_text(encoding="utf-8")
    assert "As served" in page
    assert run.results.served == []  # nothing of the run is changed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--engine", "vlm"],
            "there is no engine 'vlm'; allowed: merged, merged+4bit, merged+8bit, vllm",
        ),
        (
            ["--engine", "merged", "--eval", "rows.jsonl"],
            "--engine and --eval cannot both be given",
        ),
        (["--engine-url", "http://x"], "--engine-url needs --engine vllm"),
        (["--engine", "merged", "--engine-url", "http://x"], "--engine-url needs --engine vllm"),
    ],
)
def test_wrong_options_are_refused(run: instil.Run, arguments: list[str], said: str) -> None:
    status, printed = invoke("check", str(run.path), *arguments)
    assert status == 2
    assert said in " ".join(printed.split())


def test_a_merged_model_needs_transformers_alone(run: instil.Run, tmp_path: Path) -> None:
    output = tmp_path / "models" / "mia"
    (tmp_path / "models" / "mia.part").mkdir(parents=True)  # of a call that was killed
    status, said = invoke("export", str(run.path), "--merge", str(output))
    assert status == 0, said
    tokenizer = AutoTokenizer.from_pretrained(output)
    network = AutoModelForCausalLM.from_pretrained(output).eval()
    ends = network.generation_config.eos_token_id
    assert (ends if isinstance(ends, list) else [ends]) == run.results.prompt.end_ids
    student = run.student
    for query in ("five", "six"):
        (prompt,) = student.prompts([query])
        assert tokenizer(tokenizer.decode(prompt), add_special_tokens=False)["input_ids"] == prompt
        with torch.no_grad():
            merged = network(torch.tensor([prompt])).logits
            own = student.model.network(torch.tensor([prompt])).logits
        torch.testing.assert_close(merged, own, atol=1e-4, rtol=1e-4)
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert "merged into its weights" in card
    assert "peft" not in card
    status, said = invoke("export", str(run.path), "--merge", str(output))
    assert status == 2
    assert "already exists" in said


def test_the_card_of_a_merged_model_runs(run: instil.Run, tmp_path: Path) -> None:
    output = tmp_path / "model"
    assert invoke("export", str(run.path), "--merge", str(output))[0] == 0
    card = (output / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=output, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == run.student.answer(["five"])[0].strip()


def test_nothing_asked_for_is_an_error(run: instil.Run) -> None:
    assert "nothing is asked for" in invoke("export", str(run.path))[1]
    assert "write --push hub:me/x" in invoke("export", str(run.path), "--push", "me/x")[1]
    assert "--public needs --push" in invoke("export", str(run.path), "--merge", "x", "--public")[1]


class _Hub(BaseHTTPRequestHandler):
    """What the hub's client asks for in an upload. Files come in the commit itself."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            server.created = json.loads(body)
            self._say({"url": f"http://127.0.0.1:{server.server_port}/me/mia"})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self._say({"files": modes})
        elif self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://127.0.0.1:{server.server_port}/me/mia/commit/abc"
            self._say({"commitUrl": address, "commitOid": "abc", "pullRequestUrl": None})
        else:
            self._say({})

    def do_GET(self) -> None:
        server: Any = self.server
        self._say({"id": "me/mia", "siblings": [], "sha": "abc", "private": server.private})

    def _say(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def hub() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    made.asked, made.files, made.created, made.private = [], {}, {}, True
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def pushed(run: instil.Run, hub: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "instil", "export", str(run.path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_adapter_is_pushed_to_the_hub(run: instil.Run, hub: Any) -> None:
    found = pushed(run, hub, "--push", "hub:me/mia")
    assert found.returncode == 0, found.stderr
    assert "hub      " in found.stdout
    assert hub.created["name"] == "mia"
    assert hub.created["organization"] == "me"
    assert hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= hub.files.keys()
    assert hub.files["README.md"].startswith(b"---\nbase_model:")
    assert "hf_secret" not in found.stdout + found.stderr


def test_what_should_be_private_is_not_pushed_to_a_public_model(run: instil.Run, hub: Any) -> None:
    hub.private = False
    found = pushed(run, hub, "--push", "hub:me/mia")
    assert found.returncode == 2
    assert "me/mia is there already, and is public; mend: pass --public" in found.stderr
    assert hub.files == {}


def test_a_hub_that_refuses_is_an_error(run: instil.Run, hub: Any) -> None:
    found = pushed(run, hub, "--push", "hub:a/b/c")
    assert found.returncode == 2
    assert "cannot be uploaded to a/b/c" in found.stderr
