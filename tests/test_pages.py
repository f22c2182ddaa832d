"""The kernel tells what was written, whoever wrote it and however; in doubt it says that something was."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import resource
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aparallel._transfer import pages
from aparallel._transfer.known import _pieces_of, digest_of
from aparallel._transfer.writing import Raw

PAGE = mmap.PAGESIZE
HUGE = 2 << 20


def watch(array: Any) -> Any:
    return pages.watch(array.ctypes.data, array.nbytes)


def numbers(size: int = 64 * PAGE) -> Any:
    """Bytes whose first and last page are others' memory, too."""
    return np.random.default_rng(0).integers(0, 255, size + 2 * PAGE, np.uint8)[100 : size + 100]


@pytest.fixture(scope="module")
def is_told() -> bool:
    return watch(numbers()) is not None


@pytest.fixture
def told(is_told: bool) -> None:
    if not is_told:
        pytest.skip("this kernel does not tell what was written, or must not")


def open_descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(fd + os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # the one that lists them
            continue
    return found


# Every way to write


def by_assignment(view: memoryview, start: int, data: bytes) -> None:
    np.frombuffer(view, np.uint8)[start : start + len(data)] = np.frombuffer(data, np.uint8)


def by_memoryview(view: memoryview, start: int, data: bytes) -> None:
    view[start : start + len(data)] = data


def by_memmove(view: memoryview, start: int, data: bytes) -> None:
    ctypes.memmove(np.frombuffer(view, np.uint8).ctypes.data + start, data, len(data))


def by_a_thread(view: memoryview, start: int, data: bytes) -> None:
    thread = threading.Thread(target=by_memoryview, args=(view, start, data))
    thread.start()
    thread.join()


def by_readinto(view: memoryview, start: int, data: bytes) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as source:
        os.write(write, data)
        os.close(write)
        assert source.readinto(view[start : start + len(data)]) == len(data)


def by_preadv(view: memoryview, start: int, data: bytes) -> None:
    fd = os.memfd_create("written")
    try:
        os.write(fd, data)
        assert os.preadv(fd, [view[start : start + len(data)]], 0) == len(data)
    finally:
        os.close(fd)


def by_proc_mem(view: memoryview, start: int, data: bytes) -> None:
    """As debuggers do it, which fetch the pages as those do that pin them."""
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(np.frombuffer(view, np.uint8).ctypes.data + start)
        assert memory.write(data) == len(data)


WRITERS = [by_assignment, by_memoryview, by_memmove, by_a_thread, by_readinto]
if sys.platform == "linux":
    WRITERS += [by_preadv, by_proc_mem]


class Buffer:
    """Memory of one kind, and what it should be."""

    def __init__(self, kind: str, size: int, before: int) -> None:
        self.keep: Any
        if kind == "bytearray":
            self.keep = bytearray(size + before)
            whole = memoryview(self.keep)
        elif kind == "zeros":  # pages that do not exist before they are read
            self.keep = np.zeros(size + before, np.uint8)
            whole = memoryview(self.keep)
        else:
            self.keep = np.full(size + before, 7, np.uint8)
            whole = memoryview(self.keep)
        self.view = whole[before : before + size]

    def array(self) -> Any:
        return np.frombuffer(self.view, np.uint8)


def protected_and_not(address: int, size: int) -> None:
    for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection) == 0


def forked(*_: int) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def advised(advice: int) -> Callable[[int, int], None]:
    """What an old kernel does not know, it refuses."""
    return lambda address, size: ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)


HAPPENS: dict[str, Callable[[int, int], None]] = {
    "dropped": advised(4),
    "free to be dropped": advised(8),
    "huge": advised(14),
    "not huge": advised(15),
    "collapsed": advised(25),
    "paged out": advised(21),
    "protected": protected_and_not,
    "forked": forked,
}


WRITES = st.tuples(
    st.sampled_from(WRITERS),
    st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)),
    st.one_of(st.integers(1, 3), st.integers(1, 3 * PAGE)),
)
STEPS = st.one_of(
    WRITES.map(lambda write: ("write", *write)),
    # A part to be watched, from one fraction of the buffer to another.
    st.tuples(st.just("watch"), st.floats(0, 0.5), st.floats(0.5, 1)),
    st.just(("watch", 0.0, 1.0)),
    st.tuples(st.just("stop"), st.integers(0, 5)),
    # What else happens to pages, from one fraction of the whole ones to another.
    st.tuples(st.just("happen"), st.sampled_from(sorted(HAPPENS)), st.floats(0, 0.5), st.floats(0.5, 1)),
    st.just(("ask",)),
)


@pytest.mark.usefixtures("told")
@settings(max_examples=60)
@given(
    kind=st.sampled_from(["bytearray", "zeros", "full"]),
    size=st.one_of(st.integers(2 * PAGE, 20 * PAGE), st.just(3 * HUGE + 17)),
    before=st.integers(0, PAGE),
    steps=st.lists(STEPS, max_size=15),
)
def test_no_write_to_what_is_watched_is_ever_missed(
    kind: str, size: int, before: int, steps: list[tuple[Any, ...]]
) -> None:
    buffer = Buffer(kind, size, before)
    watched: list[tuple[Any, slice, bytes]] = []
    for name, *details in steps:
        if name == "write":
            write, fraction, length = details
            start = min(int(fraction * size), size - 1)
            length = min(length, size - start)
            write(buffer.view, start, os.urandom(length))
        elif name == "watch":
            part = slice(int(details[0] * size), int(details[1] * size))
            found = watch(buffer.array()[part]) if part.start < part.stop else None
            if found is not None:
                watched.append((found, part, digest_of(_pieces_of(Raw(buffer.view[part]), found))))
                assert watched[-1][2] == digest_of([buffer.view[part]])
        elif name == "happen":
            address = buffer.array().ctypes.data
            first, last = -(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE
            start, end = (first + int(part * ((last - first) // PAGE)) * PAGE for part in details[1:])
            if start < end:
                HAPPENS[details[0]](start, end - start)
        elif name == "stop" and watched:
            watched.pop(details[0] % len(watched))
        for found, part, digest in watched:
            if found.is_untouched():
                assert digest_of([buffer.view[part]]) == digest


@pytest.mark.usefixtures("told")
class TestWatch:
    def test_what_nobody_writes_to_is_untouched_however_often_it_is_read(self) -> None:
        array = numbers()
        watched = watch(array)
        for _ in range(3):
            array.sum()
            assert watched.is_untouched()

    @pytest.mark.parametrize("write", WRITERS)
    @pytest.mark.parametrize("size", [8 * PAGE, 4 * HUGE])
    def test_one_byte_written_anywhere_is_told_for_ever(self, write: Any, size: int) -> None:
        array = numbers(size)
        for place in (0, 1, PAGE - 1, PAGE, size // 2, size - PAGE, size - 1):
            watched = watch(array)
            digest_of(_pieces_of(Raw(array.data), watched))
            assert watched.is_untouched()
            write(array.data, place, bytes([array[place] ^ 1]))
            assert not watched.is_untouched()
            array.sum()
            assert not watched.is_untouched()

    def test_what_a_neighbour_writes_into_a_page_of_both_is_told_to_it_alone(self) -> None:
        whole = np.zeros(20 * PAGE, np.uint8)
        ours, theirs = whole[: 10 * PAGE + 50], whole[10 * PAGE + 50 :]
        first, second = watch(ours), watch(theirs)
        whole.sum()
        assert first.is_untouched()
        assert second.is_untouched()
        theirs[0] = 1
        assert first.is_untouched()
        assert not second.is_untouched()
        ours[-1] = 1
        assert not first.is_untouched()

    def test_what_is_hashed_is_what_is_compared_though_a_thread_writes_in_between(self) -> None:
        array = numbers()
        before = array.copy()
        watched = watch(array)
        array[0] ^= 1
        array[-1] ^= 1
        assert digest_of(_pieces_of(Raw(array.data), watched)) == digest_of(Raw(before.data).pieces())
        assert not watched.is_untouched()
        array[0] ^= 1
        array[-1] ^= 1
        assert watched.is_untouched()

    def test_when_one_stops_writing_costs_nothing_again_but_where_another_watches(self) -> None:
        array, other = numbers(), numbers()
        first, second, elsewhere = watch(array), watch(array[20 * PAGE : 30 * PAGE]), watch(other)
        first.stop()
        assert second.is_untouched()
        assert is_registered(array[25 * PAGE :])
        assert not is_registered(array[2 * PAGE :])
        assert not is_registered(array[60 * PAGE :])
        second.stop()
        assert not is_registered(array[25 * PAGE :])
        assert elsewhere.is_untouched()

    def test_two_that_watch_the_same_unwritten_memory_do_not_disturb_each_other(self) -> None:
        array = numbers()
        first, second, part = watch(array), watch(array), watch(array[PAGE:-PAGE])
        assert first.is_untouched()
        assert second.is_untouched()
        assert part.is_untouched()
        array[2 * PAGE] ^= 1
        assert not any(watched.is_untouched() for watched in (first, second, part))

    def test_one_that_begins_after_a_write_ends_those_that_it_overlaps(self) -> None:
        array = numbers()
        first = watch(array)
        array[2 * PAGE] ^= 1
        second = watch(array[PAGE : -5 * PAGE])
        assert second.is_untouched()
        assert not first.is_untouched()
        array[-PAGE] ^= 1
        assert second.is_untouched()
        assert not first.is_untouched()

    def test_memory_that_was_dropped_and_is_zero_now_is_told(self) -> None:
        memory = mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start, length in ((0, PAGE), (HUGE, HUGE), (0, 4 * HUGE)):
            memory[:] = b"7" * len(memory)
            array = np.frombuffer(memory, np.uint8)
            watched = watch(array)
            array.sum()
            assert watched.is_untouched()
            memory.madvise(mmap.MADV_DONTNEED, start, length)
            assert not watched.is_untouched()
            assert array[start] == 0
            assert not watched.is_untouched()
            del array, watched

    def test_memory_that_is_mapped_anew_is_told_though_nothing_was_written(self) -> None:
        memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[:] = b"7" * len(memory)
        array = np.frombuffer(memory, np.uint8)
        for part in (slice(0, 16), slice(0, 1), slice(7, 8), slice(15, 16)):
            watched = watch(array)
            array.sum()
            assert watched.is_untouched()
            map_anew(array.ctypes.data + part.start * PAGE, (part.stop - part.start) * PAGE)
            assert not watched.is_untouched()
            array.sum()
            assert not watched.is_untouched()

    def test_writes_while_and_after_a_fork_lives_are_told(self) -> None:
        array = numbers()
        watched = watch(array)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            array[:] = 1  # of its own
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        try:
            assert watched.is_untouched()
            array[5 * PAGE] ^= 1
            assert not watched.is_untouched()
            again = watch(array)
            assert again.is_untouched()
        finally:
            os.close(write)
            os.waitpid(child, 0)
        assert again.is_untouched()
        array[7 * PAGE] ^= 1
        assert not again.is_untouched()

    def test_a_fork_has_no_watch_and_no_descriptor_of_its_parent_and_can_begin_its_own(self) -> None:
        array = numbers()
        before = open_descriptors()
        watched = watch(array)
        assert len(open_descriptors()) == len(before) + 2
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert not watched.is_untouched()
                watched.stop()
                assert len(open_descriptors()) <= len(before)  # others may close theirs in a fork, too
                own = watch(array)
                assert own.is_untouched()
                array[3 * PAGE] ^= 1
                assert not own.is_untouched()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert watched.is_untouched()

    @pytest.mark.parametrize("locked", [False, True])
    def test_what_is_made_read_only_for_a_while_and_written_after_is_told(self, locked: bool) -> None:
        libc = ctypes.CDLL(None)
        array = np.full(16 * PAGE, 7, np.uint8)
        start = -(-array.ctypes.data // PAGE) * PAGE
        if locked:
            libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(8 * PAGE))
        watched = watch(array)
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(8 * PAGE), protection) == 0
        # What is locked in memory the kernel fetches as if to write to it, when it becomes writable.
        assert watched.is_untouched() or locked
        array[2 * PAGE] = 1
        assert not watched.is_untouched()

    def test_nothing_remains_when_the_last_watch_is_gone(self) -> None:
        gc.collect()
        before = open_descriptors()
        arrays = [numbers() for _ in range(3)]
        watches = [watch(array) for array in arrays]
        assert len(open_descriptors()) == len(before) + 2
        watches.pop().stop()
        watches.pop()
        assert watches.pop().is_untouched()
        gc.collect()
        assert open_descriptors() == before
        assert not pages._spans

    @pytest.mark.parametrize("times", [50, pytest.param(1000, marks=pytest.mark.soak)])
    def test_threads_that_begin_when_the_last_watch_of_others_ends_have_descriptors(self, times: int) -> None:
        def begin_and_stop(array: Any) -> bool:
            return all(watch(array).is_untouched() for _ in range(times))

        gc.collect()
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(begin_and_stop, [numbers() for _ in range(4)]))
        assert pages._kernel is None

    def test_descriptors_are_not_inherited(self) -> None:
        array = numbers()
        watched = watch(array)
        listed = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True)
        assert watched.is_untouched()
        assert "userfaultfd" not in listed.stdout
        assert "pagemap" not in listed.stdout

    def test_one_that_is_stopped_while_another_thread_begins_one_waits_for_nobody(self) -> None:
        array = numbers()
        watched = watch(array)
        with pages._lock:
            watched.stop()  # as a finaliser may do, in the very thread that has the lock
            assert not watched.is_untouched()
        assert watch(array) is not None
        gc.collect()
        assert not pages._spans

    def test_a_program_that_ends_with_watches_alive_ends_quietly(self) -> None:
        code = """
        import numpy as np
        from aparallel._transfer.pages import watch
        array = np.ones(1_000_000)
        watched = watch(array.ctypes.data, array.nbytes)
        assert watched.is_untouched()
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def is_registered(array: Any) -> bool:
    """Whether the mapping in which *array* begins has the flag "uw", for userfaultfd's write protection (proc(5))."""
    address, here = array.ctypes.data, False
    with open("/proc/self/smaps") as file:
        for line in file:
            span = line.split()[0]
            if "-" in span:
                start, end = (int(part, 16) for part in span.split("-"))
                here = start <= address < end
            elif here and span == "VmFlags:":
                return "uw" in line.split()
    raise AssertionError("nothing is mapped there")


def map_anew(address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    fixed = 0x10
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed
    found = libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t(size), 3, flags, -1, ctypes.c_long(0))
    assert found == address


@contextlib.contextmanager
def registered_with_io_uring(array: Any) -> Iterator[None]:
    """Pin memory as drivers do that let devices write to it (io_uring_setup(2), io_uring_register(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(ctypes.c_long(425), ctypes.c_uint(4), ctypes.create_string_buffer(120))
    if ring < 0:
        pytest.skip("there is no io_uring, or it is not allowed")
    try:
        vector = (ctypes.c_uint64 * 2)(array.ctypes.data, array.nbytes)
        assert libc.syscall(ctypes.c_long(427), ctypes.c_int(ring), 0, ctypes.byref(vector), 1) == 0
        yield
        assert libc.syscall(ctypes.c_long(427), ctypes.c_int(ring), 1, None, 0) == 0
    finally:
        os.close(ring)


@pytest.mark.skipif(sys.platform != "linux", reason="the kinds of memory are Linux's")
class TestRefusals:
    """What cannot be watched for certain is not watched."""

    @pytest.mark.parametrize("kind", ["shared", "file", "private file", "memfd"])
    def test_memory_that_others_may_write_to_or_that_is_a_files(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"7" * 16 * PAGE)
        with open(tmp_path / "file", "r+b") as file:
            if kind == "shared":
                memory = mmap.mmap(-1, 16 * PAGE)
            elif kind == "memfd":
                fd = os.memfd_create("shared")
                os.ftruncate(fd, 16 * PAGE)
                memory = mmap.mmap(fd, 16 * PAGE)
                os.close(fd)
            else:
                flags = mmap.MAP_SHARED if kind == "file" else mmap.MAP_PRIVATE
                memory = mmap.mmap(file.fileno(), 16 * PAGE, flags=flags)
            memory[:] = memory[:]
            assert watch(np.frombuffer(memory, np.uint8)) is None

    def test_memory_that_is_only_partly_private(self) -> None:
        memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(memory, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.munmap(ctypes.c_void_p(array.ctypes.data + 8 * PAGE), ctypes.c_size_t(PAGE)) == 0
        assert watch(array) is None
        map_anew(array.ctypes.data + 8 * PAGE, PAGE)

    @pytest.mark.usefixtures("told")
    def test_memory_that_was_registered_for_a_device_to_write_to_is_told_and_not_watched_again(self) -> None:
        array = numbers()
        watched = watch(array)
        assert watched.is_untouched()
        with registered_with_io_uring(array):
            assert not watched.is_untouched()
            assert watch(array) is None
        assert watch(array) is not None

    @pytest.mark.parametrize("size", [0, 1, PAGE])
    def test_memory_without_a_whole_page(self, size: int) -> None:
        memory = np.zeros(4 * PAGE, np.uint8)
        start = -memory.ctypes.data % PAGE + 1
        assert watch(memory[start : start + size]) is None

    @pytest.mark.parametrize(
        ("line", "is_one"),
        [
            ("7f00-7f10 rw-s 00000000 00:06 1069   /dev/nvidia0", True),
            ("7f00-7f10 rw-s 00000000 00:06 1069   /dev/infiniband/uverbs0", True),
            ("7f00-7f10 rw-s 00000000 00:06 1069   /dev/shm/psm_1", False),
            ("7f00-7f10 rw-s 00000000 00:06 1069   /dev/zero (deleted)", False),
            ("7f00-7f10 rw-p 00000000 00:00 0 ", False),
            ("7f00-7f10 r--p 00000000 00:06 1069   /usr/lib/libc.so", False),
        ],
    )
    def test_a_process_that_maps_a_device_is_known_by_it(self, line: str, is_one: bool) -> None:
        assert pages._has_device(f"7000-7010 rw-p 00000000 00:00 0 \n{line}\n".encode()) is is_one

    @pytest.mark.usefixtures("told")
    def test_under_a_filter_that_kills_for_unexpected_system_calls_nothing_is_asked(self) -> None:
        code = """
        import ctypes, struct
        import numpy as np
        from aparallel._transfer import pages

        # seccomp(2): kill the process for userfaultfd, allow all else. Instructions: code, jumps, value.
        number = pages._USERFAULTFD[pages.platform.machine()]
        rules = (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
        libc = ctypes.CDLL(None)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        filters = struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(program))
        assert libc.prctl(22, 2, filters, 0, 0) == 0
        array = np.ones(1_000_000)
        assert pages.watch(array.ctypes.data, array.nbytes) is None
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("spare", [0, 1])
    def test_without_descriptors_nothing_is_watched_until_there_are_some(self, spare: int, is_told: bool) -> None:
        array = numbers()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
        try:
            assert watch(array) is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (watch(array) is not None) is is_told

    @pytest.mark.parametrize("system", ["userfaultfd", "untold"])
    def test_where_the_kernel_tells_nothing_nothing_is_watched(
        self, system: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gc.collect()
        monkeypatch.setattr(pages, "_is_impossible", False)
        if system == "userfaultfd":
            monkeypatch.setattr(pages, "_USERFAULTFD", {})
        else:  # an emulation that takes all requests, and does nothing
            monkeypatch.setattr(pages._Kernel, "is_protected", lambda *_: True)
        before = open_descriptors()
        assert watch(numbers()) is None
        assert open_descriptors() == before
        assert pages._is_impossible
