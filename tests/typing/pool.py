"""What ``Pool`` tells a type checker. Checked by mypy, never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import assert_type

from aparallel import (
    Call,
    LimitedPool,
    LimitStatistics,
    Pool,
    PoolStatistics,
    ResultStream,
    cpu_count,
    delayed,
    gather_parallel,
    stream_parallel,
)

request: ContextVar[str] = ContextVar("request")


def area(width: int, height: int) -> float:
    return float(width * height)


def shout(text: str) -> str:
    return text.upper()


async def fetch(key: str) -> bytes:
    return key.encode()


async def arriving() -> AsyncIterator[Call[float]]:
    yield delayed(area)(1, 2)


async def run_gives_what_the_function_returns(pool: Pool) -> None:
    assert_type(await pool.run(area, 2, 3), float)
    assert_type(await pool.run(area, 2, 3, timeout=2.0, on_cancel="abandon"), float)
    assert_type(await pool.run(delayed(area)(2, height=3)), float)
    assert_type(await pool.run(delayed(area)(2, height=3), timeout=None), float)
    assert_type(await pool.run(area, 2, 3, retries=1), float)
    assert_type(await pool.run(fetch, "key"), bytes)
    number = assert_type(pool.submit(area, 2, 3, timeout=2.0), asyncio.Future[float])
    text = assert_type(pool.submit(fetch, "key"), asyncio.Future[bytes])
    assert_type(await asyncio.gather(number, text), tuple[float, bytes])
    assert_type(await pool.submit(delayed(area)(2, height=3)), float)
    await pool.submit(area, 2, "3")  # type: ignore[arg-type, call-arg]
    assert_type(await pool.run(fetch, "key", retries=1), bytes)
    assert_type(await pool.run(delayed(fetch)("key")), bytes)
    assert_type(await asyncio.gather(pool.run(area, 2, 3), pool.run(fetch, "key")), tuple[float, bytes])
    await assert_type(asyncio.create_task(pool.run(area, 2, 3)), asyncio.Task[float])


async def run_rejects_wrong_arguments(pool: Pool) -> None:
    await pool.run(area, 2, "3")  # type: ignore[arg-type, call-arg]
    await pool.run(area, 2, 3, retries="1")  # type: ignore[call-arg, call-overload]
    await pool.run(area, 2)  # type: ignore[arg-type]
    await pool.run(area, 2, 3, 4)  # type: ignore[arg-type, call-arg]
    await pool.run(fetch, 1)  # type: ignore[arg-type]
    await pool.run(area, 2, 3, height=3)  # type: ignore[call-overload]
    await pool.run(area, 2, 3, timeout="2")  # type: ignore[call-arg, call-overload]
    assert_type(await pool.run(area, 2, 3, queue_timeout=0.5), float)
    assert_type(await pool.run(fetch, "key", queue_timeout=None), bytes)
    await pool.run(area, 2, 3, queue_timeout="1")  # type: ignore[call-arg, call-overload]
    await pool.run(area, 2, 3, on_cancel="stop")  # type: ignore[call-arg, call-overload]


async def map_gives_a_list(pool: Pool) -> None:
    assert_type(await pool.map(shout, ["a", "b"]), list[str])
    assert_type(await pool.map(area, [1, 2], range(2)), list[float])
    assert_type(await pool.map(fetch, "abc", n_jobs=2), list[bytes])
    assert_type(await pool.map(shout, ["a", "b"], return_exceptions=True), list[str | BaseException])
    assert_type(await pool.map(fetch, "abc", return_exceptions=True), list[bytes | BaseException])
    await pool.map(shout, [1])  # type: ignore[arg-type]
    await pool.map(area, [1], "a")  # type: ignore[arg-type]


async def gather_is_typed_as_gather_parallel_is(pool: Pool) -> None:
    calls = [delayed(area)(1, 2)]
    assert_type(await pool.gather(calls), list[float])
    assert_type(await pool.gather(delayed(area)(2, 3)), list[float])
    assert_type(await pool.gather(delayed(area)(2, 3), return_exceptions=True), list[float | BaseException])
    assert_type(await pool.gather(arriving(), timeout=1), list[float])
    assert_type(await pool.gather(*calls), list[float])
    assert_type(await pool.gather(delayed(area)(1, 2), delayed(shout)("x")), tuple[float, str])
    a, b, c = delayed(area)(1, 2), delayed(shout)("x"), delayed(fetch)("y")
    assert_type(await pool.gather(a, b, c), tuple[float, str, bytes])
    assert_type(await pool.gather(a, b, c, a), tuple[float, str, bytes, float])
    assert_type(await pool.gather(a, b, c, a, b, n_jobs=2), tuple[float, str, bytes, float, str])
    assert_type(
        await pool.gather(a, b, c, b, return_exceptions=True),
        tuple[float | BaseException, str | BaseException, bytes | BaseException, str | BaseException],
    )
    assert_type(
        await pool.gather(a, b, c, b, a, return_exceptions=True),
        tuple[
            float | BaseException,
            str | BaseException,
            bytes | BaseException,
            str | BaseException,
            float | BaseException,
        ],
    )
    assert_type(await pool.gather(calls, return_exceptions=True), list[float | BaseException])
    await pool.gather(calls, backend="thread")  # type: ignore[call-overload]
    await pool.gather(calls, pool=pool)  # type: ignore[call-overload]


async def stream_is_typed_as_stream_parallel_is(pool: Pool) -> None:
    async with pool.stream((delayed(area)(x, x) for x in range(3)), ordered=False) as results:
        assert_type(results, ResultStream[float])
        async for index, result in results.indexed():
            assert_type(index, int)
            assert_type(result, float)
    pool.stream([delayed(area)(1, 2)], backend="thread")  # type: ignore[call-overload]


async def a_limited_pool_is_typed_as_its_pool_is(pool: Pool) -> None:
    limited = pool.limit(("tenant", 1), 2, max_queued=10)
    assert_type(limited, LimitedPool)
    assert_type(limited.statistics(), LimitStatistics)
    assert_type(await limited.run(area, 2, 3, timeout=2.0, queue_timeout=1), float)
    assert_type(await limited.run(delayed(fetch)("key")), bytes)
    assert_type(await limited.map(shout, ["a", "b"]), list[str])
    calls = [delayed(area)(1, 2)]
    assert_type(await limited.gather(calls), list[float])
    a, b, c = delayed(area)(1, 2), delayed(shout)("x"), delayed(fetch)("y")
    assert_type(await limited.gather(a, b), tuple[float, str])
    assert_type(await limited.gather(a, b, c, b), tuple[float, str, bytes, str])
    assert_type(await limited.gather(a, b, c, b, a), tuple[float, str, bytes, str, float])
    assert_type(await gather_parallel(calls, pool=limited), list[float])
    async with limited.stream(calls) as results:
        assert_type(results, ResultStream[float])
    async with stream_parallel(calls, pool=limited) as results:
        assert_type(results, ResultStream[float])
    await limited.run(area, 2)  # type: ignore[arg-type]
    pool.limit([], 2)  # type: ignore[arg-type]
    pool.limit("tenant")  # type: ignore[call-arg]


async def a_pool_is_a_context_manager_of_itself() -> None:
    async with Pool(2, "thread", initializer=shout, initargs=("x",), context_vars=[request]) as pool:
        assert_type(pool, Pool)
        await pool.warm_up()
    await pool.aclose()
    await pool.aclose(timeout=10)
    Pool(nice=10, queue_timeout=1.5)
    Pool(backend="process", idle_timeout=10, max_calls_per_worker=100, max_queued=10, inner_max_num_threads=1)
    Pool(jobs=2)  # type: ignore[call-arg]
    Pool(on_cancel="stop")  # type: ignore[arg-type]


def statistics_are_frozen(pool: Pool) -> None:
    statistics = pool.statistics()
    assert_type(statistics, PoolStatistics)
    assert_type(statistics.busy, int)
    statistics.busy = 0  # type: ignore[misc]


assert_type(cpu_count(), int)
