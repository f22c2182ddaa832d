"""Who waits behind a slow call."""

from __future__ import annotations

import time
from collections import Counter

from suite.calls import nap
from suite.contender import Contender
from suite.lag import LagMeter
from suite.work import Figure, Measurement, ParallelWork, Setting, Unit, WrongResult, warm

SHORT = 0.001


class MixedCalls(ParallelWork):
    """The slow call comes in the middle, when whoever batches by what earlier calls took has reason to batch."""

    name = "mixed_calls"
    title = "one call of 1 s amid 1,000 of 1 ms"
    figures = (Figure("all", Unit.SECONDS), Figure("last short call", Unit.SECONDS))

    full_calls = 1_000
    full_slow = 1.0

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        shorts = setting.scale.calls(self.full_calls)
        slow = max(0.05, self.full_slow * setting.scale.share)
        durations = [SHORT] * (shorts // 2) + [slow] + [SHORT] * (shorts - shorts // 2)
        arrivals: list[tuple[float, float]] = []

        def note_arrival(duration: float) -> None:
            arrivals.append((duration, time.perf_counter()))

        async with warm(contender, setting.n_jobs):
            # A peer may set up something at its first use in this way.
            await contender.as_completed(nap, [SHORT] * (2 * setting.n_jobs), lambda duration: None)
            async with LagMeter() as meter:
                started = time.perf_counter()
                await contender.as_completed(nap, durations, note_arrival)
                finished = time.perf_counter()

        if Counter(duration for duration, _ in arrivals) != Counter(durations):
            raise WrongResult(f"{len(durations)} calls gave {len(arrivals)} results, or wrong ones")
        last_short = max(arrival for duration, arrival in arrivals if duration == SHORT)
        return Measurement(
            {"all": finished - started, "last short call": last_short - started}, meter.lag, len(durations)
        )
