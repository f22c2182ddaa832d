"""What ``stream_parallel`` tells a type checker. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import assert_type

from aparallel import Call, ResultStream, delayed, stream_parallel


def square(number: int) -> int:
    return number * number


async def arriving() -> AsyncIterator[Call[int]]:
    yield delayed(square)(1)


async def results_have_their_calls_type() -> None:
    async with stream_parallel(delayed(square)(x) for x in range(3)) as results:
        assert_type(results, ResultStream[int])
        async for result in results:
            assert_type(result, int)
            assert_type(results.index, int)


async def indexed_results_come_with_their_index() -> None:
    async with stream_parallel(arriving(), ordered=False, n_jobs=2) as results:
        async for index, result in results.indexed():
            assert_type(index, int)
            assert_type(result, int)


async def with_return_exceptions_failures_are_among_the_results() -> None:
    async with stream_parallel([delayed(square)(1)], return_exceptions=True) as results:
        async for result in results:
            assert_type(result, int | BaseException)


async def wrong_use_is_rejected() -> None:
    stream_parallel([delayed(square)(1)], order=False)  # type: ignore[call-overload]
    stream_parallel([square(1)])  # type: ignore[arg-type]
    stream_parallel(delayed(square)(1), delayed(square)(2))  # type: ignore[call-overload]
    stream_parallel([delayed(square)("1")])  # type: ignore[arg-type]
