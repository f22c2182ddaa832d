"""Large arrays to the workers and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from statistics import median

import numpy as np

from suite.array_calls import Array, double, expected, fill, probe
from suite.contender import Contender
from suite.contenders import PARALLEL
from suite.lag import LagMeter
from suite.memory import SystemMemory
from suite.work import Figure, Measurement, ParallelWork, Setting, Unit, WrongResult, timed, warm

MEGABYTE = 1_000_000
CALLS = 20

# The others have no answer of their own to arrays: they pickle them, as run_in_executor does.
ROSTER = tuple(entry for entry in PARALLEL if entry.name in {"aparallel", "joblib", "run_in_executor", "ray"})


def numbers_in(megabytes: float, setting: Setting) -> int:
    """How many float64 fill so many megabytes, at this scale; at least two megabytes."""
    return round(max(2.0, megabytes * setting.scale.share) * MEGABYTE) // 8


MEMORY = (Figure("peak memory", Unit.MEGABYTES), Figure("peak memory, shared", Unit.MEGABYTES, is_part=True))


def peaks(memory: SystemMemory) -> dict[str, float]:
    """The figures of MEMORY."""
    return dict(zip((figure.name for figure in MEMORY), (memory.growth, memory.shared_growth), strict=True))


def megabytes(*arrays: Array) -> float:
    return sum(array.nbytes for array in arrays) / MEGABYTE


class ArrayWork(ParallelWork):
    contenders = ROSTER

    most_repetitions = 3

    def __init__(self) -> None:
        super().__init__()
        # Looked at when the meter has stopped: to compute what they should be would hold the loop.
        self.seen: list[tuple[Sequence[float], Array]] = []

    def check(self) -> None:
        """Look whether the calls saw the arrays that they were given."""
        while self.seen:
            results, array = self.seen.pop()
            if list(results) != [expected(array, number) for number in range(len(results))]:
                raise WrongResult("the calls did not see the array that they were given")

    def repetitions(self, setting: Setting) -> int:
        return max(1, round(self.most_repetitions * setting.scale.share))


class OneArray(ArrayWork):
    """A fresh array each time: what was written before does not help. The last figure is where it does."""

    name = "one_array"
    title = "20 calls on one array of 200 MB"
    figures = (
        Figure("from a list", Unit.SECONDS),
        Figure("from a generator", Unit.SECONDS),
        Figure("from one that runs code", Unit.SECONDS),
        Figure("unchanged, again", Unit.SECONDS),
        *MEMORY,
    )

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        array = np.random.default_rng(0).random(numbers_in(200, setting))
        taken: dict[str, list[float]] = {figure.name: [] for figure in self.figures if figure.unit is Unit.SECONDS}
        # Made before and freed after: both would hold the loop.
        fresh = [array.copy() for _ in range(3 * self.repetitions(setting))]
        async with warm(contender, setting.n_jobs):
            calls = await affordable(lambda calls: self.do(contender, array, calls, as_list=True), setting)
            with SystemMemory() as memory:
                async with LagMeter() as meter:
                    for first, second, third in zip(fresh[::3], fresh[1::3], fresh[2::3], strict=True):
                        taken["from a list"].append(await self.do(contender, first, calls, as_list=True))
                        taken["unchanged, again"].append(await self.do(contender, first, calls, as_list=True))
                        taken["from a generator"].append(await self.do(contender, second, calls, as_list=False))
                        running = await self.do(contender, third, calls, as_list=False, running_code=True)
                        taken["from one that runs code"].append(running)
            peak = peaks(memory)
        self.check()
        copied = dict.fromkeys((name for name in taken if "again" not in name), megabytes(array))
        return Measurement({**{name: median(taken[name]) for name in taken}, **peak}, meter.lag, calls, copied)

    async def do(
        self, contender: Contender, array: Array, calls: int, *, as_list: bool, running_code: bool = False
    ) -> float:
        """The seconds that 20 calls take, from those that fewer took if they are many."""
        tasks: Sequence[tuple[Array, int]] = [(array, number) for number in range(calls)]
        if running_code:
            tasks = OneByOne(tasks)
        seconds, results = await timed((contender.map_list if as_list else contender.map)(probe, tasks))
        self.seen.append((results, array))
        return seconds * CALLS / calls


class SharedArray(ArrayWork):
    name = "shared_array"
    title = "the same, put there once by name"
    figures = (Figure("20 calls", Unit.SECONDS), *MEMORY)

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        array = np.random.default_rng(0).random(numbers_in(200, setting))
        fresh = [array.copy() for _ in range(self.repetitions(setting))]
        async with warm(contender, setting.n_jobs):
            calls = await affordable(lambda calls: self.do(contender, array, calls), setting)
            with SystemMemory() as memory:
                async with LagMeter() as meter:
                    taken = [await self.do(contender, one, calls) for one in fresh]
            peak = peaks(memory)
        self.check()
        return Measurement({"20 calls": median(taken), **peak}, meter.lag, calls, {"20 calls": megabytes(array)})

    async def do(self, contender: Contender, array: Array, calls: int) -> float:
        async def share_and_map() -> Sequence[float]:
            async with contender.share(array) as shared:
                return await contender.map_shared(probe, shared, range(calls))

        seconds, results = await timed(share_and_map())
        self.seen.append((results, array))
        return seconds * CALLS / calls


async def affordable(do: Callable[[int], Awaitable[float]], setting: Setting) -> int:
    """How many of the calls a contender is measured with: all, or two if it would take too long for all."""
    return CALLS if await do(2) < setting.scale.patience else 2


class ArrayResults(ArrayWork):
    name = "array_results"
    title = "arrays as results"
    figures = (
        Figure("8 of 50 MB", Unit.SECONDS),
        Figure("100 of 1 MB", Unit.SECONDS),
        *MEMORY,
    )

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        taken: dict[str, list[float]] = {"8 of 50 MB": [], "100 of 1 MB": []}
        async with warm(contender, setting.n_jobs):
            await self.do(contender, 8, 1_000)
            sizes = {"8 of 50 MB": (8, numbers_in(50, setting)), "100 of 1 MB": (setting.scale.calls(100), 140_000)}
            with SystemMemory() as memory:
                async with LagMeter() as meter:
                    for _ in range(self.repetitions(setting)):
                        for name, (calls, size) in sizes.items():
                            taken[name].append(await self.do(contender, calls, size))
            peak = peaks(memory)
        copied = {name: calls * size * 8 / MEGABYTE for name, (calls, size) in sizes.items()}
        return Measurement({**{name: median(taken[name]) for name in taken}, **peak}, meter.lag, copied_mb=copied)

    async def do(self, contender: Contender, calls: int, size: int) -> float:
        seconds, results = await timed(contender.map_list(fill, [(size, float(number)) for number in range(calls)]))
        for number, result in enumerate(results):
            if result.shape != (size,) or result[0] != number or result[-1] != number:
                raise WrongResult(f"array {number} of {calls} is not the one that was asked for")
        return seconds


class ArrayTraffic(ArrayWork):
    name = "array_traffic"
    title = "an array for each call, and there and back"
    figures = (
        Figure("1,000 of 1 MB", Unit.SECONDS),
        Figure("100 MB, 10 times", Unit.SECONDS),
        *MEMORY,
    )

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        calls = setting.scale.calls(1_000)
        own = np.arange(140_000.0)
        large = np.ones(numbers_in(100, setting))  # made before: it would hold the loop
        async with warm(contender, setting.n_jobs):
            await self.there_and_back(contender, np.ones(numbers_in(2, setting)), 1)
            with SystemMemory() as memory:
                async with LagMeter() as meter:
                    many, results = await timed(contender.map(probe, OwnArrays(own, calls)))
                    back = await self.there_and_back(contender, large, 10)
            peak = peaks(memory)
        for number, result in enumerate(results):
            if result != expected(own + number, number):
                raise WrongResult(f"call {number} got another array than its own")
        copied = {"1,000 of 1 MB": calls * megabytes(own), "100 MB, 10 times": 10 * 2 * megabytes(large)}
        return Measurement({"1,000 of 1 MB": many, "100 MB, 10 times": back, **peak}, meter.lag, calls, copied)

    async def there_and_back(self, contender: Contender, array: Array, times: int) -> float:
        async def go() -> Array:
            current = array
            for _ in range(times):
                current = await contender.run(double, current)
            return current

        seconds, last = await timed(go())
        if last.shape != array.shape or last[0] != 2.0**times or last[-1] != 2.0**times:
            raise WrongResult("the array did not come back doubled")
        return seconds


class OwnArrays(Sequence[tuple[Array, int]]):
    """Tasks with an array each, made when they are asked for, as a program that reads them one by one would."""

    def __init__(self, base: Array, calls: int) -> None:
        self._base = base
        self._calls = calls

    def __len__(self) -> int:
        return self._calls

    def __getitem__(self, index: int) -> tuple[Array, int]:  # type: ignore[override]
        if index >= self._calls:
            raise IndexError(index)
        return self._base + index, index


class OneByOne(Sequence[tuple[Array, int]]):
    """Tasks that are handed out by code that might change what they hold."""

    def __init__(self, tasks: Sequence[tuple[Array, int]]) -> None:
        self._tasks = tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> tuple[Array, int]:  # type: ignore[override]
        return self._tasks[index]
