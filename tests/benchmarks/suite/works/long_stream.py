"""A stream that is longer than memory should have to hold."""

from __future__ import annotations

from itertools import count

from suite.calls import increment
from suite.contender import Contender
from suite.lag import LagMeter
from suite.memory import PeakMemory
from suite.work import (
    Figure,
    Measurement,
    ParallelWork,
    Setting,
    Unit,
    WrongResult,
    affordable_calls,
    timed,
    warm,
)


class LongStream(ParallelWork):
    name = "long_stream"
    title = "a stream of 1,000,000 calls"
    figures = (Figure("per call", Unit.MICROSECONDS_PER_CALL), Figure("peak memory", Unit.MEGABYTES))

    full_calls = 1_000_000

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        full = setting.scale.calls(self.full_calls)
        async with warm(contender, setting.n_jobs):
            memory = PeakMemory()
            calls = await affordable_calls(lambda calls: self.do(contender, calls), full, setting.scale)
            async with LagMeter() as meter:
                seconds, _ = await timed(self.do(contender, calls))
        return Measurement({"per call": seconds / calls * 1e6, "peak memory": memory.growth}, meter.lag, calls)

    async def do(self, contender: Contender, calls: int) -> None:
        right = count(1)

        def check(result: int) -> None:
            if result != next(right):
                raise WrongResult(f"{result} is not what comes next in the stream")

        await contender.stream(increment, range(calls), check)
        if (results := next(right) - 1) != calls:
            raise WrongResult(f"{calls} calls gave {results} results")
