"""A small OpenAI-compatible server of the tests' own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], "str | dict[str, Any]"]


class Server(ThreadingHTTPServer):
    """Answers chats.

    Attributes:
        seen: Path, key and body of each request.
        whole: What is sent in place of a completion.
        failures: How many of the next requests are refused with status 429.
        refuses: Parameters that its model does not take.
    """

    daemon_threads = True

    def __init__(self, answer: Answer, whole: dict[str, Any] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.whole = answer, whole
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self.failures = 0
        self.refuses: set[str] = set()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, self.headers["Authorization"], body))
            refused = server.failures > 0
            server.failures -= refused
        if refused:
            self.send_response(429)
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            return
        wrong = sorted(server.refuses & body.keys())
        if wrong:
            error = {"message": f"Unsupported parameter: {wrong[0]!r}", "param": wrong[0]}
            self._send(400, {"error": error})
            return
        said = server.answer(body)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if isinstance(said, str):
            choice["message"] = {"role": "assistant", "content": said}
        else:
            choice |= said
        made = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
        self._send(200, server.whole or made)

    def _send(self, status: int, made: dict[str, Any]) -> None:
        text = json.dumps(made).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        """Nothing is printed."""


@contextmanager
def serving(answer: Answer, whole: dict[str, Any] | None = None) -> Iterator[Server]:
    """A server that answers chats with what a function makes of their bodies, or always the same."""
    made = Server(answer, whole)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
