"""For those who extend aparallel: a backend to drive by hand, and what every backend must do.

:class:`FakeBackend` starts workers that do nothing until a test tells them to: it forces any order of
starts, outcomes and deaths upon a pool. :class:`BackendSuite` is a set of tests for pytest (with anyio's
plugin) that a new backend inherits::

    class TestMyBackend(BackendSuite):
        def new_backend(self):
            return MyBackend()

:class:`CompressorSuite` is the same for a compressor.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aparallel._backends.direct import DirectEncoder
from aparallel._ground.call import delayed
from aparallel._ground.timings import Timings
from aparallel._parallel.pool import Pool
from aparallel._persist.dump import dumps
from aparallel._persist.load import loads
from aparallel.abc import Backend, Compressor, Exit, Worker
from aparallel.errors import RemoteCallError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aparallel._ground.call import Call
    from aparallel.abc import Batch, OnCancel, Sharing, WorkerEvents

__all__ = ["BackendSuite", "CompressorSuite", "FakeBackend", "FakeWorker"]


class FakeBackend(Backend):
    """Starts :class:`FakeWorker` objects and keeps them in ``workers``, in the order of their start.

    Attributes:
        ready: whether a worker is ready as soon as the loop has turned.
    """

    name = "fake"
    can_kill = True
    can_time = True
    on_cancel: OnCancel = "kill"

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.workers: list[FakeWorker] = []
        self._timings = Timings()

    def encoder(self, sharing: Sharing, *, single: bool = False, at_once: bool = False) -> DirectEncoder:
        return DirectEncoder(self._timings)

    def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> FakeWorker:
        worker = FakeWorker(loop, events)
        self.workers.append(worker)
        if self.ready:
            loop.call_soon(worker.become_ready)
        return worker


class FakeWorker(Worker):
    """A worker whose calls start, finish and fail when a test says so.

    Attributes:
        waiting: calls sent that have not started, oldest first.
        running: the call that has started and not finished, or None.
        alive: it has not ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> None:
        self.waiting: deque[Call[Any]] = deque()
        self.running: Call[Any] | None = None
        self.messages: list[int] = []
        self.alive = True
        self._ready = False
        self._since: float | None = None
        self._loop = loop
        self._events = events

    # For the test

    def become_ready(self) -> None:
        """Tell the pool that it can run calls, if it has not been told."""
        if self.alive and not self._ready:
            self._ready = True
            self._events.on_ready()

    def begin(self) -> Call[Any]:
        """Start the oldest call that waits; return it."""
        assert self.running is None, "a worker runs one call at a time"
        self.running = self.waiting.popleft()
        self._since = self._loop.time()
        return self.running

    def finish(self, count: int = 1, seconds: float = 1e-6) -> None:
        """Run *count* calls for real, here and now, and tell their outcomes; each took *seconds*."""
        values: list[Any] = []
        failed: list[int] = []
        for _ in range(count):
            call = self.running or self.begin()
            self.running = self._since = None
            try:
                values.append(call())
            except Exception as error:
                failed.append(len(values))
                values.append(error)
        self._events.on_outcomes(values, failed, seconds * count)

    def die(self, exitcode: int | None = 1, signal: int | None = None) -> None:
        """End, with the running call unfinished and the waiting ones unstarted."""
        if self.alive:
            self.alive = False
            unstarted = len(self.waiting)
            self.waiting.clear()
            self._events.on_exit(Exit(unstarted, exitcode, signal, self._ready))

    # For the pool

    def send(self, batches: Sequence[Batch]) -> None:
        self.messages.append(sum(map(len, batches)))
        for batch in batches:
            self.waiting.extend(batch.payloads)

    def recall(self) -> None:
        count = len(self.waiting)
        self.waiting.clear()
        self._events.on_recalled(count)

    def look(self) -> None:
        """It never keeps an outcome back."""

    def running_since(self) -> float | None:
        return self._since

    def kill(self) -> None:
        self._loop.call_soon(self.die, None, 9)

    def retire(self) -> None:
        self._loop.call_soon(self.die, 0)


def _double(x: int) -> int:
    return 2 * x


def _fail(text: str) -> None:
    raise LookupError(text)


async def _later(x: int) -> int:
    await asyncio.sleep(0)
    return x


class BackendSuite:
    """What every backend must do. Inherit it, name the class ``Test...`` and say how to make a backend."""

    def new_backend(self) -> Backend:
        """Return a new backend."""
        raise NotImplementedError

    async def test_results_are_those_of_the_calls_in_their_order(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            assert await pool.gather(delayed(_double)(x) for x in range(300)) == [2 * x for x in range(300)]

    async def test_a_failure_arrives_with_its_type_and_arguments_and_harms_no_other_call(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            calls: list[Call[Any]] = [delayed(_double)(1), delayed(_fail)("gone"), delayed(_double)(2)]
            first, failure, last = await pool.gather(calls, return_exceptions=True)
            assert (first, last) == (2, 4)
            assert isinstance(failure, LookupError)
            assert failure.args == ("gone",)
            assert await pool.run(_double, 3) == 6

    async def test_an_exit_in_a_call_is_an_error_of_that_call(self) -> None:
        async with Pool(1, self.new_backend()) as pool:
            (error,) = await pool.gather([delayed(exit)(3)], return_exceptions=True)
            assert isinstance(error, RemoteCallError)
            assert await pool.run(_double, 3) == 6

    async def test_coroutine_functions_are_awaited(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            assert await pool.gather(delayed(_later)(x) for x in range(5)) == list(range(5))

    async def test_a_queued_call_that_is_cancelled_never_runs_and_leaves_the_pool_whole(self) -> None:
        async with Pool(1, self.new_backend()) as pool:
            tasks = [asyncio.ensure_future(pool.run(_double, x)) for x in range(50)]
            await asyncio.sleep(0)
            for task in tasks[1:]:
                task.cancel()
            await asyncio.wait(tasks)
            assert await pool.run(_double, 3) == 6
            now = pool.statistics()
            assert (now.queued, now.running, now.busy) == (0, 0, 0)

    async def test_all_workers_end_with_the_pool(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            await pool.warm_up()
            assert pool.statistics().idle == 2
        assert pool.statistics().workers == 0


class CompressorSuite:
    """What every compressor must do. Inherit it and say how to make one."""

    def new_compressor(self) -> Compressor:
        raise NotImplementedError

    def test_gives_back_what_it_was_given(self) -> None:
        compressor = self.new_compressor()
        for data in (b"x", bytes(1 << 20), bytes(range(256)) * 100, os.urandom(70_001)):
            for itemsize in (1, 3, 8):
                compressed = compressor.compress(memoryview(data), itemsize)
                assert len(compressed) <= len(data) * 5 // 4 + 1024
                assert compressor.decompress(memoryview(compressed), len(data)) == data

    def test_never_gives_more_than_it_may(self) -> None:
        compressor = self.new_compressor()
        compressed = compressor.compress(memoryview(bytes(1 << 20)), 1)
        try:
            found = compressor.decompress(memoryview(compressed), 1000)
        except Exception:  # in its own words
            return
        assert len(found) <= 1001

    def test_serves_several_threads_at_once(self) -> None:
        compressor = self.new_compressor()
        pieces = [bytes([number]) * 100_000 for number in range(16)]
        with ThreadPoolExecutor(4) as threads:
            compressed = list(threads.map(lambda piece: compressor.compress(memoryview(piece), 1), pieces))
            found = threads.map(lambda piece: compressor.decompress(memoryview(piece), 100_000), compressed)
            assert list(map(bytes, found)) == pieces

    async def test_carries_objects_through_files(self) -> None:
        data = await dumps(["text" * 1000, list(range(100_000))], compress=self.new_compressor())
        assert await loads(data, compressors=[self.new_compressor()]) == ["text" * 1000, list(range(100_000))]
