"""Work that stops when you stop waiting for it: cancellation, ``asyncio.timeout`` and a call's own ``timeout``."""

import asyncio
import time
from collections.abc import Awaitable

from aparallel import Pool, delayed
from aparallel.errors import CallTimeoutError


def spin(seconds: float) -> float:
    """Keep one core busy. No thread could be stopped in here; a process worker can."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


async def how_it_ends(work: Awaitable[object]) -> str:
    start = time.perf_counter()
    try:
        await work
        outcome = "finished"
    except (asyncio.CancelledError, TimeoutError) as error:
        outcome = type(error).__name__
    return f"{outcome} after {time.perf_counter() - start:.1f} s"


async def main() -> None:
    async with Pool(n_jobs=2) as pool:
        await pool.warm_up()

        # The limit of one call, in seconds of execution: time spent queued does not count.
        try:
            await pool.run(spin, 60, timeout=0.2)
        except CallTimeoutError as error:
            print(f"timeout=0.2: {error}")

        # asyncio's own limit, over everything in the block.
        try:
            async with asyncio.timeout(0.2):
                await pool.gather(delayed(spin)(60) for _ in range(100))
        except TimeoutError:
            print("asyncio.timeout: the gather of 100 calls is over")

        # A cancelled task.
        task = asyncio.create_task(how_it_ends(pool.run(spin, 60)))
        await asyncio.sleep(0.2)
        task.cancel()
        print(f"task.cancel(): {await task}")

        # The workers were killed and replaced; the pool is as good as new.
        print(f"afterwards: {await how_it_ends(pool.run(spin, 0.1))}")
        statistics = pool.statistics()
        assert statistics.busy == statistics.queued == 0
        print(pool)


asyncio.run(main())
