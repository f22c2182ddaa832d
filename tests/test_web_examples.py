"""The examples of services run on real servers, as their readers start them, and do what their readers are told."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import psutil
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "web"
IMAGES = EXAMPLES / "fastapi_images"
HOST = "127.0.0.1"
TIME_LIMIT = 60.0
"""Seconds for whatever is waited for; a busy machine takes its time."""


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


fastapi = needs("fastapi", "uvicorn", "PIL", "python_multipart")
litestar = needs("litestar", "uvicorn")
aiohttp = needs("aiohttp")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """A server that was started as a user starts it."""

    command: list[str]
    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)

    def __enter__(self) -> Self:
        command = [part.format(port=self.port) for part in self.command]
        # A file and not a pipe, which would hold up a server that logs each request.
        self.output = tempfile.TemporaryFile()  # closed by kill
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
        )
        try:
            wait_until(self.answers, "the service answers")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def kill(self) -> None:
        for process in self.tree():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()
        self.output.close()

    def tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def answers(self) -> bool:
        assert self.process.poll() is None, self.said()
        with suppress(OSError):
            return self.get("/health").status == 200
        return False

    def terminate(self) -> str:
        """End it by SIGTERM, as a supervisor does. Return what it has said in its life."""
        tree = self.tree()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(TIME_LIMIT)
        wait_until(lambda: not any(is_running(process) for process in tree), "no process is left")
        return self.said()

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read().decode()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=TIME_LIMIT)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def upload(self, path: str, data: bytes, name: str = "file") -> Answer:
        boundary = "zwischenraum"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        body = head + data + f"\r\n--{boundary}--\r\n".encode()
        return self.request("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    @contextmanager
    def waiting(
        self, path: str, method: str = "GET", body: str = "", tenant: str = "nobody"
    ) -> Iterator[socket.socket]:
        """A client that has sent its request, and leaves at the end of the block."""
        with socket.create_connection((HOST, self.port), timeout=TIME_LIMIT) as client:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nX-Tenant: {tenant}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            client.sendall((head + body).encode())
            yield client

    def busy(self) -> int:
        return int(self.get("/statistics").json["busy workers"])


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + TIME_LIMIT
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.01)


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def uvicorn(app: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, "--host", HOST, "--port", "{port}", *more]


def images(cache: Path, *more: str, workers: int = 2, time_limit: float = 30.0) -> Service:
    environment = {
        "IMAGES_CACHE": str(cache),
        "IMAGES_WORKERS": str(workers),
        "IMAGES_TIME_LIMIT": str(time_limit),
    }
    return Service(uvicorn("app:app", *more), IMAGES, environment)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with images(tmp_path_factory.mktemp("images") / "cache") as running:
        yield running


def size_of(jpeg: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as picture:
        picture.load()
        assert picture.format == "JPEG"
        return picture.size


# A picture that keeps a worker busy for seconds: long enough to do something meanwhile.
ENDLESS = "/landscapes/{}?look=oil&width=2000"


@fastapi
class TestImages:
    def test_draws_the_landscape_of_a_number_in_every_look_and_no_two_are_alike(self, service: Service) -> None:
        looks = ["plain", "sharp", "dusk", "ink", "oil"]
        answers = [service.get(f"/landscapes/{seed}?look={look}&width=160") for seed in (1, 2) for look in looks]

        assert {answer.status for answer in answers} == {200}
        assert {answer.headers["content-type"] for answer in answers} == {"image/jpeg"}
        assert {size_of(answer.body) for answer in answers} == {(160, 107)}
        assert len({answer.body for answer in answers}) == 10

    def test_gives_a_look_to_an_uploaded_picture(self, service: Service) -> None:
        from PIL import Image

        file = io.BytesIO()
        Image.linear_gradient("L").convert("RGBA").resize((300, 200)).save(file, "PNG")
        answer = service.upload("/pictures?look=dusk&width=150", file.getvalue())

        assert answer.status == 200
        assert size_of(answer.body) == (150, 100)

    def test_remembers_a_picture_by_its_content(self, service: Service) -> None:
        drawn = service.get("/landscapes/11?width=64").body
        first = service.upload("/pictures?look=ink&width=32", drawn, name="first")
        before = service.get("/statistics").json
        again = service.upload("/pictures?look=ink&width=32", drawn, name="again")
        after = service.get("/statistics").json

        assert again.body == first.body
        assert (after["computed"], after["remembered"]) == (before["computed"], before["remembered"] + 1)

    @pytest.mark.parametrize(
        ("data", "complaint"),
        [
            (b"GIF89a, or so it says", "damaged|no picture"),
            (b"", "no picture"),
            (b"\x89PNG\r\n\x1a\n", "damaged|no picture"),
        ],
        ids=["not a picture", "nothing", "a truncated one"],
    )
    def test_refuses_what_is_no_picture(self, service: Service, data: bytes, complaint: str) -> None:
        answer = service.upload("/pictures", data)

        assert answer.status == 422
        assert re.search(complaint, answer.json["detail"])

    def test_refuses_a_small_file_that_claims_to_be_a_huge_picture(self, service: Service) -> None:
        from PIL import Image

        file = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(file, "PNG")
        answer = service.upload("/pictures", file.getvalue())

        assert answer.status == 422
        assert "too many" in answer.json["detail"] or "decompression bomb" in answer.json["detail"]

    def test_refuses_questions_that_make_no_sense(self, service: Service) -> None:
        for path in (
            "/landscapes/1?look=new",
            "/landscapes/1?width=5000",
            "/landscapes/x",
            "/landscapes.ndjson?count=0",
        ):
            assert service.get(path).status == 422, path
        assert service.upload("/pictures", bytes(20_000_001)).status == 413

    def test_streams_many_as_lines_one_by_one(self, service: Service) -> None:
        connection = http.client.HTTPConnection(HOST, service.port, timeout=TIME_LIMIT)
        connection.request("GET", "/landscapes.ndjson?first=3&count=8&width=16")
        response = connection.getresponse()
        cards = [json.loads(line) for line in response]
        connection.close()

        assert response.headers["content-type"] == "application/x-ndjson"
        assert sorted(card["seed"] for card in cards) == list(range(3, 11))
        assert len({card["jpeg"] for card in cards}) == 8

    def test_streams_many_as_events_for_the_page(self, service: Service) -> None:
        page = service.get("/").body.decode()
        path = re.search(r'new EventSource\("([^"]+)\?"', page)
        assert path is not None
        fields = set(re.findall(r'name="(count|first|look)"', page))
        body = service.get(f"{path[1]}?count=4&first=1&look=ink&width=16").body.decode()
        events = body.removesuffix("\n\n").split("\n\n")

        assert fields == {"count", "first", "look"}
        assert sorted(json.loads(event.removeprefix("data: "))["seed"] for event in events[:-1]) == [1, 2, 3, 4]
        assert events[-1].startswith("event: stream_end\n")
        for name in re.findall(r'addEventListener\("(\w+)"', page):
            assert name in ("stream_end", "stream_error")

    def test_a_stream_that_is_dropped_stops_the_work(self, service: Service) -> None:
        with service.waiting("/landscapes.events?count=1000&look=oil&width=1000") as client:
            assert b"200 OK" in client.recv(1000)
            wait_until(service.busy, "workers draw")
        wait_until(lambda: service.busy() == 0, "no worker draws")

    def test_answers_at_once_while_all_workers_draw_and_frees_them_when_the_clients_leave(
        self, service: Service
    ) -> None:
        computed = service.get("/statistics").json["computed"]
        with service.waiting(ENDLESS.format(100), tenant="ann"), service.waiting(ENDLESS.format(101), tenant="bob"):
            wait_until(lambda: service.busy() == 2, "both workers draw")
            waits = []
            for _ in range(10):
                started = time.monotonic()
                assert service.get("/health").json == {"status": "ok"}
                waits.append(time.monotonic() - started)
            assert service.busy() == 2
        wait_until(lambda: service.busy() == 0, "no worker draws")

        assert sorted(waits)[5] < 0.5
        assert service.get("/statistics").json["computed"] == computed

    def test_two_who_want_the_same_new_picture_wait_for_one_computation(self, service: Service) -> None:
        computed = service.get("/statistics").json["computed"]
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(service.get, ["/landscapes/200?look=oil&width=500"] * 4))

        assert len({answer.body for answer in answers}) == 1
        assert service.get("/statistics").json["computed"] == computed + 1

    def test_refuses_more_than_32_who_wait_and_says_when_to_come_back(self, service: Service) -> None:
        with ExitStack() as clients:
            for number in range(34):
                clients.enter_context(service.waiting(ENDLESS.format(300 + number), tenant=f"tenant {number}"))
            wait_until(lambda: service.get("/statistics").json["waiting"] == 32, "32 wait")
            answer = service.get(ENDLESS.format(399))
        wait_until(lambda: service.busy() == 0, "no worker draws")

        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["content-type"] == "application/problem+json"

    def test_leaves_a_worker_and_room_to_others_when_one_tenant_wants_all(self, service: Service) -> None:
        with ExitStack() as clients:
            for number in range(25):
                clients.enter_context(service.waiting(ENDLESS.format(400 + number), tenant="crowd"))
            wait_until(lambda: service.get("/statistics").json["waiting"] == 24, "24 wait")
            refused = service.request("GET", ENDLESS.format(499), headers={"X-Tenant": "crowd"})
            served = service.request("GET", "/landscapes/498?width=16", headers={"X-Tenant": "ann"})
            # Its worker may be the replacement of one that the test before had killed, and still starting.
            wait_until(lambda: service.busy() > 0, "the crowd has a worker")
            busy = service.busy()
        wait_until(lambda: service.busy() == 0, "no worker draws")

        assert refused.status == 503
        assert served.status == 200
        assert busy == 1

    def test_runs_its_workers_at_a_lower_priority_than_itself(self, service: Service) -> None:
        assert service.get("/landscapes/1?width=16").status == 200
        server, *workers = service.tree()
        priorities = set()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):  # replaced, after a test whose visitor left
                priorities.add(worker.nice())
        assert server.nice() == psutil.Process().nice()
        assert server.nice() + 10 in priorities

    def test_the_load_tells_how_long_visitors_wait(self, service: Service) -> None:
        url = f"http://{HOST}:{service.port}"
        for seconds in (1, 5, 15):  # visitors on a busy machine may not overload the service within one
            run = run_load("--url", url, "--seconds", str(seconds))

            assert run.returncode == 0, run.stderr
            head, *rows, empty, last = run.stdout.splitlines()
            assert head.split() == ["served", "refused", "failed", "p50", "ms", "p99", "ms", "per", "s"]
            numbers = {row[:32].strip(): row[32:].split() for row in rows}
            assert list(numbers) == [
                "health, nothing else to do",
                "health, beside new pictures",
                "new pictures, 8 visitors",
                "one picture again, 8 visitors",
                "new pictures, 100 of one tenant",
                "new pictures, 1 of another",
                "health, beside those",
            ]
            assert {row[2] for row in numbers.values()} == {"0"}  # failed
            assert empty == ""
            assert re.fullmatch(r"20 visitors left: no worker worked for them \d+ ms later", last)
            refused = int(numbers["new pictures, 100 of one tenant"][1])
            if refused:
                break
        assert refused > 0

    def test_the_load_says_what_to_do_when_no_service_runs(self) -> None:
        run = run_load("--url", f"http://{HOST}:{free_port()}")
        assert run.returncode == 1
        assert "Start it first: uvicorn app:app" in run.stderr
        assert "Traceback" not in run.stderr

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_what_the_readme_asks_from_a_terminal_is_answered(self, service: Service, tmp_path: Path) -> None:
        readme = (IMAGES / "README.md").read_text()
        commands = [line for line in readme.splitlines() if line.startswith("curl ")]
        outputs = [
            subprocess.run(
                [*shlex.split(command.replace(":8000", f":{service.port}")), "--silent", "--show-error", "--fail"],
                cwd=tmp_path,
                capture_output=True,
                timeout=TIME_LIMIT,
                check=True,
            ).stdout.decode()
            for command in commands
        ]

        assert size_of((tmp_path / "landscape.jpg").read_bytes()) == (900, 600)
        assert size_of((tmp_path / "painted.jpg").read_bytes()) == (400, 267)
        assert [text.count('"seed"') for text in outputs] == [0, 0, 6, 6, 0]
        assert set(json.loads(outputs[-1])) >= {"busy workers", "idle workers", "waiting", "computed", "remembered"}

    def test_every_setting_and_module_that_the_readme_names_exists(self) -> None:
        readme = (IMAGES / "README.md").read_text()
        for name in re.findall(r"`(\w+\.(?:py|html))`", readme):
            assert (IMAGES / name).exists(), name
        app = (IMAGES / "app.py").read_text()
        for name in re.findall(r"IMAGES_\w+", readme):
            assert name in app, name

    def test_a_picture_that_takes_too_long_is_stopped_and_a_new_server_remembers_the_others(
        self, service: Service
    ) -> None:
        drawn = service.get("/landscapes/1?width=16").body
        with images(Path(service.environment["IMAGES_CACHE"]), workers=1, time_limit=0.1) as restarted:
            at_first = restarted.get("/statistics").json
            too_long = restarted.get(ENDLESS.format(1))
            again = restarted.get("/landscapes/1?width=16").body
            afterwards = restarted.get("/statistics").json

        assert at_first["idle workers"] == 1
        assert too_long.status == 504
        assert too_long.json["title"] == "Gateway Timeout"
        assert again == drawn
        assert afterwards["remembered"] == 1

    def test_server_processes_share_what_they_remember_and_end_in_silence(self, tmp_path: Path) -> None:
        command = ["--workers", "2", "--log-level", "warning"]
        with images(tmp_path / "cache", *command, workers=1) as service:
            both: dict[int, dict[str, int]] = {}

            def has_seen_both() -> bool:
                now = service.get("/statistics").json
                both[now["server process"]] = now
                return len(both) == 2

            with ThreadPoolExecutor(8) as threads:
                wait_until(has_seen_both, "both server processes answer")
                answers = list(threads.map(service.get, ["/landscapes/500?look=oil&width=500"] * 16))
            both.clear()
            wait_until(has_seen_both, "both server processes answer")
            output = service.terminate()

        assert len({answer.body for answer in answers}) == 1
        assert sum(each["computed"] for each in both.values()) == 1
        assert output == ""
        assert service.process.returncode == 0


def run_load(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "load.py", *arguments],
        cwd=IMAGES,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * TIME_LIMIT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


@litestar
def test_litestar_prices_options_streams_prices_and_stops_with_its_client() -> None:
    command = uvicorn("litestar_options:app", "--log-level", "warning")
    with Service(command, EXAMPLES, {}) as service:
        # First what has no time limit: the workers import what they need.
        lines = service.get("/prices?strikes=90&strikes=100&strikes=110&paths=5000").body.splitlines()
        price = service.get("/price?strike=100&paths=5000").json
        refused = service.get("/price?strike=-1")
        too_long = service.get("/price?strike=100&paths=10000000")
        with service.waiting("/price?strike=100&paths=10000000"):
            wait_until(lambda: cpu_of_workers(service) > 0.1, "a worker computes")
        wait_until(lambda: is_at_rest(service), "no worker computes")
        output = service.terminate()

    assert price["strike"] == 100
    # A call on an arithmetic mean is worth a little more than one on a geometric mean.
    noise = 4 * price["error"]
    assert 0 < noise < 1
    assert price_on_geometric_mean(100) - noise < price["price"] < price_on_geometric_mean(100) + 0.5 + noise
    prices = [json.loads(line) for line in lines]
    assert [each["strike"] for each in prices] == [90, 100, 110]
    assert prices[0]["price"] > prices[1]["price"] > prices[2]["price"]
    assert prices[1] == price
    assert refused.status == 400
    assert too_long.status == 504
    assert output == ""


def price_on_geometric_mean(strike: float, volatility: float = 0.2, rate: float = 0.03) -> float:
    """The exact price of a call on the geometric mean of a year (Kemna and Vorst, 1990), for a share at 100."""
    forward = 100 * math.exp((rate - volatility**2 / 6) / 2)
    spread = volatility / math.sqrt(3)
    d1 = (math.log(forward / strike) + spread**2 / 2) / spread
    normal = NormalDist().cdf
    return math.exp(-rate) * (forward * normal(d1) - strike * normal(d1 - spread))


SUDOKU = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
# Its first row is empty, and a search that tries 1 first takes far longer than anyone waits.
HARD_SUDOKU = "..............3.85..1.2.......5.7.....4...1...9.......5......73..2.1........4...9"


@aiohttp
def test_aiohttp_solves_sudokus_and_stops_with_its_client() -> None:
    with Service([sys.executable, "aiohttp_sudoku.py", "--port", "{port}"], EXAMPLES, {}) as service:
        solved = service.request("POST", "/solve", SUDOKU.encode())
        impossible = service.request("POST", "/solve", ("5" + SUDOKU[:80]).encode())
        nonsense = service.request("POST", "/solve", b"what is the answer?")
        with service.waiting("/solve", "POST", HARD_SUDOKU):
            wait_until(lambda: cpu_of_workers(service) > 0.1, "a worker searches")
        wait_until(lambda: is_at_rest(service), "no worker searches")
        too_long = service.request("POST", "/solve", HARD_SUDOKU.encode())
        output = service.terminate()

    assert SUDOKU in (EXAMPLES / "aiohttp_sudoku.py").read_text()
    grid = solved.body.decode().strip()
    assert all(given in (".", digit) for given, digit in zip(SUDOKU, grid, strict=True))
    assert all(set(unit) == set("123456789") for unit in units(grid))
    assert (impossible.status, impossible.body) == (422, b"This puzzle has no solution.\n")
    assert nonsense.status == 422
    assert too_long.status == 504
    assert "Traceback" not in output


def units(grid: str) -> list[str]:
    """Rows, columns and boxes."""
    rows = [grid[9 * row : 9 * row + 9] for row in range(9)]
    columns = [grid[column::9] for column in range(9)]
    boxes = ["".join(rows[3 * (box // 3) + line][3 * (box % 3) :][:3] for line in range(3)) for box in range(9)]
    return [*rows, *columns, *boxes]


def cpu_of_workers(service: Service) -> float:
    """CPU seconds of the processes that the server has now."""
    total = 0.0
    for process in service.tree()[1:]:
        with suppress(psutil.Error):
            total += process.cpu_times().user
    return total


def is_at_rest(service: Service) -> bool:
    before = cpu_of_workers(service)
    time.sleep(0.2)
    return abs(cpu_of_workers(service) - before) <= 0.02


def test_every_example_of_a_service_is_expected_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if not path.name.startswith("__")} == {
        "aiohttp_sudoku.py",
        "fastapi_images",
        "litestar_options.py",
    }
