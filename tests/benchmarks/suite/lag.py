"""How long the event loop keeps what is due waiting."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PERIOD = 0.001
"""Seconds between two ticks."""


@dataclass(frozen=True, slots=True)
class Lag:
    """Milliseconds beyond the timer: half of all moments were better than p50, all but 1 % better than p99."""

    p50: float
    p99: float
    max: float


class LagMeter:
    """Measures the loop it is entered in, by a task that sleeps for PERIOD again and again.

    While the loop is held, the task cannot tick, so a long hold would count as one tick among many good ones. Each
    hold is therefore counted once for every tick that it swallowed, with what was left of it by then (as
    HdrHistogram corrects for coordinated omission). The percentiles are those of a moment chosen at random.
    """

    def __init__(self) -> None:
        self._waits: list[float] = []
        self._ticked = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A hold that lasts until here has not been seen by the ticker yet. Let it tick once more.
        self._ticked.clear()
        await self._ticked.wait()
        self._ticker.cancel()

    @property
    def lag(self) -> Lag:
        return summarise(self._waits)

    async def _tick(self) -> None:
        while True:
            due = time.perf_counter() + PERIOD
            await asyncio.sleep(PERIOD)
            self._waits.append(max(0.0, time.perf_counter() - due))
            self._ticked.set()


def summarise(waits: Sequence[float]) -> Lag:
    """The lag behind *waits*, the seconds by which each tick was late. Not empty."""
    moments = sorted(wait - swallowed * PERIOD for wait in waits for swallowed in range(1 + int(wait / PERIOD)))

    def percentile(share: float) -> float:
        return moments[math.ceil(share * len(moments)) - 1] * 1e3

    return Lag(percentile(0.5), percentile(0.99), moments[-1] * 1e3)
