"""Servers that compute inside requests: who waits, what is lost, and what goes on for nobody.

The server runs in a process of its own; the turn's process is the load. All share the machine.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from suite import web_calls
from suite.contenders import WEB
from suite.http_load import GONE, Answer, Client, closed_loop, kept_busy, open_loop, percentile
from suite.web_contender import WebContender
from suite.web_process import HOST, PeakTreeMemory, ServerProcess, served
from suite.work import Figure, Measurement, Setting, Unit, Work, WrongResult

LIGHT_RATE = 100.0
"""Light requests a second: a percent or two of a core."""

# Steps of web_calls.work. 1,000,000 take about 50 ms on one core.
HEAVY_STEPS = 1_000_000
SHORT_STEPS = 200_000
LONG_STEPS = 6_000_000

OVERLOAD = 5
MAX_RATE = 500.0
"""Requests a second that the load sends at most: with many workers, the calls get longer instead."""
IN_TIME = 1.0
"""Seconds after which an answer is too late for the visitor."""
PATIENCE = 2.0
"""Slices of the scale, which are seconds at full scale, after which a visitor leaves; half a second at least."""


class WebWork(Work[WebContender]):
    contenders = WEB

    async def measure(self, contender: WebContender, setting: Setting) -> Measurement:
        async with served(contender, setting.n_jobs) as server, Client(HOST, server.port) as client:
            first = await client.get(heavy(SHORT_STEPS))
            check([first], SHORT_STEPS)
            if first.status != 200:
                raise WrongResult(f"the first heavy request got status {first.status}")
            return await self.load(Scene(server, client, setting))

    @abstractmethod
    async def load(self, scene: Scene) -> Measurement:
        """Do the work's worst to a server that is up."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A server that has answered once, a client of it, and the circumstances."""

    server: ServerProcess
    client: Client
    setting: Setting

    @property
    def patience(self) -> float:
        """Seconds after which a visitor leaves."""
        return max(0.5, PATIENCE * self.setting.scale.slice)


class WebLight(WebWork):
    """Visitors of a light page while every core has heavy requests waiting.

    Four heavy clients per worker send the next request when they have an answer, so the queue is never empty.
    """

    name = "web_light"
    title = "light requests beside heavy ones that saturate the machine"
    figures = (
        Figure("light, p50", Unit.MILLISECONDS),
        Figure("light, p99", Unit.MILLISECONDS),
        Figure("heavy", Unit.REQUESTS_PER_SECOND),
    )

    async def load(self, scene: Scene) -> Measurement:
        seconds = 3 * scene.setting.scale.slice
        clients = 4 * scene.setting.n_jobs
        async with kept_busy(scene.client, heavy(HEAVY_STEPS), clients=clients) as answers:
            await asyncio.sleep(seconds / 6)
            before, started = len(answers), time.perf_counter()
            light = await open_loop(scene.client, "/light", rate=LIGHT_RATE, seconds=seconds, patience=scene.patience)
            done, took = len(answers) - before, time.perf_counter() - started
        check(answers, HEAVY_STEPS)
        # Who has left had waited that long: the percentiles count it as if the answer had come just then.
        failed = [answer for answer in [*light, *answers] if answer.status not in (200, GONE)]
        if failed:
            raise WrongResult(f"{len(failed)} requests failed, the first with status {failed[0].status}")
        return Measurement(
            {
                "light, p50": percentile(light, 0.5) * 1e3,
                "light, p99": percentile(light, 0.99) * 1e3,
                "heavy": done / took,
            },
            calls=len(light),
        )


class WebLeft(WebWork):
    """All clients of long requests leave. What is computed after that, nobody wants."""

    name = "web_left"
    title = "clients leave in the middle of their requests"
    figures = (
        Figure("CPU spent afterwards", Unit.SECONDS),
        Figure("next answer", Unit.SECONDS),
    )

    async def load(self, scene: Scene) -> Measurement:
        share = scene.setting.scale.slice
        path = heavy(max(SHORT_STEPS, round(LONG_STEPS * share)))
        clients = 3 * scene.setting.n_jobs
        left = await asyncio.gather(*(scene.client.get(path, patience=0.3 * share) for _ in range(clients)))
        if any(answer.status != GONE for answer in left):
            raise WrongResult("a request was answered before its client left")
        before = scene.server.cpu_seconds()
        following = await scene.client.get(heavy(SHORT_STEPS))
        check([following], SHORT_STEPS)
        if following.status != 200:
            raise WrongResult(f"the request after those got status {following.status}")
        spent = await cpu_until_idle(scene.server, before)
        return Measurement({"CPU spent afterwards": spent, "next answer": following.seconds}, calls=clients)


class WebCrash(WebWork):
    """One request of many makes native code crash. It is lost anyway; the others need not be."""

    name = "web_crash"
    title = "one request crashes its worker, in the middle of a hundred"
    figures = (Figure("failed requests", Unit.REQUESTS),)

    async def load(self, scene: Scene) -> Measurement:
        requests = max(20, round(100 * scene.setting.scale.slice))
        paths = [heavy(SHORT_STEPS)] * requests
        paths[requests // 4] = "/crash"
        answers: list[Answer] = []
        await closed_loop(scene.client, paths, clients=4 * scene.setting.n_jobs, answers=answers)
        check(answers, SHORT_STEPS)
        failed = sum(answer.status != 200 for answer in answers)
        if failed == 0:
            raise WrongResult("nothing has crashed")
        return Measurement({"failed requests": failed}, calls=requests)


class WebOverload(WebWork):
    """Five times the requests that all cores together can answer.

    Who answers four in five with a refusal has done what can be done; who queues them answers everyone too late.
    """

    name = "web_overload"
    title = "five times the requests that can be answered"
    figures = (
        Figure("served in time", Unit.REQUESTS_PER_SECOND),
        Figure("not refused, p50", Unit.MILLISECONDS),
        Figure("not refused, p99", Unit.MILLISECONDS),
        Figure("refused", Unit.PERCENT),
        Figure("given up on", Unit.PERCENT),
        Figure("growth of memory", Unit.MEGABYTES),
    )

    async def load(self, scene: Scene) -> Measurement:
        setting = scene.setting
        seconds = 2 * setting.scale.slice
        # Shorter calls where visitors have less patience.
        steps = round(HEAVY_STEPS * max(0.5, setting.scale.slice, setting.n_jobs / 10))
        rate = min(MAX_RATE, OVERLOAD * setting.n_jobs / await seconds_alone(scene, steps))
        with PeakTreeMemory(scene.server) as memory:
            answers = await open_loop(scene.client, heavy(steps), rate=rate, seconds=seconds, patience=scene.patience)
        check(answers, steps)
        in_time = [answer for answer in answers if answer.status == 200 and answer.seconds <= IN_TIME]
        # Who gave up counts with what he has waited, or the few who were served would make a server look quick.
        taken = [answer for answer in answers if answer.status in (200, GONE)]
        if not taken:
            raise WrongResult("everyone was refused")
        return Measurement(
            {
                "served in time": len(in_time) / seconds,
                "not refused, p50": percentile(taken, 0.5) * 1e3,
                "not refused, p99": percentile(taken, 0.99) * 1e3,
                "refused": 100 * sum(answer.status == 503 for answer in answers) / len(answers),
                "given up on": 100 * sum(answer.status == GONE for answer in answers) / len(answers),
                "growth of memory": memory.growth,
            }
        )


def heavy(steps: int) -> str:
    return f"/heavy?steps={steps}"


def check(answers: Iterable[Answer], steps: int) -> None:
    """Raise if an answer with status 200 is not the result of so many steps."""
    right = str(web_calls.expected(steps)).encode()
    for answer in answers:
        if answer.status == 200 and answer.body != right:
            raise WrongResult(f"a request for {steps} steps gave {answer.body!r}")


async def seconds_alone(scene: Scene, steps: int) -> float:
    """What one heavy request takes while there is no other: the best of three."""
    return min([(await scene.client.get(heavy(steps))).seconds for _ in range(3)])


async def cpu_until_idle(server: ServerProcess, before: float, limit: float = 15.0) -> float:
    """The CPU seconds that the server's processes use until they rest, or for *limit* seconds."""
    end = time.perf_counter() + limit
    spent = server.cpu_seconds()
    while time.perf_counter() < end:
        await asyncio.sleep(0.2)
        now = server.cpu_seconds()
        # A server at rest ticks now and then; the clock of CPU time has steps of 10 ms.
        if now - spent <= 0.02:
            return now - before
        spent = now
    return spent - before
