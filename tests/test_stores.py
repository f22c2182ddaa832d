"""Stores: every kind does what the suite says, and a memory works on whatever keeps bytes by name."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import pickle
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_support import Recorder, until

from aparallel import Memory, errors
from aparallel._memory import single_flight
from aparallel._memory.disk import recency
from aparallel._memory.disk.store import DiskStore
from aparallel.abc import Limits, Place, Record, Store
from aparallel.testing import FakeStore, StoreSuite


@pytest.fixture(autouse=True)
def flush_recency_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test ends when its threads have, and the one that flushes waits for company."""
    monkeypatch.setattr(recency, "_DELAY", 0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="it needs file locks")
class TestDiskStore(StoreSuite):
    @pytest.fixture(autouse=True)
    def _use_folder(self, tmp_path: Path) -> None:
        self.folders = map(str, (tmp_path / str(number) for number in itertools.count()))

    def new_store(self) -> Store:
        return DiskStore(next(self.folders))


class TestFakeStore(StoreSuite):
    def new_store(self) -> Store:
        return FakeStore()


class Bare(FakeStore):
    """Has what a store must have, and for all else what every store inherits."""

    version = Store.version
    touch = Store.touch
    try_lock = Store.try_lock
    unlock = Store.unlock


class TestBareStore(StoreSuite):
    def new_store(self) -> Store:
        return Bare()


def example() -> Any:
    path = Path(__file__).parent.parent / "examples" / "results_in_sqlite.py"
    spec = importlib.util.spec_from_file_location("results_in_sqlite", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestStoreOfTheExample(StoreSuite):
    @pytest.fixture(autouse=True)
    def _use_folder(self, tmp_path: Path) -> None:
        self.paths = map(str, (tmp_path / f"{number}.db" for number in itertools.count()))

    def new_store(self) -> Store:
        store: Store = example().SQLiteStore(next(self.paths))
        return store


@dataclass
class Comparing(FakeStore):
    """Equal to others of its kind, so it has no hash."""

    size: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __reduce__(self) -> Any:
        return Comparing, (self.size,)


class Unreachable(Store):
    """A server that is away."""

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("nobody answers")

    get = put = remove = entries = read_note = write_note = try_lock = _fail


async def test_a_store_that_cannot_be_reached_costs_a_warning_and_no_result() -> None:
    recorder = Recorder()
    cached = Memory(Unreachable()).cache(recorder)
    with pytest.warns(errors.NotStoredWarning, match="nobody answers") as caught:
        assert [await cached(1), await cached(1), await cached(2)] == [[1], [1], [2]]
    assert len(caught) == 1
    assert recorder.calls == [1, 1, 2]


async def test_two_memories_of_one_store_compute_once_at_a_time() -> None:
    store = Bare()
    calls: list[int] = []
    gates = {"go": asyncio.Event()}

    async def slow(x: int) -> int:
        calls.append(x)
        gates["x"] = gates["go"]
        await gates["go"].wait()
        return x

    memories = [Memory(store), Memory(store), Memory(Bare())]
    tasks = [asyncio.ensure_future(memory.cache(track="none")(slow)(1)) for memory in memories]
    flights = single_flight._flights
    await until(lambda: sorted(len(flight.waiters) for flight in flights.values()) == [1, 2], *tasks)
    await until(lambda: len(calls) == 2, *tasks)
    gates["go"].set()
    assert await asyncio.gather(*tasks) == [1, 1, 1]
    assert calls == [1, 1]


async def test_a_slow_store_does_not_hold_the_loop() -> None:
    loop_thread = threading.get_ident()
    used: set[str] = set()

    class Guarded(FakeStore):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in vars(Store) or name == "touch" or not callable(found):
                return found

            def guarded(*args: Any, **kwargs: Any) -> Any:
                assert threading.get_ident() != loop_thread, f"{name} is called on the loop"
                used.add(name)
                return found(*args, **kwargs)

            return guarded

    async def coroutine(x: int) -> int:
        return x

    memory = Memory(Guarded(), ttl="1h")
    for fn in (len, coroutine):
        cached = memory.cache(tags=["t"], cache_errors=True)(fn)  # type: ignore[arg-type, var-annotated]
        for argument in ("abc", "abc", "abcd"):
            await cached(argument)
        await cached.refresh("abc")
        await cached.explain("x")
        await (await cached.call_and_shelve("abc")).get()
        assert await cached.forget("abc")
        cancelled = asyncio.ensure_future(cached("abcde"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await cached.clear()
        await cached("abc")
    assert {entry.function for entry in [entry async for entry in memory.entries()]} >= {"len"}
    await memory.statistics()
    await memory.invalidate("t")
    assert await memory.reduce_size(items_limit=0) >= 2
    await memory.clear()
    assert used >= {"get", "put", "remove", "entries", "read_note", "write_note", "try_lock", "unlock", "totals"}


async def test_a_store_may_compare_as_it_likes_and_travels_if_it_pickles() -> None:
    assert await Memory(Comparing()).eval(len, "abc") == 3
    memory = Memory(Comparing())
    copies = [pickle.loads(pickle.dumps(memory)) for _ in range(2)]
    assert await copies[0].eval(len, "abcd") == await copies[1].eval(len, "abcd") == 4
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(Memory(FakeStore()))


async def test_a_fake_store_keeps_to_its_limits() -> None:
    store = FakeStore(Limits(entries=3))
    cached = Memory(store).cache(lambda x: x)
    for x in range(3):
        await cached(x)
    store.touch(next(listed.place for listed in store.entries()))
    for x in range(3, 6):
        await cached(x)
    assert store.totals().entries == 3
    assert await cached.check_call_in_cache(5)


async def test_options_about_a_directory_are_refused_for_a_store() -> None:
    for options in ({"max_bytes": "1GB"}, {"max_entries": 5}, {"trust_group": True}):
        with pytest.raises(ValueError, match=r"FakeStore is a store, which bounds.*Tell the store"):
            Memory(FakeStore(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="FakeStore keeps none"):
        Memory(FakeStore(), mmap_mode="r")
    with pytest.raises(ValueError, match="FakeStore keeps none"):
        Memory(FakeStore()).cache(mmap_mode="r")(len)
    with pytest.raises(NotImplementedError, match="FakeStore keeps no files"):
        FakeStore().put_file(Place("f", bytes(32)), lambda file: None)


async def test_what_a_store_gives_is_checked_before_it_is_used() -> None:
    class Lying(FakeStore):
        def get(self, place: Place, *, as_file: bool = False) -> Record | None:
            record = super().get(place)
            other = [kept for kept in self._kept if kept != place]
            return super().get(other[0]) if record is not None and other else record

    recorder = Recorder()
    store = Lying()
    assert [await Memory(store).cache(recorder)(x) for x in (1, 2, 1, 2)] == [[1], [2], [1], [2]]
    assert recorder.calls == [1, 2, 1, 2]


async def test_a_large_result_is_one_file_and_is_replaced_in_one_step(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", mmap_mode="r")
    calls: list[None] = []

    @memory.cache
    def fn() -> Any:
        calls.append(None)
        return np.full(300_000, len(calls))

    assert (await fn())[0] == 1
    store = memory._shelf.store
    assert isinstance(store, DiskStore)
    (listed,) = store.entries()
    before = memory._shelf.sealed.read(listed.place, mapped=True)
    assert before is not None
    with before:
        assert (await fn.refresh())[0] == 2
        # Whoever had opened it reads what he opened, though another is there now.
        assert memory._shelf.sealed.value_of(before, "r")[0] == 1
    assert len([path for path in (tmp_path / "cache" / "entries").rglob("*") if path.is_file()]) == 1
