"""Memory's directory: validity, bounds, durability and trust."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_support import files_of, temporary_files, until

from aparallel import Memory, errors, expires_after
from aparallel._memory.disk import bounds, directory, files, locks, recency, slots, store
from aparallel._memory.disk.bounds import Bounds, Removed
from aparallel._memory.disk.directory import Directory
from aparallel._memory.disk.locks import ByteLocks, FileLocks, open_locks
from aparallel._memory.disk.slots import Slots
from aparallel._memory.disk.store import DiskStore
from aparallel._memory.lookup import Lookup
from aparallel.abc import Compressor


@pytest.fixture(autouse=True)
def flush_recency_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test ends when its threads have, and the one that flushes waits for company."""
    monkeypatch.setattr(recency, "_DELAY", 0.01)


@pytest.fixture
def location(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def disk_of(memory: Memory) -> DiskStore:
    assert isinstance(memory._shelf.store, DiskStore)
    return memory._shelf.store


@pytest.fixture
def memory(location: str) -> Memory:
    return Memory(location)


# What is not remembered


async def test_exceptions_are_not_remembered_unless_asked_for(memory: Memory) -> None:
    calls: list[int] = []

    def fails(x: int) -> int:
        calls.append(x)
        raise ValueError(x)

    async def fails_later(x: int) -> int:
        calls.append(x)
        raise KeyError(x)

    for fn, kind in ((fails, ValueError), (fails_later, KeyError)):
        calls.clear()
        cached = memory.cache(fn)
        for _ in range(2):
            with pytest.raises(kind):
                await cached(1)
        assert calls == [1, 1]
        keeping = memory.cache(cache_errors=kind)(fn)
        for _ in range(3):
            with pytest.raises(kind, match="7"):
                await keeping(7)
        assert calls == [1, 1, 7]
        other = memory.cache(cache_errors=(OSError,))(fn)
        with pytest.raises(kind):
            await other(8)
        assert not await other.check_call_in_cache(8)


class Odd(Exception):
    """Its constructor takes other arguments than it keeps."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.hint = hint


async def test_an_exception_with_a_constructor_of_its_own_is_remembered_whole(memory: Memory, location: str) -> None:
    calls: list[int] = []

    def fails(x: int) -> int:
        calls.append(x)
        raise Odd(x, hint="no")

    for keeping in (memory.cache(cache_errors=True)(fails), Memory(location).cache(cache_errors=True)(fails)):
        calls_before = len(calls)
        for _ in range(2):
            with pytest.raises(Odd, match="7: no") as caught:
                await keeping(7)
            assert caught.value.hint == "no"
    assert (calls_before, calls) == (1, [7])


async def test_a_result_that_cannot_be_pickled_is_returned_with_one_warning(memory: Memory, location: str) -> None:
    cached = memory.cache(lambda n: (n, threading.Lock()))
    with pytest.warns(errors.NotStoredWarning, match=r"not stored.*lock") as caught:
        assert (await cached(1))[0] == (await cached(1))[0] == (await cached(2))[0] - 1 == 1
    assert [warning.filename for warning in caught] == [__file__], "it points at who called"
    assert files_of(location) == []
    assert temporary_files(location) == []


async def test_what_has_no_stable_content_names_the_argument(memory: Memory) -> None:
    cached = memory.cache(lambda session: 1)
    with pytest.raises(errors.UnstableValueError, match="Argument 'session' of"):
        await cached(threading.Lock())
    assert await memory.cache(ignore=["session"])(lambda session: 1)(threading.Lock()) == 1


# Validity


async def test_what_a_read_only_directory_cannot_do_says_so_and_what_to_do(
    memory: Memory, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = memory.cache(len)
    assert await cached("abc") == 3

    def refuse(path: str, *args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(Directory, "_create", lambda self, path: refuse(path))
    monkeypatch.setattr(Slots, "numbers", lambda self: refuse(location))
    asked = {
        "forget a result": cached.forget("abc"),
        "clear results": cached.clear(),
        "invalidate tags": memory.invalidate("tag"),
        "remove results": memory.reduce_size(items_limit=0),
        "list its results": anext(memory.entries()),
    }
    for what, asking in asked.items():
        with pytest.raises(errors.StoreError, match="Do it as a user who may write there") as caught:
            await asking
        assert f"The memory in {location} cannot {what}: [Errno 13] Permission denied" in str(caught.value)
        assert caught.value.location == location
        assert isinstance(caught.value.__cause__, PermissionError)
        assert pickle.loads(pickle.dumps(caught.value)).location == location
    assert await cached("abc") == 3


async def test_what_others_put_beside_the_entries_is_left_alone(memory: Memory, location: str) -> None:
    def length(text: str) -> int:
        return len(text)

    assert await memory.cache(length)("abc") == 3
    (Path(location) / "entries" / "zz").mkdir()
    assert (await memory.statistics()).entries == 1
    await memory.clear()
    assert (await memory.statistics()).entries == 0
    assert (Path(location) / "entries" / "zz").is_dir()


async def test_a_file_in_a_directorys_place_is_told_from_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.StoreError, match="Give Memory the path of a directory") as caught:
        await Memory(tmp_path / "file").clear()
    assert f"Not a directory: '{tmp_path / 'file'}'. Give" in str(caught.value)


def test_the_newest_of_the_evicted_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "_MOST_NOTED", 100 * 16)
    kept = DiskStore(os.fspath(tmp_path / "cache"))
    kept.directory.prepare()
    noted = Removed(kept.directory, "evicted")
    keys = [bytes([n]) * 8 + bytes([n + 1]) * 24 for n in range(101)]
    assert not noted.has(keys[0])
    noted.note(keys[:100])
    assert all(map(noted.has, keys[:100]))
    assert not noted.has(keys[0][8:16] + keys[1][:8] + bytes(16))  # which stands across two of them
    noted.note(keys[100:])
    assert [noted.has(key) for key in keys] == [False] * 51 + [True] * 50


async def test_results_expire(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounds, "sweep_soon", lambda self: None)  # it would see what has expired, too
    memory = Memory(location, ttl="1h")
    calls: list[int] = []
    cached = memory.cache(lambda x: calls.append(x) or len(calls))
    longer = memory.cache(ttl="2h", track="none")(lambda x, y: calls.append(x) or len(calls))
    assert [await cached(0), await cached(0), await longer(0, 0)] == [1, 1, 2]
    clock = time.time() + 5400
    monkeypatch.setattr(time, "time", lambda: clock)
    assert (await cached.explain(0)).reason == "expired"
    assert [await cached(0), await longer(0, 0)] == [3, 2]


async def test_what_was_swept_because_it_had_expired_is_explained_so(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bounds, "sweep_soon", lambda self: None)
    memory = Memory(location)
    cached, lasting = memory.cache(ttl="1h")(abs), memory.cache(round)
    assert [await cached(-1), await cached(-2), await lasting(3)] == [1, 2, 3]
    clock = time.time() + 5400
    monkeypatch.setattr(time, "time", lambda: clock)
    assert await memory.reduce_size(age_limit="2h") == 2  # it looks at all, and finds what is over, too
    assert [(await cached.explain(x)).reason for x in (-1, -2, -3)] == ["expired", "expired", "never computed"]
    assert await memory.reduce_size(age_limit="1h") == 1
    assert (await lasting.explain(3)).reason == "evicted"


async def test_a_clock_that_jumps_makes_nothing_immortal(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounds, "sweep_soon", lambda self: None)  # it would remove files while they are dated here
    calls: list[int] = []
    memory = Memory(location, ttl="1h", max_entries=5)
    cached = memory.cache(lambda x: calls.append(x) or x)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e8)
    for x in range(5):
        await cached(x)
    for path in files_of(location):
        os.utime(path, (now + 1e8, now + 1e8))
    monkeypatch.setattr(time, "time", lambda: now)  # and back
    assert await cached(0) == 0
    assert calls == [0, 1, 2, 3, 4, 0]
    for x in range(10, 14):
        await cached(x)
    for x in (0, 10, 11, 12, 13):
        assert await cached.check_call_in_cache(x), "those of the wrong clock leave first"
    assert (await memory.statistics()).entries <= 5


async def test_a_stale_result_is_served_while_a_new_one_is_computed(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    memory = Memory(location)

    @memory.cache(ttl=10, stale_while_revalidate=100)
    async def fn(x: int) -> int:
        calls.append(x)
        return len(calls)

    assert await fn(0) == 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 50)
    assert await fn(0) == 1
    await until(lambda: fn.statistics().stored == 2)
    assert await fn(0) == 2
    monkeypatch.setattr(time, "time", lambda: now + 500)
    assert await fn(0) == 3
    assert len(calls) == 3


async def test_validation_decides_on_every_hit(memory: Memory) -> None:
    told: list[Any] = []

    def validate(metadata: Any) -> bool:
        told.append(dict(metadata))
        return len(told) <= 2

    calls: list[int] = []
    cached = memory.cache(cache_validation_callback=validate)(lambda x: calls.append(x) or len(calls))
    assert [await cached(0) for _ in range(4)] == [1, 1, 1, 2]
    assert set(told[0]) == {"duration", "time", "input_args"}
    assert abs(told[0]["time"] - time.time()) < 60
    with pytest.raises(TypeError, match="Give one"):
        memory.cache(validate=validate, cache_validation_callback=validate)


async def test_expires_after_is_joblibs(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    cached = memory.cache(validate=expires_after(minutes=1, seconds=30))(lambda x: calls.append(x) or len(calls))
    assert [await cached(0), await cached(0)] == [1, 1]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 91)
    assert await cached(0) == 2
    assert pickle.loads(pickle.dumps(expires_after(weeks=1))) == expires_after(days=7)


async def test_tags_invalidate_and_reach_what_is_being_computed(memory: Memory, location: str) -> None:
    calls: list[int] = []
    gates: dict[str, Any] = {}

    @memory.cache(tags=["users"])
    async def users(x: int) -> int:
        calls.append(x)
        gates["last"] = x
        if "go" in gates:
            gates["started"].set()
            await gates["go"].wait()
        return len(calls)

    plain = memory.cache(tags=lambda x: [f"item {x}"])(lambda x: calls.append(x) or len(calls))
    assert [await users(0), await plain(1), await plain(2)] == [1, 2, 3]
    await memory.invalidate("users")
    assert (await users.explain(0)).reason == "invalidated"
    assert [await users(0), await plain(1)] == [4, 2]
    await memory.invalidate(["item 1"])
    assert [await plain(1), await plain(2)] == [5, 3]
    gates.update(started=asyncio.Event(), go=asyncio.Event())
    computing = asyncio.ensure_future(users(9))
    await until(gates["started"].is_set, computing)
    await Memory(location).invalidate(["users"])
    gates["go"].set()
    assert await computing == 6
    assert not await users.check_call_in_cache(9)


class Gated:
    """A function that says when it has started, and returns what *source* was then once it may go on."""

    def __init__(self) -> None:
        self.source = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, x: int) -> tuple[int, int]:
        found = self.source
        self.started.set()
        await self.go.wait()
        return x, found

    def __aparallel_key__(self) -> str:
        return "gated"


async def run_program(*arguments: str) -> None:
    program = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=subprocess.DEVNULL)
    assert await program.wait() == 0


async def forget_it(memory: Memory, cached: Any) -> None:
    await cached.forget(1)


async def clear_function(memory: Memory, cached: Any) -> None:
    await cached.clear()


async def clear_all(memory: Memory, cached: Any) -> None:
    await memory.clear()


async def invalidate_tag(memory: Memory, cached: Any) -> None:
    await memory.invalidate("source")


async def clear_elsewhere(memory: Memory, cached: Any) -> None:
    program = "import asyncio, sys; from aparallel import Memory; asyncio.run(Memory(sys.argv[1]).clear())"
    await run_program("-c", program, disk_of(memory).location)


async def clear_by_command(memory: Memory, cached: Any) -> None:
    await run_program("-m", "aparallel", "cache", "clear", disk_of(memory).location)


REMOVALS = [forget_it, clear_function, clear_all, invalidate_tag, clear_elsewhere, clear_by_command]


@pytest.mark.parametrize("remove", REMOVALS)
async def test_what_is_computed_while_results_are_removed_is_not_served_afterwards(memory: Memory, remove: Any) -> None:
    gated = Gated()
    cached = memory.cache(tags=["source"])(gated)
    old = asyncio.ensure_future(cached(1))
    await until(gated.started.is_set, old)
    gated.source = 1
    await remove(memory, cached)
    gated.go.set()
    assert await old == (1, 0)  # who asked before gets what was true then
    assert not await cached.check_call_in_cache(1)
    assert await cached(1) == (1, 1)
    assert await cached(1) == (1, 1)


@pytest.mark.parametrize("remove", REMOVALS[:4])
async def test_who_asks_after_a_removal_shares_no_older_computation(memory: Memory, remove: Any) -> None:
    gated = Gated()
    cached = memory.cache(tags=["source"])(gated)
    old = asyncio.ensure_future(cached(1))
    await until(gated.started.is_set, old)
    gated.source = 1
    await remove(memory, cached)
    new = asyncio.ensure_future(cached(1))
    also_new = asyncio.ensure_future(cached(1))
    gated.go.set()
    assert [await old, await new, await also_new] == [(1, 0), (1, 1), (1, 1)]
    assert cached.statistics().misses == 2


@pytest.mark.parametrize("remove", REMOVALS[:4])
async def test_what_is_read_while_results_are_removed_is_not_kept_in_memory(
    memory: Memory, remove: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_read, go, keep = asyncio.Event(), threading.Event(), Lookup.keep
    loop = asyncio.get_running_loop()

    def keep_later(*args: Any, **kwargs: Any) -> None:
        loop.call_soon_threadsafe(has_read.set)
        assert go.wait(10)
        keep(*args, **kwargs)

    gated = Gated()
    gated.go.set()
    cached = memory.cache(tags=["source"])(gated)
    await cached(1)
    memory._shelf.tier.clear()
    monkeypatch.setattr(Lookup, "keep", keep_later)
    old = asyncio.ensure_future(cached(1))
    await until(has_read.is_set, old)
    gated.source = 1
    await remove(memory, cached)
    go.set()
    assert await old == (1, 0)
    assert await cached(1) == (1, 1)


async def test_a_removal_while_the_result_is_written_finds_it_too(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = disk_of(memory)
    put = disk.put

    def put_and_clear(*args: Any, **kwargs: Any) -> Any:
        disk.note_removal(None)  # as another process does, which then finds nothing to remove
        return put(*args, **kwargs)

    cached = memory.cache(lambda x: x + 1)
    monkeypatch.setattr(disk, "put", put_and_clear)
    assert await cached(1) == 2
    monkeypatch.undo()
    assert not await cached.check_call_in_cache(1)
    assert [await cached(1), await cached.check_call_in_cache(1)] == [2, True]


async def test_forgetting_one_result_leaves_others_that_are_being_computed(memory: Memory) -> None:
    gated = Gated()
    gated.go.set()
    cached = memory.cache(gated)
    keys = {x: (await cached.call_and_shelve(x)).key for x in range(2, 40)}
    await cached.clear()
    gated.go.clear()
    gated.started.clear()
    computing = {x: asyncio.ensure_future(cached(x)) for x in keys}
    await until(gated.started.is_set, computing[2])
    await cached.forget(2)
    gated.go.set()
    await asyncio.gather(*computing.values())
    kept = {x for x in keys if await cached.check_call_in_cache(x)}
    # One note stands for a 256th part of all keys.
    assert kept >= {x for x, key in keys.items() if key[:2] != keys[2][:2]}
    assert 2 not in kept


async def test_clearing_a_directory_that_is_not_there_makes_none(memory: Memory, location: str) -> None:
    assert await memory.clear() == 0
    assert not await memory.cache(lambda x: x).forget(1)
    assert not os.path.exists(location)


async def test_code_changes_make_new_entries_and_leave_the_old(location: str) -> None:
    def version(number: int) -> Any:
        source = f"def f(x):\n    return x + {number}\n"
        namespace: dict[str, Any] = {"__name__": "program"}
        exec(source, namespace)
        return Memory(location).cache(namespace["f"])

    assert [await version(1)(0), await version(2)(0)] == [1, 2]
    one, two = version(1), version(2)
    assert [await one(0), await two(0)] == [1, 2]
    assert one.statistics().hits == two.statistics().hits == 1
    assert (await Memory(location).statistics()).entries == 2


# Explaining


async def test_explain_says_why(location: str) -> None:
    memory = Memory(location, max_entries=np.int64(3))  # type: ignore[arg-type]  # counts as a whole number
    namespace: dict[str, Any] = {"__name__": "program"}
    exec("def g(x): return x\nTABLE = {}\ndef f(x, y=0): return g(x), len(TABLE)", namespace)
    cached = memory.cache(namespace["f"])
    assert (await cached.explain(1)).reason == "never computed"
    await cached(1)
    told = await cached.explain(1)
    assert told.hit
    assert str(told) == "hit (not part of the key: TABLE)"
    told = await cached.explain(2)
    assert (told.hit, told.reason, told.arguments, told.code) == (False, "argument differs", ("x",), ())
    assert str(told).startswith("miss: argument x differs")
    assert (await cached.explain(2, y=1)).arguments == ("x", "y")
    exec("def g(x): return -x", namespace)
    told = await cached.explain(1)
    assert (told.reason, told.code) == ("code changed", ("program.g",))
    assert "code of program.g changed" in str(told)
    for x in range(10, 20):
        await cached(x)
    assert (await cached.explain(10)).reason == "evicted"
    path = next(path for path in files_of(location) if path.stat().st_size)
    for path in files_of(location):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert (await Memory(location).cache(namespace["f"]).explain(19)).reason == "damaged"


async def test_explain_compares_with_the_most_similar_version_of_the_code(memory: Memory) -> None:
    namespace: dict[str, Any] = {"__name__": "program"}
    exec("def g(x): return x\ndef h(x): return x\ndef f(x): return g(x) + h(x)", namespace)
    cached = memory.cache(namespace["f"])
    for change in ("", "def g(x): return -x"):
        exec(change, namespace)
        for x in range(8):
            await cached(x)
    exec("def h(x): return -x", namespace)
    assert [(await cached.explain(x)).code for x in range(8)] == [("program.h",)] * 8


# Bounds


async def test_the_least_recently_used_leave_first(location: str) -> None:
    memory = Memory(location, max_entries=5)
    cached = memory.cache(lambda x: x)
    now = time.time()
    for x in range(5):
        await cached(x)
    disk = disk_of(memory)
    disk._recency.flush()
    for listed in disk.entries():
        value = await memory._shelf.get(listed.place, "", None)
        path = disk.directory.entry_path(listed.place)
        os.utime(path, (now - 100 + value, os.stat(path).st_mtime))
    await cached(0)  # the oldest, used again
    for x in (5, 6):
        await cached(x)
    assert [x for x in range(7) if await cached.check_call_in_cache(x)] == [0, 3, 4, 5, 6]


async def test_bounds_in_bytes_hold(location: str) -> None:
    memory = Memory(location, max_bytes="200KB")
    cached = memory.cache(lambda x: os.urandom(5000))
    for x in range(120):
        await cached(x)
        assert (await memory.statistics()).bytes <= 1.1 * 200 * 1024
    real = sum(path.stat().st_size for path in files_of(location))
    assert real == (await memory.statistics()).bytes
    assert real >= 0.8 * 200 * 1024


async def test_what_is_larger_than_the_bound_is_returned_and_not_stored(location: str) -> None:
    cached = Memory(location, max_bytes="10KB").cache(os.urandom)
    await cached(100)
    with pytest.warns(errors.NotStoredWarning, match="max_bytes is 10240"):
        assert len(await cached(20_000)) == 20_000
    assert await cached.check_call_in_cache(100)


async def test_reduce_size_and_entries(memory: Memory) -> None:
    cached = memory.cache(lambda x: x)
    for x in range(30):
        await cached(x)
    assert await memory.reduce_size(items_limit=20) == 10
    assert await memory.reduce_size(items_limit=20) == 0
    entries = [entry async for entry in memory.entries()]
    assert len(entries) == 20
    assert await memory.reduce_size(bytes_limit=sum(entry.size for entry in entries) // 2) >= 10
    assert await memory.reduce_size(age_limit="1h") == 0
    left = list(disk_of(memory).entries())
    for listed in left[:4]:
        path = disk_of(memory).directory.entry_path(listed.place)
        os.utime(path, (time.time() - 7200, time.time()))
    assert await memory.reduce_size(age_limit="1h") == 4
    assert (await memory.statistics()).entries == len(left) - 4


WRITER = """
import asyncio, sys
from aparallel import Memory

memory = Memory({location!r}, max_entries={limit})

@memory.cache
def work(name, x):
    return b"x" * 100

async def main():
    highest = 0
    for x in range({calls}):
        await work(sys.argv[1], x)
        highest = max(highest, (await memory.statistics()).entries)
    print(highest)

asyncio.run(main())
"""


def check_constant_writing(location: str, processes: int, calls: int, limit: int) -> None:
    script = WRITER.format(location=location, limit=limit, calls=calls)
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(processes)
    ]
    highest = [int(writer.communicate(timeout=300)[0]) for writer in writers]
    assert all(writer.returncode == 0 for writer in writers)
    assert max(highest) <= 1.1 * limit
    assert 0.85 * limit <= len(files_of(location)) <= 1.1 * limit


async def test_looking_at_what_is_stored_is_no_use_of_it(memory: Memory, location: str) -> None:
    cached = memory.cache(lambda x: [x])
    await cached(0)
    [path] = files_of(location)
    os.utime(path, (1.6e9, 1.7e9))
    assert [entry.last_used async for entry in memory.entries()] == [1.6e9]
    assert not (await cached.explain(1)).hit
    assert [entry.last_used async for entry in memory.entries()] == [1.6e9]


def test_bounds_hold_while_several_processes_write(location: str) -> None:
    check_constant_writing(location, processes=3, calls=250, limit=200)


@pytest.mark.soak
def test_bounds_hold_while_two_hundred_processes_write(location: str) -> None:
    check_constant_writing(location, processes=200, calls=50, limit=1000)


@pytest.mark.parametrize("moment", ["writing", "evicting"])
def test_a_killed_process_leaves_nothing_half_done(location: str, moment: str) -> None:
    script = textwrap.dedent("""
        import asyncio, os, signal, sys
        from aparallel import Memory
        from aparallel._memory.disk import directory, slots

        memory = Memory(sys.argv[1], max_entries=20 if sys.argv[2] == "evicting" else 30)
        work = memory.cache(track="none")(int)

        def die(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            for x in range(20):
                await work(x)
            if sys.argv[2] == "writing":
                directory.os.replace = die
            else:
                slots.remove = die
            await work(99)

        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", script, location, moment]) as process:
        pid = process.pid
    assert process.returncode == -signal.SIGKILL

    async def look() -> None:
        memory = Memory(location, max_entries=20)
        work = memory.cache(track="none")(int)
        for x in range(20):
            assert await work(x) == x
        assert work.statistics().misses == 0
        assert await work(99) == 99
        for x in range(100, 120):
            await work(x)
        assert (await memory.statistics()).entries <= 22
        for path in temporary_files(location):
            # A process in a container may have the number that the one before it had.
            os.utime(path, (0, 0))
            path.rename(path.with_name(path.name.replace(f"{pid:x}-", f"{os.getpid():x}-")))
        await memory.reduce_size()
        assert temporary_files(location) == []
        assert len(files_of(location)) == (await memory.statistics()).entries

    asyncio.run(look())


async def test_what_somebody_else_removed_meanwhile_is_not_counted_twice(memory: Memory, location: str) -> None:
    cached = memory.cache(lambda x: x)
    for x in range(300):
        await cached(x)
    disk = disk_of(memory)
    slot = max(disk.slots.numbers(), key=lambda slot: len(list(disk.slots.scan(slot))))
    seen = disk.slots.look_through(slot)
    assert disk.remove(seen[0].place)
    assert disk.slots.remove_all(slot, seen) == len(seen) - 1
    assert disk.totals().entries == len(files_of(location)) == 300 - len(seen)


@pytest.mark.parametrize("name", ["x" * 64, "notes"])
async def test_a_file_of_somebody_else_among_the_entries_is_let_lie(memory: Memory, location: str, name: str) -> None:
    await memory.cache(lambda x: x)(1)
    (stored,) = files_of(location)
    foreign = stored.with_name(name)
    foreign.write_text("theirs")
    assert len([entry async for entry in memory.entries()]) == 1
    assert await memory.reduce_size(items_limit=0) == 1
    assert await memory.clear() == 0
    assert foreign.read_text() == "theirs"


async def test_only_who_has_the_lock_of_a_slot_changes_its_count(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await memory.cache(lambda x: x)(1)
    disk = disk_of(memory)
    (slot,) = disk.slots.numbers()
    counted = disk.totals()
    elsewhere, number = open_locks(disk.directory.path("locks")), slots._SLOT_LOCKS + slot
    assert elsewhere.try_acquire(number)
    monkeypatch.setattr(slots, "_PATIENCE", 0.0)
    assert disk.clear() == 1
    assert disk.totals() == counted
    elsewhere.release(number)
    assert disk.slots.look_through(slot) == []
    assert disk.totals() == (0, 0)


# Durability


@pytest.mark.parametrize("large", [False, True])
async def test_a_damaged_entry_is_a_logged_miss_and_is_replaced(
    location: str, large: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fn(x: int) -> Any:
        return np.full(300_000 if large else 10, x)

    await Memory(location).cache(fn)(7)
    whole = {path: path.read_bytes() for path in files_of(location)}
    assert len(whole) == 1
    for path, data in whole.items():
        damages = [b"", data[:-1], data[: len(data) // 2], data + b"x"]
        damages += [data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :] for at in (0, 20, 70, len(data) // 2)]
        for damage in damages:
            caplog.clear()
            path.write_bytes(damage)
            cached = Memory(location).cache(fn)
            with caplog.at_level(logging.WARNING, "aparallel.memory"):
                assert (await cached(7))[0] == 7
            assert cached.statistics().misses == 1, (path, damage[:20])
            assert caplog.text.count("is damaged") == 1
            again = Memory(location).cache(fn)
            assert (await again(7))[0] == 7
            assert again.statistics().misses == 0


async def test_an_entry_moved_to_another_key_is_not_believed(memory: Memory, location: str) -> None:
    cached = memory.cache(lambda x: x)
    await cached(1)
    (one,) = files_of(location)
    await cached(2)
    (two,) = set(files_of(location)) - {one}
    two.write_bytes(one.read_bytes())
    assert await Memory(location).cache(cached.__wrapped__)(2) == 2


async def test_a_file_that_is_not_ours_among_the_entries_is_left_alone(location: str) -> None:
    memory = Memory(location)
    await memory.cache(np.arange)(10)
    (path,) = files_of(location)
    beside = path.with_name(".nfs0001")
    beside.write_bytes(b"somebody's")
    os.utime(beside, (0, 0))
    assert len([entry async for entry in memory.entries()]) == 1
    await memory.clear()
    assert files_of(location) == [beside]


async def test_readers_are_safe_while_others_clear(location: str) -> None:
    cached = Memory(location).cache(lambda x: np.full(20_000, x))
    others = Memory(location)
    end = time.monotonic() + 0.5

    async def read() -> None:
        while time.monotonic() < end:
            assert [(await cached(x))[0] for x in range(3)] == [0, 1, 2]

    async def clear() -> None:
        while time.monotonic() < end:
            await others.clear()
            await others.reduce_size(items_limit=1)

    await asyncio.gather(read(), read(), clear())


async def test_a_full_disk_costs_a_warning_and_no_result(
    memory: Memory, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = memory.cache(lambda x: [x])
    assert await cached(0) == [0]

    def full(fd: int, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_all", full)
        with pytest.warns(errors.NotStoredWarning, match="No space left") as caught:
            assert [await cached(1), await cached(2), await cached(0)] == [[1], [2], [0]]
        assert len(caught) == 1
    assert temporary_files(location) == []
    assert await cached(1) == [1]
    assert cached.statistics().not_stored == 2


async def test_a_file_system_without_locks_is_bounded_too(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(self: Any, number: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(ByteLocks, "try_acquire", no_locks)
    monkeypatch.setattr(FileLocks, "try_acquire", no_locks)
    memory = Memory(location, max_entries=10)
    cached = memory.cache(lambda x: x)
    for x in range(30):
        assert await cached(x) == x
    assert 8 <= (await memory.statistics()).entries <= 11
    assert len(files_of(location)) == (await memory.statistics()).entries


async def test_a_directory_that_vanishes_is_made_again(memory: Memory, location: str) -> None:
    import shutil

    cached = memory.cache(lambda x: [x])
    await cached(0)
    shutil.rmtree(location)
    assert await cached(1) == [1]
    assert len(files_of(location)) == 1


@pytest.mark.parametrize("name", ["file", "file/cache"])
async def test_a_location_that_cannot_be_made_costs_one_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cached = Memory(tmp_path / name).cache(lambda x: [x])
    with pytest.warns(errors.NotStoredWarning) as caught:
        assert [await cached(1), await cached(1), await cached(2)] == [[1], [1], [2]]
    assert len(caught) == 1
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
async def test_a_read_only_directory_still_gives_hits(memory: Memory, location: str) -> None:
    cached = memory.cache(lambda x: [x])
    await cached(0)
    for folder, _, _ in os.walk(location):
        os.chmod(folder, 0o500)
    try:
        other = Memory(location).cache(cached.__wrapped__)
        assert await other(0) == [0]
        with pytest.warns(errors.NotStoredWarning):
            assert await other(1) == [1]
    finally:
        for folder, _, _ in os.walk(location):
            os.chmod(folder, 0o700)


def has_spread_subfolders(folder: str) -> bool | None:
    """Whether the file system was asked to put them far from each other; None if it cannot be."""
    if not shutil.which("lsattr"):
        return None
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout.strip()
    told = subprocess.run(["lsattr", "-d", folder], capture_output=True, text=True).stdout
    return "T" in told.split()[0] if kind == "ext2/ext3" and told else None


async def test_folders_are_spread_over_the_disk_where_that_can_be_asked_for(
    memory: Memory, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = memory.cache(lambda x: [x])
    assert await cached(0) == [0]
    assert has_spread_subfolders(os.path.join(location, "tmp")) in (True, None)

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr(files.fcntl, "ioctl", refuse)
    elsewhere = Memory(f"{location}-2").cache(lambda x: [x])
    assert await elsewhere(0) == [0]
    assert elsewhere.statistics().stored == 1


async def test_odd_names_and_deep_paths_work(tmp_path: Path) -> None:
    deep = tmp_path.joinpath("dé ep\n'%", *["d" * 100] * 15)
    namespace: dict[str, Any] = {"__name__": "modülé/../x", "calls": []}
    name = "ÄÖ" + "x" * 500
    exec(f"def {name}(a): return a", namespace)
    namespace[name].__qualname__ = f"../{name}"
    cached = Memory(deep).cache(namespace[name])
    assert [await cached("\ud800"), await cached("\ud800")] == ["\ud800"] * 2
    assert cached.statistics().misses == 1


# Trust


async def test_the_directory_is_its_owners_alone(memory: Memory, location: str) -> None:
    await memory.cache(lambda x: x)(1)
    assert stat.S_IMODE(os.stat(location).st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in files_of(location))


@pytest.mark.parametrize(("mode", "word"), [(0o777, "everybody"), (0o770, "group")])
async def test_a_directory_that_others_may_write_is_refused(location: str, mode: int, word: str) -> None:
    os.mkdir(location)
    os.chmod(location, mode)
    calls: list[int] = []
    fn = calls.append
    with pytest.raises(errors.UntrustedDirectoryError, match=f"{word} may write") as caught:
        await Memory(location).cache(fn)(1)
    assert (caught.value.path, calls) == (location, [])
    assert isinstance(caught.value, PermissionError)
    await Memory(location, signing_key="secret").cache(fn)(1)
    assert calls == [1]
    if mode == 0o770:
        await Memory(location, trust_group=True).cache(fn)(2)


async def test_a_directory_of_someone_else_is_refused(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(location, 0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(errors.UntrustedDirectoryError, match="belongs to user"):
        await Memory(location).cache(lambda x: x)(1)


async def test_a_directory_that_someone_else_has_put_in_the_place_of_ours_is_refused(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = Memory(location, memory_bytes=0).cache(lambda x: [x])
    for _ in range(2):
        assert await cached(1) == [1]
    monkeypatch.setattr(os, "geteuid", lambda: 54321)  # as if all of it were made by somebody else since
    with pytest.raises(errors.UntrustedDirectoryError, match="belongs to user"):
        await cached(1)
    found = files_of(location)
    with pytest.warns(errors.NotStoredWarning, match="belongs to user"):
        assert await cached(2) == [2]
    assert files_of(location) == found


async def test_a_shared_group_can_write(location: str) -> None:
    await Memory(location, trust_group=True).cache(lambda x: x)(1)
    assert stat.S_IMODE(os.stat(location).st_mode) == 0o2770
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o060 == 0o060 for path in files_of(location))


async def test_a_shared_group_can_take_the_locks_of_systems_that_have_none_of_bytes(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HAS_BYTE_LOCKS", False)
    monkeypatch.setattr(directory, "HAS_BYTE_LOCKS", False)
    folder = Path(location, "locks.d")

    async def fn(x: int) -> list[int]:
        return [stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())]

    assert await Memory(location, trust_group=True).cache(fn)(1) == [0o2770, 0o660]


class Bomb:
    exploded = False

    def __reduce__(self) -> Any:
        return exec, ("import test_memory_store; test_memory_store.Bomb.exploded = True",)


async def test_an_entry_placed_by_someone_else_is_a_miss_and_never_run(location: str, tmp_path: Path) -> None:
    sys.modules.setdefault("test_memory_store", sys.modules[__name__])
    calls: list[int] = []

    def fn(x: int) -> Any:
        calls.append(x)
        return "good"

    signed = Memory(location, signing_key=b"ours").cache(fn)
    assert await signed(1) == "good"
    (path,) = files_of(location)
    good = path.read_bytes()
    for key in (None, b"theirs"):
        elsewhere = str(tmp_path / repr(key))
        await Memory(elsewhere, signing_key=key).cache(track="none")(lambda x: Bomb())(1)
        from aparallel._memory.entry import Body, Entry, pack, secret_of

        entry = Entry(Body.VALUE, time.time(), b"{}", pickle.dumps(Bomb()))
        path.write_bytes(pack(bytes.fromhex(path.name), entry, secret_of(key) if key else None))
        calls.clear()
        fresh = Memory(location, signing_key=b"ours").cache(fn)
        assert (await fresh.explain(1)).reason == "not signed"
        assert await fresh(1) == "good"
        assert calls == [1]
    assert not Bomb.exploded
    path.write_bytes(good)
    assert await Memory(location, signing_key=b"ours").cache(fn).check_call_in_cache(1)
    assert not await Memory(location).cache(fn).check_call_in_cache(1)


async def test_arguments_are_stored_only_if_asked_for(location: str, tmp_path: Path) -> None:
    fn = lambda password: 1  # noqa: E731
    await Memory(location).cache(fn)("hunter2 secret")
    everything = b"".join(path.read_bytes() for path in Path(location).rglob("*") if path.is_file())
    assert b"hunter2" not in everything
    memory = Memory(tmp_path / "other", store_arguments=True)
    await memory.cache(fn)("hunter2 secret")
    (entry,) = [entry async for entry in memory.entries()]
    assert entry.arguments == {"password": "'hunter2 secret'"}


# Arrays and compression


async def test_array_results_are_mapped_and_nobody_can_change_the_pages(location: str) -> None:
    def make(n: int) -> dict[str, Any]:
        return {"array": np.arange(n), "n": n}

    cached = Memory(location, mmap_mode="r").cache(make)
    computed = await cached(1000)
    assert (computed["n"], type(computed["array"])) == (1000, np.memmap)
    first, second = (await cached(1000))["array"], (await cached(1000))["array"]
    assert type(first) is type(second) is np.memmap
    assert first.sum() == 499500
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    copied = (await Memory(location).cache(mmap_mode="c")(make)(1000))["array"]
    copied[0] = 7
    assert (await cached(1000))["array"][0] == 0

    alone = Memory(location, mmap_mode="r").cache(np.arange)
    await alone(1000)
    one, two = await alone(1000), await alone(1000)
    assert one is not two
    assert np.shares_memory(one, two)
    one.mine = True
    assert not hasattr(await alone(1000), "mine")


async def test_signed_results_are_mapped_and_a_changed_one_is_not_believed(location: str) -> None:
    memory = Memory(location, mmap_mode="r", signing_key="secret")
    assert type(await memory.cache(np.arange)(5000)) is np.memmap
    again = Memory(location, mmap_mode="r", signing_key="secret").cache(np.arange)
    assert (await again(5000)).sum() == 12497500
    assert again.statistics().misses == 0
    (path,) = files_of(location)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1  # inside the array, which is not read when it is mapped
    path.write_bytes(data)
    again = Memory(location, mmap_mode="r", signing_key="secret").cache(np.arange)
    assert (await again(5000)).sum() == 12497500
    assert again.statistics().misses == 1


async def test_a_mapped_result_outlives_its_entry(location: str) -> None:
    memory = Memory(location, mmap_mode="r")
    cached = memory.cache(np.arange)
    await cached(100_000)
    mapped = await cached(100_000)
    await memory.clear()
    assert mapped.sum() == 4999950000


async def test_large_values_are_compressed(location: str, tmp_path: Path) -> None:
    sizes = []
    for name, compress in (("plain", None), ("small", "zlib")):
        memory = Memory(tmp_path / name, compress=compress)
        cached = memory.cache(np.zeros)
        assert (await cached(200_000)).sum() == 0
        again = Memory(tmp_path / name).cache(np.zeros)
        assert (await again(200_000)).sum() == 0
        assert again.statistics().misses == 0
        sizes.append((await memory.statistics()).bytes)
    assert sizes[0] > 1_600_000
    assert sizes[1] < 100_000
    with pytest.raises(ValueError, match="zap"):
        Memory(location, compress="zap")


async def test_few_results_are_kept_mapped_as_each_takes_a_descriptor(memory: Memory) -> None:
    cached = memory.cache(np.full, mmap_mode="r")
    plain = memory.cache(len)
    await plain("abc")
    first = [(await cached(10, x))[0] for x in range(64)]
    await cached(10, 0)  # used again
    more = [(await cached(10, x))[0] for x in range(64, 100)]
    assert [*first, *more] == list(range(100))
    assert (await memory.statistics()).memory_entries == 64 + 1
    hits = cached.statistics().memory_hits
    for x in (0, 99, 1):  # and not 1, the least recently used of the 64
        await cached(10, x)
    assert cached.statistics().memory_hits == hits + 2
    await plain("abc")
    assert plain.statistics().memory_hits == 1
    await memory.clear()  # the descriptors with it


class Zlib(Compressor):
    name = "own"

    def compress(self, data: memoryview, itemsize: int) -> bytes:
        return zlib.compress(data)

    def decompress(self, data: memoryview, size: int) -> bytes:
        return zlib.decompress(data)


async def test_large_values_are_found_again_that_a_compressor_of_ones_own_compressed(location: str) -> None:
    for hits in (0, 1):
        cached = Memory(location, compress=Zlib()).cache(np.arange)
        assert (await cached(200_000)).sum() == 199_999 * 100_000
        assert cached.statistics().hits == hits
    assert (await Memory(location, compress=Zlib()).statistics()).bytes < 1_000_000


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
async def test_what_is_no_file_in_a_signed_directory_is_a_miss(location: str, put: Callable[[str], None]) -> None:
    def fn(x: int) -> int:
        return x

    cached = Memory(location, signing_key="secret").cache(fn, tags=["t"])
    assert await cached(1) == 1
    (entry,) = files_of(location)
    await Memory(location, signing_key="secret").invalidate("t")
    (note,) = Path(location, "tags").iterdir()
    for path in (entry, note):
        path.unlink()
        put(str(path))
    again = Memory(location, signing_key="secret").cache(fn, tags=["t"])
    async with asyncio.timeout(10):
        assert [await again(1), await again(1)] == [1, 1]
    assert (again.statistics().misses, again.statistics().stored) == (1, 1)
    assert stat.S_ISREG(os.lstat(entry).st_mode)


async def test_a_signed_container_is_bound_to_its_entry(location: str) -> None:
    memory = Memory(location, signing_key="secret")
    cached = memory.cache(np.full)
    await cached(200_000, 1)
    (one,) = files_of(location)
    await cached(200_000, 2)
    (two,) = [path for path in files_of(location) if path != one]
    container = int.from_bytes(one.read_bytes()[-16:-8], "little")
    two.write_bytes(one.read_bytes()[:container] + two.read_bytes()[container:])
    again = Memory(location, signing_key="secret").cache(np.full)
    assert (await again(200_000, 2))[0] == 2
    assert again.statistics().misses == 1
