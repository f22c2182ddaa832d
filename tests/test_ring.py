"""What is too large for a message travels through memory that a worker shares with the pool, and arrives as it was."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traveling import by_value
from waiting import started

from aparallel import Pool, delayed
from aparallel._backends import channel, child, process_worker, reading
from aparallel._ground import hop
from aparallel._ground.call import Call
from aparallel._transfer import encoding
from aparallel._transfer.functions import Functions
from aparallel._transfer.out_of_band import TooLarge
from aparallel._transfer.packing import Packer
from aparallel._transfer.pickling import pickle_within
from aparallel._transfer.shipment import LazyMemory
from aparallel._wire import frames
from aparallel._wire.outbox import SIZE, SIZE_WITH_RINGS, TAKEN_BY_PARENT, TAKEN_BY_WORKER, Outbox
from aparallel._wire.ring import RING_SIZE, Ring
from aparallel._worker.outgoing import LARGE, PLAIN, SLOW, Outgoing
from aparallel.abc import Moments, Sharing
from aparallel.errors import BrokenWorkerError

on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])

KB = 1024


def ends() -> tuple[Ring, Ring]:
    memory, head = bytearray(RING_SIZE), memoryview(bytearray(64)).cast("Q")
    return Ring(memoryview(memory), head, 3), Ring(memoryview(memory), head, 3)


def content(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


# The ring itself

sizes = st.one_of(st.integers(1, RING_SIZE + 1), st.integers(1, 100), st.just(RING_SIZE))


@given(st.lists(st.tuples(sizes, st.integers(0, 3)), max_size=30))
def test_whatever_is_put_is_read_as_it_was_and_in_order(steps: list[tuple[int, int]]) -> None:
    ours, theirs = ends()
    waiting: deque[tuple[int, int, int]] = deque()

    def take() -> None:
        position, size, byte = waiting.popleft()
        with theirs.look(position, size) as view:
            assert view[0] == view[-1] == byte
            assert bytes(view) == bytes([byte]) * size
        theirs.take(position + size)

    for number, (size, takes) in enumerate(steps, 1):
        parts = [bytes([number]) * (size // 2), memoryview(bytes([number]) * (size - size // 2))]
        position = ours.put(parts, size)
        if position is not None:
            waiting.append((position, size, number))
        else:
            assert size > RING_SIZE or waiting  # what fits is taken when there is nothing else
        for _ in range(min(takes, len(waiting))):
            take()
    while waiting:
        take()


def test_an_empty_ring_begins_in_front_where_the_caches_know_it() -> None:
    ours, theirs = ends()
    for _ in range(10):
        position = ours.put([b"x" * 1000], 1000)
        assert position is not None
        assert position % RING_SIZE == 0
        theirs.take(position + 1000)


def test_nothing_is_overwritten_before_it_was_taken() -> None:
    ours, theirs = ends()
    third = RING_SIZE // 3
    first, second, third_one = (ours.put([b"x" * third], third) for _ in range(3))
    assert None not in (first, second, third_one)
    assert ours.put([b"y" * third], third) is None
    assert first is not None
    theirs.take(first + third)
    assert ours.put([b"y" * third], third) is not None
    assert ours.put([b"y" * third], third) is None


def test_what_is_larger_than_the_ring_changes_nothing_in_it() -> None:
    """Else the room of what is put behind it counts as free."""
    ours, theirs = ends()
    eighth = RING_SIZE // 8
    first = ours.put([b"x" * (6 * eighth)], 6 * eighth)
    assert first is not None
    theirs.take(first + 6 * eighth)
    assert ours.put([b"y" * (RING_SIZE + 1)], RING_SIZE + 1) is None
    kept = ours.put([b"z" * eighth], eighth)
    assert kept is not None
    ours.put([b"y" * (7 * eighth)], 7 * eighth)
    with theirs.look(kept, eighth) as view:
        assert bytes(view) == b"z" * eighth


def test_what_nobody_takes_any_more_can_be_forgotten() -> None:
    ours, theirs = ends()
    assert ours.put([b"x" * RING_SIZE], RING_SIZE) == 0
    assert ours.is_filling()
    assert ours.put([b"y"], 1) is None
    ours.forget()
    assert not ours.is_filling()
    position = ours.put([b"y"], 1)
    assert position is not None
    assert bytes(theirs.look(position, 1)) == b"y"


# What goes through it


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    async with Pool(n_jobs=1) as pool:
        yield pool


@by_value
def same(value: Any, **more: Any) -> Any:
    return more or value


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether there was room in the ring to a worker, each time that something was to go there."""
    putting, placed = Ring.put, []

    def noted(ring: Ring, parts: Any, size: int) -> int | None:
        position = putting(ring, parts, size)
        placed.append(position is not None)
        return position

    monkeypatch.setattr(Ring, "put", noted)
    return placed


VALUES: dict[str, Callable[[int], Any]] = {
    "bytes": content,
    "text": lambda size: "é" * (size // 2),
    "bytearray": lambda size: bytearray(content(size)),
    "array": lambda size: np.frombuffer(content(size), np.uint8).copy(),
    "read-only array": lambda size: np.frombuffer(content(size), np.uint8),
    "array in columns": lambda size: np.asfortranarray(np.arange(size // 8, dtype=float).reshape(-1, 2)),
    "every other item": lambda size: np.arange(size // 4, dtype=float)[::2],
    "array of dates": lambda size: np.arange(size // 8).astype("M8[s]"),
    "texts in a list": lambda size: ["x" * 1000 + str(number) for number in range(size // 1000)],
    "numbers": lambda size: list(range(size // 4)),
    "arrays in a dict": lambda size: {name: np.full(size // 16, 1.5) for name in "ab"},
    "one array twice": lambda size: [np.arange(size // 8)] * 2,
    "main": lambda size: {"where": "__main__", "what": content(size)},
}


@pytest.mark.parametrize("size", [10 * KB, 40 * KB, 100 * KB, 600 * KB, 3000 * KB])
@on_one_loop
async def test_it_arrives_as_it_was_both_ways(pool: Pool, size: int) -> None:
    for make in VALUES.values():
        await check_echo(pool, make(size - size % 16))


async def check_echo(pool: Pool, value: Any) -> None:
    for found in (await pool.run(same, value), (await pool.run(delayed(same)(None, part=value)))["part"]):
        if isinstance(value, list) and not isinstance(value[0], np.ndarray):
            assert found == value
        else:
            np.testing.assert_equal(found, value)
        assert type(found) is type(value)
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype
            assert found.flags.f_contiguous == value.flags.f_contiguous or not value.flags.contiguous
            found[:1] = found[:1]  # it is the caller's


@by_value
class Row(np.record):
    """Of a script's own."""


@on_one_loop
async def test_arrays_of_records_of_a_class_of_main_travel(pool: Pool) -> None:
    for rows in (2, 5000):
        table = np.zeros(rows, np.dtype((Row, [("a", float), ("b", int)])))
        for value in (table, table[0]):
            assert (await pool.run(same, value)).dtype == value.dtype


@pytest.mark.parametrize("n_jobs", [1, 2])
async def test_many_at_a_time_keep_their_order(n_jobs: int) -> None:
    lengths = [(number * 37_337) % 500_000 for number in range(300)]
    async with Pool(n_jobs=n_jobs) as pool:
        found = await pool.gather(delayed(same)(content(length, length)) for length in lengths)
        assert found == [content(length, length) for length in lengths]
        runs = await asyncio.gather(*(pool.run(same, content(length, length)) for length in lengths))
        assert runs == found


@on_one_loop
async def test_an_array_is_as_it_was_when_the_call_was_made(pool: Pool) -> None:
    array = np.zeros(50_000)
    calls = []
    for number in range(8):
        array[:] = number
        calls.append(pool.submit(same, array))
    array[:] = -1
    assert [float(found.mean()) for found in await asyncio.gather(*calls)] == list(range(8))


@on_one_loop
async def test_small_and_large_ones_may_alternate(pool: Pool) -> None:
    for number in range(200):
        value = content(200 * KB, number) if number % 2 else number
        assert await pool.run(same, value) == value


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Those that calls were sent to."""
    workers: set[Any] = set()
    sending = process_worker.ProcessWorker.send

    def noted(worker: Any, batches: Any) -> None:
        workers.add(worker)
        sending(worker, batches)

    monkeypatch.setattr(process_worker.ProcessWorker, "send", noted)
    return workers


@on_one_loop
async def test_what_was_taken_back_leaves_its_room_to_others(pool: Pool, placed: list[bool], workers: set[Any]) -> None:
    data = content(400 * KB)
    assert await pool.run(same, data) == data
    (worker,) = workers
    assert worker._ring.put([b"x" * RING_SIZE], RING_SIZE) is not None  # of calls that it will not run
    placed.clear()
    assert await pool.run(same, data) == data
    assert placed == [True]


@by_value
def fork_and_linger(path: str, data: bytes) -> int:
    copy = os.fork()
    while not copy and not os.path.exists(path):
        time.sleep(0.001)
    return copy


@on_one_loop
async def test_a_copy_that_comes_back_late_does_not_say_where_the_worker_is(
    pool: Pool, workers: set[Any], tmp_path: Path
) -> None:
    copy = await pool.run(fork_and_linger, str(tmp_path / "go"), content(100 * KB))
    data = content(400 * KB)
    assert await pool.run(same, data) == data
    (worker,) = workers
    taken = worker.child.outbox.head[TAKEN_BY_WORKER]
    (tmp_path / "go").touch()
    async with asyncio.timeout(10):
        while " Z " not in Path(f"/proc/{copy}/stat").read_text():  # noqa: ASYNC110 (it has ended, and nobody reaps it)
            await asyncio.sleep(0.001)
    assert worker.child.outbox.head[TAKEN_BY_WORKER] == taken


@on_one_loop
async def test_room_is_used_again_while_calls_pour_in(pool: Pool, placed: list[bool]) -> None:
    data = content(100 * KB)
    assert await pool.gather((delayed(len)(data) for _ in range(300)), pre_dispatch=6) == [len(data)] * 300
    assert placed == [True] * 300


@by_value
def die_after_a_moment(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@on_one_loop
async def test_large_results_of_a_worker_that_dies_right_after_them_are_kept(pool: Pool) -> None:
    data = [content(50 * KB, number) for number in range(20)]
    calls = [delayed(same)(part) for part in data] + [delayed(die_after_a_moment)(b"")]
    *kept, lost = await pool.gather(calls, return_exceptions=True, batch_size=21)
    assert kept == data
    assert isinstance(lost, BrokenWorkerError)
    assert await pool.run(same, data[0]) == data[0]


@on_one_loop
async def test_an_idle_worker_keeps_nothing_of_the_arguments_of_its_last_call(pool: Pool) -> None:
    def anonymous_kb(process: int) -> int:
        with open(f"/proc/{process}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

    process = await pool.run(os.getpid)
    before = anonymous_kb(process)
    assert await pool.run(len, b"x" * 100_000_000) == 100_000_000
    async with asyncio.timeout(10):  # it frees them once it has told the outcome
        while anonymous_kb(process) > before + 50_000:  # noqa: ASYNC110 (another process frees it)
            await asyncio.sleep(0.001)


@by_value
def wait_for(path: str, value: Any) -> Any:
    Path(path + ".started").touch()
    while not os.path.exists(path):
        time.sleep(0.001)
    return value


@on_one_loop
async def test_a_worker_killed_with_calls_in_its_ring_costs_the_one_that_runs(pool: Pool, tmp_path: Path) -> None:
    data = [content(300 * KB, number) for number in range(6)]
    running = pool.submit(wait_for, str(tmp_path / "go"), b"")
    await started(tmp_path / "go.started")
    waiting = [pool.submit(same, part) for part in data]
    running.cancel()
    assert await asyncio.gather(*waiting) == data


@on_one_loop
async def test_without_memory_that_is_safe_everything_goes_through_the_socket(
    monkeypatch: pytest.MonkeyPatch, placed: list[bool]
) -> None:
    def refuse(size: int) -> int:
        raise OSError("no memfd here")

    monkeypatch.setattr(child, "create_in_memory", refuse)
    async with Pool(n_jobs=1) as pool:
        for size in (10 * KB, 100 * KB, 600 * KB):
            assert await pool.run(same, content(size)) == content(size)
    assert placed == []


# What is drawn on the loop


def test_what_is_only_copied_is_pickled_on_the_loop_and_no_more_of_it_than_that() -> None:
    framed, copied = 64 * KB, 512 * KB
    assert sum(map(len, pickle_within(content(500 * KB), framed, copied)[0])) > 500 * KB
    assert sum(map(len, pickle_within([content(80 * KB, n) for n in range(6)], framed, copied)[0])) > 480 * KB
    for too_large in (content(513 * KB), list(range(40_000)), [content(80 * KB, n) for n in range(7)]):
        with pytest.raises(TooLarge):
            pickle_within(too_large, framed, copied)


def test_the_clock_is_read_after_each_call_that_took_a_while() -> None:
    drawing = encoding.ProcessEncoder.draw
    drawn = drawing(encoder(), (Call(len, (content(400 * KB),), {}) for _ in range(64)), 64, 0, 0.0)
    assert drawn.count == 1
    assert drawn.size > 400 * KB
    small = drawing(encoder(), (Call(len, (content(10),), {}) for _ in range(64)), 64, 0, 0.0)
    assert small.count == 64


def encoder() -> encoding.ProcessEncoder:
    return encoding.ProcessEncoder(Functions(), [], LazyMemory(), Sharing(), Moments.SUCCESSIVE)


def packer() -> Packer:
    return Packer(Functions(), LazyMemory(), Sharing(), None)


def test_threads_that_pickle_pause_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause takes as long as it does to pickle or to read 60 KB."""
    now, pauses = 0.0, 0

    def monotonic() -> float:
        return now

    def sleep(seconds: float) -> None:
        nonlocal pauses
        pauses += 1

    monkeypatch.setattr(hop, "time", SimpleNamespace(monotonic=monotonic, sleep=sleep))
    pickled, _ = packer().pack_large((list(range(1_000_000)), {}, None))
    reading._read_in_thread(b"".join(pickled.pieces), None)
    assert pauses == 0

    def later() -> float:
        nonlocal now
        now += 0.0003
        return now

    monkeypatch.setattr(hop.time, "monotonic", later)
    packer().pack_large((list(range(1_000_000)), {}, None))
    assert pauses > 10
    once = pauses
    reading._read_in_thread(b"".join(pickled.pieces), None)
    assert pauses > once + 10


# The worker's side


@pytest.fixture
def outgoing() -> Iterator[tuple[Outgoing, Outbox, Any]]:
    from aparallel._transfer.shared_memory import create_in_memory

    fd = create_in_memory(SIZE_WITH_RINGS)
    theirs, ours = Outbox(fd), Outbox(fd)
    os.close(fd)
    ours_end, theirs_end = socket.socketpair()
    ours_end.setblocking(False)
    yield Outgoing(theirs_end, theirs), ours, ours_end
    ours_end.close()
    theirs_end.close()
    theirs.close()
    ours.close()


def sent(end: Any) -> bool:
    try:
        return bool(end.recv(1 << 20))
    except BlockingIOError:
        return False


def test_outcomes_in_the_ring_wait_for_company_until_half_of_it_is_full(
    outgoing: tuple[Outgoing, Outbox, Any],
) -> None:
    out, ours, end = outgoing
    out.flush(out.begin())  # so that it was just now
    out.flushed_at += 10**12
    fifth = RING_SIZE // 5
    for number in range(2):
        out.put(LARGE, [bytes([number]) * fifth])
        out.put(PLAIN, number)
    assert not sent(end)
    assert ours.to_parent is not None
    outcomes = ours.read_from(0)
    assert [bytes(ours.to_parent.look(*outcome))[:1] for outcome in outcomes[::2]] == [b"\0", b"\1"]
    assert outcomes[1::2] == [0, 1]
    out.put(LARGE, [b"x" * fifth])
    assert sent(end)


def test_what_takes_long_to_read_is_told_at_once_and_alone(outgoing: tuple[Outgoing, Outbox, Any]) -> None:
    out, ours, end = outgoing
    out.begin()
    out.put(SLOW, [b"x" * 100_000])
    assert sent(end)
    assert ours.read_from(0) == []


def test_both_directions_have_numbers_of_their_own() -> None:
    assert TAKEN_BY_PARENT != TAKEN_BY_WORKER
    assert SIZE_WITH_RINGS - SIZE == 2 * RING_SIZE


# The parent's side


async def test_frames_that_take_long_are_taken_in_one_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=0.001)
    monkeypatch.setattr(channel, "monotonic", lambda: next(clock))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    taken: list[int] = []
    ends: list[str] = []
    made = channel.Channel(
        asyncio.get_running_loop(),
        ours,
        lambda header, body: taken.append(header[2]),
        lambda: ends.append("end"),
        lambda: ends.append("defect"),
    )

    def send(numbers: range) -> None:
        theirs.sendall(b"".join(frames.TO_PARENT.pack(frames.READY, 0, number, 0, 0) for number in numbers))

    async def wait_for(count: int) -> set[int]:
        seen = set()
        async with asyncio.timeout(10):
            while len(taken) < count:
                await asyncio.sleep(0)
                seen.add(len(taken))
        return seen

    send(range(5))
    assert await wait_for(5) >= {1, 2, 3, 4, 5}
    send(range(5, 10))
    await wait_for(6)
    made.read_rest()  # all of it, as when the worker is dead
    assert taken == list(range(10))
    send(range(10, 15))
    await wait_for(11)
    made.close()
    ours.close()
    theirs.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert taken == list(range(11))
    assert ends == []


async def test_an_error_in_a_large_frame_is_a_defect_and_not_the_end_of_the_worker() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ends: list[str] = []

    def refuse(header: object, body: object) -> None:
        raise OSError(errno.EMFILE, "no descriptors are left")

    loop = asyncio.get_running_loop()
    error: asyncio.Future[BaseException] = loop.create_future()
    loop.set_exception_handler(lambda _, context: error.set_result(context["exception"]))
    made = channel.Channel(loop, ours, refuse, lambda: ends.append("end"), lambda: ends.append("defect"))
    theirs.setblocking(False)
    size = 300_000  # more than there is room for in the buffer
    async with asyncio.timeout(10):
        await loop.sock_sendall(theirs, frames.TO_PARENT.pack(frames.LARGE_VALUE, 1, 0, 0, size) + bytes(size))
        assert str(await error) == f"[Errno {errno.EMFILE}] no descriptors are left"
    made.close()
    ours.close()
    theirs.close()
    assert ends == ["defect"]


# What has to be imported first

WITHOUT_NUMPY = """
import asyncio, sys, threading

from aparallel import Pool, delayed


class Finder:
    def find_spec(self, name, path, target=None):
        if name == "numpy":
            print("numpy in", threading.current_thread() is threading.main_thread())


def array(size):
    import numpy
    return numpy.full(size, 7.0)


async def main():
    async with Pool(n_jobs=1) as pool:
        calls = [delayed(abs)(-1), delayed(array)(SIZE), delayed(int)("x"), delayed(str)([1]), delayed(array)(SIZE)]
        one, first, error, text, second = await pool.gather(calls, batch_size=5, return_exceptions=True)
        print(one, first.sum(), type(error).__name__, text, second.sum())


sys.meta_path.insert(0, Finder())
asyncio.run(main())
"""


@pytest.mark.parametrize("size", [3, 10_000])
def test_a_result_whose_module_is_not_imported_is_read_off_the_loop(size: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_NUMPY.replace("SIZE", str(size)))
    run = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["numpy in False", f"1 {7.0 * size} ValueError [1] {7.0 * size}"]


ANOTHER_MODULE = """
import asyncio, sys

sys.path.insert(0, sys.argv[1])

from aparallel import Pool

if sys.argv[2] == "1000000":
    import numpy


def make(size):
    from made import Made

    return Made(size)


async def main():
    async with Pool(n_jobs=1) as pool:
        print(len((await pool.run(make, int(sys.argv[2]))).data))


asyncio.run(main())
"""

MADE = """
import threading


class Made:
    def __init__(self, size):
        self.data = make(size)


def make(size):
    if size < 1_000_000:
        return "x" * size
    import numpy

    return numpy.zeros(size)


print("made in", threading.current_thread() is threading.main_thread(), flush=True)
"""


@pytest.mark.parametrize("size", [100, 10_000, 50_000, 400_000, 1_000_000])
def test_no_module_is_imported_on_the_loop_for_a_result(size: int, tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "modules"
    script.write_text(ANOTHER_MODULE)
    folder.mkdir()
    (folder / "made.py").write_text(MADE)
    command = [sys.executable, "-W", "error", str(script), str(folder), str(size)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    # In the main thread of the worker, and in another one here.
    assert run.stdout.splitlines() == ["made in True", "made in False", str(size)]
