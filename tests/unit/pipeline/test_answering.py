"""Rows that a model on a server answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.server import serving
from typer.testing import CliRunner

import instil
from instil.cli import app
from instil.engines import chat


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def invoke(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["answer", *arguments, "--quiet"])
    return found.exit_code, " ".join(found.output.split())


def loud(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"]).upper()


def test_rows_and_conversations_are_answered(tmp_path: Path) -> None:
    rows = write(
        tmp_path / "rows.jsonl",
        [
            {"input": "red"},
            {"input": "blue", "output": "known"},
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "go"}]},
            {
                "messages": [
                    {"role": "user", "content": "one"},
                    {"role": "assistant", "content": "1"},
                ]
            },
        ],
    )
    (tmp_path / "prompt.txt").write_text("Be loud.")
    output = tmp_path / "answered.jsonl"
    with serving(loud) as server:
        status, said = invoke(
            *(str(rows), "--url", server.address, "--model", "large"),
            *("--output", str(output), "--instruction", str(tmp_path / "prompt.txt")),
            *("--prices", "1,0.1,2", "--max-tokens", "9"),
        )
        assert status == 0, said
        bodies = [body for _, _, body in server.seen]
    assert "2 rows, 14 tokens read, 6 written; price 0.00" in said
    assert len(bodies) == 2
    first = next(body for body in bodies if len(body["messages"]) == 2 and "red" in str(body))
    assert first["messages"][0] == {"role": "system", "content": "Be loud."}
    assert (first["temperature"], first["max_tokens"]) == (0.0, 9)
    other = next(body for body in bodies if body is not first)
    assert other["messages"][0]["content"] == "Be loud.\n\nS"
    made = read(output)
    assert made[0] == {"input": "red", "output": "RED"}
    assert made[1] == {"input": "blue", "output": "known"}
    assert made[2]["messages"][-1] == {"role": "assistant", "content": "GO"}
    assert made[3]["messages"][-1] == {"role": "assistant", "content": "1"}
    assert not [*tmp_path.glob("*.partial"), *tmp_path.glob(".*.lock")]


def test_calls_of_tools_are_kept(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "book", "parameters": {}}}]
    rows = write(
        tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "go"}], "tools": tools}]
    )
    call = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": '{"a": 1}'}}
    answer = {"message": {"role": "assistant", "content": None, "tool_calls": [call]}}
    with serving(lambda body: answer) as server:
        status, said = invoke(
            *(str(rows), "--url", server.address, "--model", "m", "--output", str(tmp_path / "o"))
        )
        assert status == 0, said
        assert server.seen[0][2]["tools"] == tools
    (made,) = read(tmp_path / "o")
    (called,) = made["messages"][-1]["tool_calls"]
    assert called["function"] == {"name": "book", "arguments": {"a": 1}}
    assert made["tools"] == tools


def test_nothing_is_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RETRIES", 0)
    rows = write(tmp_path / "rows.jsonl", [{"input": f"word {n}"} for n in range(6)])
    arguments = (str(rows), "--model", "m", "--output", str(tmp_path / "o"), "--at-once", "1")

    def breaks(body: dict[str, Any]) -> str:
        if len(server.seen) > 3:
            server.failures = 99
        return loud(body)

    with serving(breaks) as server:
        status, said = invoke(*arguments, "--url", server.address)
        assert status == 2
        assert "does not answer: m at" in said
        before = len((tmp_path / "o.partial").read_bytes().splitlines())
        assert before >= 3
        assert not (tmp_path / "o").exists()
        server.failures, server.answer = 0, loud
        with (tmp_path / "o.partial").open("ab") as file:
            file.write(b'{"key": "cut o')  # a line that was cut off
        server.seen.clear()
        status, said = invoke(*arguments, "--url", server.address)
        assert status == 0, said
        assert len(server.seen) == 6 - before
    assert f"6 rows ({before} were there already)" in said
    assert [row["output"] for row in read(tmp_path / "o")] == [f"WORD {n}" for n in range(6)]
    status, said = invoke(*arguments, "--url", "http://127.0.0.1:9")
    assert status == 2
    assert "already exists" in said


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_killed_command_loses_what_is_under_way_alone(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"input": f"word {n}"} for n in range(40)])

    def slow(body: dict[str, Any]) -> str:
        time.sleep(0.1)
        return loud(body)

    with serving(slow) as server:
        command = [sys.executable, "-m", "instil", "answer", str(rows), "--url", server.address]
        command += ["--model", "m", "--output", str(tmp_path / "o"), "--at-once", "2"]
        process = subprocess.Popen(command, env={**os.environ, "OPENAI_API_KEY": "sk-secret"})
        while len(server.seen) < 10:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        asked = len(server.seen)
        stored = len((tmp_path / "o.partial").read_bytes().splitlines())
        assert stored >= asked - 3
        subprocess.run(command, check=True)
        assert len(server.seen) <= 40 + 3
    assert len(read(tmp_path / "o")) == 40
    texts = [path.read_text() for path in tmp_path.iterdir()]
    assert not any("sk-secret" in text for text in texts)


def test_a_dry_run_asks_nothing(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"input": "red " * 100}, {"input": "x", "output": "y"}])
    arguments = (str(rows), "--url", "http://127.0.0.1:9", "--model", "m", "--output", "o")
    status, said = invoke(*arguments, "--dry-run", "--max-tokens", "50", "--prices", "1e6,0,1e6")
    assert status == 0
    assert "1 row to answer: about" in said
    assert "at most 50 to write" in said
    tokens = int(said.split("about ")[1].split()[0])
    assert 100 <= tokens <= 130
    assert f"price about {tokens + 50:,}.00 at most" in said
    status, said = invoke(*arguments, "--dry-run", "--prices", "1,2")
    assert status == 2
    assert "--prices: three numbers are expected" in said


def test_an_empty_answer_is_an_error_and_asked_for_again(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"input": "red"}])
    arguments = (str(rows), "--model", "m", "--output", str(tmp_path / "o"))
    with serving(lambda body: "  ") as server:
        status, said = invoke(*arguments, "--url", server.address)
        assert status == 2
        assert "the server gave an empty answer to 'red'; got: finish_reason 'stop'" in said
        server.answer = loud
        status, said = invoke(*arguments, "--url", server.address)
        assert status == 0, said


def test_cut_answers_are_counted(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"input": "red"}, {"input": "blue"}])

    def cut(body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": loud(body)}
        return {"message": message, "finish_reason": "length"}

    with serving(cut) as server:
        status, said = invoke(
            *(str(rows), "--model", "m", "--url", server.address),
            *("--output", str(tmp_path / "o"), "--max-tokens", "2"),
        )
    assert status == 0
    assert "2 answers reached --max-tokens" in said


def test_a_wrong_address_is_an_error(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"input": "red"}])
    with serving(loud, whole={"detail": "a page"}) as server:
        status, said = invoke(
            *(str(rows), "--url", server.address, "--model", "m", "--output", str(tmp_path / "o"))
        )
    assert status == 2
    assert "no completion of a chat" in said


def test_the_context_of_a_row_is_sent_and_nothing_is_lost(tmp_path: Path) -> None:
    said_twice = [{"role": "user", "content": "go " * 60}]
    left = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
    ]
    rows = write(
        tmp_path / "rows.jsonl",
        [
            {"input": "red", "context": "A document."},
            {"messages": said_twice},
            {"messages": said_twice},
            {"messages": left, "context": "Another one."},
        ],
    )
    with serving(loud) as server:
        status, said = invoke(
            *(str(rows), "--url", server.address, "--model", "m", "--output", str(tmp_path / "o"))
        )
        assert status == 0, said
        bodies = [json.dumps(body) for _, _, body in server.seen]
    assert any("A document." in body and "red" in body for body in bodies)
    assert any("Another one." in body for body in bodies)
    made = read(tmp_path / "o")
    assert len(made) == 4
    assert made[0]["context"] == "A document."
    assert made[3]["messages"][1]["weight"] == 0


def test_a_student_learns_what_the_server_wrote(
    tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"input": f"word {n}"} for n in range(8)])
    output = tmp_path / "answered.jsonl"
    with serving(loud) as server:
        status, said = invoke(
            *(str(rows), "--url", server.address, "--model", "m", "--output", str(output))
        )
        assert status == 0, said
    run = instil.distill(
        str(model_folders["llama"]),
        context=instil.Instruction("Be loud."),
        inputs=read(output),
        output=tmp_path / "run",
        prompt={"format": "plain"},
        objective={"name": "cross_entropy"},
        teacher={"completions": "gold"},
        training={"max_steps": 2},
        evaluation={"drift_tokens": 20, "general_prompts": 7},
        keep={"source": "none"},
        dtype="float32",
        quiet=True,
    )
    assert run.results.training is not None
    assert run.results.methods[0].scores[0].accuracy is not None


def test_log_probabilities_are_asked_for_and_kept(tmp_path: Path) -> None:
    rows = [{"input": "red"}, {"messages": [{"role": "user", "content": "go"}]}]
    path, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "answered.jsonl"

    def told(body: dict[str, Any]) -> dict[str, Any]:
        assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
        top = [{"token": token, "logprob": p, "bytes": None} for token, p in (("N", -1), ("Y", -2))]
        content = [{**top[1], "top_logprobs": top}]
        message = {"role": "assistant", "content": "Y"}
        return {"message": message, "logprobs": {"content": content, "refusal": None}}

    with serving(told) as server:
        server.refuses = {"return_tokens_as_token_ids"}
        named = (str(path), "--url", server.address, "--model", "m", "--output", str(output))
        status, said = invoke(*named, "--logprobs", "5")
        assert (status, "warning" in said) == (0, False), said
        sent = [body.get("return_tokens_as_token_ids") for _, _, body in server.seen]
        assert set(sent) == {True, None}
    logprobs = [[["Y", -2.0], ["N", -1.0]]]
    answer = {"role": "assistant", "content": "Y", "logprobs": logprobs}
    assert read(output) == [
        {"input": "red", "output": "Y", "logprobs": logprobs},
        {"messages": [{"role": "user", "content": "go"}, answer]},
    ]


def test_answers_without_log_probabilities_are_counted(tmp_path: Path) -> None:
    path, output = write(tmp_path / "rows.jsonl", [{"input": "red"}]), tmp_path / "answered.jsonl"
    with serving(loud) as server:
        named = (str(path), "--url", server.address, "--model", "m", "--output", str(output))
        status, said = invoke(*named, "--logprobs", "20")
    assert status == 0
    assert "warning: 1 row came without log-probabilities" in said
    assert read(output) == [{"input": "red", "output": "RED"}]
