"""Caches on disk: hits and misses, big arguments and results, many who ask at once, many entries."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from suite import cached
from suite.cache_contender import CacheContender, Memoized
from suite.contenders import CACHES
from suite.lag import LagMeter
from suite.work import Figure, Measurement, Scale, Setting, Unit, Work, WrongResult

BIG = 12_500_000
"""Doubles in 100 MB."""


class CacheWork(Work[CacheContender]):
    """A work for caches on disk. Each turn has a directory of its own."""

    contenders = CACHES

    async def measure(self, contender: CacheContender, setting: Setting) -> Measurement:
        with tempfile.TemporaryDirectory() as directory:
            os.environ[cached.RUNS] = os.path.join(directory, "runs")
            Path(os.environ[cached.RUNS]).touch()
            self.directory = os.path.join(directory, "cache")
            await contender.open(self.directory)
            try:
                return await self.measure_in_directory(contender, setting)
            finally:
                await contender.close()

    @abstractmethod
    async def measure_in_directory(self, contender: CacheContender, setting: Setting) -> Measurement:
        """Measure with a contender that is open."""

    @asynccontextmanager
    async def reopened(self, contender: CacheContender) -> AsyncIterator[None]:
        """Close and open it, so that nothing is in memory."""
        await contender.close()
        await contender.open(self.directory)
        yield


def expect(result: Any, wanted: Any) -> None:
    if result != wanted:
        raise WrongResult(f"{result!r} instead of {wanted!r}")


def expect_runs(wanted: int) -> None:
    if cached.runs() != wanted:
        raise WrongResult(f"computed {cached.runs()} times instead of {wanted}")


async def each(memoized: Memoized, numbers: range, scale: Scale) -> list[float]:
    """The seconds of each call, one after the other, as many as fit in the scale's slice."""
    taken = []
    end = time.perf_counter() + scale.slice
    for number in numbers:
        started = time.perf_counter()
        result = await memoized(number)
        finished = time.perf_counter()
        expect(result, {"number": number})
        taken.append(finished - started)
        await asyncio.sleep(0)  # a call that does not wait would keep the lag from being seen
        if finished > end:
            break
    return taken


class CacheSmall(CacheWork):
    name = "cache_small"
    title = "misses, first hits and repeated hits, small argument and result"
    figures = (
        Figure("miss", Unit.MICROSECONDS_PER_CALL),
        Figure("first hit", Unit.MICROSECONDS_PER_CALL),
        Figure("repeated hit", Unit.MICROSECONDS_PER_CALL),
    )

    async def measure_in_directory(self, contender: CacheContender, setting: Setting) -> Measurement:
        calls = setting.scale.calls(1000)
        memoized = contender.memoize(cached.small)
        await memoized(-1)
        async with LagMeter() as meter:
            misses = await each(memoized, range(calls), setting.scale)
            expect_runs(1 + len(misses))
            async with self.reopened(contender):
                memoized = contender.memoize(cached.small)
                await memoized(-1)
                first = await each(memoized, range(len(misses)), setting.scale)
            repeated = [seconds for _ in range(5 * calls) for seconds in await each(memoized, range(1), setting.scale)]
        expect_runs(1 + len(misses))
        figures = {"miss": median(misses), "first hit": median(first), "repeated hit": median(repeated)}
        return Measurement({name: seconds * 1e6 for name, seconds in figures.items()}, meter.lag, len(misses))


class BigHit(CacheWork):
    """A hit, repeated, with much in it."""

    figures = (Figure("hit", Unit.SECONDS),)

    @abstractmethod
    def prepare(self, contender: CacheContender, count: int) -> tuple[Memoized, Any]:
        """The memoized function and its argument, for arrays of *count* doubles."""

    @abstractmethod
    def check(self, result: Any, count: int) -> None:
        """Raise WrongResult if it is."""

    async def measure_in_directory(self, contender: CacheContender, setting: Setting) -> Measurement:
        count = max(100_000, setting.scale.calls(BIG))
        memoized, argument = self.prepare(contender, count)
        self.check(await memoized(argument), count)
        taken = []
        async with LagMeter() as meter:
            for _ in range(7):
                started = time.perf_counter()
                result = await memoized(argument)
                taken.append(time.perf_counter() - started)
                self.check(result, count)
                del result
                await asyncio.sleep(0)
        expect_runs(1)
        return Measurement({"hit": median(taken)}, meter.lag, count)


class CacheBigArgument(BigHit):
    name = "cache_big_argument"
    title = "a hit with an array of 100 MB as its argument"

    def prepare(self, contender: CacheContender, count: int) -> tuple[Memoized, Any]:
        import numpy as np

        return contender.memoize_arrays(cached.total), np.random.default_rng(0).random(count)

    def check(self, result: Any, count: int) -> None:
        if not 0 < result < 10:
            raise WrongResult(f"{result!r}")


class CacheBigResult(BigHit):
    name = "cache_big_result"
    title = "a hit whose result is an array of 100 MB, read"

    def prepare(self, contender: CacheContender, count: int) -> tuple[Memoized, Any]:
        return contender.memoize(cached.ones), count

    def check(self, result: Any, count: int) -> None:
        if len(result) != count or result[0] != 1 or result[-1] != 1:
            raise WrongResult("another array")


class CacheMappedResult(CacheBigResult):
    name = "cache_mapped_result"
    title = "a hit whose result is an array of 100 MB, mapped"

    def prepare(self, contender: CacheContender, count: int) -> tuple[Memoized, Any]:
        return contender.memoize_mapped(cached.ones), count


class CacheCallers(CacheWork):
    name = "cache_callers"
    title = "64 callers of one key that takes 50 ms to compute"
    figures = (Figure("until all have it", Unit.SECONDS), Figure("computed", Unit.TIMES))

    async def measure_in_directory(self, contender: CacheContender, setting: Setting) -> Measurement:
        memoized = contender.memoize(cached.slow)
        await memoized(-1)
        before = cached.runs()
        async with LagMeter() as meter:
            started = time.perf_counter()
            results = await asyncio.gather(*(memoized(0) for _ in range(64)))
            taken = time.perf_counter() - started
        expect(results, [{"number": 0}] * 64)
        return Measurement({"until all have it": taken, "computed": cached.runs() - before}, meter.lag, 64)


WORKER = """
import asyncio, sys, time
from suite import cached
from suite.contenders import CACHES

async def main(name, directory, seconds):
    contender = next(entry for entry in CACHES if entry.name == name).create()
    await contender.open(directory)
    memoized = contender.memoize(cached.small)
    for number in range(100):
        await memoized(number)
    print("ready", flush=True)
    sys.stdin.readline()
    hits, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for number in range(100):
            await memoized(number)
        hits += 100
    print(hits, flush=True)
    await contender.close()

asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""


class CacheProcesses(CacheWork):
    name = "cache_processes"
    title = "hits of 100 keys from four processes at once"
    figures = (Figure("per hit", Unit.MICROSECONDS_PER_CALL),)

    async def measure_in_directory(self, contender: CacheContender, setting: Setting) -> Measurement:
        name = next(entry.name for entry in CACHES if entry.class_name == type(contender).__name__)
        memoized = contender.memoize(cached.small)
        for number in range(100):
            await memoized(number)
        seconds = setting.scale.slice
        command = [sys.executable, "-P", "-c", WORKER, name, self.directory, str(seconds)]
        hits = sum(await asyncio.to_thread(_race, command))
        return Measurement({"per hit": seconds / hits * 1e6}, None, hits)


def _race(command: list[str]) -> list[int]:
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise WrongResult("a process could not begin")
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [int(process.communicate()[0]) for process in processes]


class CacheMany(CacheWork):
    name = "cache_many"
    title = "hits, misses and pruning by a tenth, with 10,000 entries there"
    figures = (
        Figure("first hit", Unit.MICROSECONDS_PER_CALL),
        Figure("miss", Unit.MICROSECONDS_PER_CALL),
        Figure("prune, per entry removed", Unit.MICROSECONDS_PER_CALL),
    )
    full_entries: ClassVar[int] = 10_000

    async def measure_in_directory(self, contender: CacheContender, setting: Setting) -> Measurement:
        scale = setting.scale
        entries = scale.calls(self.full_entries)
        memoized = contender.memoize(cached.small)
        for number in range(entries):
            await memoized(number)
        async with LagMeter() as meter, self.reopened(contender):
            memoized = contender.memoize(cached.small)
            await memoized(0)
            first = await each(memoized, range(1, min(entries, 500)), scale)
            misses = await each(memoized, range(entries, entries + min(entries, 200)), scale)
            removed = max(1, (entries + len(misses)) // 10)
            prune = await timed_seconds(lambda: contender.prune(entries + len(misses) - removed))
        figures = {
            "first hit": median(first),
            "miss": median(misses),
            "prune, per entry removed": prune / removed,
        }
        return Measurement({name: seconds * 1e6 for name, seconds in figures.items()}, meter.lag, entries)


async def timed_seconds(do: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await do()
    return time.perf_counter() - started
