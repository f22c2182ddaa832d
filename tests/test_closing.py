"""How a pool closes within a deadline: what is done in time counts, the rest ends, and nothing holds it up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from aparallel import Pool, delayed
from aparallel.errors import ClosedPoolError
from aparallel.testing import FakeBackend

BACKENDS: list[Any] = ["process", "thread", "inline"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)

SOON = 0.05
LONG = 60.0
# What closing may take besides its deadline, on a slow machine.
AT_MOST = 3.0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Whatever cannot be stopped waits for it, and is let go at the end."""
    monkeypatch.setattr("aparallel._parallel.engine._PARTING_SECONDS", 0.1)
    gate = threading.Event()
    yield gate
    gate.set()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the loop's own turns are what is waited for)
            await asyncio.sleep(0.001)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    begin = time.monotonic()
    async with asyncio.timeout(20):
        yield
    assert time.monotonic() - begin < seconds


def has_begun(pool: Pool) -> bool:
    """Whether a worker runs a call, and does not only have one."""
    workforce = pool._engine.use().scheduler.workforce
    return any(slot.worker.running_since() is not None for slot in workforce.slots)


async def stubborn(gate: threading.Event) -> None:
    """Ignore whatever cancels it."""
    begin = time.monotonic()
    while not gate.is_set() and time.monotonic() - begin < 5:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


async def endless(backend: Any, gate: threading.Event) -> tuple[Pool, list[asyncio.Future[Any]]]:
    """Return a pool of one worker that runs a call without end, with others waiting, and those who wait for them."""
    pool = Pool(1, backend)
    await pool.warm_up()
    call: Any
    if backend == "process":
        call = delayed(time.sleep)(LONG)
    elif backend == "thread":
        call = delayed(gate.wait)(LONG)
    else:
        call = delayed(stubborn)(gate)
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(pool.run(call))]
    await until(lambda: has_begun(pool))
    tasks += [asyncio.ensure_future(pool.run(abs, -1)), asyncio.ensure_future(pool.gather([call, delayed(abs)(-1)]))]
    tasks += [asyncio.ensure_future(pool.limit("key", 1).run(abs, -1))]
    await until(lambda: pool.statistics().queued + pool.statistics().running == 5)
    return pool, tasks


async def assert_ended(pool: Pool, tasks: list[asyncio.Future[Any]], gate: threading.Event | None = None) -> None:
    """Assert that the pool is closed and those who waited know it, and let go what could not be stopped."""
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, ClosedPoolError) for result in results), results
    now = pool.statistics()
    assert (now.workers, now.starting, now.idle, now.busy, now.queued, now.running) == (0, 0, 0, 0, 0, 0)
    assert "closed" in repr(pool)
    with pytest.raises(ClosedPoolError):
        await pool.run(abs, -1)
    if gate is not None:
        gate.set()


# In time


@each_backend
async def test_what_runs_and_what_waits_may_finish_in_time(backend: Any) -> None:
    pool = Pool(1, backend)
    wait: Any = time.sleep if backend == "process" else asyncio.sleep
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(pool.run(wait, 0.02)) for _ in range(5)]
    tasks += [asyncio.ensure_future(pool.gather(delayed(wait)(0.01) for _ in range(3)))]
    tasks += [asyncio.ensure_future(pool.limit("key", 1).run(wait, 0.02))]
    await until(lambda: pool.statistics().running)
    closing = asyncio.ensure_future(pool.aclose(timeout=LONG))
    await asyncio.sleep(0)
    with pytest.raises(ClosedPoolError):  # from the first moment on
        await pool.run(abs, -1)
    with pytest.raises(ClosedPoolError):
        await pool.limit("key", 1).gather([delayed(abs)(-1)])
    async with within(10):
        await closing
    assert await asyncio.gather(*tasks) == [None] * 5 + [[None] * 3, None]
    assert pool.statistics().workers == 0


@each_backend
async def test_a_pool_without_work_closes_at_once_whatever_its_time(backend: Any) -> None:
    pool = Pool(2, backend)
    await pool.warm_up()
    async with within(AT_MOST):
        await pool.aclose(timeout=LONG)
    never_used = Pool(1, backend)
    await never_used.aclose(timeout=0)
    with pytest.raises(ClosedPoolError):
        await never_used.run(abs, -1)


# Late


@each_backend
@pytest.mark.parametrize("timeout", [0, SOON])
async def test_what_is_not_done_in_time_ends_whatever_it_does(
    backend: Any, timeout: float, gate: threading.Event
) -> None:
    pool, tasks = await endless(backend, gate)
    async with within(timeout + AT_MOST):
        await pool.aclose(timeout=timeout)
    await assert_ended(pool, tasks, gate)


async def test_a_call_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    def ignore(started: Path) -> None:
        import signal

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        started.touch()
        while True:
            pass

    pool = Pool(1)
    task = asyncio.ensure_future(pool.run(ignore, tmp_path / "started", on_cancel="wait"))
    await until((tmp_path / "started").exists)
    async with within(SOON + AT_MOST):
        await pool.aclose(timeout=SOON)
    await assert_ended(pool, [task])


async def test_an_initializer_without_end_does_not_hold_up_the_close(gate: threading.Event) -> None:
    pool = Pool(1, "thread", initializer=gate.wait, initargs=(LONG,))
    task = asyncio.ensure_future(pool.run(abs, -1))
    await until(lambda: pool.statistics().workers)
    async with within(SOON + AT_MOST):
        await pool.aclose(timeout=SOON)
    await assert_ended(pool, [task])


async def test_a_stream_that_nobody_reads_does_not_hold_up_the_close() -> None:
    pool = Pool(1, "thread")
    async with pool.stream((delayed(abs)(-x) for x in count()), pre_dispatch=4) as results:
        assert await anext(results) == 0
        async with within(SOON + AT_MOST):
            await pool.aclose(timeout=SOON)
        with pytest.raises(ClosedPoolError):
            async for _ in results:
                pass
    assert pool.statistics().queued == 0


async def test_an_outcome_that_comes_after_the_close_is_nobodys(gate: threading.Event) -> None:
    pool, tasks = await endless("thread", gate)
    await pool.aclose(timeout=0)
    await assert_ended(pool, tasks)
    before = pool.statistics()
    gate.set()
    await until(lambda: not any(thread.name == "aparallel-worker" for thread in threading.enumerate()))
    await asyncio.sleep(0)
    assert pool.statistics().workers == before.workers == 0
    assert pool.statistics().running == 0


# Several at once


@each_backend
async def test_of_several_that_close_the_hastiest_wins(backend: Any, gate: threading.Event) -> None:
    pool, tasks = await endless(backend, gate)
    patient = [asyncio.ensure_future(pool.aclose(timeout=seconds)) for seconds in (None, LONG)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in patient)
    async with within(SOON + AT_MOST):
        await pool.aclose(timeout=SOON)
        await asyncio.gather(*patient)
    await assert_ended(pool, tasks, gate)
    await pool.aclose(timeout=0)


async def test_a_stream_that_nobody_leaves_holds_up_nobody_once_another_has_closed_the_pool() -> None:
    pool = Pool(1, "thread")
    async with pool.stream(delayed(abs)(-x) for x in range(1000)) as results:
        assert await anext(results) == 0
        patient = asyncio.ensure_future(pool.aclose())
        await asyncio.sleep(0.01)
        async with within(SOON + AT_MOST):
            await pool.aclose(timeout=SOON)
            await patient


# Cancelled


@each_backend
@pytest.mark.parametrize("step", [0, 1, 2, 5])
async def test_a_close_that_is_cancelled_still_ends_by_its_deadline(
    backend: Any, step: int, gate: threading.Event
) -> None:
    pool, tasks = await endless(backend, gate)
    closing = asyncio.ensure_future(pool.aclose(timeout=SOON))
    for _ in range(step):
        await asyncio.sleep(0 if step < 5 else SOON / 4)
    async with within(SOON + AT_MOST):
        closing.cancel()
        await asyncio.wait([closing])
        if step == 0:  # it had not begun
            await pool.aclose(timeout=0)
    await assert_ended(pool, tasks, gate)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
async def test_a_bad_time_is_refused_and_the_pool_stays_open(timeout: Any) -> None:
    async with Pool(1, "inline") as pool:
        with pytest.raises(ValueError, match="timeout="):
            await pool.aclose(timeout=timeout)
        assert await pool.run(abs, -1) == 1


async def test_a_worker_that_is_being_killed_is_not_replaced_by_the_close() -> None:
    backend = FakeBackend()
    pool = Pool(1, backend)
    task = asyncio.ensure_future(pool.run(abs, -1))
    await until(lambda: backend.workers and backend.workers[0].waiting)
    backend.workers[0].begin()
    task.cancel()
    await asyncio.sleep(0)  # its worker has the time of grace now
    await pool.aclose(timeout=0)
    assert task.cancelled() or task.done()
    assert not any(worker.alive for worker in backend.workers)
    assert len(backend.workers) == 1


@pytest.mark.parametrize("end", ["close", "loop"])
def test_a_coroutine_that_was_abandoned_in_a_thread_is_cancelled_with_its_pool(end: str) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def stay() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async def main() -> None:
        pool = Pool(1, "thread")
        future = pool.submit(stay, on_cancel="abandon")
        await asyncio.to_thread(begun.wait, 10)
        future.cancel()
        await asyncio.wait([future])
        assert not cancelled.is_set()
        if end == "close":
            await pool.aclose()
            assert await asyncio.to_thread(cancelled.wait, 10)

    asyncio.run(main())
    assert cancelled.wait(10)
