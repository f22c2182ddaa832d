"""What a request waits for: one call there and back, the next one only after it."""

from __future__ import annotations

import time
from statistics import median

from suite.calls import increment
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
        """The seconds that each call took: at most *calls* calls, and no new one after *seconds*."""
        taken: list[float] = []
        end = time.perf_counter() + seconds
        for number in range(calls):
            started = time.perf_counter()
            result = await contender.run(increment, number)
            finished = time.perf_counter()
            if result != number + 1:
                raise WrongResult(f"call {number} gave {result!r}")
            taken.append(finished - started)
            if finished > end:
                break
        return taken
