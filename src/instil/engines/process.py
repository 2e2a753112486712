"""Starts a server as a process of its own, waits until it answers, and ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

from instil.errors import EngineError
from instil.system.disk import cache_folder
from instil.system.progress import Display

START_SECONDS = 1800
"""Most time that a server may take to load a model."""
END_SECONDS = 20
SHOWN = 12  # lines of the log in an error message


def free_port() -> int:
    """A port of this machine that nothing uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str],
    *,
    name: str,
    health: str,
    environment: Mapping[str, str],
    display: Display,
) -> Iterator[None]:
    """Runs a server until the block ends, and ends all its processes.

    What it prints is kept in the folder `engines` of the cache.

    Args:
        command: The command.
        name: What it is called.
        health: Address that answers with status 200 when the server is ready.
        environment: Variables that are set for it.
        display: Shows that it starts.

    Raises:
        EngineError: it ends, or is not ready in time. The message has the end of its log.
    """
    log = cache_folder() / "engines" / f"{name.lower()}-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as printed:
        try:
            process = subprocess.Popen(
                command,
                stdout=printed,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise EngineError(f"{name} cannot be started", got=str(error)) from error
    try:
        _await(process, name, health, log, display)
        yield
    finally:
        _end(process)


def _await(
    process: subprocess.Popen[bytes], name: str, health: str, log: Path, display: Display
) -> None:
    start = time.monotonic()
    with display.bar(f"{name} starts", START_SECONDS) as bar:
        while not _answers(health):
            if process.poll() is not None:
                raise EngineError(
                    f"{name} ended while it started, with status {process.returncode}",
                    got=_end_of(log),
                    mend=f"read {log}",
                )
            if time.monotonic() - start > START_SECONDS:
                raise EngineError(
                    f"{name} is not ready after {START_SECONDS} seconds",
                    got=_end_of(log),
                    mend=f"read {log}",
                )
            time.sleep(0.5)
            bar.reach(int(time.monotonic() - start))
    display.note(f"{name} is ready after {time.monotonic() - start:.0f} s; its log is {log}")


def _answers(address: str) -> bool:
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with directly.open(address, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):  # one that it has started may still be loading
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(["the end of its log:", *lines[-SHOWN:]])


def _end_with_parent() -> None:
    """Lets Linux end the server if this process is killed and cannot do it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
