"""A contender's server as the load sees it: a process of its own, with all that it starts."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from suite.http_load import Client
from suite.web_contender import WebContender

HOST = "127.0.0.1"
START_LIMIT = 15.0
"""Seconds until a server must answer."""


class ServerFailed(Exception):
    """A server did not start; the text is the last that it said."""


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server and its workers."""

    process: psutil.Process
    port: int

    def tree(self) -> list[psutil.Process]:
        """The server and all its descendants that live now."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """What the tree has used so far, user and system, those included that have ended and were waited for."""
        total = 0.0
        for process in self.tree():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory(self) -> int:
        """Bytes: the sum of the processes' proportional set sizes, in which shared pages count once."""
        total = 0
        for process in self.tree():
            with suppress(psutil.Error):
                total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
        return total


class PeakTreeMemory:
    """The growth of a server's memory while this is entered, at its highest, seen every tenth of a second."""

    period = 0.1

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    def __enter__(self) -> Self:
        self._before = self._peak = self._server.memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """MB (10^6 bytes)."""
        return (self._peak - self._before) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(self.period):
            self._peak = max(self._peak, self._server.memory())


@asynccontextmanager
async def served(contender: WebContender, n_jobs: int) -> AsyncIterator[ServerProcess]:
    """Start the contender's server, wait until it answers, and end it with all that it started."""
    with tempfile.TemporaryFile() as output:
        server = _start(contender, n_jobs, output.fileno())
        try:
            async with Client(HOST, server.port) as client:
                first = await client.get("/light", patience=START_LIMIT)
            if first.status != 200:
                output.seek(0)
                lines = output.read().decode(errors="replace").strip().splitlines()
                raise ServerFailed(lines[-1] if lines else f"no answer within {START_LIMIT:.0f} s")
            yield server
        finally:
            await asyncio.to_thread(_end, server)


def _start(contender: WebContender, n_jobs: int, output: int) -> ServerProcess:
    kind = type(contender)
    uses_uvloop = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    with socket.socket() as listener:
        # Once bound and listening it takes connections before the server is up. Only the server keeps it open after
        # this block: connections to a server that has died are refused.
        listener.bind((HOST, 0))
        listener.listen(1024)
        port = listener.getsockname()[1]
        process = psutil.Popen(
            [
                *(sys.executable, "-P", "-m", "suite.web_server", f"{kind.__module__}:{kind.__qualname__}"),
                *("--fd", str(listener.fileno()), "--n-jobs", str(n_jobs)),
                *("--loop", "uvloop" if uses_uvloop else "asyncio"),
            ],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
        )
    return ServerProcess(process, port)


def _environment() -> dict[str, str]:
    """This process's, with the suite importable for the server and for its workers."""
    folder = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(dict.fromkeys([folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    return {**os.environ, "PYTHONPATH": path}


def _end(server: ServerProcess) -> None:
    """Kill everything: how servers stop is tested elsewhere, and takes time here."""
    for process in server.tree():
        with suppress(psutil.Error):
            process.kill()
    server.process.wait()
