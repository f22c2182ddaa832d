"""aparallel, through a Pool that is kept warm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aparallel import Pool, delayed
from suite.contender import A, Contender, R


class AparallelPool(Contender):
    cold_script = """
import asyncio
from aparallel import delayed, gather_parallel

def double(number):
    return 2 * number

async def main():
    print(await gather_parallel((delayed(double)(number) for number in range(2)), n_jobs=2), flush=True)

asyncio.run(main())
"""

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)
        self._pool = await Pool(n_jobs).__aenter__()

    async def stop(self) -> None:
        await self._pool.aclose()

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        return await self._pool.run(fn, arg)

    async def separate(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        return await asyncio.gather(*(self._pool.run(fn, arg) for arg in args))

    async def map(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        return await self._pool.gather(delayed(fn)(arg) for arg in args)

    async def map_list(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        return await self._pool.gather([delayed(fn)(arg) for arg in args])

    @asynccontextmanager
    async def share(self, value: Any) -> AsyncIterator[Any]:
        async with self._pool.share(value) as shared:
            yield shared

    async def stream(self, fn: Callable[[A], R], args: Iterable[A], consume: Callable[[R], None]) -> None:
        async with self._pool.stream(delayed(fn)(arg) for arg in args) as results:
            async for result in results:
                consume(result)

    async def as_completed(self, fn: Callable[[A], R], args: Sequence[A], consume: Callable[[R], None]) -> None:
        async with self._pool.stream((delayed(fn)(arg) for arg in args), ordered=False) as results:
            async for result in results:
                consume(result)
