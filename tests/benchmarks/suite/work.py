"""What every work is made of: sizes, a measurement, and the steps that several works share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Generic, TypeVar

from suite.calls import nap
from suite.contender import Contender
from suite.contenders import PARALLEL, Entry
from suite.lag import Lag

C = TypeVar("C")
T = TypeVar("T")


class WrongResult(Exception):
    """A contender gave something else than the right results; its figures are worth nothing."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything. A contender that needs more than *patience* for a work gets a smaller one."""

    name: str
    share: float
    """Of the number of calls that the work is about."""
    patience: float
    """Seconds that the whole work may take a contender."""
    slice: float
    """Seconds for a work made smaller, and for the repetitions of a quick one."""
    max_rounds: int
    seconds: float
    """For the whole run."""
    web_seconds: float
    """For the whole run, if it is about servers alone."""
    hung_after: float
    """Seconds for a whole turn, after which it is given up."""

    def calls(self, full: int) -> int:
        return max(10, round(full * self.share))


SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            "full", share=1.0, patience=8.0, slice=1.0, max_rounds=5, seconds=330.0, web_seconds=170.0, hung_after=60.0
        ),
        Scale(
            "quick", share=0.1, patience=1.5, slice=0.3, max_rounds=2, seconds=45.0, web_seconds=35.0, hung_after=20.0
        ),
        Scale(
            "tiny", share=0.002, patience=0.5, slice=0.05, max_rounds=1, seconds=60.0, web_seconds=60.0, hung_after=60.0
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The circumstances of one measurement."""

    scale: Scale
    n_jobs: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one contender did in one turn."""

    figures: Mapping[str, float]
    """Name to value; the work knows the units."""
    lag: Lag | None = None
    """None where no loop ran."""
    calls: int | None = None
    """How many calls the figures rest on; None where calls are not what it is about."""
    copied_mb: Mapping[str, float] = field(default_factory=dict)
    """Of the figures under which lies a floor: how many MB have to be written into new memory once, at least."""


class Unit(Enum):
    """What a figure counts. For every unit less is better, but for a rate; a share is neither good nor bad."""

    MICROSECONDS_PER_CALL = "µs/call"
    MILLISECONDS = "ms"
    SECONDS = "s"
    MEGABYTES = "MB"
    TIMES = "times"
    REQUESTS = "requests"
    REQUESTS_PER_SECOND = "req/s"
    PERCENT = "%"


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that a work measures."""

    name: str
    unit: Unit
    is_part: bool = False
    """Of another figure: neither good nor bad by itself."""


class Work(ABC, Generic[C]):
    """One thing to do, which every contender of its roster does in turn."""

    name: ClassVar[str]
    title: ClassVar[str]
    figures: ClassVar[tuple[Figure, ...]]
    """The lag of a work is told beside its figures."""
    contenders: tuple[Entry[C], ...]

    @abstractmethod
    async def measure(self, contender: C, setting: Setting) -> Measurement:
        """Let a fresh contender do this work.

        Raises:
            NotOffered: the contender cannot do it.
            WrongResult: it did something else.
        """


class ParallelWork(Work[Contender]):
    """A work for those who run functions on other cores."""

    contenders = PARALLEL


@asynccontextmanager
async def warm(contender: Contender, n_jobs: int) -> AsyncIterator[None]:
    """Start a contender and keep its workers busy for a moment, so that all of them are up."""
    await contender.start(n_jobs)
    try:
        await contender.map(nap, [0.005] * (8 * n_jobs))
        yield
    finally:
        await contender.stop()


async def timed(doing: Awaitable[T]) -> tuple[float, T]:
    """The seconds that it took, and its result."""
    started = time.perf_counter()
    result = await doing
    return time.perf_counter() - started, result


async def affordable_calls(do: Callable[[int], Awaitable[object]], full: int, scale: Scale) -> int:
    """Warm up with more and more calls, and say how many of *full* a contender is to be measured with.

    All of them if it can do them within the scale's patience, else what it can do within the scale's slice. Whoever
    learns from earlier calls, as by growing its batches, has learned by then.
    """
    calls = 100
    while calls < full:
        seconds, _ = await timed(do(calls))
        if seconds > scale.slice / 10:
            within_slice = round(calls * scale.slice / seconds)
            return full if seconds * full / calls <= scale.patience else min(full, max(calls, within_slice))
        calls *= 4
    return full


async def repeated(do: Callable[[], Awaitable[T]], scale: Scale, most: int = 5) -> list[tuple[float, T]]:
    """The seconds and the result of each repetition: as many as fit in the scale's slice, at least one."""
    runs = [await timed(do())]
    while len(runs) < most and sum(seconds for seconds, _ in runs) + runs[-1][0] <= scale.slice:
        runs.append(await timed(do()))
    return runs
