"""What is awaited behaves as if it were awaited by itself, and sources that do not suspend are drawn in one go."""

from __future__ import annotations

import asyncio
import gc
import types
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

from aparallel import Pool, delayed
from aparallel._ground.awaiting import Announced
from aparallel.testing import FakeBackend


class Told:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


async def test_what_ends_at_once_announces_nothing() -> None:
    told = Told()

    async def quick() -> int:
        return 7

    assert await Announced(quick(), told) == 7
    with pytest.raises(LookupError):
        await Announced(failing(0), told)
    assert told.times == 0


async def failing(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    raise LookupError


async def test_what_suspends_is_announced_once_and_goes_on_as_by_itself() -> None:
    told = Told()

    async def slow() -> list[int]:
        found = []
        for number in range(3):
            await asyncio.sleep(0)
            found.append(await asyncio.sleep(0.001, number))
        return found

    assert await Announced(slow(), told) == [0, 1, 2]
    assert told.times == 1
    with pytest.raises(LookupError):
        await Announced(failing(3), told)


async def test_a_future_and_any_iterator_may_be_awaited_so() -> None:
    told = Told()
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 5)
    assert await Announced(future, told) == 5

    class Plain:
        def __await__(self) -> Iterator[None]:
            return iter([None, None])

    assert await Announced(Plain(), told) is None  # type: ignore[arg-type]
    assert told.times == 2


async def test_a_generator_that_is_a_coroutine_may_be_awaited_so() -> None:
    @types.coroutine
    def steps() -> Generator[Any, Any, int]:
        yield from asyncio.sleep(0).__await__()
        return 6

    assert await Announced(steps(), Told()) == 6


@pytest.mark.parametrize("goes_on", [False, True])
async def test_cancelling_reaches_what_is_awaited(goes_on: bool) -> None:
    begun = asyncio.Event()
    seen: list[str] = []

    async def waits() -> str:
        try:
            begun.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            if not goes_on:
                raise
        return "went on"

    async def task() -> str:
        return await Announced(waits(), Told())

    running = asyncio.create_task(task())
    await begun.wait()
    running.cancel()
    if goes_on:
        assert await running == "went on"
    else:
        with pytest.raises(asyncio.CancelledError):
            await running
    assert seen == ["cancelled"]


async def test_what_a_cancelled_source_refers_to_is_gone_with_it() -> None:
    class Kept:
        pass

    async def source(kept: Kept) -> AsyncIterator[Any]:
        yield delayed(abs)(1)
        begun.set()
        await asyncio.sleep(60)
        raise AssertionError(kept)

    begun = asyncio.Event()
    kept = Kept()
    alive = weakref.ref(kept)
    gc.disable()
    try:
        async with Pool(1, backend="inline") as pool:
            gathering = asyncio.create_task(pool.gather(source(kept)))
            del kept
            await begun.wait()
            gathering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gathering
            del gathering
            await asyncio.sleep(0)
            assert alive() is None
    finally:
        gc.enable()


async def test_a_plain_iterator_that_is_cancelled_is_left() -> None:
    class Endless:
        def __await__(self) -> Iterator[None]:
            return iter(lambda: None, 1)

    async def task() -> None:
        await Announced(Endless(), Told())  # type: ignore[arg-type]

    running = asyncio.create_task(task())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_leaving_it_closes_what_is_awaited() -> None:
    closed = Told()

    class Steps:
        def __await__(self) -> Generator[Any, Any, None]:
            try:
                yield
            finally:
                closed()

    steps = Announced(Steps(), Told()).__await__()
    next(steps)
    steps.close()
    assert closed.times == 1


async def changing(count: int, every: int) -> AsyncIterator[Any]:
    numbers = [0]
    for number in range(count):
        if number % every == every - 1:
            await asyncio.sleep(0)
        numbers[0] = number
        yield delayed(sum)(numbers)


@pytest.mark.parametrize("every", [1, 7, 10_000])
async def test_calls_of_an_async_source_see_their_arguments_as_they_are_drawn(every: int) -> None:
    async with Pool(2) as pool:
        assert await pool.gather(changing(500, every)) == list(range(500))


async def test_large_calls_and_ones_that_cannot_be_pickled_keep_their_place_in_an_async_source() -> None:
    async def calls() -> AsyncIterator[Any]:
        for number in range(60):
            if number % 20 == 5:
                yield delayed(len)(b"x" * 2_000_000)
            elif number % 20 == 7:
                yield delayed(repr)(x for x in ())
            else:
                yield delayed(abs)(-number)

    async with Pool(2) as pool:
        found = await pool.gather(calls(), return_exceptions=True)
    for number, value in enumerate(found):
        if number % 20 == 7:
            assert f"Call {number} " in str(value)
        else:
            assert value == (2_000_000 if number % 20 == 5 else number)


async def test_calls_drawn_before_an_async_source_suspends_run_meanwhile() -> None:
    backend = FakeBackend()
    waiting = asyncio.Event()
    go_on = asyncio.Event()

    async def calls() -> AsyncIterator[Any]:
        for number in range(3):
            yield delayed(abs)(-number)
        waiting.set()
        await go_on.wait()
        yield delayed(abs)(-3)

    async with Pool(1, backend) as pool:
        task = asyncio.ensure_future(pool.gather(calls(), pre_dispatch=10))
        await waiting.wait()
        async with asyncio.timeout(5):
            while sum(backend.workers[0].messages if backend.workers else ()) < 3 or backend.workers[0].waiting:
                await asyncio.sleep(0)
                if backend.workers and backend.workers[0].waiting:
                    backend.workers[0].finish(len(backend.workers[0].waiting))
            assert not go_on.is_set()
            go_on.set()
            while not backend.workers[0].waiting:  # noqa: ASYNC110
                await asyncio.sleep(0)
            backend.workers[0].finish()
            assert await task == [0, 1, 2, 3]
