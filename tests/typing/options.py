"""What a library sees that passes the options of aparallel on. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, Unpack, assert_type

from aparallel import BackendName, GatherOptions, Pool, PoolSettings, delayed, gather_parallel, stream_parallel
from aparallel.abc import Backend

T = TypeVar("T")
R = TypeVar("R")


async def apply(fn: Callable[[T], R], items: Iterable[T], **options: Unpack[GatherOptions]) -> list[R]:
    async with stream_parallel((delayed(fn)(item) for item in items), **options) as results:
        assert_type([result async for result in results], list[R])
    return await gather_parallel((delayed(fn)(item) for item in items), **options)


async def apply_on(fn: Callable[[T], R], items: Iterable[T], backend: BackendName | Backend) -> list[R]:
    return await gather_parallel((delayed(fn)(item) for item in items), backend=backend)


def new_pool(**settings: Unpack[PoolSettings]) -> Pool:
    return Pool(**settings)


async def promises(backend: Backend) -> None:
    assert_type(await apply(len, ["a"], n_jobs=2, backend="thread"), list[int])
    assert_type(await apply_on(len, ["a"], backend), list[int])
    new_pool(n_jobs=2, max_queued=10)

    await apply(len, ["a"], njobs=2)  # type: ignore[call-arg]
    await apply_on(len, ["a"], "treads")  # type: ignore[arg-type]
    new_pool(max_que=10)  # type: ignore[call-arg]
