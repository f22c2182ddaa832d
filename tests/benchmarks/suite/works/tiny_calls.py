"""What it costs to hand out a call that does next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from suite.calls import increment
from suite.contender import Contender
from suite.lag import LagMeter
from suite.work import Figure, Measurement, ParallelWork, Setting, Unit, WrongResult, affordable_calls, repeated, warm


class TinyCalls(ParallelWork):
    name = "tiny_calls"
    title = "100,000 tiny calls, warm"
    figures = (Figure("per call", Unit.MICROSECONDS_PER_CALL),)

    full_calls = 100_000

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        full = setting.scale.calls(self.full_calls)
        async with warm(contender, setting.n_jobs):
            calls = await affordable_calls(lambda calls: self.do(contender, range(calls)), full, setting.scale)
            async with LagMeter() as meter:
                runs = await repeated(lambda: self.do(contender, range(calls)), setting.scale)
        for _, results in runs:
            check(results, range(calls))
        taken = [seconds for seconds, _ in runs]
        return Measurement({"per call": median(taken) / calls * 1e6}, meter.lag, calls)

    async def do(self, contender: Contender, numbers: Sequence[int]) -> Sequence[int]:
        return await contender.map(increment, numbers)


class SeparateCalls(TinyCalls):
    """The same calls, but nobody tells the contender that they belong together."""

    name = "separate_calls"
    title = "5,000 separate calls at once, warm"

    figures = (Figure("per call", Unit.MICROSECONDS_PER_CALL), Figure("as coroutines", Unit.MICROSECONDS_PER_CALL))

    full_calls = 5_000

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        measured = await super().measure(contender, setting)
        assert measured.calls is not None
        numbers = range(measured.calls)
        async with warm(contender, setting.n_jobs):
            await contender.coroutines(increment, numbers)
            runs = await repeated(lambda: contender.coroutines(increment, numbers), setting.scale)
        check(runs[-1][1], numbers)
        as_coroutines = median(seconds for seconds, _ in runs) / len(numbers) * 1e6
        return replace(measured, figures={**measured.figures, "as coroutines": as_coroutines})

    async def do(self, contender: Contender, numbers: Sequence[int]) -> Sequence[int]:
        return await contender.separate(increment, numbers)


def check(results: Sequence[int], numbers: Sequence[int]) -> None:
    """Holds the loop for a while: not to be called while its lag is measured."""
    if list(results) != [number + 1 for number in numbers]:
        raise WrongResult(f"{len(numbers)} calls gave {len(results)} results, not all of them right")
