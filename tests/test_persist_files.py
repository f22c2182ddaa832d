"""A dumped file is whole or absent, whatever happens. And mapping, progress, memory, and the loop meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import itertools
import os
import pathlib
import resource
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import types
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from memory_support import until

from aparallel import dump, dump_chunks, dumps, inspect, load, loads
from aparallel._ground.stoppable import Stop
from aparallel._persist import files, sinks
from aparallel._persist.dump import dump_to_path
from aparallel._persist.load import load_from_path
from aparallel._persist.opening import Opened
from aparallel._persist.options import DumpOptions, LoadOptions
from aparallel.errors import (
    EmptyFileError,
    TruncatedFileError,
    UnpicklableObjectError,
    UnsupportedFormatError,
    UntrustedTypeError,
    WrongLoopError,
)

OLD, NEW = ["old"], [np.arange(400_000.0), "new"]


def is_old(path: pathlib.Path) -> bool:
    found: Any = load_from_path(str(path), LoadOptions())
    assert found == OLD or (len(found) == 2 and np.array_equal(found[0], NEW[0]))
    return bool(found == OLD)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    found = tmp_path / "file"
    dump_to_path(OLD, str(found), DumpOptions())
    return found


class Gate:
    """Holds the pickler in the middle until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __reduce__(self) -> Any:
        self.reached.set()
        assert self.opened.wait(20)
        return int, ("1",)


async def reached(gate: Gate) -> None:
    await asyncio.to_thread(gate.reached.wait, 20)


# What changes meanwhile


@pytest.mark.parametrize("size", [100_000, 3_000_000, 20_000_000])
@pytest.mark.parametrize("kind", ["array", "bytearray"])
async def test_what_changes_while_it_is_written_raises_and_leaves_the_old_file(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    data = bytearray(max(size, 2_000_000) if kind == "bytearray" else size)
    seen: Any = np.frombuffer(data, np.uint8)
    write_some = sinks.FileSink._write_some
    written = []

    def changing(self: sinks.FileSink, view: memoryview) -> int:
        written.append(write_some(self, view))
        seen[:] = len(written)
        return written[-1]

    monkeypatch.setattr(sinks.FileSink, "_write_some", changing)
    with pytest.raises(UnpicklableObjectError, match="changed while it was written\nDo not change it before"):
        await dump({"a": seen if kind == "array" else data}, path)
    monkeypatch.undo()
    assert is_old(path)
    assert len(list(path.parent.iterdir())) == 1
    await dump(seen, path)
    assert np.array_equal(await load(path), seen)


async def test_a_dictionary_that_grows_meanwhile_says_what_to_do(path: pathlib.Path) -> None:
    growing: dict[Any, Any] = {}

    class Adds:
        def __reduce__(self) -> Any:
            growing[len(growing)] = None
            return int, ()

    growing.update({number: Adds() for number in range(3)})
    with pytest.raises(UnpicklableObjectError, match="during iteration\nDo not change it before the dump is done"):
        await dump(growing, path)
    assert is_old(path)


# Cancellation


@pytest.mark.parametrize("how", ["native", "scope"])
async def test_a_cancelled_dump_leaves_the_old_file_and_nothing_beside_it(path: pathlib.Path, how: str) -> None:
    gate = Gate()
    obj = [np.arange(100_000.0), gate, *[np.arange(100_000.0) for _ in range(50)]]
    scope = anyio.CancelScope()

    async def dumping() -> None:
        with scope if how == "scope" else contextlib.nullcontext():
            await dump(obj, path)

    task = asyncio.create_task(dumping())
    await reached(gate)
    if how == "native":
        task.cancel()
    else:
        scope.cancel()
    await asyncio.sleep(0)
    assert not task.done()  # it waits for its thread
    gate.opened.set()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert scope.cancelled_caught or task.cancelled()
    assert is_old(path)
    assert os.listdir(path.parent) == ["file"]


async def test_a_dump_that_is_cancelled_twice_still_cleans_up(path: pathlib.Path) -> None:
    gate = Gate()
    task = asyncio.create_task(dump([gate, np.arange(10)], path))
    await reached(gate)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_old(path)
    assert os.listdir(path.parent) == ["file"]


class Slow:
    """An asynchronous file that never gets done with its write, or with its read."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def write(self, data: bytes) -> int:
        self.reached.set()
        await asyncio.Event().wait()
        return 0

    async def read(self, size: int) -> bytes:
        self.reached.set()
        await asyncio.Event().wait()
        return b""


@pytest.mark.parametrize("use", ["dump", "load"])
async def test_cancelling_while_the_other_side_hangs_ends_the_thread(use: str) -> None:
    slow = Slow()
    task = asyncio.create_task(dump(np.arange(3e6), slow) if use == "dump" else load(slow))
    await slow.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_other_side_comes_through_and_ends_the_thread() -> None:
    class Failing:
        async def write(self, data: bytes) -> int:
            raise ConnectionResetError("gone")

        async def read(self, size: int) -> bytes:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await dump(np.arange(3e6), Failing())
    with pytest.raises(ConnectionResetError):
        await load(Failing())


async def test_any_number_of_pipes_may_wait_for_their_writers() -> None:
    with contextlib.ExitStack() as opened:
        pipes = [os.pipe() for _ in range(20)]
        readers = [opened.enter_context(os.fdopen(reader, "rb")) for reader, _ in pipes]
        writers = [opened.enter_context(os.fdopen(writer, "wb")) for _, writer in pipes]
        loading = asyncio.gather(*map(load, readers))
        await asyncio.sleep(0)  # they are all begun
        await asyncio.gather(*(dump(number, writer) for number, writer in enumerate(writers)))
        assert await loading == list(range(20))


async def test_leaving_the_chunks_early_ends_the_thread() -> None:
    chunks = dump_chunks(np.arange(3e6))
    async for _ in chunks:
        break
    await chunks.aclose()
    never_begun = dump_chunks(1)
    await never_begun.aclose()


async def test_chunks_wait_for_their_taker() -> None:
    taken = 0
    drawn = []

    class Watched:
        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce__(self) -> Any:
            drawn.append(self.number)
            return bytes, (os.urandom(1 << 20),)

    chunks = dump_chunks([Watched(number) for number in range(40)])
    async for chunk in chunks:
        taken += len(chunk)
        if taken > 2 << 20:
            break
    # What waits: four chunks, and what lies between the pickler and the queue.
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert len(drawn) < 16
    await chunks.aclose()


# Errors


async def test_what_is_nested_too_deeply_is_told_how_to_be_dumped() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(UnpicklableObjectError, match="nested too deeply"):
        await dumps(deep)


async def test_what_cannot_be_pickled_is_told_and_leaves_the_old_file(path: pathlib.Path) -> None:
    with pytest.raises(UnpicklableObjectError, match=r"^A list could not be dumped.*lock") as caught:
        await dump([np.arange(100_000), threading.Lock()], path)
    assert caught.value.type_name == "builtins.list"
    assert isinstance(caught.value.__cause__, TypeError)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UnpicklableObjectError):
        await dump(deep, path)
    while deep:
        deep = deep.pop()
    assert is_old(path)
    assert os.listdir(path.parent) == ["file"]


class Failing(io.RawIOBase):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "full")


class AsyncFailing:
    async def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")


async def leave(obj: object) -> None:
    async for _ in dump_chunks(obj):
        raise OSError


@pytest.mark.parametrize(
    "use",
    [
        dumps,
        leave,
        lambda obj: dump(obj, "no folder/file"),
        lambda obj: dump(obj, Failing()),
        lambda obj: dump(obj, AsyncFailing()),
    ],
)
async def test_what_could_not_be_dumped_is_not_kept(use: Any) -> None:
    class Kept(set[int]):
        def __reduce__(self) -> Any:
            return set, (threading.Lock() if use is dumps else [*self],)

    gc.collect()
    gc.disable()
    try:
        obj = [Kept(), NEW]
        reference = weakref.ref(obj[0])
        with contextlib.suppress(OSError, UnpicklableObjectError):
            await use(obj)
        del obj
        await until(lambda: reference() is None)
    finally:
        gc.enable()


def test_a_load_that_fails_keeps_nothing(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])

    async def chunks() -> AsyncIterator[bytes]:
        yield path.read_bytes()

    def count() -> int:
        return sum(type(found) is Opened for found in gc.get_objects())

    async def read() -> None:
        for source in (path, chunks()):
            with contextlib.suppress(TruncatedFileError):
                await load(source)
        await until(lambda: count() == before)  # when the threads have ended

    gc.collect()
    before = count()
    gc.disable()
    try:
        asyncio.run(read())
    finally:
        gc.enable()


async def test_a_path_that_names_no_file_is_an_error(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(FileNotFoundError, match="without a name"):
        await dump(NEW, "")
    for folder in (".", "new/", f"{path.parent}"):
        with pytest.raises(IsADirectoryError, match="Cannot dump to a folder"):
            await dump(NEW, folder)
    assert os.listdir() == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
async def test_errors_of_what_a_pipe_gives_name_its_path(tmp_path: pathlib.Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)

    async def give(data: bytes) -> None:
        await asyncio.to_thread(pathlib.Path(pipe).write_bytes, data)

    for use in (load, inspect):
        found = (await asyncio.gather(use(pipe), give(b""), return_exceptions=True))[0]
        assert isinstance(found, EmptyFileError)
        assert found.source == pipe
    info, _ = await asyncio.gather(inspect(pipe), give(await dumps([1, 2])))
    assert info.format == "aparallel"


@pytest.mark.parametrize("code", [None, errno.ENOTSUP, errno.EIO])
async def test_where_a_sync_leaves_the_disks_own_cache_a_full_one_is_asked_for(
    path: pathlib.Path, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def control(fd: int, command: int) -> None:
        asked.append(command)
        if code is not None:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)  # macOS has it
    monkeypatch.setattr(files.fcntl, "fcntl", control)
    monkeypatch.setattr(files.os, "fsync", lambda fd: asked.append("fsync"))
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            await dump(NEW, path)
        assert is_old(path)
    else:
        await dump(NEW, path)
        assert not is_old(path)
    folder = ["fsync"]
    assert asked == [51, *{None: folder, errno.ENOTSUP: ["fsync", *folder], errno.EIO: []}[code]]


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "fchmod", "posix_fallocate"])
@pytest.mark.parametrize("durable", [True, False])
async def test_a_full_disk_at_any_step_leaves_the_old_file(
    path: pathlib.Path, step: str, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if step == "fsync" and not durable:
        pytest.skip("this step is not taken")

    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*file'"):
        await dump(NEW, path, durable=durable)
    monkeypatch.undo()
    assert is_old(path)
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes the advice")
async def test_the_disk_begins_while_a_synced_file_is_still_written(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    advise, sync = os.posix_fadvise, os.fsync

    def advised(fd: int, start: int, size: int, advice: int) -> None:
        steps.append((start, start + size))
        advise(fd, start, size, advice)

    monkeypatch.setattr(files.os, "posix_fadvise", advised)
    monkeypatch.setattr(files.os, "fsync", lambda fd: (steps.append("sync"), sync(fd)))
    large = np.arange(3_000_000.0)
    await dump(large, path, durable=True)
    begun = steps[: steps.index("sync")]
    assert sum(end - start for start, end in begun) >= large.nbytes - (1 << 20)
    assert np.array_equal(await load(path), large)
    steps.clear()
    await dump(large, path, durable=False)
    await dump([1, 2], path, durable=True)
    assert [step for step in steps if step != "sync"] == []


@pytest.mark.parametrize("step", ["posix_fadvise", "posix_fallocate"])
async def test_a_file_system_that_takes_no_advice_gets_the_file_all_the_same(
    path: pathlib.Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(files.os, step, refuse)
    await dump(np.arange(3_000_000.0), path, durable=True)
    assert np.array_equal(await load(path), np.arange(3_000_000.0))


@pytest.mark.parametrize("limit", [0, 100, 70_000, 1_000_000])
async def test_a_write_that_the_system_cuts_short_leaves_the_old_file(path: pathlib.Path, limit: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        for durable in (True, False):
            with pytest.raises(OSError, match="File too large"):
                await dump(NEW, path, durable=durable)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert is_old(path)
    assert os.listdir(path.parent) == ["file"]


# Rights


@pytest.mark.parametrize("mask", [0o022, 0o077, 0])
async def test_a_new_file_has_the_rights_that_the_umask_leaves(path: pathlib.Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        await dump(NEW, path.with_name("new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.with_name("new").stat().st_mode) == 0o666 & ~mask


async def test_what_replaces_a_private_file_is_private_from_the_beginning(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.chmod(0o640)
    modes: set[int] = set()

    def seen(sink: files.FileSink, view: memoryview) -> None:
        modes.add(stat.S_IMODE(os.fstat(sink._fd).st_mode))
        writing(sink, view)

    writing = files.FileSink._write_out
    monkeypatch.setattr(files.FileSink, "_write_out", seen)
    await dump(NEW, path)
    assert modes == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


as_root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away")


@as_root
async def test_a_file_keeps_its_owner_its_group_and_its_mode(path: pathlib.Path) -> None:
    os.chown(path, 1234, 2345)
    path.chmod(0o4640)
    await dump(NEW, path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o4640)


@as_root
@pytest.mark.parametrize(("group_too", "mode"), [(False, 0o2754), (True, 0o744)])
async def test_who_was_not_meant_may_no_more_than_everybody(
    path: pathlib.Path, group_too: bool, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(path, 1234, 2345)
    path.chmod(0o6754)
    change = os.fchown

    def refuse(fd: int, uid: int, gid: int) -> None:
        if uid != -1 or group_too:
            raise PermissionError(errno.EPERM, "not yours to give")
        change(fd, uid, gid)

    monkeypatch.setattr(files.os, "fchown", refuse)
    await dump(NEW, path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="there are no extended attributes")
async def test_a_file_keeps_its_access_list(path: pathlib.Path) -> None:
    nobody, entries = 2**32 - 1, [(1, 6), (2, 4), (4, 0), (16, 4), (32, 0)]  # user 1234 may read
    listed = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, rights, 1234 if tag == 2 else nobody) for tag, rights in entries
    )
    try:
        os.setxattr(path, "system.posix_acl_access", listed)
    except OSError:
        pytest.skip("this file system has no access lists")
    await dump(NEW, path)
    assert os.getxattr(path, "system.posix_acl_access") == listed


# SIGKILL

KILLED_AT = [
    "os.open",
    "fcntl.flock",
    "os.write",
    "os.fsync",
    "os.fchmod",
    "os.replace",
    "os.close",
    "after os.replace",
]
KILLED = """
import os, signal, sys, fcntl
import numpy as np
from aparallel._persist import files, sinks
from aparallel._persist.dump import dump_to_path
from aparallel._persist.options import DumpOptions
path, step = sys.argv[1:]
dump_to_path(0, path + "-warm", DumpOptions())
module, name = step.removeprefix("after ").split(".")
module = {"os": os, "fcntl": fcntl}[module]
real = getattr(module, name)
def killing(*args, **kwargs):
    if step.startswith("after"):
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(module, name, killing)
dump_to_path([np.arange(400_000.0), "new"], path, DumpOptions())
"""


@pytest.mark.parametrize("step", KILLED_AT)
def test_sigkill_at_any_step_leaves_a_whole_file_and_the_next_dump_cleans_up(path: pathlib.Path, step: str) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED, str(path), step], timeout=60, capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    os.unlink(f"{path}-warm")
    assert is_old(path) == (step not in ("os.close", "after os.replace"))
    dump_to_path(OLD, str(path), DumpOptions())
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.soak
def test_sigkill_at_any_moment_leaves_a_whole_file(path: pathlib.Path) -> None:
    script = KILLED.split("module, name", maxsplit=1)[0] + (
        "print(flush=True)\nwhile True: dump_to_path([np.arange(400_000.0), 'new'], path, DumpOptions(durable=False))"
    )
    for number in range(100):
        with subprocess.Popen([sys.executable, "-c", script, str(path), ""], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(number / 5000)
            process.kill()
        is_old(path)
    dump_to_path(OLD, str(path), DumpOptions())
    os.unlink(f"{path}-warm")
    assert os.listdir(path.parent) == ["file"]


async def test_dumps_to_one_path_at_a_time_do_not_harm_each_other(path: pathlib.Path) -> None:
    gate = Gate()
    slow = asyncio.create_task(dump([gate], path))
    await reached(gate)
    await asyncio.gather(*(dump(NEW, path, durable=False) for _ in range(8)))  # none takes the slow one's for litter
    assert not is_old(path)
    gate.opened.set()
    await slow
    assert await load(path) == [1]
    assert os.listdir(path.parent) == ["file"]


def test_litter_is_found_without_a_search_of_the_folder(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = pathlib.Path(files._aside_names(str(path.parent), "file")[2])
    aside.touch()
    monkeypatch.setattr(files.os, "scandir", None)
    dump_to_path(NEW, str(path), DumpOptions())
    assert not is_old(path)
    assert os.listdir(path.parent) == ["file"]


def test_litter_of_more_writers_than_have_names_is_removed_too(path: pathlib.Path) -> None:
    made = [files._create_aside(str(path.parent), "file", 0o600) for _ in range(7)]
    dump_to_path(NEW, str(path), DumpOptions())
    assert len(os.listdir(path.parent)) == 8
    for _, fd in made:
        os.close(fd)  # as the kernel does with those of a process that is killed
    dump_to_path(NEW, str(path), DumpOptions())
    assert os.listdir(path.parent) == ["file"]


def test_a_name_that_has_another_writer_by_now_is_not_taken_for_litter(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, fd = files._create_aside(str(path.parent), "file", 0o600)
    os.close(fd)
    real = files.fcntl.flock
    other: list[int] = []

    def locking(fd: int, operation: int) -> None:
        if not other:  # its writer is done, and the next one begins
            os.replace(aside, path)
            other.append(os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        real(fd, operation)

    monkeypatch.setattr(files.fcntl, "flock", locking)
    files._remove_if_abandoned(aside)
    assert os.path.samestat(os.fstat(other[0]), os.stat(aside))
    os.close(other[0])


def test_a_writer_whose_file_was_removed_before_it_was_locked_begins_another(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    removed: list[str] = []

    def opening(name: Any, *args: Any, **kwargs: Any) -> int:
        fd = real(name, *args, **kwargs)
        if str(name).endswith(".aparallel") and not removed:
            removed.append(name)
            files._remove_if_abandoned(name)  # another writer, which is done before the lock
        return fd

    monkeypatch.setattr(os, "open", opening)
    dump_to_path(NEW, str(path), DumpOptions())
    assert not os.path.exists(removed[0])
    assert not is_old(path)
    assert os.listdir(path.parent) == ["file"]


def test_a_writer_whose_file_was_taken_for_litter_begins_another(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    taken: list[str] = []

    def opening(name: Any, *args: Any, **kwargs: Any) -> int:
        fd = real(name, *args, **kwargs)
        if str(name).endswith(".aparallel") and not taken:
            taken.append(name)
            files._remove_if_abandoned(name)  # another writer, in the moment before the lock
            assert not os.path.exists(name)
            # That one has it locked still.
            other = real(path, os.O_RDONLY)
            os.dup2(other, fd)
            os.close(other)
            held.append(real(path, os.O_RDONLY))
            files.fcntl.flock(held[0], files.fcntl.LOCK_EX)
        return fd

    held: list[int] = []
    monkeypatch.setattr(files.os, "open", opening)
    dump_to_path(NEW, str(path), DumpOptions())
    os.close(held[0])
    assert len(taken) == 1
    assert not is_old(path)
    assert os.listdir(path.parent) == ["file"]


# Mapping


async def test_mapped_arrays_lie_in_the_file_at_multiples_of_64(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    expected = {
        "a": np.arange(10.0),
        "f": np.asfortranarray(np.ones((3, 4))),
        "e": np.zeros((0, 2)),
        "l": np.arange(1e5),
    }
    await dump(expected, path)
    content = path.read_bytes()
    for mode, writeable in (("r", False), ("c", True), ("r+", True)):
        found = await load(path, mmap_mode=mode)
        for name in ("a", "f", "l"):
            array = found[name]
            assert isinstance(array, np.memmap)
            assert (array.mode, array.flags.writeable, array.offset % 64) == (mode, writeable, 0)
            assert pathlib.Path(array.filename) == path
            assert content[array.offset : array.offset + array.nbytes] == array.tobytes("A")
            assert np.array_equal(array, expected[name])
        assert found["e"].shape == (0, 2)
        del found, array


async def test_what_is_changed_in_place_is_there_at_the_next_load(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    await dump([np.arange(1000.0), "x"], path)
    found = await load(path, mmap_mode="r+")
    found[0][5] = -1
    found[0].flush()
    assert (await load(path))[0][5] == -1
    assert (await load(path, mmap_mode="r", verify=True))[0][5] == -1
    copied = await load(path, mmap_mode="c")
    copied[0][5] = 7
    assert (await load(path))[0][5] == -1
    with pytest.raises(ValueError, match="read-only"):
        (await load(path, mmap_mode="r"))[0][5] = 1
    del found, copied


async def test_a_file_that_is_refused_is_not_marked_as_changed_in_place(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    await dump([os.getcwd, np.arange(1000.0)], path, signing_key="key")
    content = path.read_bytes()
    with pytest.raises(UntrustedTypeError):
        await load(path, mmap_mode="r+", trusted=[])
    assert path.read_bytes() == content
    await load(path, mmap_mode="r+", trusted=[os.getcwd])
    assert path.read_bytes() != content


@pytest.mark.parametrize("mode", ["w+", "rw", 1, ""])
async def test_other_modes_are_refused(path: pathlib.Path, mode: Any) -> None:
    with pytest.raises(ValueError, match="mmap_mode"):
        await load(path, mmap_mode=mode)


async def test_what_cannot_be_mapped_is_an_error(tmp_path: pathlib.Path) -> None:
    await dump(NEW, tmp_path / "file", compress="zlib")
    with pytest.raises(UnsupportedFormatError, match=r"compressed with zlib.*without mmap_mode"):
        await load(tmp_path / "file", mmap_mode="r")
    with pytest.raises(ValueError, match="path"):
        await load(io.BytesIO(await dumps(1)), mmap_mode="r")


def test_mapping_a_file_of_gigabytes_reads_next_to_nothing_of_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    sparse_dump(path, 10 << 30)
    options = LoadOptions.checked("r")
    load_from_path(str(path), options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = []
    for _ in range(20):
        started = time.thread_time()
        found = load_from_path(str(path), options)
        taken.append(time.thread_time() - started)
        assert found.shape == (10 << 30,)
        del found
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB
    assert min(taken) < 0.001


def sparse_dump(path: pathlib.Path, size: int) -> None:
    """Write the file that an array of *size* zeros has, with holes for the array and no checksum of it."""
    from aparallel._persist import container, writer

    class Holes:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> None:
            self.file.write(data)

        def expect(self, size: int) -> None:
            pass

        def flush(self) -> None:
            self.file.flush()

    small = asyncio.run(dumps(np.zeros(1 << 20, "u1")))
    with path.open("wb") as file:
        made = writer.ContainerWriter(Holes(file))
        head = made._write_head(container.Record(container.BUFFERS, size, (size,)))
        assert len(head) == 64
        file.flush()
        os.lseek(file.fileno(), size, os.SEEK_CUR)
        made._position += size
        made._write(bytes(8))
        made._write(container.padding(made._position))
        pickled = _pickle_of(small).replace((1 << 20).to_bytes(4, "little"), b"\x00\x00\x00\x00", 1)
        at = pickled.index(b"J\x00\x00\x00\x00")
        pickled = pickled[:at] + b"\x8a\x05" + size.to_bytes(5, "little") + pickled[at + 5 :]
        made.write_pickle([b"\x80\x05" + pickled[11:]])  # without the frame, whose length has changed
        made.finish()


def _pickle_of(data: bytes) -> bytes:
    from aparallel._persist import container

    offset = 64
    while True:
        record = container.unpack_record(data[offset : offset + 64], offset)
        if record.kind == container.PICKLE:
            return data[offset + 64 : offset + 64 + record.size]
        offset += record.plain_size


# Progress


@pytest.mark.parametrize("use", ["dump", "dumps", "dump_chunks", "async file", "load", "map", "loads", "load chunks"])
async def test_progress_tells_bytes_and_ends_with_all_of_them(use: str, tmp_path: pathlib.Path) -> None:
    told: list[tuple[int, int | None]] = []
    loop_thread = threading.get_ident()

    def progress(done: int, total: int | None) -> None:
        assert threading.get_ident() == loop_thread
        told.append((done, total))

    path = tmp_path / "file"
    size = await dump(NEW, path)

    class File(io.BytesIO):
        async def write(self, data: bytes) -> int:  # type: ignore[override]
            return super().write(data)

    async def chunks() -> Any:
        yield path.read_bytes()

    doing: dict[str, Callable[[], Any]] = {
        "dump": lambda: dump(NEW, path, progress=progress),
        "dumps": lambda: dumps(NEW, progress=progress),
        "dump_chunks": lambda: _collected(dump_chunks(NEW, progress=progress)),
        "async file": lambda: dump(NEW, File(), progress=progress),
        "load": lambda: load(path, progress=progress),
        "map": lambda: load(path, "r", progress=progress),
        "loads": lambda: loads(path.read_bytes(), progress=progress),
        "load chunks": lambda: load(chunks(), progress=progress),
    }
    await doing[use]()
    assert told[-1] == (size, size)
    assert len(set(told)) == len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


async def _collected(chunks: Any) -> None:
    async for _ in chunks:
        pass


@pytest.mark.parametrize("compress", [0, 3])
async def test_progress_of_what_is_checked_first_ends_with_all_of_it(path: pathlib.Path, compress: int) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump([{"a": number} for number in range(100_000)], path, compress=compress)
    told: list[tuple[int, int | None]] = []
    await load(path, trusted=[], progress=lambda done, total: told.append((done, total)))
    size = path.stat().st_size
    assert told[-1] == (size, size)
    assert told == sorted(told, key=lambda counts: counts[0])


async def test_progress_goes_on_while_the_thread_works() -> None:
    told: list[int] = []
    gate = Gate()

    def progress(done: int, total: int | None) -> None:
        told.append(done)
        gate.opened.set()  # not before something was told

    await dumps([np.arange(1e6), gate], progress=progress)
    assert len(told) >= 2


async def test_what_progress_raises_stops_the_dump(path: pathlib.Path) -> None:
    def progress(done: int, total: int | None) -> None:
        raise LookupError("enough")

    for obj in (NEW, [1]):  # of a short one, the end is all that is told
        with pytest.raises(LookupError, match="enough"):
            await dump(obj, path, progress=progress)
        assert is_old(path)
    with pytest.raises(TypeError, match="progress"):
        await dump(NEW, path, progress="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coroutine function"):
        await load(path, progress=_collected)
    assert os.listdir(path.parent) == ["file"]


LEFT = """
import asyncio, sys, threading
from aparallel import dump
reached, opened = threading.Event(), threading.Event()
class Gate:
    def __reduce__(self):
        reached.set()
        opened.wait()
        return list, ()
async def leave():
    task = asyncio.create_task(dump(Gate(), sys.argv[1], progress=lambda done, total: None))
    while not reached.is_set():
        await asyncio.sleep(0.001)
    return task
loop = asyncio.new_event_loop()
task = loop.run_until_complete(leave())
opened.set()
"""


def test_a_dump_with_progress_that_a_program_leaves_behind_does_not_keep_it_from_exiting(
    path: pathlib.Path,
) -> None:
    subprocess.run([sys.executable, "-c", LEFT, str(path)], timeout=20, check=True, capture_output=True)
    assert load_from_path(str(path), LoadOptions()) == []


@pytest.mark.usefixtures("tqdm_is_loaded")
async def test_a_bar_shows_bytes(path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    await dump(NEW, path, progress=True)
    await load(path, progress=True)
    assert "dump: " in (shown := capsys.readouterr().err)
    assert "load: 100%" in shown
    assert "B/s" in shown


# Memory and the loop

MEMORY = """
import asyncio, sys
import numpy as np
from aparallel import dump, load
from aparallel._persist import pickling, writer, reader, unpickling
path, what = sys.argv[1:]
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()
big = np.ones(40_000_000)
obj = {"contiguous": big, "view": big.reshape(-1, 10).T[:, ::2], "fortran": big.reshape(2, -1).T, "bytes": None}[what]
if what == "bytes":
    obj = bytes(300_000_000)
asyncio.run(dump(1, path))
asyncio.run(load(path))
before = reset()
asyncio.run(dump(obj, path, durable=False))
dumped = peak() - before
size = obj.nbytes if what != "bytes" else len(obj)
del big, obj
before = reset()
async def main():
    found.append(await load(path))  # not returned: asyncio.run makes the repr of what its coroutine returns
found = []
asyncio.run(main())
print(dumped, peak() - before - size // 2**20)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of memory cannot be read here")
@pytest.mark.parametrize(
    "what",
    [
        "contiguous",
        pytest.param("view", marks=pytest.mark.soak),
        pytest.param("fortran", marks=pytest.mark.soak),
        "bytes",
    ],
)
def test_a_plain_file_of_any_size_takes_little_memory(what: str, tmp_path: pathlib.Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "file"), what], capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    dumped, loaded = map(int, run.stdout.split())
    assert dumped < 64
    assert loaded < 64


@contextlib.contextmanager
def longest_hold() -> Iterator[list[float]]:
    """Measure how long the loop was held at most, in seconds."""
    holds = [0.0]
    loop = asyncio.get_running_loop()
    last = loop.time()

    def tick() -> None:
        nonlocal last, handle
        now = loop.time()
        holds.append(now - last)
        last = now
        handle = loop.call_later(0.001, tick)

    handle = loop.call_later(0.001, tick)
    yield holds
    handle.cancel()


async def test_the_loop_runs_on_while_many_objects_are_dumped_and_loaded() -> None:
    obj = [{"id": number, "name": f"user{number}", "score": number / 2} for number in range(200_000)]
    await loads(await dumps(1))
    with longest_hold() as dumping:
        data = await dumps(obj)
    with longest_hold() as loading:
        found = await loads(data)
    assert found == obj
    # The C pickler alone holds the loop for 150 ms here, and an unpickler for 60; each in one piece.
    assert len(dumping) > 20
    assert sorted(dumping)[len(dumping) * 9 // 10] < 0.05
    assert len(loading) > 10
    assert sorted(loading)[len(loading) * 9 // 10] < 0.05


async def test_small_arrays_let_the_loop_in_though_their_pickle_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from aparallel._ground import hop

    pauses: list[float] = []
    clock = itertools.count(step=0.0002)
    monkeypatch.setattr(hop, "time", types.SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    monkeypatch.setattr(hop, "pause", lambda: pauses.append(next(clock)))
    array = np.arange(9)
    data = await dumps([array + number for number in range(2_000)])
    assert len(pauses) >= 2_000 // 8
    for trusted in (None, []):
        pauses.clear()
        await loads(data, trusted=trusted)
        assert len(pauses) >= 2_000 // 8


def test_a_stop_ends_the_work_of_the_synchronous_core(path: pathlib.Path) -> None:
    from aparallel._ground.stoppable import Stopped

    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        dump_to_path(NEW, str(path), DumpOptions(), stop)
    with pytest.raises(Stopped):
        load_from_path(str(path), LoadOptions(), stop)
    assert is_old(path)
    assert os.listdir(path.parent) == ["file"]


def test_under_trio_the_error_names_it(path: pathlib.Path) -> None:
    trio = pytest.importorskip("trio")

    async def chunks() -> None:
        async for _ in dump_chunks(1):
            pass

    for use, args in ((dump, (1, path)), (load, (path,)), (load, (io.BytesIO(),)), (dumps, (1,)), (chunks, ())):
        with pytest.raises(WrongLoopError, match="trio"):
            trio.run(use, *args)
