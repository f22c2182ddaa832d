"""For those who extend aparallel: doubles to test with, and what every backend, compressor and store must do.

:class:`FakeBackend` starts workers that do nothing until a test tells them to: it forces any order of
starts, outcomes and deaths upon a pool. :class:`BackendSuite` is a set of tests for pytest, with anyio's
plugin, that a new backend inherits::

    @pytest.mark.anyio
    class TestMyBackend(BackendSuite):
        @pytest.fixture
        def anyio_backend(self):
            return "asyncio"

        def new_backend(self):
            return MyBackend()

:class:`CompressorSuite` and :class:`StoreSuite` are the same for a compressor and for a store. :class:`FakeStore`
keeps a memory's results in the process: ``Memory(FakeStore())`` for tests that should leave no files.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aparallel._backend_suite.suite import BackendSuite
from aparallel._memory.memory import Memory
from aparallel._persist.dump import dumps
from aparallel._persist.load import loads
from aparallel.abc import (
    Backend,
    Compressor,
    DirectEncoder,
    Exit,
    Limits,
    Listed,
    Place,
    Record,
    Store,
    Timings,
    Totals,
    Worker,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from aparallel._ground.call import Call
    from aparallel.abc import Batch, Moments, OnCancel, Sharing, WorkerEvents

__all__ = ["BackendSuite", "CompressorSuite", "FakeBackend", "FakeStore", "FakeWorker", "StoreSuite"]


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

    def encoder(self, sharing: Sharing, moments: Moments) -> DirectEncoder:
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
        messages: how many calls came in each message, in the order in which they were sent.
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
        self._since = time.monotonic()
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


class FakeStore(Store):
    """Keeps a memory's results in this process, for as long as it lives.

    Args:
        limits: what it holds itself to.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.notes: dict[str, bytes] = {}
        self._mutex = threading.Lock()
        # Replaced as a whole, so that it is never half changed: the record, when it was put, and when it was used.
        self._kept: dict[Place, tuple[Record, float, float]] = {}
        self._versions = itertools.count()
        self._locked: set[bytes] = set()

    def get(self, place: Place, *, as_file: bool = False) -> Record | None:
        kept = self._kept.get(place)
        return None if kept is None else kept[0]

    def put(self, place: Place, content: bytes, *, lifetime: float | None = None) -> Hashable:
        record = Record(content, next(self._versions))
        now = time.time()
        with self._mutex:
            self._kept[place] = (record, now, now)
        if self.limits.excess(self.totals()):
            self.reduce(self.limits)
        return record.version

    def touch(self, place: Place) -> None:
        with self._mutex:
            if (kept := self._kept.get(place)) is not None:
                self._kept[place] = (kept[0], kept[1], time.time())

    def remove(self, place: Place) -> bool:
        with self._mutex:
            return self._kept.pop(place, None) is not None

    def entries(self, function: str | None = None) -> Iterator[Listed]:
        with self._mutex:
            kept = list(self._kept.items())
        for place, (record, created, used) in kept:
            if function is None or place.function == function:
                yield Listed(place, len(record.content), created, used)  # type: ignore[arg-type]  # it is bytes

    def read_note(self, name: str) -> bytes | None:
        return self.notes.get(name)

    def write_note(self, name: str, content: bytes) -> None:
        self.notes[name] = content

    def try_lock(self, key: bytes) -> bool:
        with self._mutex:
            is_free = key not in self._locked
            self._locked.add(key)
            return is_free

    def unlock(self, key: bytes) -> None:
        with self._mutex:
            self._locked.discard(key)


def _place(number: int, function: str = "a" * 24) -> Place:
    return Place(function, bytes([number]) + bytes(31))


class StoreSuite:
    """What every store must do. Inherit it, name the class ``Test...`` and say how to make an empty one."""

    def new_store(self) -> Store:
        raise NotImplementedError

    def test_gives_back_what_was_put_last(self) -> None:
        store = self.new_store()
        assert store.get(_place(1)) is None
        assert store.version(_place(1)) is None
        versions = [store.put(_place(1), content) for content in (b"x", b"other", b"x")]
        assert len(set(versions)) == 3, "each put makes a new version"
        assert store.get(_place(1)) == Record(b"x", versions[-1])
        assert store.version(_place(1)) == versions[-1]
        assert store.get(_place(2)) is None
        assert store.get(_place(1, "b" * 24)) is None

    def test_removes_one_and_says_whether_it_was_there(self) -> None:
        store = self.new_store()
        assert not store.remove(_place(1))
        store.put(_place(1), b"one")
        store.put(_place(2), b"two")
        assert store.remove(_place(1))
        assert not store.remove(_place(1))
        assert store.get(_place(1)) is None
        assert store.get(_place(2)) is not None

    def test_lists_counts_and_clears(self) -> None:
        store = self.new_store()
        assert (list(store.entries()), store.totals()) == ([], Totals(0, 0))
        before = time.time()
        for number in range(5):
            store.put(_place(number, "ab"[number % 2] * 24), bytes(100))
        listed = list(store.entries())
        assert {one.place for one in listed} == {_place(number, "ab"[number % 2] * 24) for number in range(5)}
        assert all(one.size >= 100 and before - 5 <= one.created <= one.used + 5 for one in listed)
        assert store.totals() == Totals(5, sum(one.size for one in listed))
        assert {one.place.function for one in store.entries("b" * 24)} == {"b" * 24}
        assert store.clear("b" * 24) == 2
        assert store.clear("b" * 24) == 0
        assert store.clear() == 3
        assert (list(store.entries()), store.totals()) == ([], Totals(0, 0))

    def test_reduces_to_limits_and_ages(self) -> None:
        store = self.new_store()
        for number in range(10):
            store.put(_place(number), bytes(1000))
        assert store.reduce(Limits(), unused_for=3600) == 0
        assert store.reduce(Limits(entries=6)) == 4
        size = store.totals().bytes
        assert store.reduce(Limits(bytes=size - 1)) >= 1
        assert store.totals().bytes < size
        assert store.reduce(Limits(entries=10)) == 0

    def test_keeps_notes(self) -> None:
        store = self.new_store()
        assert store.read_note("tags/0123") is None
        store.write_note("tags/0123", b"x")
        store.write_note("functions/abc.def.json", b"{}")
        store.write_note("tags/0123", b"another")
        assert store.read_note("tags/0123") == b"another"
        assert store.read_note("functions/abc.def.json") == b"{}"
        assert store.totals() == Totals(0, 0), "notes are no entries"

    def test_a_lock_can_be_taken_again_when_it_was_given_back(self) -> None:
        store = self.new_store()
        for _ in range(3):
            assert store.try_lock(b"k" * 32)
            assert store.try_lock(b"l" * 32)
            store.unlock(b"k" * 32)
            store.unlock(b"l" * 32)

    def test_readers_in_other_threads_see_whole_entries(self) -> None:
        store = self.new_store()
        store.put(_place(1), b"0" * 10_000)

        def write(number: int) -> None:
            for _ in range(50):
                store.put(_place(1), b"%d" % number * 10_000)

        def read() -> None:
            for _ in range(100):
                record = store.get(_place(1))
                assert record is not None
                assert isinstance(record.content, bytes)
                assert record.content == record.content[:1] * 10_000

        with ThreadPoolExecutor(4) as threads:
            running = [threads.submit(write, number) for number in range(2)]
            running += [threads.submit(read) for _ in range(2)]
            for done in running:
                done.result()

    async def test_a_memory_remembers_in_it(self) -> None:
        store = self.new_store()
        calls: list[int] = []

        def fn(x: int) -> list[int]:
            calls.append(x)
            return [x]

        cached = Memory(store).cache(ignore=(), tags=["numbers"], track="none")(fn)
        assert await asyncio.gather(*(cached(1) for _ in range(10))) == [[1]] * 10
        memory = Memory(store)
        other = memory.cache(tags=["numbers"], track="none")(fn)
        assert [await other(1), await other(2), await other(2)] == [[1], [2], [2]]
        assert calls == [1, 2]
        assert (await other.explain(3)).arguments == ("x",)
        assert sorted([entry.tags async for entry in memory.entries()]) == [("numbers",)] * 2
        await memory.invalidate("numbers")
        assert await other(1) == [1]
        assert await other.forget(1)
        assert await other.clear() == 1
        assert [await other(1), await other.call_and_shelve(1)][0] == [1]
        assert calls == [1, 2, 1, 1]

    async def test_large_results_come_back_whole_and_damage_is_found(self) -> None:
        store = self.new_store()
        data = os.urandom(3 << 20)
        for key in (None, "secret"):
            memory = Memory(store, signing_key=key)
            cached = memory.cache(track="none")(bytes.fromhex)
            assert await cached(data.hex()) == data
            fresh = Memory(store, signing_key=key).cache(track="none")(bytes.fromhex)
            assert await fresh(data.hex()) == data
            assert fresh.statistics().misses == 0
            assert await fresh.refresh(data.hex()) == data
            (listed,) = store.entries()
            store.put(listed.place, b"something else")
            again = Memory(store, signing_key=key).cache(track="none")(bytes.fromhex)
            assert await again(data.hex()) == data
            assert again.statistics().misses == 1
            await memory.clear()
