"""What every contender can be asked to do."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

A = TypeVar("A")
R = TypeVar("R")

# How many calls to keep under way per worker when a contender has no stream of its own: enough to hide every round
# trip, few enough for constant memory.
WINDOW_PER_WORKER = 64


class NotOffered(Exception):
    """The contender has no sensible way to do this work; the text says why."""


class Contender(ABC):
    """One way to run Python functions on other cores, used from a coroutine.

    Each verb is to be written in the quickest way that the documentation of the contender shows. Blocking interfaces
    run in a thread, so that the loop lives on. Only ``start``, ``stop`` and ``run`` are required; the other verbs are
    here built from ``run`` and are overridden by contenders that know better.
    """

    cold_script: ClassVar[str]
    """A whole program, as a user would write it, that doubles 0 and 1 on two workers and prints ``[0, 2]``."""

    n_jobs: int = 1

    @abstractmethod
    async def start(self, n_jobs: int) -> None:
        """Make ready to use *n_jobs* workers. They need not run yet."""
        self.n_jobs = n_jobs

    @abstractmethod
    async def stop(self) -> None:
        """Stop all workers and leave nothing behind."""

    @abstractmethod
    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        """Run a single call."""

    async def separate(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        """Run calls that know nothing of each other and start at the same moment. Results in order."""
        return await self.coroutines(fn, args)

    async def coroutines(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        """The same, each call a coroutine of its own."""
        return await asyncio.gather(*(self.run(fn, arg) for arg in args))

    async def map(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        """Run many calls that are known at once. Results in order."""
        return await self.separate(fn, args)

    async def map_list(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        """The same, with the calls in a list: nothing happens between drawing one and the next."""
        return await self.map(fn, args)

    @asynccontextmanager
    async def share(self, value: Any) -> AsyncIterator[Any]:
        """Put a value where all workers see it, and give what stands for it in a call's arguments.

        Who has nothing of the kind passes the value itself, each time.
        """
        yield value

    async def map_shared(self, fn: Callable[[tuple[Any, A]], R], shared: Any, args: Sequence[A]) -> list[R]:
        """Run ``fn((value, arg))`` for each of *args*, where *shared* stands for the value."""
        return await self.map_list(fn, [(shared, arg) for arg in args])

    async def stream(self, fn: Callable[[A], R], args: Iterable[A], consume: Callable[[R], None]) -> None:
        """Draw *args* as workers free up and *consume* the results in order, in any thread."""
        under_way: deque[asyncio.Task[R]] = deque()
        for arg in args:
            under_way.append(asyncio.create_task(self.run(fn, arg)))
            if len(under_way) == WINDOW_PER_WORKER * self.n_jobs:
                consume(await under_way.popleft())
        while under_way:
            consume(await under_way.popleft())

    async def as_completed(self, fn: Callable[[A], R], args: Sequence[A], consume: Callable[[R], None]) -> None:
        """Run *args* and *consume* each result as soon as it is there, in any thread."""

        async def run_and_consume(arg: A) -> None:
            consume(await self.run(fn, arg))

        await asyncio.gather(*map(run_and_consume, args))
