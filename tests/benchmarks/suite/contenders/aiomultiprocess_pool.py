"""aiomultiprocess.Pool. It runs coroutine functions only, so each call is wrapped in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiomultiprocess import Pool

from suite.contender import A, Contender, R


async def call(fn: Callable[[A], R], arg: A) -> R:
    return fn(arg)


class AiomultiprocessPool(Contender):
    cold_script = """
import asyncio
from aiomultiprocess import Pool

async def double(number):
    return 2 * number

async def main():
    async with Pool(2) as pool:
        print(list(await pool.map(double, range(2))), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)
        self._pool = Pool(n_jobs)

    async def stop(self) -> None:
        self._pool.close()
        await self._pool.join()

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        result: R = await self._pool.apply(call, (fn, arg))
        return result

    async def map(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        return list(await self._pool.starmap(call, [(fn, arg) for arg in args]))
