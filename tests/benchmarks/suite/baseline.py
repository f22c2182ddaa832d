"""What the machine and asyncio cost by themselves. No contender can be expected to do better."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Self

from suite.lag import Lag, LagMeter
from suite.work import timed

# A loop that yields as often as this is a good neighbour to everyone on it.
SLICE = 0.0005

COROUTINES = 5_000

WRITTEN_MB = 200


@dataclass(frozen=True, slots=True)
class Baseline:
    """Lags of loops without any contender, and what it costs to gather coroutines that do nothing."""

    idle: Lag
    """Nothing else runs."""
    idle_beside_busy: Lag
    """As many processes are busy as there will be workers, and take the cores from the loop."""
    working_beside_busy: Lag
    """The same, and the loop has work to do as well, which it does in short slices."""
    gather_us: float
    """µs for each of 5,000 coroutines."""
    write_ms: float
    """ms to write 200 MB into new anonymous memory once: the floor under the works on arrays. 0 where there is none."""

    @property
    def seconds_per_mb(self) -> float:
        """To write one into new memory."""
        return self.write_ms / 1e3 / WRITTEN_MB

    @classmethod
    def measure(cls, n_jobs: int, seconds: float = 0.5) -> Self:
        idle = asyncio.run(_lag(asyncio.sleep(seconds)))
        gather_us = asyncio.run(_gather_us())
        with _busy_processes(n_jobs):
            idle_beside_busy = asyncio.run(_lag(asyncio.sleep(seconds)))
            working_beside_busy = asyncio.run(_lag(_work_in_slices(seconds)))
        return cls(idle, idle_beside_busy, working_beside_busy, gather_us, _write_ms())


def _write_ms(repetitions: int = 5) -> float:
    if not hasattr(os, "memfd_create"):
        return 0.0
    block = bytes(1_000_000)
    runs = []
    for _ in range(repetitions):
        fd = os.memfd_create("baseline")
        started = time.perf_counter()
        for _ in range(WRITTEN_MB):
            os.write(fd, block)
        runs.append(time.perf_counter() - started)
        os.close(fd)
    return median(runs) * 1e3


async def _lag(doing: Awaitable[object]) -> Lag:
    async with LagMeter() as meter:
        await doing
    return meter.lag


async def _work_in_slices(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        while time.perf_counter() < now + SLICE:
            pass
        await asyncio.sleep(0)


async def _gather_us(repetitions: int = 5) -> float:
    async def nothing() -> None:
        pass

    async def gather() -> None:
        await asyncio.gather(*(nothing() for _ in range(COROUTINES)))

    runs = [await timed(gather()) for _ in range(repetitions)]
    return median(seconds for seconds, _ in runs) / COROUTINES * 1e6


@contextmanager
def _busy_processes(number: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
