"""Tasks on a ray cluster of this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import ray  # type: ignore[import-not-found, unused-ignore]

from suite.contender import A, Contender, R


class RayTasks(Contender):
    cold_script = """
import os
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

@ray.remote
def double(number):
    return 2 * number

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
print(ray.get([double.remote(number) for number in range(2)]), flush=True)
"""

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._tasks: dict[Callable[..., object], Any] = {}
        await asyncio.to_thread(
            ray.init, num_cpus=n_jobs, include_dashboard=False, log_to_driver=False, logging_level="error"
        )

    async def stop(self) -> None:
        await asyncio.to_thread(ray.shutdown)

    def _task(self, fn: Callable[[A], R]) -> Any:
        if fn not in self._tasks:
            self._tasks[fn] = ray.remote(fn)
        return self._tasks[fn]

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        result: R = await self._task(fn).remote(arg)
        return result

    async def map(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        def work() -> list[R]:
            task = self._task(fn)
            results: list[R] = ray.get([task.remote(arg) for arg in args])
            return results

        return await asyncio.to_thread(work)

    @asynccontextmanager
    async def share(self, value: Any) -> AsyncIterator[Any]:
        yield await asyncio.to_thread(ray.put, value)

    async def map_shared(self, fn: Callable[[tuple[Any, A]], R], shared: Any, args: Sequence[A]) -> list[R]:
        # Only a reference that is an argument itself is resolved.
        def of_two(value: Any, arg: A) -> R:
            return fn((value, arg))

        def work() -> list[R]:
            task = ray.remote(of_two)
            results: list[R] = ray.get([task.remote(shared, arg) for arg in args])
            return results

        return await asyncio.to_thread(work)
