"""Calls that begin at once: a future is as good as a coroutine, and its call ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import anyio
import pytest
from waiting import started
from work import leave_and_wait

from aparallel import Pool, delayed
from aparallel.errors import (
    BrokenWorkerError,
    ClosedPoolError,
    PoolSaturatedError,
    UnpicklableCallError,
    WrongLoopError,
)

# What cancelling may take on a machine that others use too; the calls would take a minute.
AT_MOST = 2.0

# Futures are the same on both loops, and workers are slow to start.
pytestmark = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.001)
    return path


def fail(text: str) -> None:
    raise LookupError(text)


for function in (wait_for, fail):
    function.__module__ = "__main__"  # by value: no worker has to import pytest


@pytest.fixture(params=["process", "thread", "inline"])
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_submitted_calls_are_futures_that_gather_wait_and_tasks_take(backend: Any) -> None:
    async with Pool(2, backend) as pool:
        futures = [pool.submit(abs, -x) for x in range(300)]
        assert all(asyncio.isfuture(future) for future in futures)
        assert await asyncio.gather(*futures) == list(range(300))
        done, pending = await asyncio.wait([pool.submit(abs, -1), pool.submit(delayed(int)("7", base=8))])
        assert ({future.result() for future in done}, pending) == ({1, 7}, set())
        assert await asyncio.wait_for(pool.submit(abs, -3), 20) == 3
        assert [await future for future in asyncio.as_completed([pool.submit(abs, -4)])] == [4]


async def test_a_submitted_call_begins_before_anyone_awaits_it(tmp_path: Path) -> None:
    async with Pool(1) as pool:
        future = pool.submit(leave_and_wait, str(tmp_path / "begun"))
        await started(tmp_path / "begun")
        future.cancel()


async def test_arguments_are_taken_as_they_are_when_the_call_is_submitted() -> None:
    async with Pool(1) as pool:
        numbers = [1, 2]
        future = pool.submit(sum, numbers)
        numbers.append(1000)
        assert await future == 3


async def test_a_large_argument_is_pickled_off_the_loop_and_waits_like_any_other() -> None:
    async with Pool(1, max_queued=2) as pool:
        futures = [pool.submit(len, b"x" * 1_000_000) for _ in range(20)]
        ended = await asyncio.gather(*futures, return_exceptions=True)
        assert {1_000_000, PoolSaturatedError} == {size if isinstance(size, int) else type(size) for size in ended}
        cancelled = pool.submit(len, b"x" * 1_000_000)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await pool.run(len, b"x" * 1_000_000) == 1_000_000


async def test_whoever_cancels_all_tasks_leaves_no_future_pending() -> None:
    async with Pool(1) as pool:
        future = pool.submit(len, b"x" * 1_000_000)
        for task in asyncio.all_tasks():
            if task.get_name().startswith("aparallel-"):  # the others are the tests'
                task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(future, 20)
        assert pool._engine.admitted.is_empty()
        assert await pool.run(len, b"x" * 1_000_000) == 1_000_000


async def test_errors_are_the_futures() -> None:
    async with Pool(1, max_queued=0) as pool:
        ended = await asyncio.gather(
            pool.submit(fail, "of the call"),
            pool.submit(abs, -1),
            pool.submit(abs, threading.Lock(), timeout=-1),
            return_exceptions=True,
        )
        assert [type(error) for error in ended] == [LookupError, PoolSaturatedError, ValueError]
        with pytest.raises(TypeError, match=r"submit\(f, x\)"):
            pool.submit(abs(-1))  # type: ignore[arg-type, call-overload]
        with pytest.raises(TypeError, match="further arguments"):
            pool.submit(delayed(abs)(-1), 2)  # type: ignore[call-overload]
    with pytest.raises(ClosedPoolError):
        await pool.submit(abs, -1)


class Interrupted(BaseException):
    """As a test framework raises it, or a signal handler."""


class Interrupting:
    """Cannot be pickled, which is found out in a thread: it comes after what is large."""

    def __reduce__(self) -> Any:
        raise Interrupted


@pytest.mark.parametrize("how", ["run", "submit"])
async def test_whatever_pickling_in_a_thread_raises_ends_the_call(how: str) -> None:
    async with Pool(1) as pool:
        large = ["x" * 1_000_000, Interrupting()]
        begin = pool.run if how == "run" else pool.submit
        with pytest.raises(Interrupted):
            await asyncio.wait_for(begin(len, large), 20)
        assert pool._engine.admitted.is_empty()
        assert await pool.run(abs, -1) == 1


async def test_another_loop_is_told_so_at_once() -> None:
    async with Pool(1) as pool:

        def submit_elsewhere() -> None:
            with pytest.raises(WrongLoopError):
                pool.submit(abs, -1)

        await asyncio.to_thread(submit_elsewhere)


async def test_a_future_is_cancelled_when_its_call_has_stopped(tmp_path: Path) -> None:
    async with Pool(1) as pool:
        running = pool.submit(leave_and_wait, str(tmp_path / "begun"))
        queued = pool.submit(wait_for, str(tmp_path / "never"))
        await started(tmp_path / "begun")
        began = time.monotonic()
        assert queued.cancel()
        assert queued.cancelled()
        assert running.cancel()
        assert not running.done()
        assert running.cancel()  # again, as anyio does
        await asyncio.wait([running])
        assert running.cancelled()
        assert time.monotonic() - began < AT_MOST
        assert pool.statistics().busy == 0
        assert not running.cancel()
        assert await pool.run(abs, -1) == 1


@pytest.mark.parametrize("how", ["task", "scope", "gather", "timeout"])
async def test_cancelling_who_awaits_futures_stops_their_calls(how: str, tmp_path: Path) -> None:
    async with Pool(2) as pool:
        paths = [tmp_path / name for name in "ab"]

        async def both() -> None:
            first, second = (pool.submit(leave_and_wait, str(path)) for path in paths)
            if how == "gather":
                await asyncio.gather(first, second)
            else:
                try:
                    await first
                finally:
                    second.cancel()

        async def till_both_run() -> None:
            for path in paths:
                await started(path)

        if how == "scope":
            async with anyio.create_task_group() as group:
                group.start_soon(both)
                await till_both_run()
                group.cancel_scope.cancel()
        elif how == "timeout":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None) as limit:
                    task = asyncio.ensure_future(till_both_run())
                    task.add_done_callback(lambda _: limit.reschedule(0))
                    await both()
        else:
            task = asyncio.ensure_future(both())
            await till_both_run()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(AT_MOST):
            while pool.statistics().running:  # noqa: ASYNC110 (no event tells)
                await asyncio.sleep(0.001)


async def test_a_future_that_is_dropped_runs_on_and_a_closing_pool_ends_it_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(1)
    pool.submit(leave_and_wait, str(tmp_path / "begun"))
    await started(tmp_path / "begun")
    assert pool.statistics().running == 1
    await pool.aclose(timeout=0)
    gc.collect()
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_closing_waits_for_futures_that_nobody_awaits(tmp_path: Path) -> None:
    async with Pool(1) as pool:
        future = pool.submit(wait_for, str(tmp_path / "go"))
        asyncio.get_running_loop().call_later(0.05, (tmp_path / "go").touch)
    assert future.result() == str(tmp_path / "go")


async def test_a_crash_is_the_error_of_its_future_alone() -> None:
    async with Pool(1) as pool:
        crashed, other = pool.submit(exit_now, 3), pool.submit(abs, -1)
        with pytest.raises(BrokenWorkerError) as caught:
            await crashed
        assert caught.value.exitcode == 3
        assert await other == 1


def exit_now(code: int) -> None:
    import os

    os._exit(code)


exit_now.__module__ = "__main__"


async def test_nothing_keeps_a_future_whose_call_was_told() -> None:
    async with Pool(1) as pool:
        gc.collect()
        gc.disable()
        try:
            futures = [pool.submit(fail, "x"), pool.submit(abs, -1), pool.submit(abs, threading.Lock(), retries=-1)]
            await asyncio.wait(futures)
            for future in futures:
                future.exception()
            watched = [weakref.ref(future) for future in futures]
            del futures, future
            await asyncio.sleep(0)
            assert [reference() for reference in watched] == [None, None, None]
        finally:
            gc.enable()


class Arguments(list[Any]):
    """Can be watched."""


@pytest.mark.parametrize("size", [10, 300_000, 1_000_000])
@pytest.mark.parametrize("awaited", [True, False])
async def test_nothing_keeps_a_call_that_could_not_be_pickled(size: int, awaited: bool) -> None:
    async with Pool(1) as pool:
        with contextlib.suppress(UnpicklableCallError):  # what that imports may leave cycles
            await pool.submit(len, ["x" * 1_000_000, threading.Lock()])
        gc.collect()
        gc.disable()
        try:
            arguments = Arguments(["x" * size, threading.Lock()])
            future = pool.submit(len, arguments)
            if awaited:
                with contextlib.suppress(UnpicklableCallError):
                    await future
            await asyncio.wait([future])
            assert isinstance(future.exception(), UnpicklableCallError)
            watched: list[weakref.ref[Any]] = [weakref.ref(future), weakref.ref(arguments)]
            del future, arguments
            await asyncio.sleep(0.01)  # the thread that pickled it lets go
            assert [reference() for reference in watched] == [None, None]
        finally:
            gc.enable()


class Held:
    """Is pickled once the test says so."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        self.begun.set()
        assert self.go_on.wait(10)
        return int, ()


async def test_nothing_keeps_a_call_that_was_cancelled_while_it_was_pickled() -> None:
    async with Pool(1) as pool:
        await pool.submit(len, ["x" * 1_000_000])
        gc.collect()
        gc.disable()
        try:
            held = Held()
            arguments = Arguments(["x" * 1_000_000, held])  # not on the loop
            future = pool.submit(len, arguments)
            while not held.begun.is_set():  # noqa: ASYNC110 (another thread sets it)
                await asyncio.sleep(0)
            future.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await future
            watched: list[weakref.ref[Any]] = [weakref.ref(future), weakref.ref(arguments)]
            del future, arguments
            held.go_on.set()
            async with asyncio.timeout(10):
                while any(reference() for reference in watched):  # noqa: ASYNC110 (the thread lets go)
                    await asyncio.sleep(0.001)
        finally:
            gc.enable()
