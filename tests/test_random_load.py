"""Everything at once, at random: whatever happens to other calls, each ends as it must, and the pool is as before.

A seed says what is done, so a failure can be looked at again: ``pytest -m soak tests/test_random_load.py -k "12-4"``.
What the machine does in between is chance.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from traveling import by_value

from aparallel import Pool, delayed
from aparallel.errors import (
    BrokenWorkerError,
    CallTimeoutError,
    PoolSaturatedError,
    UnpicklableCallError,
    UnpicklableResultError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from aparallel import Call, LimitedPool


# How a call ends, and the error that its caller gets; large results outgrow the socket, the outbox and the loop.
ENDINGS: dict[str, type[BaseException] | None] = {
    "small": None,
    "text": None,
    "large": None,
    "raises": ZeroDivisionError,
    "unpicklable": UnpicklableResultError,
    "unreadable": UnpicklableResultError,
    "unloadable": UnpicklableCallError,
    "exits": BrokenWorkerError,
    "killed": BrokenWorkerError,
    "killed late": BrokenWorkerError,
}
DEADLY = {"exits", "killed", "killed late"}
WEIGHTS = [14, 4, 2, 2, 1, 1, 1, 0.3, 0.3, 0.3]


@by_value
def large(number: int) -> int:
    """How large such a result is: a message, and the rings, hold some and not others."""
    return (20_000, 100_000, 700_000, 3_000_000)[number % 4]


@by_value
class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


@by_value
class DiesWhenPickled:
    def __init__(self, size: int) -> None:
        self.size = size

    def __reduce__(self) -> Any:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return bytes, (self.size,)


@by_value
def work(number: int, ending: str, seconds: float, log: str, _argument: object) -> Any:
    """Note that it runs, take its time, and end as it should."""
    with open(log, "ab", buffering=0) as file:
        file.write(b"%d\n" % number)
    time.sleep(seconds)
    if ending == "small":
        return number
    if ending == "text":
        return str(number) * 100
    if ending == "large":
        return [number, bytes(large(number))]
    if ending == "raises":
        raise ZeroDivisionError(number)
    if ending == "unpicklable":
        return (x for x in ())
    if ending == "unreadable":
        return Unreadable()
    if ending == "exits":
        os._exit(3)
    if ending == "killed late":
        return [bytes(large(number)), DiesWhenPickled(1)]
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def is_right(number: int, ending: str, outcome: Any) -> bool:
    expected = ENDINGS[ending]
    if expected is not None:
        return type(outcome) is expected and (ending != "raises" or outcome.args == (number,))
    return bool(
        outcome == {"small": number, "text": str(number) * 100, "large": [number, bytes(large(number))]}[ending],
    )


class Load:
    """Calls of every kind on one pool, and the account of what came of them.

    Attributes:
        most_runs: how often each call may have run, by its number.
        least_runs: how often it must have.
    """

    def __init__(self, pool: Pool, seed: int, log: Path) -> None:
        self.pool = pool
        self.chance = random.Random(seed)
        self.log = log
        self.most_runs: dict[int, int] = {}
        self.least_runs: collections.Counter[int] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def call(self, retries: int, *, lasting: bool = False) -> tuple[int, str, Call[Any]]:
        number = len(self.most_runs)
        chance = self.chance
        ending = chance.choices(list(ENDINGS), WEIGHTS)[0]
        seconds = 5.0 if lasting and chance.random() < 0.2 else chance.choice([0, 0, 0, 0.0005, 0.004, 0.02])
        self.most_runs[number] = 1 + (retries if ending in DEADLY else 0)
        argument: Any = int if ending != "unloadable" else Unreadable()
        if chance.random() < 0.05:
            argument = (argument, os.urandom(chance.choice([20_000, 100_000, 400_000, 1_000_000])))
        return number, ending, delayed(work)(number, ending, seconds, str(self.log), argument)

    def settle(self, number: int, ending: str, outcome: Any) -> None:
        """A call has ended with *outcome*, a value or an error: is it the right one?"""
        if not is_right(number, ending, outcome):
            self.wrong.append(f"call {number} ({ending}): {outcome!r:.200}")
        if ending != "unloadable":
            self.least_runs[number] = 1

    def target(self) -> Pool | LimitedPool:
        if self.chance.random() < 0.7:
            return self.pool
        return self.pool.limit(self.chance.choice("ab"), self.chance.randint(1, 3))

    async def act(self) -> None:
        """Do one thing, perhaps cut short."""
        kind = self.chance.choice([self.run, self.run, self.run, self.gather, self.gather, self.stream, self.time_out])
        task = asyncio.ensure_future(kind())
        if self.chance.random() < 0.3:
            for _ in range(self.chance.choice([0, 1, 2, 3, 5, 20])):
                await asyncio.sleep(0)
            await asyncio.sleep(self.chance.choice([0, 0, 0.001, 0.01, 0.05]))
            task.cancel()
        try:
            await task
            self.kinds[kind.__name__] += 1
        except asyncio.CancelledError:
            self.kinds[f"{kind.__name__} cancelled"] += 1
        except PoolSaturatedError:
            self.kinds[f"{kind.__name__} refused"] += 1

    async def run(self) -> None:
        retries = self.chance.choice([0, 0, 2])
        number, ending, call = self.call(retries)
        outcome: Any
        try:
            outcome = await self.target().run(
                call, retries=retries, queue_timeout=self.chance.choice([None, None, None, 0.02])
            )
        except (PoolSaturatedError, asyncio.CancelledError):
            raise
        except Exception as error:
            outcome = error
        self.settle(number, ending, outcome)

    async def time_out(self) -> None:
        """A call that overruns its timeout, unless it dies first."""
        on_cancel = self.chance.choice([None, "kill"])
        number, ending, call = self.call(0, lasting=True)
        try:
            outcome: Any = await self.target().run(call, timeout=1.0, on_cancel=on_cancel)
        except CallTimeoutError:
            self.least_runs[number] = 1
            return
        except Exception as error:
            outcome = error
        self.settle(number, ending, outcome)

    async def gather(self) -> None:
        retries = self.chance.choice([0, 0, 1])
        calls = [self.call(retries) for _ in range(self.chance.choice([0, 1, 3, 10, 60]))]
        alone = self.chance.random() < 0.2  # the first error ends it
        source: Any = self.source([call for _, _, call in calls])
        options: Any = {
            "retries": retries,
            "n_jobs": self.chance.choice([-1, 1, 2]),
            "batch_size": self.chance.choice(["auto", "auto", 1, 7, 100]),
            "pre_dispatch": self.chance.choice(["2 * n_jobs", "all", 1]),
        }
        try:
            outcomes = await self.target().gather(source, return_exceptions=not alone, **options)
        except PoolSaturatedError:
            raise
        except Exception as error:
            if not alone or not any(is_right(number, ending, error) for number, ending, _ in calls):
                self.wrong.append(f"gather: {error!r:.200}")
            return
        if len(outcomes) != len(calls):
            self.wrong.append(f"gather: {len(outcomes)} results of {len(calls)} calls")
        for (number, ending, _), outcome in zip(calls, outcomes, strict=False):
            self.settle(number, ending, outcome)

    def source(self, calls: list[Call[Any]]) -> Any:
        """*calls* as a list, an iterator or an asynchronous iterator."""

        def one_by_one() -> Iterator[Call[Any]]:
            yield from calls

        async def now_and_then() -> AsyncIterator[Call[Any]]:
            for call in calls:
                if self.chance.random() < 0.1:
                    await asyncio.sleep(0.001)
                yield call

        return self.chance.choice([calls, one_by_one(), now_and_then()])

    async def stream(self) -> None:
        calls = [self.call(0) for _ in range(self.chance.choice([0, 2, 10, 60]))]
        leave_after = self.chance.choice([None, None, 0, 3])
        seen = set()
        async with self.target().stream(
            self.source([call for _, _, call in calls]),
            ordered=self.chance.random() < 0.5,
            return_exceptions=True,
            n_jobs=self.chance.choice([-1, 1]),
        ) as results:
            async for index, outcome in results.indexed():
                if index in seen:
                    self.wrong.append(f"stream: index {index} came twice")
                seen.add(index)
                number, ending, _ = calls[index]
                self.settle(number, ending, outcome)
                if len(seen) == leave_after:
                    break
        if leave_after is None and len(seen) != len(calls):
            self.wrong.append(f"stream: {len(seen)} results of {len(calls)} calls")

    def check(self) -> None:
        assert not self.wrong
        runs = collections.Counter(map(int, self.log.read_text().split()))
        more = {number: times for number, times in runs.items() if times > self.most_runs[number]}
        assert not more, f"ran more often than they may: {more}"
        fewer = [number for number, times in self.least_runs.items() if runs[number] < times]
        assert not fewer, f"have an outcome and never ran: {fewer}"


async def until_idle(pool: Pool) -> None:
    """Wait for calls that nobody waits for any more: all they do is die."""
    while (now := pool.statistics()).busy or now.running:  # noqa: ASYNC110  # nothing tells
        await asyncio.sleep(0.001)
    assert now.queued == 0


@pytest.mark.parametrize(
    ("seed", "rounds"),
    [(0, 1), *(pytest.param(seed, 4, marks=pytest.mark.soak) for seed in range(1, 100))],
)
async def test_each_call_ends_as_it_must_whatever_others_do(seed: int, rounds: int, tmp_path: Path) -> None:
    chance = random.Random(f"pool {seed}")
    pool = Pool(
        3,
        max_queued=chance.choice([None, None, 40]),
        max_calls_per_worker=chance.choice([None, 20]),
        idle_timeout=chance.choice([300.0, 0.05]),
    )
    log = tmp_path / "runs"
    log.touch()
    load = Load(pool, seed, log)
    async with asyncio.timeout(60 * rounds), pool:
        for _ in range(rounds):
            await asyncio.gather(*(load.act() for _ in range(20)))
            await until_idle(pool)
            for key in "ab":
                of_key = pool.limit(key, 1).statistics()
                assert (of_key.busy, of_key.queued, of_key.running) == (0, 0, 0)
            assert await pool.gather(delayed(abs)(-number) for number in range(50)) == list(range(50))
        load.check()
