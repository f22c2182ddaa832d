"""What test_nested has done inside workers, which import it by name, and no pytest with it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

from aparallel import Call, Pool, delayed, errors, gather_parallel, parallel_config

chosen: contextvars.ContextVar[str] = contextvars.ContextVar("chosen")
initialized: list[str] = []


async def deep(depth: int, fn: Callable[[], Awaitable[Any]]) -> Any:
    """Await *fn* so deep in workers: 1 is a process, 2 a thread of it."""
    if not depth:
        return await fn()
    (result,) = await gather_parallel([delayed(deep)(depth - 1, fn)], n_jobs=1)
    return result


async def overrun() -> Any:
    async with Pool(1) as pool:
        try:
            await pool.run(asyncio.sleep, 60, timeout=0.05)
        except errors.CallTimeoutError as error:
            return error.timeout


async def overrun_in_a_gather() -> Any:
    calls: list[Call[Any]] = [delayed(asyncio.sleep)(60), delayed(abs)(-1)]
    results = await gather_parallel(calls, n_jobs=2, timeout=0.5, return_exceptions=True)
    return [type(result).__name__ for result in results]


async def overrun_as_a_block_says() -> Any:
    with parallel_config(n_jobs=1, timeout=0.05, on_cancel="kill"):
        try:
            await gather_parallel([delayed(asyncio.sleep)(60)])
        except errors.CallTimeoutError as error:
            return error.timeout


async def cancel_what_is_to_be_killed() -> Any:
    cancelled = []
    async with Pool(1, on_cancel="kill") as pool, Pool(1) as other:
        for used, options in ((pool, {}), (other, {"on_cancel": "kill"})):
            task = asyncio.create_task(used.run(asyncio.sleep, 60, **options))
            while not used.statistics().running:  # noqa: ASYNC110  counted by the pool
                await asyncio.sleep(0.001)
            task.cancel()
            cancelled += await asyncio.gather(task, return_exceptions=True)
    return [type(error).__name__ for error in cancelled]


async def use_every_setting() -> Any:
    async with Pool(
        1,
        initializer=initialized.append,
        initargs=("here",),
        context_vars=[chosen],
        inner_max_num_threads=1,
        executable=None,
        nice=1,
        logs=False,
        max_nbytes="1K",
        mmap_mode="c",
        temp_folder="/",
    ) as pool:
        chosen.set("mine")
        return await pool.run(list, initialized), await pool.run(chosen.get), pool.backend_name


async def refused() -> Any:
    texts = []
    for backend, on_cancel in (("process", "wait"), ("thread", None)):
        async with Pool(1, backend) as pool:  # type: ignore[arg-type]
            try:
                await pool.run(abs, 1, timeout=5, on_cancel=on_cancel)  # type: ignore[arg-type]
            except ValueError as error:
                texts.append(str(error))
    return texts
