"""What ``gather_parallel`` and ``parallel_config`` tell a type checker. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import assert_type

from aparallel import Call, Pool, delayed, gather_parallel, parallel_config


def square(number: int) -> int:
    return number * number


def shout(text: str) -> str:
    return text.upper()


async def fetch(key: str) -> bytes:
    return key.encode()


async def arriving() -> AsyncIterator[Call[int]]:
    yield delayed(square)(1)


async def calls_in_one_iterable_give_a_list(calls: Iterable[Call[int]]) -> None:
    assert_type(await gather_parallel(delayed(square)(x) for x in range(3)), list[int])
    assert_type(await gather_parallel([delayed(square)(1)]), list[int])
    assert_type(await gather_parallel((delayed(square)(x) for x in range(3)), n_jobs=2), list[int])
    assert_type(await gather_parallel(calls), list[int])
    assert_type(await gather_parallel(arriving()), list[int])
    assert_type(await gather_parallel(delayed(square)(x) async for x in numbers()), list[int])
    assert_type(await gather_parallel(delayed(fetch)(key) for key in "abc"), list[bytes])


async def numbers() -> AsyncIterator[int]:
    yield 1


async def single_calls_give_a_tuple_of_their_types() -> None:
    assert_type(await gather_parallel(delayed(square)(1), delayed(shout)("x")), tuple[int, str])
    one, two, three = await gather_parallel(delayed(square)(1), delayed(shout)("x"), delayed(fetch)("y"))
    assert_type(one, int)
    assert_type(two, str)
    assert_type(three, bytes)
    a, b, c = delayed(square)(1), delayed(shout)("x"), delayed(fetch)("y")
    assert_type(await gather_parallel(a, b, c, a), tuple[int, str, bytes, int])
    assert_type(await gather_parallel(a, b, c, a, b), tuple[int, str, bytes, int, str])


async def many_single_calls_of_one_type_give_a_list(calls: list[Call[int]]) -> None:
    assert_type(await gather_parallel(delayed(square)(1)), list[int])
    assert_type(await gather_parallel(delayed(square)(1), n_jobs=2), list[int])
    assert_type(await gather_parallel(delayed(square)(1), return_exceptions=True), list[int | BaseException])
    assert_type(await gather_parallel(*calls), list[int])


async def calls_of_different_functions_in_one_iterable_are_welcome(flag: bool) -> None:
    assert_type(await gather_parallel([delayed(square)(1), delayed(shout)("x")]), list[object])
    mixed: list[Call[int] | Call[str]] = [delayed(square)(1), delayed(shout)("x")]
    results: list[int | str] = await gather_parallel(mixed)
    assert_type(results, list[int | str])


async def with_return_exceptions_failures_are_among_the_results(flag: bool) -> None:
    calls = [delayed(square)(1)]
    assert_type(await gather_parallel(calls, return_exceptions=True), list[int | BaseException])
    assert_type(await gather_parallel(arriving(), return_exceptions=True), list[int | BaseException])
    assert_type(await gather_parallel(*calls, return_exceptions=True), list[int | BaseException])
    assert_type(
        await gather_parallel(delayed(square)(1), delayed(shout)("x"), return_exceptions=True),
        tuple[int | BaseException, str | BaseException],
    )
    assert_type(await gather_parallel(calls, return_exceptions=False), list[int])


async def every_option_is_known(pool: Pool, calls: list[Call[int]]) -> None:
    await gather_parallel(
        calls,
        n_jobs=-2,
        backend="process",
        batch_size="auto",
        pre_dispatch="2*n_jobs",
        timeout=1.5,
        verbose=10,
        retries=1,
        on_cancel="wait",
        progress=True,
        inner_max_num_threads=1,
    )
    await gather_parallel(calls, prefer="threads", batch_size=10, pre_dispatch=100, progress=print)
    await gather_parallel(calls, require="sharedmem", pre_dispatch="all", timeout=None)
    await gather_parallel(calls, backend="loky")
    await gather_parallel(calls, pool=pool, progress=lambda done, total: None)


async def unknown_and_wrong_options_are_rejected(calls: list[Call[int]]) -> None:
    await gather_parallel(calls, njobs=2)  # type: ignore[call-overload]
    await gather_parallel(calls, n_jobs="2")  # type: ignore[call-overload]
    await gather_parallel(calls, on_cancel="stop")  # type: ignore[call-overload]
    await gather_parallel(calls, backend="proces")  # type: ignore[call-overload]
    await gather_parallel(calls, require="speed")  # type: ignore[call-overload]
    await gather_parallel(calls, initializer=print)  # type: ignore[call-overload]
    await gather_parallel(calls, progress=lambda done: None)  # type: ignore[arg-type, misc]
    await gather_parallel(delayed(square)(1), delayed(shout)("x"), njobs=2)  # type: ignore[call-overload]


async def what_is_no_call_is_rejected() -> None:
    await gather_parallel(square(1))  # type: ignore[call-overload]
    await gather_parallel([square(1)])  # type: ignore[arg-type]
    await gather_parallel(square)  # type: ignore[call-overload]


async def a_wrong_argument_inside_a_gather_is_rejected() -> None:
    await gather_parallel(delayed(square)(x) for x in "abc")  # type: ignore[arg-type]


def defaults_for_a_block() -> None:
    with parallel_config(n_jobs=2, backend="thread", verbose=1):
        pass
    with parallel_config(njobs=2):  # type: ignore[call-arg]
        pass
    with parallel_config(n_jobs="2"):  # type: ignore[arg-type]
        pass
