"""anyio.to_process, with a limiter of its own."""

from __future__ import annotations

from collections.abc import Callable

from anyio import CapacityLimiter, to_process

from suite.contender import A, Contender, R


class AnyioToProcess(Contender):
    cold_script = """
import asyncio
from anyio import to_process

def double(number):
    return 2 * number

async def main():
    print(await asyncio.gather(*(to_process.run_sync(double, number) for number in range(2))), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)
        self._limiter = CapacityLimiter(n_jobs)

    async def stop(self) -> None:
        """Its workers end with the event loop."""

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        return await to_process.run_sync(fn, arg, limiter=self._limiter)
