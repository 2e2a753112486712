"""Lets a model on a server answer rows, so that a student can learn what it writes.

Each answer is on the disk before the next one is asked for, so what was paid for is never asked twice.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from instil.engines.chat import Completions, client, unanswered
from instil.errors import OutputExistsError, ServerError
from instil.prompts.context import Context
from instil.prompts.turns import tools_of, turns_of
from instil.recipe.sections import Prices
from instil.system.files import digest, written_whole
from instil.system.locks import hold
from instil.tasks.conversation import Conversation, Message, ToolCall, Turn
from instil.tasks.logprobs import logprobs_of
from instil.tasks.rows import Row

CHARACTERS = 4
"""Characters of a token, for the price that is foretold."""
MILLION = 1e6
CUT = "length"
"""Why an answer ends that reached the limit of tokens, in the interface of OpenAI."""


@dataclass(frozen=True)
class Asked:
    """What a server is asked with.

    Attributes:
        url: Its address.
        model: Name of the model there.
        key_env: Environment variable with its key.
        temperature: Sampling temperature; 0 is greedy.
        max_tokens: Most tokens of an answer; None: as many as the server allows.
        at_once: Requests at the same time.
        logprobs: Number of likeliest tokens whose log-probabilities are asked for at each token of an
            answer; 0 for none.
    """

    url: str
    model: str
    key_env: str
    temperature: float
    max_tokens: int | None
    at_once: int
    logprobs: int = 0

    def request(self, row: Row, context: Context) -> dict[str, Any]:
        """The body of the request for the answer to a row."""
        read = context if row.context is None else replace(context, own=row.context)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_posted(one) for one in turns_of(row, read)],
            "temperature": self.temperature,
        }
        if tools := tools_of(row, context):
            body["tools"] = tools
        if self.logprobs:
            # vLLM then tells ids, which also name tokens that are no whole characters.
            ids = {"return_tokens_as_token_ids": True}
            body |= {"logprobs": True, "top_logprobs": self.logprobs, "extra_body": ids}
        return body


@dataclass
class Spent:
    """What the answers took.

    Attributes:
        rows: Rows that were answered.
        reused: Rows of which the answer was there already.
        cut: Answers that reached the limit of tokens.
        prompt: Tokens of the prompts.
        cached: Those of them that the server had in its cache.
        written: Tokens of the answers.
        without_logprobs: Answers that came without log-probabilities.
        refused: Parameters that the server's model does not take, so that they were left out.
    """

    rows: int = 0
    reused: int = 0
    cut: int = 0
    prompt: int = 0
    cached: int = 0
    written: int = 0
    without_logprobs: int = 0
    refused: list[str] = field(default_factory=list)

    def add(self, answered: dict[str, Any], *, reused: bool) -> None:
        """Adds an answer.

        Args:
            answered: The answer, as it is stored.
            reused: Whether it was there already.
        """
        usage = answered["usage"]
        self.rows += 1
        self.reused += reused
        self.cut += answered["ended"] == CUT
        self.prompt += usage.get("prompt_tokens", 0)
        self.cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self.written += usage.get("completion_tokens", 0)
        self.without_logprobs += answered.get("logprobs") is None

    def price(self, prices: Prices) -> float:
        """What it costs."""
        fresh = self.prompt - self.cached
        read = fresh * prices.input + self.cached * prices.cached_input
        return (read + self.written * prices.output) / MILLION


def unanswered_rows(items: Sequence[Row | Conversation]) -> list[Row]:
    """The rows whose answer is not known: without an output, or ending with the user."""
    rows = []
    for item in items:
        if isinstance(item, Row):
            if item.output is None:
                rows.append(item)
        elif item.messages[-1].role != "assistant":
            last, turn = item.messages[-1], Turn(item, len(item.messages))
            rows.append(Row(last.content, context=item.context, turn=turn))
    return rows


def foretold(rows: Sequence[Row], context: Context, asked: Asked) -> Spent:
    """About what the answers will take, from the characters of the prompts."""
    told = Spent(rows=len(rows))
    for row in rows:
        body = asked.request(row, context)
        sent = [body["messages"], body.get("tools", [])]
        told.prompt += len(json.dumps(sent, ensure_ascii=False)) // CHARACTERS
        told.written += asked.max_tokens or 0
    return told


def answer(
    items: Sequence[Row | Conversation],
    context: Context,
    asked: Asked,
    output: Path,
    *,
    advance: Callable[[int], None],
) -> Spent:
    """Answers what is not answered yet, and writes all rows as JSON Lines.

    An interrupted call resumes: the answers so far are in `OUTPUT.partial`.

    Args:
        items: Rows and conversations. Those that have an answer are written as they are.
        context: What the model reads before each row.
        asked: The server.
        output: New file.
        advance: Called with the number of rows that were answered.

    Raises:
        OutputExistsError: the file is there already.
        ServerError: the server does not answer, after some tries, or gives no answer to a row.
        ConfigError: the client is not installed.
    """
    if output.exists():
        raise OutputExistsError(f"{output} already exists", mend="name another file")
    server, spent = client(asked.url, asked.key_env), Spent()
    completions = Completions(server)
    from openai import OpenAIError

    partial = output.with_name(f"{output.name}.partial")
    lock = output.with_name(f".{output.name}.lock")
    with hold(lock, of=output):
        known = dict(_stored(partial))
        with partial.open("ab") as journal:
            writer = _Journal(journal)

            def ask(row: Row) -> tuple[dict[str, Any], bool]:
                body = asked.request(row, context)
                key = digest([asked.url, body])
                found = known.get(key)
                there = found is not None and found["most"] in (None, asked.max_tokens)
                if found is None or not there:
                    limit = {} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}
                    found = _answered(completions.create(**body, **limit), row.input)
                    # A longer limit would not change an answer that has an end.
                    most = asked.max_tokens if found["ended"] == CUT else None
                    found |= {"key": key, "most": most}
                    writer.add(found)
                    known[key] = found
                advance(1)
                return found, there

            todo = [unanswered_rows([item]) for item in items]
            try:
                with server, ThreadPoolExecutor(asked.at_once) as pool:
                    said = iter([*pool.map(ask, (row for rows in todo for row in rows))])
            except OpenAIError as error:
                raise unanswered(f"{asked.model} at {asked.url}", error) from error
        answers: list[Message | None] = []
        for rows in todo:
            answers.append(None)
            for _ in rows:
                found, there = next(said)
                spent.add(found, reused=there)
                answers[-1] = _message(found["message"], found.get("logprobs"))
        with written_whole(output) as work, work.open("w", encoding="utf-8") as file:
            for item, message in zip(items, answers, strict=True):
                record = json.dumps(_record(item, message), ensure_ascii=False)
                file.write(f"{record}\n")
        partial.unlink()
        lock.unlink(missing_ok=True)
    spent.refused = sorted(completions.refused)
    return spent


class _Journal:
    """Writes answers to the disk, one after another."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()

    def add(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _stored(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The answers of an interrupted call. A line that was cut off is asked again, and removed."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
        path.write_bytes(b"".join(lines))
    for line in lines:
        with suppress(ValueError, KeyError):
            record = json.loads(line)
            yield record["key"], record


def _posted(message: Message) -> dict[str, Any]:
    """A message as the interface of OpenAI takes it: the arguments of a tool are text."""
    made = message.sent()
    made.pop("reasoning_content", None)
    for call, known in zip(made.get("tool_calls", ()), message.tool_calls, strict=True):
        call["function"]["arguments"] = known.arguments
    return made


def _answered(reply: Any, query: str) -> dict[str, Any]:
    """What is stored of a reply.

    Raises:
        ServerError: it holds no answer.
    """
    choices = getattr(reply, "choices", None)
    if not choices:
        raise ServerError(
            "the server's reply is no completion of a chat",
            got=repr(reply)[:200],
            mend="check the address: it often ends in /v1",
        )
    said = choices[0].message.model_dump(exclude_none=True)
    if not (said.get("content") or "").strip() and not said.get("tool_calls"):
        raise ServerError(
            f"the server gave an empty answer to {query[:80]!r}",
            got=f"finish_reason {choices[0].finish_reason!r}",
            mend="raise --max-tokens, or leave out the row, then repeat the command",
        )
    usage = reply.usage.model_dump(exclude_none=True) if reply.usage else {}
    told = choices[0].logprobs and choices[0].logprobs.model_dump()
    made = {"message": said, "usage": usage, "ended": choices[0].finish_reason}
    return made if told is None else {**made, "logprobs": logprobs_of(told)}


def _message(said: dict[str, Any], logprobs: str | None) -> Message:
    calls = tuple(
        ToolCall(call["function"]["name"], call["function"].get("arguments", "{}"), call.get("id"))
        for call in said.get("tool_calls", ())
    )
    thinking = said.get("reasoning_content")
    text = said.get("content") or ""
    return Message("assistant", text, thinking=thinking, tool_calls=calls, logprobs=logprobs)


def _record(item: Row | Conversation, message: Message | None) -> dict[str, Any]:
    if isinstance(item, Row):
        output = item.output if message is None else message.content
        logprobs = item.logprobs if message is None else message.logprobs
        made: dict[str, Any] = {"input": item.input, "output": output, **_told(logprobs)}
        return made if item.context is None else {**made, "context": item.context}
    whole = item if message is None else replace(item, messages=(*item.messages, message))
    made = {
        "messages": [
            {**one.sent(), **({} if one.learnt else {"weight": 0}), **_told(one.logprobs)}
            for one in whole.messages
        ]
    }
    if whole.tools is not None:
        made["tools"] = json.loads(whole.tools)
    return made if whole.context is None else {**made, "context": whole.context}


def _told(logprobs: str | None) -> dict[str, Any]:
    return {} if logprobs is None else {"logprobs": json.loads(logprobs)}
