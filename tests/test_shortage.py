"""Where memory, disk or descriptors are short, what a pool keeps for later goes back before anything fails."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_support import until
from traveling import by_value

from aparallel import Pool, delayed
from aparallel._ground.room import Room
from aparallel._transfer import shared_memory
from aparallel._transfer.arguments import ArgumentMemory
from aparallel._transfer.lending import Lender, NoDescriptorError
from aparallel._transfer.segments import Hold
from aparallel._transfer.shared_memory import in_background, wait_until_freed
from aparallel._transfer.users import User
from aparallel._transfer.writing import Raw
from aparallel._wire.outbox import SIZE_WITH_RINGS
from aparallel.errors import SharedMemoryError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux does")

on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])

MB = 1 << 20


@by_value
def ones(size: int) -> Any:
    import numpy as np

    return np.ones(size, np.uint8)


@by_value
def first(array: Any) -> int:
    return int(array[0])


@by_value
def without_memory() -> None:
    def refuse(*args: Any) -> int:
        raise OSError(errno.ENOMEM, "no memory, says the test")

    os.memfd_create = refuse


def refuse(*args: Any) -> int:
    raise OSError(errno.ENOMEM, "no memory, says the test")


def raw(size: int) -> Raw:
    return Raw(memoryview(bytes(size)))


class Disk:
    """Has room for so many bytes in all files that are made. Memory has none."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.size = size
        self._fds: set[int] = set()
        self._make, self._close = shared_memory.create_in_file, os.close
        self._folder = str(folder)
        monkeypatch.setattr(Room, "grant", lambda room, size: False)
        monkeypatch.setattr("aparallel._transfer.lending.create_in_file", self._create)
        monkeypatch.setattr(os, "close", self._closed)

    @property
    def used(self) -> int:
        return sum(os.fstat(fd).st_size for fd in self._fds)

    def _create(self, size: int, folder: str | None) -> int:
        if self.used + size > self.size:
            raise OSError(errno.ENOSPC, "full, says the test")
        fd = self._make(size, self._folder)
        self._fds.add(fd)
        return fd

    def _closed(self, fd: int) -> None:
        self._fds.discard(fd)
        self._close(fd)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    return Disk(8 * MB, monkeypatch, tmp_path)


class TestLender:
    @pytest.fixture
    def lender(self) -> Iterator[Lender]:
        lender = Lender()
        yield lender
        lender.close()

    def test_what_is_free_and_does_not_fit_makes_room(self, lender: Lender, disk: Disk) -> None:
        for size in (2, 5, 7, 1, 3, 8, 8):
            hold, _, _ = lender.write([raw(size * MB)])
            assert hold.segment.size == size * MB
            del hold

    def test_what_is_held_or_lent_stays(self, lender: Lender, disk: Disk) -> None:
        held, _, _ = lender.write([raw(3 * MB)])
        lent = lender.write([raw(3 * MB)])[0].segment
        lent.lend(1)
        with pytest.raises(SharedMemoryError, match="full, says the test"):
            lender.write([raw(4 * MB)])
        assert set(lender.segments.values()) == {held.segment, lent}
        lent.take_back(1, spoiled=False)
        lender.write([raw(4 * MB)])
        assert lender.take_closed()[-1] is lent

    def test_without_descriptors_what_is_free_gives_its_own(
        self, lender: Lender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.memfd_create

        def create(*args: Any) -> int:
            if lender.segments:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(*args)

        monkeypatch.setattr(os, "memfd_create", create)
        monkeypatch.setattr("aparallel._transfer.lending.create_in_file", create)
        lender.write([raw(MB)])
        hold, _, _ = lender.write([raw(10 * MB)])
        assert hold.segment.size >= 10 * MB

    def test_for_descriptors_others_are_asked_once_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def create(*args: Any) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(os, "memfd_create", create)
        monkeypatch.setattr("aparallel._transfer.lending.create_in_file", create)
        asked: list[int] = []
        lender = Lender(on_shortage=lambda: asked.append(1))
        for count, now in [(1, 10.0), (1, 10.9), (2, 11.5)]:
            monkeypatch.setattr("aparallel._transfer.lending.monotonic", lambda now=now: now)
            with pytest.raises(NoDescriptorError):
                lender.write([raw(MB)])
            assert len(asked) == count

    @pytest.mark.parametrize("spoiled", [False, True])
    def test_memory_goes_at_once_though_others_have_it_mapped_but_not_from_a_fork_that_may_read_it(
        self, lender: Lender, spoiled: bool
    ) -> None:
        hold, _, _ = lender.write([raw(MB)])
        segment = hold.segment
        theirs = os.dup(segment.parts.fds[0])
        try:
            segment.lend(1)
            del hold
            segment.take_back(1, spoiled)
            assert lender.give_back()
            assert os.fstat(theirs).st_blocks * 512 == (MB if spoiled else 0)
            assert not lender.give_back()
        finally:
            os.close(theirs)

    def test_a_forked_copy_of_a_lender_gives_nothing_of_the_original_back(self, lender: Lender) -> None:
        hold, _, _ = lender.write([raw(MB)])
        segment = hold.segment
        del hold
        child = os.fork()
        if not child:
            lender.give_back()
            os._exit(0)
        os.waitpid(child, 0)
        assert os.fstat(segment.parts.fds[0]).st_blocks * 512 == MB

    def test_who_finds_no_room_has_others_give_back_before_it_fails(self, disk: Disk) -> None:
        others = [Lender(), Lender()]
        for other in others:
            other.write([raw(4 * MB)])
        lender = Lender(on_shortage=lambda: [other.give_back() for other in others])
        hold, _, _ = lender.write([raw(8 * MB)])
        assert disk.used == 8 * MB
        del hold
        lender.close()

    def test_a_segment_that_failed_is_taken_by_nobody(self, lender: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let go, it looks free: another thread must not have it when its descriptor is closed."""
        taken = []

        def fails(*args: Any) -> int:
            raise OSError(errno.ENOSPC, "full, says the test")

        def let_go(hold: Hold) -> None:
            hold.segment.let_go()
            taken.append(lender._take_free(hold.segment.size))

        monkeypatch.setattr(Hold, "__del__", let_go)
        monkeypatch.setattr(os, "pwrite", fails)
        with pytest.raises(SharedMemoryError):
            lender.write([raw(MB)])
        assert taken
        assert set(taken) == {None}

    def test_a_segment_whose_writing_was_interrupted_is_closed_with_the_others(
        self, lender: Lender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*args: Any) -> int:
            raise MemoryError("none is left to copy it, says the test")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fails)
            with pytest.raises(MemoryError, match="says the test"):
                lender.write([raw(MB)])
        assert lender.segments
        lender.close()
        assert not lender.segments

    def test_a_failure_keeps_nothing_of_what_its_callers_had(
        self, lender: Lender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a worker that would be the call, with its arguments, until a garbage collector runs: rarely."""

        def fails(*args: Any) -> int:
            raise OSError(errno.ENOSPC, "full, says the test")

        def attempt() -> weakref.ref[Any]:
            array = np.ones(1000)
            with contextlib.suppress(SharedMemoryError):
                lender.write([raw(MB)])
            return weakref.ref(array)

        monkeypatch.setattr(os, "pwrite", fails)
        gc.disable()
        try:
            assert attempt()() is None
        finally:
            gc.enable()

    def test_one_waits_for_what_is_freed_in_the_background(self) -> None:
        go_on, freed = threading.Event(), []

        def free(number: int) -> None:
            assert go_on.wait(10)
            freed.append(number)

        for number in range(3):
            in_background(100 * MB, free, number)
        go_on.set()
        wait_until_freed()
        assert sorted(freed) == [0, 1, 2]


class TestArguments:
    @pytest.fixture
    def memory(self) -> Iterator[ArgumentMemory]:
        memory = ArgumentMemory(lambda: None)
        yield memory
        memory.close()

    def test_what_is_remembered_for_later_makes_room(self, memory: ArgumentMemory, disk: Disk) -> None:
        arrays = [np.full(size * MB, size, np.uint8) for size in (1, 2, 4)]
        for array in arrays:
            memory.place([memoryview(array)], None, "r", None)
        assert disk.used == 7 * MB
        large = np.full(8 * MB, 9, np.uint8)
        [(content, _)], _ = memory.place([memoryview(large)], None, "r", None)
        assert content.segment.parts.read() == large.tobytes()
        assert disk.used == 8 * MB

    def test_of_a_running_gather_only_what_its_next_calls_must_see_is_kept(
        self, memory: ArgumentMemory, disk: Disk
    ) -> None:
        user = User()
        before, now = (np.full(3 * MB, value, np.uint8) for value in range(2))
        memory.place([memoryview(before)], None, "r", user)
        user.begin_moment()
        memory.place([memoryview(now)], None, "r", user)
        memory.place([memoryview(np.zeros(5 * MB, np.uint8))], None, "r", None)
        now[:] = 7
        [(content, _)], written = memory.place([memoryview(now)], None, "r", user)
        assert written == 0
        assert content.segment.parts.read()[:1] == b"\1"
        with pytest.raises(SharedMemoryError):
            memory.place([memoryview(np.zeros(6 * MB, np.uint8))], None, "r", None)

    def test_what_is_shared_is_kept(self, memory: ArgumentMemory, disk: Disk) -> None:
        array = np.ones(4 * MB, np.uint8)
        shared = memory.share(array, "r", None)
        with pytest.raises(SharedMemoryError):
            memory.place([memoryview(np.zeros(5 * MB, np.uint8))], None, "r", None)
        assert memory.place([memoryview(array)], None, "r", None)[1] == 0
        shared.close()
        del shared  # and its array
        memory.place([memoryview(np.zeros(8 * MB, np.uint8))], None, "r", None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """A file system of 8 MB at *tmp_path*; gives what tells how much of it is used."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "aparallel-test", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root mounts no file systems")

    def used() -> int:
        disk = os.statvfs(tmp_path)
        return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

    yield used
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=False)


@on_one_loop
class TestPools:
    async def test_a_small_disk_serves_arguments_and_results_of_all_sizes_in_turn(
        self, small_disk: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "memfd_create", refuse)
        async with Pool(2, temp_folder=tmp_path, initializer=without_memory) as pool:
            for value, size in enumerate([2, 3, 5, 7, 2, 6, 1, 7, 3]):
                array = np.full(size * MB + 1000, value, np.uint8)
                assert await pool.run(first, array) == value
                result = await pool.run(ones, size * MB + 1000)
                assert result.all()
                del result
            several = [np.full(MB + 1000, value, np.uint8) for value in range(4)]
            assert await pool.gather([delayed(first)(array) for array in several]) == [0, 1, 2, 3]
            results = await pool.gather(delayed(ones)(7 * MB // 4) for _ in range(3))
            assert all(result.all() for result in results)
            del results
            for _ in range(2):
                with pytest.raises(SharedMemoryError, match="no memory, says the test"):
                    await pool.run(ones, 9 * MB)
                with pytest.raises(SharedMemoryError, match="no memory, says the test"):
                    await pool.run(first, np.ones(9 * MB, np.uint8))
            assert await pool.run(first, np.full(7 * MB, 5, np.uint8)) == 5

    async def test_the_memory_of_a_pools_first_call_goes_back_though_no_other_follows(self) -> None:
        def segments() -> list[int]:
            found = []
            for fd in map(int, os.listdir("/proc/self/fd")):
                with contextlib.suppress(OSError):
                    size = os.fstat(fd).st_size
                    is_ours = "memfd:aparallel" in os.readlink(f"/proc/self/fd/{fd}")
                    if is_ours and size > MB and size != SIZE_WITH_RINGS:  # mmap keeps a descriptor up to Python 3.12
                        found.append(fd)
            return found

        array = np.ones(2 * MB, np.uint8)
        async with Pool(1) as pool:
            assert await pool.run(first, array) == 1
            assert segments()
            await until(lambda: not segments())

    async def test_arguments_that_are_kept_for_later_leave_descriptors_for_results(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with Pool(1) as pool:
            assert await pool.run(first, np.ones(2 * MB, np.uint8)) == 1
            spare = os.dup(0)  # the lowest number that is free
            os.close(spare)
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 5, hard))
            try:
                for size in range(2, 16):
                    assert await pool.run(first, np.full(size * MB, size, np.uint8)) == size
                    assert (await pool.run(ones, size * MB)).all()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    async def test_results_that_are_kept_stay_what_they_are_while_others_find_no_room(
        self, small_disk: Callable[[], int], tmp_path: Path
    ) -> None:
        async with Pool(1, temp_folder=tmp_path, initializer=without_memory) as pool:
            kept = await pool.run(ones, 5 * MB)
            with pytest.raises(SharedMemoryError):
                await pool.run(ones, 4 * MB)
            assert kept.all()
            assert (await pool.run(ones, 2 * MB)).all()
            del kept
            assert (await pool.run(ones, 7 * MB)).all()
