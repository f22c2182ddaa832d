"""The servers' part of the suite is tested here, at a scale at which nothing can be said about speed."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
import run
from suite.baseline import Baseline
from suite.contenders import WEB, Entry
from suite.http_load import GONE, Answer, Client, closed_loop, kept_busy, open_loop, percentile
from suite.lag import Lag
from suite.report import Report
from suite.rounds import Plan, take_in_process
from suite.turn import Turn
from suite.work import SCALES, Measurement, Setting, WrongResult
from suite.works import OTHER_WORKS, WEB_WORKS, WORKS

pytest.importorskip("starlette", reason="the servers' contenders are Starlette apps")
pytest.importorskip("uvicorn", reason="the contenders' apps run under uvicorn")

from suite.contenders.web import Blocking
from suite.web_contender import Endpoint, WebContender, answer, steps_of
from suite.web_process import HOST, ServerFailed, served

TINY = Setting(SCALES["tiny"], n_jobs=2)
NO_LAG = Lag(0.0, 0.0, 0.0)


class Liar(WebContender):
    """The first answer is right; every other one is too high by one."""

    def endpoint(self, fn: Callable[[int], int]) -> Endpoint:
        lies = itertools.chain([0], itertools.repeat(1))

        async def handle(request: Any) -> Any:
            return answer(fn(steps_of(request)) + next(lies))

        return handle


class Stillborn(Blocking):
    """A server that fails while it starts."""

    def app(self, n_jobs: int) -> Any:
        raise RuntimeError(f"no app for {n_jobs} workers")


@pytest.mark.soak
@pytest.mark.parametrize("entry", WEB, ids=lambda entry: entry.name)
def test_server_does_every_work(entry: Entry[WebContender]) -> None:
    if not entry.is_installed:
        pytest.skip(f"{entry.package} is not installed")

    turns = take_in_process(WEB_WORKS, entry.name, TINY)

    assert [turn.work for turn in turns] == WEB_WORKS
    for turn in turns:
        assert turn.measurement is not None, turn.reason
        assert list(turn.measurement.figures) == [figure.name for figure in WORKS[turn.work].figures]
        assert all(math.isfinite(value) for value in turn.measurement.figures.values())


@pytest.mark.parametrize(
    "work", [WEB_WORKS[0], *(pytest.param(work, marks=pytest.mark.soak) for work in WEB_WORKS[1:])]
)
def test_wrong_answers_are_never_measured(work: str) -> None:
    with pytest.raises(WrongResult):
        asyncio.run(WORKS[work].measure(Liar(), TINY))


def test_a_server_that_does_not_start_says_why_and_leaves_no_process() -> None:
    async def start() -> None:
        async with served(Stillborn(), 3):
            pass

    with pytest.raises(ServerFailed, match="RuntimeError: no app for 3 workers"):
        asyncio.run(start())
    assert psutil.Process().children() == []


def test_cpu_and_memory_of_a_server_are_those_of_its_processes() -> None:
    async def look() -> tuple[float, float, int]:
        async with served(Blocking(), 1) as server, Client(HOST, server.port) as client:
            before = server.cpu_seconds()
            busy = 0.0
            while busy < 0.3:
                busy += (await client.get("/heavy?steps=1000000")).seconds
            return server.cpu_seconds() - before, busy, server.memory()

    used, busy, memory = asyncio.run(look())
    assert 0.02 <= used <= busy + 0.1
    assert 10e6 <= memory <= 500e6


@asynccontextmanager
async def slow_server(replies: Callable[[int], tuple[float, bytes]]) -> AsyncIterator[Client]:
    """Answer the n-th request, from 0, with what *replies* says: seconds to wait, and the raw reply, "" to hang up."""
    number = -1

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                number += 1
                seconds, reply = replies(number)
                await asyncio.sleep(seconds)
                if not reply:
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, HOST, 0)
    async with server, Client(HOST, server.sockets[0].getsockname()[1]) as client:
        yield client


REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class TestLoad:
    def test_an_open_loop_times_each_request_from_when_it_was_due(self) -> None:
        """The server takes one request at a time and the first one holds it: the others have waited as well."""

        async def load() -> list[Answer]:
            held_until = asyncio.get_running_loop().time() + 0.3

            def reply(number: int) -> tuple[float, bytes]:
                return max(0.0, held_until - asyncio.get_running_loop().time()), REPLY

            async with slow_server(reply) as client:
                return await open_loop(client, "/", rate=100, seconds=0.25, patience=5)

        answers = asyncio.run(load())
        assert [answer.status for answer in answers] == [200] * 25
        assert answers[0].seconds >= 0.29
        assert percentile(answers, 0.5) >= 0.15

    def test_connections_are_reused_and_one_closed_meanwhile_is_opened_anew(self) -> None:
        async def load() -> list[Answer]:
            async with slow_server(lambda number: (0, b"" if number == 1 else REPLY)) as client:
                return [await client.get("/") for _ in range(3)]

        assert [(answer.status, answer.body) for answer in asyncio.run(load())] == [(200, b"ok")] * 3

    def test_a_connection_that_breaks_twice_is_an_answer_that_never_came(self) -> None:
        async def load() -> Answer:
            async with slow_server(lambda number: (0, b"")) as client:
                return await client.get("/")

        assert asyncio.run(load()).status == GONE

    def test_a_client_that_loses_patience_closes_its_connection(self) -> None:
        async def load() -> tuple[Answer, bytes]:
            left: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

            async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                left.set_result(await reader.read())
                writer.close()

            server = await asyncio.start_server(never, HOST, 0)
            async with server, Client(HOST, server.sockets[0].getsockname()[1]) as client:
                return await client.get("/", patience=0.05), await left

        gone, rest = asyncio.run(load())
        assert (gone.status, rest) == (GONE, b"")
        assert gone.seconds >= 0.05

    def test_a_closed_loop_sends_every_path_once_and_only_so_many_at_a_time(self) -> None:
        under_way, most, asked = 0, 0, []

        class Counting(Client):
            async def get(self, path: str, *, due: float | None = None, patience: float = 30.0) -> Answer:
                nonlocal under_way, most
                asked.append(path)
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0)
                under_way -= 1
                return Answer(200, 0.0)

        answers: list[Answer] = []
        paths = [f"/{number}" for number in range(10)]
        asyncio.run(closed_loop(Counting(HOST, 1), paths, clients=3, answers=answers))
        assert (asked, len(answers), most) == (paths, 10, 3)

    def test_what_keeps_a_server_busy_ends_with_its_block(self) -> None:
        async def load() -> tuple[int, set[asyncio.Task[Any]]]:
            async with slow_server(lambda number: (0, REPLY)) as client:
                async with kept_busy(client, "/", clients=4) as answers:
                    while len(answers) < 20:
                        await client.get("/")
                mine = {task for task in asyncio.all_tasks() if "one" in repr(task.get_coro())}
                return len(answers), mine

        answered, tasks = asyncio.run(load())
        assert answered >= 20
        assert tasks == set()


class TestCommand:
    def test_web_stands_for_all_works_about_servers_and_nothing_for_all_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans: list[Plan] = []

        def note(plan: Plan, say: object) -> list[Turn]:
            plans.append(plan)
            return []

        monkeypatch.setattr(run, "header", lambda plan, baseline: "")
        monkeypatch.setattr(run.Baseline, "measure", lambda n_jobs: Baseline(NO_LAG, NO_LAG, NO_LAG, 0.0, 0.0))
        monkeypatch.setattr(run, "run_rounds", note)
        for arguments in (["web"], [], ["web", "web_left", "one_call"], ["web", "--seconds=9"]):
            assert run.main(arguments) == 0

        names = [[work.name for work in plan.works] for plan in plans]
        assert names == [WEB_WORKS, OTHER_WORKS, [*WEB_WORKS, "one_call"], WEB_WORKS]
        assert [plan.time for plan in plans] == [170.0, 330.0, 330.0, 9.0]


class TestReport:
    def test_more_requests_a_second_are_better(self) -> None:
        report = Report.of([light_turn("aparallel", heavy=30.0), light_turn("blocking", heavy=15.0)])
        row = report.row("web_light", "heavy", "blocking")
        assert row is not None
        assert row.ratio == 2.0
        assert report.losses() == []

    def test_fewer_requests_a_second_are_a_loss(self) -> None:
        report = Report.of([light_turn("aparallel", heavy=30.0), light_turn("blocking", heavy=45.0)])
        assert report.losses() == ["web_light, heavy: aparallel 30.0 req/s; better: blocking 45.0"]

    def test_a_share_is_neither_better_nor_worse(self) -> None:
        figures = {figure.name: 1.0 for figure in WORKS["web_overload"].figures}
        ours = Turn("web_overload", "aparallel", Measurement({**figures, "refused": 80.0}))
        theirs = Turn("web_overload", "blocking", Measurement({**figures, "refused": 0.0}))
        report = Report.of([ours, theirs])
        row = report.row("web_overload", "refused", "blocking")
        assert row is not None
        assert row.ratio is None
        assert report.losses() == []


def light_turn(contender: str, *, heavy: float) -> Turn:
    return Turn("web_light", contender, Measurement({"light, p50": 1.0, "light, p99": 1.0, "heavy": heavy}))
