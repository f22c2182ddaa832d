"""What a request waits for: one call there and back, the next one only after it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from suite.calls import increment, same
from suite.contender import Contender
from suite.lag import LagMeter
from suite.work import Figure, Measurement, ParallelWork, Setting, Unit, WrongResult, warm


class OneCall(ParallelWork):
    name = "one_call"
    title = "one call there and back, warm"
    figures = (Figure("median", Unit.MICROSECONDS_PER_CALL),)

    full_calls = 3_000

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        calls = setting.scale.calls(self.full_calls)
        async with warm(contender, setting.n_jobs):
            await self.do(contender, calls // 10, setting.scale.slice / 4)
            async with LagMeter() as meter:
                taken = await self.do(contender, calls, setting.scale.slice)
        return Measurement({"median": median(taken) * 1e6}, meter.lag, len(taken))

    async def do(self, contender: Contender, calls: int, seconds: float) -> list[float]:
        return await one_by_one(lambda number: contender.run(increment, number), lambda n: n + 1, calls, seconds)


class OnePayload(ParallelWork):
    """Data that is too large for a message and too small for most ways to share memory."""

    name = "one_payload"
    title = "one call that brings bytes and takes them back, warm"
    figures = tuple(Figure(f"{kilobytes} KB", Unit.MICROSECONDS_PER_CALL) for kilobytes in (16, 64, 256, 1000))

    full_calls = 500

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        calls = setting.scale.calls(self.full_calls)
        figures = {}
        async with warm(contender, setting.n_jobs), LagMeter() as meter:
            for figure in self.figures:
                data = bytes(range(256)) * (4 * int(figure.name.removesuffix(" KB")))
                seconds = setting.scale.slice / len(self.figures)
                await self.do(contender, data, calls // 10, seconds / 4)
                figures[figure.name] = median(await self.do(contender, data, calls, seconds)) * 1e6
        return Measurement(figures, meter.lag, calls)

    async def do(self, contender: Contender, data: bytes, calls: int, seconds: float) -> list[float]:
        return await one_by_one(lambda _: contender.run(same, data), lambda _: data, calls, seconds)


async def one_by_one(
    run: Callable[[int], Awaitable[Any]], expected: Callable[[int], Any], calls: int, seconds: float
) -> list[float]:
    """The seconds that each call took: at most *calls* calls, and no new one after *seconds*."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    for number in range(max(calls, 1)):
        started = time.perf_counter()
        result = await run(number)
        finished = time.perf_counter()
        if result != expected(number):
            raise WrongResult(f"call {number} gave {result!r:.100}")
        taken.append(finished - started)
        if finished > end:
            break
    return taken
