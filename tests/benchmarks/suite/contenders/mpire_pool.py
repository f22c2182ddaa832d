"""mpire.WorkerPool, kept alive: maps in a thread, single calls through their callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mpire.pool import WorkerPool

from suite.contender import A, Contender, R


class MpirePool(Contender):
    cold_script = """
from mpire import WorkerPool

def double(number):
    return 2 * number

if __name__ == "__main__":
    with WorkerPool(2) as pool:
        print(pool.map(double, range(2)), flush=True)
"""

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)
        self._pool = WorkerPool(n_jobs, keep_alive=True)

    async def stop(self) -> None:
        await asyncio.to_thread(self._pool.stop_and_join)

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[R] = loop.create_future()
        self._pool.apply_async(
            fn,
            (arg,),
            callback=lambda result: loop.call_soon_threadsafe(arrived.set_result, result),
            error_callback=lambda error: loop.call_soon_threadsafe(arrived.set_exception, error),
        )
        return await arrived

    async def map(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        return await asyncio.to_thread(self._pool.map, fn, args)

    async def stream(self, fn: Callable[[A], R], args: Iterable[A], consume: Callable[[R], None]) -> None:
        def work() -> None:
            for result in self._pool.imap(fn, args):
                consume(result)

        await asyncio.to_thread(work)

    async def as_completed(self, fn: Callable[[A], R], args: Sequence[A], consume: Callable[[R], None]) -> None:
        # In mpire 2.10, workers that are kept alive take imap_unordered for the map that they did before, unless the
        # function is another one.
        other = partial(fn)

        def work() -> None:
            for result in self._pool.imap_unordered(other, args):
                consume(result)

        await asyncio.to_thread(work)
