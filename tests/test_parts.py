"""Large memory in two parts, written by two threads: it holds what one thread would have written into one part."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import errno
import gc
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traveling import by_value

from aparallel import Pool, delayed
from aparallel._backends import tending
from aparallel._ground import cores
from aparallel._ground.both_ends import from_both_ends
from aparallel._transfer import lending, shared_memory, writing
from aparallel._transfer.arguments import ArgumentMemory
from aparallel._transfer.arrays import Strided
from aparallel._transfer.borrowing import Borrower
from aparallel._transfer.contents import Digest, digest_of
from aparallel._transfer.lending import Lender
from aparallel._transfer.segments import Hold
from aparallel._transfer.shared_memory import Mapping, Parts, halves
from aparallel._transfer.writing import Raw
from aparallel._wire import descriptors
from aparallel.errors import BrokenWorkerError, SharedMemoryError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, memory has one part")

on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])

PAGE = mmap.PAGESIZE
LARGE = 4_100_003  # doubles: more than two threads are called for, and no multiple of anything


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads and two parts for whatever has two pages, and blocks that end nowhere in particular."""
    monkeypatch.setattr(shared_memory, "_PART_UNIT", PAGE)
    monkeypatch.setattr(lending, "_SHARED_BYTES", 2 * PAGE)
    monkeypatch.setattr(writing, "BLOCK", 1111)
    monkeypatch.setattr(writing, "_PIECE", 100)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tending, "cpu_count", lambda: 2)


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender(has_spare_core=lambda: True)
    yield lender
    lender.close()


def numbers(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def raw(data: bytes) -> Raw:
    return Raw(memoryview(data))


def read(hold: Hold) -> bytes:
    return bytes(hold.segment.parts.read())


def descriptors_here() -> int:
    return len(os.listdir("/proc/self/fd"))


def mapped_here() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:aparallel" in line for line in maps)


# From both ends


class TestBothEnds:
    def test_every_job_is_done_once_by_whoever_comes_to_it(self) -> None:
        done: list[tuple[int, int]] = []
        helper_is_in = threading.Event()
        rest_is_done = threading.Event()
        caller = threading.get_ident()

        def do(job: int, give_way: object) -> None:
            if threading.get_ident() == caller:
                assert helper_is_in.wait(10)
                if job == 98:
                    rest_is_done.set()
            else:
                helper_is_in.set()
                assert rest_is_done.wait(10)
            done.append((threading.get_ident() == caller, job))

        from_both_ends(do, deque(range(100)))
        assert sorted(job for _, job in done) == list(range(100))
        assert [job for is_caller, job in done if is_caller] == list(range(99))

    @pytest.mark.parametrize("side", ["caller", "helper", "both"])
    def test_an_error_of_either_is_raised_once_both_have_stopped(self, side: str) -> None:
        caller = threading.get_ident()
        barrier = threading.Barrier(2)
        running: set[int] = set()
        jobs = deque(range(100))

        def do(job: int, give_way: object) -> None:
            me = threading.get_ident()
            running.add(me)
            try:
                if job in (0, 99):
                    barrier.wait(10)
                    if side in ("both", "caller" if me == caller else "helper"):
                        raise OSError(errno.ENOSPC, "says the test")
            finally:
                running.discard(me)

        with pytest.raises(OSError, match="says the test"):
            from_both_ends(do, jobs)
        assert not running
        assert not jobs

    def test_it_leaves_no_thread(self) -> None:
        before = _thread._count()  # type: ignore[attr-defined]
        for _ in range(20):
            from_both_ends(lambda job, give_way: None, deque(range(5)))
        deadline = time.monotonic() + 10
        while _thread._count() > before:  # type: ignore[attr-defined] # it has done all, and is about to end
            assert time.monotonic() < deadline
            time.sleep(0)

    def test_without_a_second_thread_the_caller_does_it_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any) -> int:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(_thread, "start_new_thread", refuse)
        done: list[int] = []
        from_both_ends(lambda job, give_way: done.append(job), deque(range(5)))
        assert done == list(range(5))

    def test_both_can_give_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        barrier = threading.Barrier(2)
        seen: list[int] = []
        monkeypatch.setattr(cores, "offer_core", lambda: seen.append(threading.get_ident()))

        def do(job: int, give_way: Callable[[], object]) -> None:
            barrier.wait(10)
            give_way()

        from_both_ends(do, deque(range(2)))
        assert len(set(seen)) == 2

    def test_the_helper_lets_go_of_all_before_the_caller_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Function:
            def __call__(self, job: int, give_way: object) -> None:
                barrier.wait(10)

        barrier = threading.Barrier(2)
        may_end = threading.Event()
        start = _thread.start_new_thread

        def start_one_that_lingers(fn: Callable[..., object], args: tuple[Any, ...]) -> int:
            return start(lambda *args: (fn(*args), may_end.wait(10)), args)

        monkeypatch.setattr(_thread, "start_new_thread", start_one_that_lingers)
        function = Function()
        gone = weakref.ref(function)
        try:
            from_both_ends(function, deque(range(2)))
            del function
            assert gone() is None
        finally:
            may_end.set()

    def test_what_failed_is_freed_without_the_collector(self) -> None:
        class Job:
            pass

        def fail(job: Job, give_way: object) -> None:
            raise ValueError

        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                job = Job()
                gone = weakref.ref(job)
                jobs = deque([job, job])
                del job
                with pytest.raises(ValueError):  # noqa: PT011
                    from_both_ends(fail, jobs)
                deadline = time.monotonic() + 10
                while gone() is not None:
                    assert time.monotonic() < deadline
                    time.sleep(0)
        finally:
            gc.enable()


# Parts


class TestParts:
    @pytest.mark.parametrize("used", [1, PAGE, 2 * PAGE, 2 * PAGE + 1, 5 * PAGE - 1, 100 * PAGE])
    def test_two_parts_share_what_is_used_and_the_first_ends_with_a_page(self, used: int, tiny: None) -> None:
        size = used * 9 // 8 // PAGE * PAGE + PAGE
        sizes = halves(size, used)
        assert sum(sizes) == size
        assert sizes[0] % PAGE == 0
        if len(sizes) == 2:
            assert used / 2 <= sizes[0] < used / 2 + PAGE
        else:
            assert used <= PAGE

    @pytest.mark.parametrize("mode", ["r", "c", "r+"])
    def test_they_are_mapped_one_behind_the_other(self, mode: Any) -> None:
        before = descriptors_here(), mapped_here()
        data = numbers(8 * PAGE)
        parts = Parts.in_memory([PAGE, 4 * PAGE, 3 * PAGE])
        parts.write(memoryview(data), 0)
        mapping, other = Mapping(parts, mode), Mapping(parts, "r+")
        parts.close()
        parts.close()
        array = mapping.view(0, 8 * PAGE, readonly=mode == "r")
        assert array.tobytes() == data
        if mode != "r":
            array[PAGE - 1 : PAGE + 1] = 7
            array[-1] = 8
            shared = other.view(0, 8 * PAGE, readonly=True)
            assert (shared.tobytes() == array.tobytes()) == (mode == "r+")
            del shared
        assert descriptors_here() == before[0]
        assert len([start for start in Mapping.alive if mapping.address <= start < mapping.address + 8 * PAGE]) == 3
        del array, mapping, other
        assert mapped_here() == before[1]

    def test_a_part_that_cannot_be_mapped_leaves_nothing_mapped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = mapped_here(), dict(Mapping.alive)
        parts = Parts.in_memory([PAGE, PAGE])
        real, calls = shared_memory._map, []

        def refuse_second(*args: Any) -> int:
            calls.append(args)
            if len(calls) == 2:
                raise OSError(errno.ENOMEM, "no more mappings, says the test")
            return real(*args)

        monkeypatch.setattr(shared_memory, "_map", refuse_second)
        with pytest.raises(OSError, match="says the test"):
            Mapping(parts, "r+")
        parts.close()
        gc.collect()
        assert (mapped_here(), Mapping.alive) == before

    def test_they_are_written_and_read_across_their_ends(self) -> None:
        parts = Parts.in_memory([PAGE, PAGE, PAGE])
        data = numbers(2 * PAGE)
        parts.write(memoryview(data), PAGE // 2)
        assert parts.read() == bytes(PAGE // 2) + data + bytes(PAGE // 2)
        with pytest.raises(ValueError, match="more bytes"):
            parts.write(memoryview(data), 2 * PAGE)
        parts.close()
        with pytest.raises(OSError, match="Bad file"):
            parts.write(memoryview(data), 0)

    def test_without_descriptors_for_all_there_is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = descriptors_here()
        real, made = os.memfd_create, []

        def refuse_second(*args: Any) -> int:
            made.append(args)
            if len(made) == 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(*args)

        monkeypatch.setattr(os, "memfd_create", refuse_second)
        parts = Parts.in_memory([PAGE, 2 * PAGE])
        assert parts.sizes == (3 * PAGE,)
        assert descriptors_here() == before + 1
        parts.close()
        assert descriptors_here() == before

    def test_they_travel_together_and_a_part_that_is_lost_takes_the_other_along(self) -> None:
        before = descriptors_here()
        parts = Parts.in_memory([PAGE, PAGE])
        parts.write(memoryview(b"content"), PAGE - 3)
        ours, theirs = socket.socketpair()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with ours, theirs:
            got = []
            for room in (2, 1, 0):
                ours.sendmsg([b"frame"], descriptors.outgoing(parts.fds))
                spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(room)]
                highest = os.open(os.devnull, os.O_RDONLY)
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
                os.close(highest)
                for fd in spare:
                    os.close(fd)
                try:
                    data, ancillary, _, _ = theirs.recvmsg(5, descriptors.ROOM, descriptors.RECEIVE_FLAGS)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert data == b"frame"
                got.append(descriptors.incoming(ancillary))
        parts.close()
        assert [len(fds) for fds in got] == [2, 1, 0]
        assert not any(os.get_inheritable(fd) for fds in got for fd in fds)
        borrower = Borrower()
        for number, fds in enumerate(got):
            borrower.introduce(number, [PAGE, PAGE], fds, keep=True)
        assert bytes(borrower.borrow(0).view(PAGE - 3, 7, "r")) == b"content"
        for number in (1, 2):
            with pytest.raises(SharedMemoryError, match="descriptor"):
                borrower.borrow(number).view(0, 1, "r")
        gc.collect()
        assert [lost for _, _, _, lost in sorted(borrower.released)] == [False, True, True]
        borrower.close()
        assert descriptors_here() == before


# Writing


SOURCES = st.lists(
    st.one_of(
        st.integers(1, 60_000).map(lambda size: raw(numbers(size, size))),
        st.integers(1, 20_000).map(lambda size: Strided(np.frombuffer(numbers(size * 2, size), np.uint8)[::2])),
    ),
    min_size=1,
    max_size=5,
)


def bytes_of(source: Any) -> bytes:
    return b"".join(bytes(piece) for piece in source.pieces())


def assert_holds(hold: Hold, offsets: list[int], sources: list[Any]) -> None:
    data = read(hold)
    for offset, source in zip(offsets, sources, strict=True):
        assert data[offset : offset + source.nbytes] == bytes_of(source)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SOURCES, min_size=1, max_size=4))
def test_whatever_is_written_after_what_lies_as_it_was_and_is_hashed_as_it_is(
    tiny: None, rounds: list[list[Any]]
) -> None:
    """New and used memory, smaller and larger than before."""
    lender = Lender(has_spare_core=lambda: True)
    try:
        for sources in rounds:
            hashers = [Digest() for _ in sources]
            hold, offsets, fed = lender.write(sources, None, hashers)
            assert_holds(hold, offsets, sources)
            if fed:
                assert [hasher.digest() for hasher in hashers] == [digest_of(source.pieces()) for source in sources]
            assert hold.segment.written <= hold.segment.size
            del hold
    finally:
        lender.close()


def test_the_hash_does_not_depend_on_how_bytes_come(tiny: None) -> None:
    data = np.frombuffer(numbers(50_000), np.uint8)
    doubled = np.repeat(data, 2)
    assert digest_of(Strided(doubled[::2]).pieces()) == digest_of([data.tobytes()])
    changed = data.copy()
    changed[-1] ^= 1
    assert digest_of([changed.tobytes()]) != digest_of([data.tobytes()])
    assert digest_of([data[:-1].tobytes()]) != digest_of([data.tobytes()])


class TestWriting:
    def test_large_memory_has_two_parts_and_small_one(self, tiny: None, lender: Lender) -> None:
        small, _, _ = lender.write([raw(numbers(PAGE))])
        large, _, _ = lender.write([raw(numbers(20 * PAGE))])
        assert len(small.segment.parts.sizes) == 1
        assert large.segment.parts.sizes[0] == 10 * PAGE

    def test_without_a_core_to_spare_there_is_one_part_and_one_thread(
        self, tiny: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_thread, "start_new_thread", None)
        for lender in (Lender(), Lender(has_spare_core=lambda: False)):
            hold, _, _ = lender.write([raw(numbers(20 * PAGE))])
            assert len(hold.segment.parts.sizes) == 1
            lender.close()

    def test_among_many_segments_further_ones_have_one_part(
        self, tiny: None, lender: Lender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lending, "_MANY_SEGMENTS", 2)
        holds = [lender.write([raw(numbers(20 * PAGE, seed))])[0] for seed in range(4)]
        assert [len(hold.segment.parts.sizes) for hold in holds] == [2, 2, 1, 1]
        assert [read(hold)[: 20 * PAGE] for hold in holds] == [numbers(20 * PAGE, seed) for seed in range(4)]

    def test_both_threads_write_each_into_its_own_part(
        self, tiny: None, lender: Lender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, barrier = os.pwrite, threading.Barrier(2)
        first: dict[int, int] = {}

        def meet(fd: int, data: Any, offset: int) -> int:
            if threading.get_ident() not in first:
                first[threading.get_ident()] = fd
                barrier.wait(10)
            return real(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", meet)
        data = numbers(20 * PAGE)
        hold, _, _ = lender.write([raw(data)])
        assert read(hold)[: len(data)] == data
        assert sorted(first.values()) == sorted(hold.segment.parts.fds)

    @pytest.mark.parametrize("failing", range(0, 60, 7))
    def test_wherever_memory_ends_everything_goes_to_a_file(
        self, tiny: None, lender: Lender, failing: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(writing, "_PIECE", PAGE)
        monkeypatch.setattr(writing, "BLOCK", 2 * PAGE)
        before = descriptors_here(), mapped_here()
        real, calls = os.pwrite, []

        def ends(fd: int, data: Any, offset: int) -> int:
            if "memfd" in os.readlink(f"/proc/self/fd/{fd}"):
                calls.append(offset)
                if len(calls) > failing:
                    raise OSError(errno.ENOSPC, "full, says the test")
            return real(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", ends)
        sources = [raw(numbers(31 * PAGE - 5, 1)), raw(numbers(30 * PAGE, 2))]
        hashers = [Digest(), Digest()]
        hold, offsets, fed = lender.write(sources, str(tmp_path), hashers)
        assert_holds(hold, offsets, sources)
        assert fed
        assert [hasher.digest() for hasher in hashers] == [digest_of(source.pieces()) for source in sources]
        assert len(hold.segment.parts.fds) == 1
        assert str(tmp_path) in os.readlink(f"/proc/self/fd/{hold.segment.parts.fds[0]}")
        assert list(lender.segments.values()) == [hold.segment]
        assert (descriptors_here(), mapped_here()) == (before[0] + 1, before[1])

    @pytest.mark.parametrize("free", [0, 1, 2])
    def test_whatever_descriptors_are_left_it_is_written_or_says_that_there_are_none(
        self, tiny: None, lender: Lender, free: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_memory, "_SPARE_DESCRIPTORS", 0)
        source = raw(numbers(20 * PAGE))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(free)]
        highest = os.open(os.devnull, os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        os.close(highest)
        for fd in spare:
            os.close(fd)
        try:
            if not free:
                with pytest.raises(lending.NoDescriptorError):
                    lender.write([source])
                return
            hold, _, _ = lender.write([source])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(hold.segment.parts.fds) == free
        assert read(hold)[: 20 * PAGE] == source.view

    def test_only_memory_that_exists_is_written_through_a_mapping(self, tiny: None, lender: Lender) -> None:
        hold, _, _ = lender.write([raw(numbers(41 * PAGE, 1))])
        segment = hold.segment
        del hold
        larger, fed = segment.size, []
        assert larger == 44 * PAGE
        for size in (larger - 100, larger, larger - 3 * PAGE, 23 * PAGE, larger):
            source = raw(numbers(size, size))
            hold, offsets, was_fed = lender.write([source], None, [Digest()])
            assert hold.segment is segment
            assert_holds(hold, offsets, [source])
            fed.append(was_fed)
            del hold
        assert fed == [True, True, False, False, False]
        assert segment.written == larger

    def test_one_that_many_write_to_at_once_keeps_everybody_apart(self, tiny: None, lender: Lender) -> None:
        failures: list[BaseException] = []

        def write(seed: int) -> None:
            try:
                for number in range(20):
                    data = numbers(10 * PAGE + seed, seed * 100 + number)
                    hold, _, _ = lender.write([raw(data)])
                    assert read(hold)[: len(data)] == data
                    del hold
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=[seed]) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures

    def test_threads_may_forget_at_the_same_time(self) -> None:
        memory = ArgumentMemory(lambda: None)
        memory._forgotten.update(dict.fromkeys((number,) for number in range(30_000)))
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(4) as threads:
                for forgetting in [threads.submit(memory._forget_oldest) for _ in range(4)]:
                    forgetting.result()
        finally:
            sys.setswitchinterval(interval)
        assert len(memory._forgotten) == 4096

    def test_what_changes_while_it_is_written_is_found_changed(
        self, tiny: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = ArgumentMemory(lambda: None)
        array = np.zeros(20 * PAGE, np.uint8)
        real = os.pwrite

        def change_first(fd: int, data: Any, offset: int) -> int:
            array[:] = 1  # hashed already, and not yet copied
            return real(fd, data, offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", change_first)
            memory.place([memoryview(array)], None, "r", None)
        _, written = memory.place([memoryview(array)], None, "r", None)
        assert written == array.nbytes
        _, written = memory.place([memoryview(array)], None, "r", None)
        assert written == 0
        memory.close()


# With workers


@by_value
def summary(array: Any) -> tuple[float, float, int, bool]:
    return float(array.sum()), float(array[-1]), len(array), bool(array.flags.writeable)


@by_value
def add_one(array: Any) -> float:
    array += 1
    return float(array[0] + array[-1])


@by_value
def worker_descriptors() -> int:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the folder itself
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum("memfd:aparallel" in link for link in links)


async def settled(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        gc.collect()
        await asyncio.sleep(0.01)


@on_one_loop
class TestPools:
    async def test_large_arrays_arrive_in_every_mode_and_leave_nothing(self, two_cores: None) -> None:
        before = descriptors_here(), mapped_here()
        async with Pool(2) as pool:
            array = np.arange(float(LARGE))
            expected = array.sum()
            for step in range(3):  # new memory, used memory, used memory that is mapped
                array = array + 1
                expected += LARGE
                results = await pool.gather([delayed(summary)(array)] * 4)
                assert results == [(expected, LARGE + step, LARGE, False)] * 4
            assert (await pool.gather([delayed(add_one)(array)] * 4, mmap_mode="c")) == [array[0] + array[-1] + 2] * 4
            assert array[0] == 3
            async with pool.share(array) as shared:
                assert await pool.run(summary, shared) == (expected, LARGE + 2, LARGE, False)
            async with pool.share(array, mode="r+") as shared:
                assert await pool.run(add_one, shared) == array[0] + array[-1] + 2
                assert (shared.array == array + 1).all()
            refilled = np.empty(LARGE)

            def refill() -> Iterator[Any]:
                for value in range(3):
                    refilled[:] = value
                    yield delayed(summary)(refilled)

            assert await pool.gather(refill()) == [(value * LARGE, value, LARGE, False) for value in range(3)]
            assert (await pool.run(by_value(lambda a: a[::2]), array) == array[::2]).all()
            del shared
        await settled(lambda: descriptors_here() <= before[0] and mapped_here() <= before[1])

    async def test_a_second_thread_writes_only_beside_idle_workers(
        self, two_cores: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked: list[bool] = []
        real = tending.Tending._has_spare_core

        def ask(backend: Any) -> bool:
            asked.append(real(backend))
            return asked[-1]

        monkeypatch.setattr(tending.Tending, "_has_spare_core", ask)
        go, begun = tmp_path / "go", tmp_path / "begun"

        def wait_for(begun: Path, go: Path) -> None:
            begun.touch()
            while not go.exists():
                time.sleep(0.001)

        async with Pool(2) as pool:
            await pool.run(summary, np.ones(LARGE))
            busy = pool.submit(by_value(wait_for), begun, go)
            await settled(begun.exists)
            await pool.run(summary, np.ones(LARGE) * 2)
            go.touch()
            await busy
            await pool.run(summary, np.ones(LARGE) * 3)
        assert asked == [True, False, True]

    async def test_a_dead_worker_costs_its_call_and_no_memory(self, two_cores: None) -> None:
        before = descriptors_here(), mapped_here()
        array = np.ones(LARGE)
        async with Pool(1) as pool:
            for _ in range(2):
                with pytest.raises(BrokenWorkerError):
                    await pool.run(by_value(lambda a: os.kill(os.getpid(), signal.SIGKILL)), array)
                assert (await pool.run(summary, array))[0] == LARGE
        await settled(lambda: descriptors_here() <= before[0] and mapped_here() <= before[1])

    async def test_memory_of_two_parts_goes_back_while_the_pool_lives(self, two_cores: None) -> None:
        async with Pool(1) as pool:
            await pool.run(os.getpid)
            at_first = await pool.run(worker_descriptors)
            assert (await pool.run(summary, np.ones(LARGE)))[0] == LARGE
            deadline = time.monotonic() + 10
            while await pool.run(worker_descriptors) != at_first:
                assert time.monotonic() < deadline


def test_a_program_that_ends_while_two_threads_write_ends_at_once() -> None:
    script = """
        import asyncio, numpy as np
        from aparallel import Pool
        from aparallel._backends import tending
        tending.cpu_count = lambda: 2
        array = np.ones(10_000_000)

        async def main():
            pool = Pool(1)
            await pool.run(abs, 1)
            sharing = asyncio.ensure_future(pool.run(len, array))
            await asyncio.sleep(0.005)
            print("end", flush=True)
            raise SystemExit(3)

        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("end\n", 3), done.stderr
