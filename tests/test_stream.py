"""What stream_parallel promises: order, indexes, a constant window, a clean end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traveling import by_value
from work import double, fail

from aparallel import Call, Pool, delayed, gather_parallel, stream_parallel
from aparallel.testing import FakeBackend

BACKENDS: list[Any] = ["process", "thread", "inline"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@by_value
def wait_for(path: Path, value: int) -> int:
    deadline = time.monotonic() + 20
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(str(path))
        time.sleep(0.002)
    return value


@by_value
def of_size(kind: Any, size: int) -> Any:
    """A value of about so many bytes."""
    if kind is dict:
        return dict.fromkeys(range(size // 1000), b"x" * 1000)
    return kind(size) if kind is bytes else kind(size // 8)


@each_backend
async def test_results_come_in_order(backend: Any) -> None:
    async with stream_parallel((delayed(double)(x) for x in range(300)), backend=backend) as results:
        assert [result async for result in results] == [2 * x for x in range(300)]


@each_backend
async def test_unordered_results_tell_their_index(backend: Any) -> None:
    calls = [delayed(double)(x) for x in range(300)]
    seen = {}
    async with stream_parallel(calls, ordered=False, backend=backend) as results:
        async for result in results:
            seen[results.index] = result
    assert seen == {x: 2 * x for x in range(300)}


@pytest.mark.parametrize("ordered", [True, False])
async def test_indexed_gives_pairs(ordered: bool) -> None:
    calls = [delayed(double)(x) for x in range(50)]
    async with stream_parallel(calls, ordered=ordered, backend="thread") as results:
        pairs = [pair async for pair in results.indexed()]
    assert sorted(pairs) == [(x, 2 * x) for x in range(50)]
    assert ordered is False or pairs == sorted(pairs)


async def test_there_is_no_index_before_the_first_result() -> None:
    async with stream_parallel([delayed(double)(1)], backend="inline") as results:
        with pytest.raises(LookupError, match="No result"):
            results.index  # noqa: B018


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_unordered_results_do_not_wait_for_a_slow_one(backend: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    calls = [delayed(wait_for)(gate, 0)] + [delayed(double)(x) for x in range(1, 20)]
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        async with asyncio.timeout(15), pool.stream(calls, ordered=False) as results:
            order = []
            async for index, _ in results.indexed():
                order.append(index)
                if len(order) == 19:
                    gate.touch()
    assert order[-1] == 0
    assert sorted(order) == list(range(20))


@each_backend
async def test_an_unread_stream_stops_drawing(backend: Any) -> None:
    drawn = 0

    def calls() -> Iterator[Any]:
        nonlocal drawn
        for x in itertools.count():
            drawn += 1
            yield delayed(double)(x)

    async with Pool(2, backend) as pool:
        async with pool.stream(calls(), pre_dispatch=10) as results:
            while pool.statistics().completed < 10:  # noqa: ASYNC110  nothing tells this but the statistics
                await asyncio.sleep(0.001)
            for _ in range(30):
                await asyncio.sleep(0.001)
            assert drawn == 10
            for x in range(100):
                assert await anext(results) == 2 * x
                assert drawn <= 10 + x + 1


async def test_an_unread_stream_stops_drawing_by_itself() -> None:
    drawn = 0

    def calls() -> Iterator[Any]:
        nonlocal drawn
        for x in itertools.count():
            drawn += 1
            yield delayed(double)(x)

    async with stream_parallel(calls(), n_jobs=2) as results:
        assert await anext(results) == 0
        before, steady = -1, 0
        async with asyncio.timeout(20):
            while steady < 50:
                steady = steady + 1 if drawn == before else 0
                before = drawn
                await asyncio.sleep(0.002)
    assert drawn < 50_000


@pytest.mark.parametrize("make", [bytes, dict, np.zeros], ids=["bytes", "dict", "array"])
async def test_large_results_that_nobody_reads_take_little_memory(make: Any) -> None:
    """Quick calls are drawn by the thousand; what they give must not be kept by the thousand."""
    drawn = 0

    def calls() -> Iterator[Any]:
        nonlocal drawn
        for _ in range(20_000):
            drawn += 1
            yield delayed(of_size)(make, 100_000)

    async with stream_parallel(calls(), n_jobs=2) as results:
        for _ in range(10):
            await anext(results)
        before, steady = -1, 0
        async with asyncio.timeout(20):
            while steady < 20:
                steady = steady + 1 if drawn == before else 0
                before = drawn
                await asyncio.sleep(0.002)
        assert drawn * 100_000 < 48_000_000
        for _ in range(400):  # it goes on as they are read
            await anext(results)
    assert drawn > 400


@each_backend
async def test_leaving_early_ends_the_source_and_leaves_the_pool_usable(backend: Any) -> None:
    async with Pool(2, backend) as pool:
        for ordered in (True, False):
            async with pool.stream((delayed(double)(x) for x in itertools.count()), ordered=ordered) as results:
                async for _ in results:
                    break
            assert pool.statistics().queued == 0
            assert pool.statistics().running == 0
            assert await pool.run(double, 4) == 8


@each_backend
async def test_leaving_early_lets_go_of_the_source(backend: Any) -> None:
    closed = asyncio.Event()

    def source() -> Iterator[Call[int]]:
        try:
            for x in itertools.count():
                yield delayed(double)(x)
        finally:
            closed.set()

    async def async_source() -> AsyncIterator[Call[int]]:
        try:
            for x in itertools.count():
                yield delayed(double)(x)
        finally:
            closed.set()

    gc.disable()  # it may not be left to the collector, which may come much later
    try:
        async with stream_parallel(source(), backend=backend, n_jobs=1) as results:
            await anext(results)
        assert closed.is_set()
        closed.clear()
        async with stream_parallel(async_source(), backend=backend, n_jobs=1) as results:
            await anext(results)
        assert closed.is_set()
    finally:
        gc.enable()


@each_backend
async def test_an_async_source_is_closed_in_the_task_that_ran_it_before_the_block_is_left(backend: Any) -> None:
    closed = asyncio.Event()

    async def calls() -> AsyncIterator[Any]:
        async with asyncio.timeout(100):  # may only be left in the task that entered it
            try:
                for x in itertools.count():
                    yield delayed(double)(x)
            finally:
                await asyncio.sleep(0)
                closed.set()

    source = calls()  # who holds it keeps nothing open
    async with stream_parallel(source, backend=backend, n_jobs=1) as results:
        assert await anext(results) == 0
    assert closed.is_set()

    closed.clear()
    source = calls()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await gather_parallel(source, backend=backend, n_jobs=1)
    assert closed.is_set()


async def test_leaving_waits_for_the_end_of_an_async_source_that_a_failure_has_begun() -> None:
    events: list[str] = []
    closing, proceed = asyncio.Event(), asyncio.Event()

    async def calls() -> AsyncIterator[Any]:
        try:
            yield delayed(divmod)(1, 0)
            for x in itertools.count():
                yield delayed(double)(x)
        finally:
            closing.set()
            await proceed.wait()
            events.append("closed")

    async with stream_parallel(calls(), backend="inline", pre_dispatch=2) as results:
        with pytest.raises(ZeroDivisionError):
            await anext(results)
        await closing.wait()
        asyncio.get_running_loop().call_later(0.01, proceed.set)
    events.append("left")
    assert events == ["closed", "left"]


async def test_an_async_source_that_never_closes_holds_its_gather_until_that_is_cancelled() -> None:
    closing = asyncio.Event()

    async def calls(*items: Any) -> AsyncIterator[Any]:
        try:
            for item in itertools.chain(items, map(delayed(double), itertools.count())):
                yield item
        finally:
            closing.set()
            await asyncio.Event().wait()

    for reason in (delayed(divmod)(1, 0), "no call"):  # it is closed as a call fails, and as drawing fails
        closing.clear()
        gathering = asyncio.create_task(gather_parallel(calls(reason), backend="inline"))
        await closing.wait()
        for _ in range(3):  # until the gather waits for that
            await asyncio.sleep(0)
        gathering.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait([gathering])
        assert gathering.cancelled()


def test_an_interrupt_while_an_async_source_is_closed_ends_the_program() -> None:
    async def calls() -> AsyncIterator[Any]:
        try:
            for x in itertools.count():
                yield delayed(double)(x)
        finally:
            raise KeyboardInterrupt

    async def main() -> None:
        async with stream_parallel(calls(), backend="inline") as results:
            assert await anext(results) == 0

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


async def test_what_an_async_source_raises_when_it_is_closed_is_told_to_the_loop() -> None:
    told: list[dict[str, Any]] = []

    async def calls() -> AsyncIterator[Any]:
        try:
            for x in itertools.count():
                yield delayed(double)(x)
        finally:
            raise OSError("cursor")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    try:
        async with stream_parallel(calls(), backend="inline", n_jobs=1) as results:
            assert await anext(results) == 0
    finally:
        loop.set_exception_handler(None)
    assert [repr(context["exception"]) for context in told] == ["OSError('cursor')"]


async def test_leaving_early_lets_go_of_results_whose_turn_has_not_come() -> None:
    class Result:
        pass

    made: list[weakref.ref[Result]] = []

    def make() -> Result:
        result = Result()
        made.append(weakref.ref(result))
        return result

    async with Pool(2, "inline") as pool:
        async with pool.stream([delayed(asyncio.Event().wait)(), delayed(make)()]) as results:
            while pool.statistics().completed == 0:  # noqa: ASYNC110  nobody is told of it before its turn
                await asyncio.sleep(0)
            assert made[0]() is not None
        gc.collect()
        assert made[0]() is None
    del results


async def test_leaving_early_ends_running_calls(tmp_path: Path) -> None:
    never = tmp_path / "never"
    async with Pool(1) as pool:
        await pool.warm_up()
        begun = time.monotonic()
        async with pool.stream([delayed(double)(1), delayed(wait_for)(never, 1)]) as results:
            assert await anext(results) == 2
        assert time.monotonic() - begun < 5
        assert await pool.run(double, 2) == 4


async def test_an_error_in_the_block_ends_the_stream() -> None:
    async with Pool(1) as pool:
        with pytest.raises(LookupError, match="mine"):  # noqa: PT012
            async with pool.stream(delayed(double)(x) for x in itertools.count()) as results:
                await anext(results)
                raise LookupError("mine")
        assert pool.statistics().queued == 0


@each_backend
async def test_a_failure_is_raised_by_the_iteration(backend: Any) -> None:
    calls = [delayed(double)(1), delayed(fail)(ValueError("bad"))]
    with pytest.raises(ValueError, match="bad"):  # noqa: PT012
        async with stream_parallel(calls, backend=backend) as results:
            async for _ in results:
                pass


@each_backend
async def test_exceptions_can_be_results(backend: Any) -> None:
    calls = [delayed(fail)(ValueError(x)) if x % 2 else delayed(double)(x) for x in range(10)]
    async with stream_parallel(calls, backend=backend, return_exceptions=True) as results:
        got = [result async for result in results]
    assert [type(result) for result in got] == [int, ValueError] * 5


@each_backend
@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError, SystemExit])
async def test_what_the_source_raises_the_iteration_raises(backend: Any, kind: type[BaseException]) -> None:
    def calls() -> Iterator[Any]:
        yield delayed(double)(1)
        raise kind("source")

    with pytest.raises(kind, match="source"):  # noqa: PT012
        async with asyncio.timeout(10), stream_parallel(calls(), backend=backend) as results:
            async for _ in results:
                pass


@each_backend
async def test_async_sources_are_drawn_as_they_give(backend: Any) -> None:
    got: asyncio.Queue[int] = asyncio.Queue()

    async def calls() -> AsyncIterator[Any]:
        yield delayed(double)(0)
        for x in range(1, 5):  # each depends on the result before
            yield delayed(double)(x + await got.get())

    values = []
    async with asyncio.timeout(15), stream_parallel(calls(), backend=backend) as results:
        async for value in results:
            values.append(value)
            got.put_nowait(value)
    assert values == [0, 2, 8, 22, 52]


async def test_a_source_that_waits_does_not_hold_results_back_nor_the_leaving() -> None:
    closed = asyncio.Event()

    async def calls() -> AsyncIterator[Any]:
        try:
            yield delayed(double)(1)
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with asyncio.timeout(10), stream_parallel(calls(), backend="thread") as results:
        assert await anext(results) == 2
    assert closed.is_set()


async def test_a_long_stream_holds_few_results_at_a_time() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    def calls() -> Iterator[Any]:
        nonlocal most
        for x in range(100_000):
            call = delayed(double)(x)
            if x % 100 == 0:
                alive.add(call)
                most = max(most, len(alive))
            yield call

    count = total = 0
    async with stream_parallel(calls(), n_jobs=2, pre_dispatch=2000) as results:
        async for value in results:
            count += 1
            total += value
    assert count == 100_000
    assert total == 2 * sum(range(100_000))
    assert most <= 2000 // 100 + 15


async def test_a_stream_is_entered_once() -> None:
    stream = stream_parallel([delayed(double)(1)], backend="inline")
    async with stream as results:
        assert [value async for value in results] == [2]
    with pytest.raises(RuntimeError, match="entered before"):
        async with stream:
            pass


async def test_iterating_without_entering_says_how_to() -> None:
    stream = stream_parallel([delayed(double)(1)], backend="inline")
    with pytest.raises(RuntimeError, match="async with"):
        await anext(stream)


async def test_a_stream_that_was_never_entered_draws_nothing() -> None:
    source = iter([delayed(double)(1)])
    stream_parallel(source)
    assert len(list(source)) == 1


async def test_iterating_after_leaving_does_not_hang() -> None:
    async with stream_parallel((delayed(double)(x) for x in itertools.count()), backend="thread") as results:
        await anext(results)
    async with asyncio.timeout(10):
        with pytest.raises((StopAsyncIteration, RuntimeError)):  # noqa: PT012
            while True:
                await anext(results)


async def test_an_iteration_that_waits_in_another_task_ends_when_the_block_is_left(tmp_path: Path) -> None:
    async def read(results: Any) -> list[Any]:
        return [value async for value in results]

    async with Pool(1) as pool:
        async with pool.stream([delayed(wait_for)(tmp_path / "never", 1)]) as results:
            reader = asyncio.create_task(read(results))
            await asyncio.sleep(0)
        await asyncio.wait([reader], timeout=2)
        assert reader.done(), "it hangs"
        reader.exception()


async def test_several_tasks_share_the_results_of_one_stream() -> None:
    release = threading.Event()
    taken: list[tuple[str, int]] = []

    async def take(name: str) -> None:
        async for index, result in results.indexed():
            assert result == 2 * index
            taken.append((name, index))
            release.set()
            await asyncio.sleep(0)

    def hold(x: int) -> int:
        return 2 * x if release.wait(20) else -1

    calls = [delayed(double)(0), *(delayed(hold)(x) for x in range(1, 40))]
    async with asyncio.timeout(20), stream_parallel(calls, ordered=False, backend="thread", n_jobs=2) as results:
        await asyncio.gather(take("a"), take("b"))  # both wait before the first result
        assert [index async for index, _ in results.indexed()] == []
    assert sorted(index for _, index in taken) == list(range(40))


async def test_the_end_stays_the_end() -> None:
    async with stream_parallel([delayed(double)(1)], backend="inline") as results:
        assert [value async for value in results] == [2]
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_a_fast_stream_lets_other_tasks_run() -> None:
    ticks = 0
    calls = [delayed(double)(x) for x in range(20_000)]

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    async with stream_parallel(calls, backend="process", n_jobs=1) as results:
        async for _ in results:
            pass
    ticker.cancel()
    assert ticks > 20


async def test_two_streams_at_a_time_share_one_pool() -> None:
    async def read(pool: Pool, factor: int) -> list[int]:
        async with pool.stream(delayed(double)(factor * x) for x in range(500)) as results:
            return [value async for value in results]

    async with Pool(2, "thread") as pool:
        one, two = await asyncio.gather(read(pool, 1), read(pool, 10))
    assert one == [2 * x for x in range(500)]
    assert two == [20 * x for x in range(500)]
    assert threading.active_count() >= 1


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 (the loop has to turn, and tells no event)
        await asyncio.sleep(0)


class Recording(FakeBackend):
    """Its workers log: something is to be handled before their outcomes, which takes until a test says so."""

    is_unsettled = True

    def __init__(self) -> None:
        super().__init__()
        self.settling: list[asyncio.Future[None]] = []

    async def settle(self) -> None:
        self.settling.append(asyncio.get_running_loop().create_future())
        await self.settling[-1]

    async def handle(self) -> None:
        """Handle what somebody waits for now."""
        await until(lambda: not all(waiting.done() for waiting in self.settling))
        for waiting in self.settling:
            if not waiting.done():
                waiting.set_result(None)

    async def finish(self, count: int) -> None:
        await until(lambda: self.workers and len(self.workers[0].waiting) >= count)
        self.workers[0].finish(count)


@pytest.mark.parametrize("ordered", [True, False])
async def test_results_that_come_while_records_are_handled_are_given_too(ordered: bool) -> None:
    backend = Recording()
    async with (
        asyncio.timeout(20),
        Pool(1, backend) as pool,
        pool.stream([delayed(double)(x) for x in range(3)], ordered=ordered, batch_size=3) as results,
    ):
        first = asyncio.ensure_future(anext(results))
        await backend.finish(1)
        await until(lambda: len(backend.settling) == 1)
        await backend.finish(2)
        await backend.handle()
        assert await first == 0
        second = asyncio.ensure_future(anext(results))
        await backend.handle()
        assert await second == 2
        assert await anext(results) == 4
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_no_result_is_given_before_its_records_however_many_tasks_wait_and_give_up() -> None:
    backend = Recording()
    async with (
        asyncio.timeout(20),
        Pool(1, backend) as pool,
        pool.stream([delayed(double)(x) for x in range(3)], batch_size=3) as results,
    ):
        impatient = asyncio.ensure_future(anext(results))
        await backend.finish(3)
        await until(lambda: len(backend.settling) == 1)
        other = asyncio.ensure_future(anext(results))
        await until(lambda: len(backend.settling) == 2)
        impatient.cancel()
        await asyncio.wait([impatient])
        last = asyncio.ensure_future(anext(results))
        await until(lambda: len(backend.settling) == 3)
        assert not other.done()
        assert not last.done()
        await backend.handle()
        assert sorted(await asyncio.gather(other, last)) == [0, 2]
        assert await anext(results) == 4
