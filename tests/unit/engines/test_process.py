"""Servers that are started and ended."""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from tests.small import QUIET

from instil.engines import process
from instil.engines.process import free_port, running
from instil.errors import EngineError

SERVER = """
import http.server, multiprocessing, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["WORD"].encode())
if __name__ == "__main__":
    child = multiprocessing.Process(target=time.sleep, args=(600,)); child.start()
    print("child", child.pid, flush=True)
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.skipif(sys.platform == "win32", reason="groups of processes are POSIX")
def test_a_server_ends_with_all_its_processes(tmp_path: Path, cache: Path) -> None:
    script, port = tmp_path / "server.py", free_port()
    script.write_text(SERVER)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(script), str(port)]
    with running(
        command, name="Small", health=address, environment={"WORD": "hello"}, display=QUIET
    ):
        with urllib.request.urlopen(address) as response:
            assert response.read() == b"hello"
        (log,) = (cache / "engines").glob(f"small-{os.getpid()}.log")
        child = psutil.Process(int(log.read_text().split()[1]))
        assert child.is_running()
    for _ in range(100):
        if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


def test_a_server_that_ends_is_an_error_with_the_end_of_its_log() -> None:
    command = [sys.executable, "-c", "print('line'); raise SystemExit('no such model')"]
    with (
        pytest.raises(EngineError, match=r"(?s)Small ended .* status 1; got: .*no such model"),
        running(command, name="Small", health="http://127.0.0.1:9", environment={}, display=QUIET),
    ):
        pytest.fail("it never starts")


def test_a_server_that_is_not_ready_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 1)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    start = time.monotonic()
    with (
        pytest.raises(EngineError, match="Small is not ready after 1 seconds"),
        running(command, name="Small", health="http://127.0.0.1:9", environment={}, display=QUIET),
    ):
        pytest.fail("it is never ready")
    assert time.monotonic() - start < 60


def test_a_program_that_is_not_there_is_an_error() -> None:
    with (
        pytest.raises(EngineError, match=r"Small cannot be started; got: .*No such file"),
        running(["/none/python"], name="Small", health="", environment={}, display=QUIET),
    ):
        pytest.fail("it never starts")
