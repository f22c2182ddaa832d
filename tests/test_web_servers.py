"""Real servers, each signal they may get, and what is left: no orphan, no noise, no hang."""

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

import aparallel

APP = Path(__file__).with_name("web_app.py")
SECONDS = 40.0  # for what takes one or two on a machine that is not busy

UVICORN = ["uvicorn", "web_app:served", "--host", "127.0.0.1", "--port", "PORT", "--timeout-graceful-shutdown", "10"]
COMMANDS = {
    "uvicorn": UVICORN,
    "uvicorn-workers": [*UVICORN, "--workers", "2"],
    "uvicorn-reload": [*UVICORN, "--reload"],
    "uvicorn-impatient": [*UVICORN[:-1], "1"],
    "granian": ["granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "PORT", "web_app:served"],
    "hypercorn": ["hypercorn", "web_app:served", "--bind", "127.0.0.1:PORT"],
}

# What servers and Python write when something went wrong.
NOISE = re.compile(r"Traceback|Error|Exception|error|exception|warning|WARNING|never (awaited|retrieved)|leaked|Killed")


def python_path(folder: Path) -> str:
    """Where a server finds *folder*, and the very aparallel that these tests are about."""
    return os.pathsep.join([str(folder), str(Path(aparallel.__file__).parent.parent)])


class Server:
    """A server in a session of its own, as a terminal or a supervisor would start it."""

    def __init__(self, kind: str, folder: Path) -> None:
        if find_spec(COMMANDS[kind][0]) is None:
            pytest.skip(f"{COMMANDS[kind][0]}, of the extra web-test, is not installed")
        shutil.copy(APP, folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self._errors = folder / "stderr.txt"
        command = [part.replace("PORT", str(self.port)) for part in COMMANDS[kind]]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": python_path(folder), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        # Every process that was seen to come from it, so that none that is left escapes.
        self.family: dict[int, psutil.Process] = {}

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            return answer.status
        return json.loads(text) if path != "/stream" else text

    def until_it_serves(self) -> None:
        def serves() -> bool:
            assert self.process.poll() is None, self.said()
            with contextlib.suppress(OSError, http.client.HTTPException):
                return bool(self.get("/"))
            return False

        wait_until(serves, self.said)
        self.look()

    def look(self) -> list[psutil.Process]:
        """All processes of it that live now, its own first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            for process in (own, *own.children(recursive=True)):
                self.family[process.pid] = process
        return [process for process in self.family.values() if is_alive(process)]

    def wait_until_gone(self) -> None:
        self.process.wait(SECONDS)
        wait_until(lambda: not self.look(), lambda: f"{self.look()}\n{self.said()}")

    def said(self) -> str:
        return self._errors.read_text(errors="replace")

    def noise(self) -> list[str]:
        return [line for line in self.said().splitlines() if NOISE.search(line)]

    def end(self) -> None:
        for process in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(SECONDS)


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition: Any, tell: Any = str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.01)


@contextlib.contextmanager
def running(kind: str, folder: Path) -> Iterator[Server]:
    server = Server(kind, folder)
    try:
        server.until_it_serves()
        yield server
    finally:
        server.end()


def ask_and_leave(server: Server, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        wait_until(lambda: server.get("/")["running"])


def assert_ends_well(server: Server, ask_to_end: Callable[[], None]) -> None:
    """It lets a request finish that is under way, and leaves no process and no noise."""
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(server.get, "/nap/0.3")
        time.sleep(0.1)  # it is under way, or about to be; either must do
        server.look()
        ask_to_end()
        assert answer.result(SECONDS) == 0.3
    server.wait_until_gone()
    assert server.noise() == []


KINDS = ["uvicorn", "uvicorn-workers", "granian", "hypercorn"]


@pytest.mark.parametrize("kind", ["uvicorn", "granian", "hypercorn"])
def test_a_server_stops_work_for_a_client_that_leaves_and_ends_without_noise_when_it_alone_is_asked_to(
    kind: str, tmp_path: Path
) -> None:
    with running(kind, tmp_path) as server:
        serving, working = server.get("/pids")
        assert serving != working
        assert psutil.Process(working).ppid() == serving
        ask_and_leave(server, "/nap/600")
        wait_until(lambda: server.get("/") == {"pid": serving, "idle": 1, "running": 0, "broken": 0}, server.said)
        assert server.get("/limited") == 504
        assert server.get("/stream") == b"".join(b"%d\n" % i for i in range(20))
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
        connection.request("POST", "/upload", body=(b"x" * 100_000 for _ in range(50)), encode_chunked=True)
        assert json.loads(connection.getresponse().read()) == 5_000_000
        connection.close()
        assert_ends_well(server, server.process.terminate)


# A SIGTERM to its whole group has hypercorn cut what runs, with and without a pool.
SIGNALS = [
    *((kind, signal.SIGINT) for kind in KINDS),
    *((kind, signal.SIGTERM) for kind in (*KINDS, "uvicorn-reload") if kind != "hypercorn"),
]


# Those that start processes of their own, and those that do not: one each in the suite, and all under soak.
ONE_EACH = [pytest.param(kind, marks=[] if kind in ("uvicorn", "granian") else [pytest.mark.soak]) for kind in KINDS]

# Each server in the suite, and each of them with each signal under soak. Several processes of one get it further down.
IN_SUITE = [
    ("uvicorn", signal.SIGINT),
    ("uvicorn", signal.SIGTERM),
    ("granian", signal.SIGTERM),
    ("hypercorn", signal.SIGINT),
]


@pytest.mark.parametrize(
    ("kind", "number"),
    [pytest.param(*each, marks=[] if each in IN_SUITE else [pytest.mark.soak]) for each in SIGNALS],
)
def test_a_signal_to_the_group_lets_a_request_finish_and_leaves_nothing(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    with running(kind, tmp_path) as server:
        if kind == "uvicorn-workers":
            wait_until_both_serve(server)
        assert_ends_well(server, lambda: os.killpg(server.process.pid, number))


def wait_until_both_serve(server: Server) -> None:
    pids: set[int] = set()
    wait_until(lambda: pids.add(server.get("/")["pid"]) or len(pids) == 2, server.said)


@pytest.mark.soak
def test_a_supervisor_that_asks_several_processes_parent_to_end_lets_a_request_finish(tmp_path: Path) -> None:
    with running("uvicorn-workers", tmp_path) as server:
        assert_ends_well(server, server.process.terminate)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_workers_die_with_a_server_that_is_killed(kind: str, tmp_path: Path) -> None:
    with running(kind, tmp_path) as server, ThreadPoolExecutor() as threads:
        lost = threads.submit(server.get, "/nap/600")
        wait_until(lambda: server.get("/")["running"], server.said)
        processes = {"uvicorn": 2, "uvicorn-workers": 6, "granian": 3, "hypercorn": 3}[kind]
        wait_until(lambda: len(server.look()) >= processes, lambda: str(server.look()))
        # Workers lead groups of their own: this reaches the server's processes alone.
        os.killpg(server.process.pid, signal.SIGKILL)
        with pytest.raises((OSError, http.client.HTTPException)):
            lost.result(SECONDS)
        server.wait_until_gone()


def test_a_request_that_outlasts_the_servers_patience_is_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    with running("uvicorn-impatient", tmp_path) as server, ThreadPoolExecutor() as threads:
        lost = threads.submit(server.get, "/nap/600")
        wait_until(lambda: server.get("/")["running"], server.said)
        server.look()
        server.process.terminate()
        # uvicorn cancels the request, and answers it with 500 or not at all.
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert lost.result(SECONDS) == 500
        server.wait_until_gone()


def test_a_second_ctrl_c_ends_a_server_that_waits_for_a_request_and_leaves_nothing(tmp_path: Path) -> None:
    with running("uvicorn", tmp_path) as server, ThreadPoolExecutor() as threads:
        lost = threads.submit(server.get, "/nap/600")
        wait_until(lambda: server.get("/")["running"], server.said)
        server.look()
        os.killpg(server.process.pid, signal.SIGINT)
        wait_until(lambda: "CTRL+C to force quit" in server.said(), server.said)
        os.killpg(server.process.pid, signal.SIGINT)
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert lost.result(SECONDS) == 500
        server.wait_until_gone()


def test_a_reload_replaces_the_pool_and_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    with running("uvicorn-reload", tmp_path) as server:
        old = [psutil.Process(pid) for pid in server.get("/pids")]
        app = tmp_path / APP.name
        app.write_text(app.read_text() + "\n# changed\n")
        changes = itertools.count(5)

        def is_replaced() -> bool:
            # Again and again: the reloader may have had its first look at the file only after a change.
            if "Reloading..." not in server.said():
                changed = time.time() + next(changes)
                os.utime(app, (changed, changed))
            return not any(map(is_alive, old))

        wait_until(is_replaced, server.said)
        server.until_it_serves()
        assert not {process.pid for process in old} & set(server.get("/pids"))
        os.killpg(server.process.pid, signal.SIGINT)
        server.wait_until_gone()
        noise = [line for line in server.noise() if "Reloading..." not in line]  # a warning of uvicorn's
        assert noise == []


def test_two_server_processes_on_one_cache_directory_compute_a_key_once_and_end_well(tmp_path: Path) -> None:
    with running("uvicorn-workers", tmp_path) as server:
        wait_until_both_serve(server)
        with ThreadPoolExecutor(8) as threads:
            for number in (1, 2, 3):
                asked = [threads.submit(server.get, f"/features/{number}") for _ in range(8)]
                assert [each.result(SECONDS) for each in asked] == [number * 2] * 8
        assert len((tmp_path / "computed.txt").read_text().splitlines()) == 3
        assert_ends_well(server, lambda: os.killpg(server.process.pid, signal.SIGTERM))
