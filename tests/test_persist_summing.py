"""A large record is summed up by two threads, and nobody can tell but by the time it takes."""

from __future__ import annotations

import _thread
import pathlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from aparallel import dump, load
from aparallel._ground import cores
from aparallel._persist import dump as dumping
from aparallel._persist import summing
from aparallel._persist.summing import Checksum

HEAD, SEED = b"the head", 7
PIECE, PART = 50_000, 12_345
SIZE = 1_000_003


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "_WORTH", 1 << 16)
    monkeypatch.setattr(summing, "_SLICE", 10_000)
    monkeypatch.setattr(summing, "_MOST_BEHIND", 200_000)


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = _thread._count()
    yield
    until = time.monotonic() + 10
    while _thread._count() > before:  # it is counted for a moment after it has said that it is gone
        assert time.monotonic() < until
        time.sleep(0.001)


def content(size: int = SIZE) -> bytes:
    return np.random.default_rng(0).bytes(size)


def expected(data: bytes) -> int:
    return xxh3_64_intdigest(HEAD + data, SEED)


def write(check: Checksum, data: bytes) -> None:
    """Do what a writer does."""
    for start in range(0, len(data), PIECE):
        view = memoryview(data)[start : start + PIECE]
        check.announce(view)
        for begin in range(0, len(view), PART):
            part = view[begin : begin + PART]
            check.add(part)
            check.add_written(part)


def summed(data: bytes, threads: int = 2) -> int:
    with Checksum(HEAD, SEED, len(data), threads) as check:
        write(check, data)
        return check.value()


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("size", [0, 1, PART, (1 << 16) - 1, 1 << 16, SIZE])
@pytest.mark.usefixtures("no_thread_is_left")
def test_it_is_the_checksum_of_all_in_order(size: int, threads: int) -> None:
    data = content(size)
    assert summed(data, threads) == expected(data)


class Held:
    """A lock that a test holds in place of who sums up."""

    def __init__(self, check: Checksum) -> None:
        self.lock = check._summing

    def __enter__(self) -> None:
        assert self.lock.acquire(timeout=10)

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@pytest.mark.usefixtures("no_thread_is_left")
def test_what_comes_while_the_helper_is_at_it_is_not_lost() -> None:
    data = content()
    with Checksum(HEAD, SEED, len(data), 2) as check:
        with Held(check):  # so the helper waits for it
            write(check, data)
        assert check.value() == expected(data)


@pytest.mark.usefixtures("no_thread_is_left")
def test_a_helper_that_gets_no_core_leaves_it_to_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    data = content()
    may_begin = threading.Event()
    helping = Checksum._help
    workers: set[int] = set()

    def late(check: Checksum, give_way: Callable[[], None]) -> None:
        may_begin.wait(10)
        helping(check, give_way)

    def offer() -> None:
        workers.add(_thread.get_ident())

    monkeypatch.setattr(Checksum, "_help", late)
    monkeypatch.setattr(cores, "offer_core", offer)
    with Checksum(HEAD, SEED, len(data), 2) as check:
        write(check, data)
        assert sum(map(len, check._due)) <= summing._MOST_BEHIND
        assert workers == {_thread.get_ident()}
        may_begin.set()
        assert check.value() == expected(data)


@pytest.mark.usefixtures("no_thread_is_left")
def test_where_no_thread_can_be_had_the_writer_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    data = content()
    assert summed(data) == expected(data)


def test_one_thread_or_little_to_write_starts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(_thread, "start_new_thread", started)
    data = content()
    assert summed(data, threads=1) == expected(data)
    assert summed(data[:1000]) == expected(data[:1000])


@pytest.mark.usefixtures("no_thread_is_left")
def test_an_error_ends_the_helper_and_lets_go_of_what_was_announced() -> None:
    data = bytearray(content())

    def fail() -> None:
        with Checksum(HEAD, SEED, len(data), 2) as check, memoryview(data) as view:
            check.announce(view)
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fail()
    data.clear()  # which is refused while anyone has a view of it


@pytest.mark.usefixtures("no_thread_is_left")
def test_the_helper_runs_ahead_of_the_writer_but_not_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "_MOST_AHEAD", 100_000)
    data = content()
    with Checksum(HEAD, SEED, len(data), 2) as check:
        view = memoryview(data)
        check.announce(view)
        for start in range(0, len(data), PIECE):
            assert check._given <= start + 100_000 + summing._SLICE
            check.add_written(view[start : start + PIECE])
        assert check.value() == expected(data)


class Cleared(deque[memoryview]):
    """Tells when the writer gives up."""

    def __init__(self) -> None:
        super().__init__()
        self.cleared = threading.Event()

    def clear(self) -> None:
        super().clear()
        self.cleared.set()


@pytest.mark.usefixtures("no_thread_is_left")
def test_after_an_error_nothing_more_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    due, begun = Cleared(), threading.Event()

    def offer() -> None:
        begun.set()
        assert due.cleared.wait(10)

    monkeypatch.setattr(cores, "offer_core", offer)
    check = Checksum(HEAD, SEED, SIZE, 2)
    check._due = due

    def fail() -> None:
        with check:
            check.announce(memoryview(content()))
            assert begun.wait(10)
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert check._summed == summing._SLICE


@pytest.mark.usefixtures("no_thread_is_left")
def test_both_threads_offer_their_core_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    offers: dict[int, int] = {}

    def offer() -> None:
        me = _thread.get_ident()
        offers[me] = offers.get(me, 0) + 1

    monkeypatch.setattr(cores, "offer_core", offer)
    monkeypatch.setattr(summing, "_MOST_BEHIND", SIZE)
    with Checksum(HEAD, SEED, SIZE, 2) as check:
        write(check, content())
        assert offers[_thread.get_ident()] >= SIZE // PART
        check.value()
    assert sum(offers.values()) >= SIZE // PART + SIZE // 10_000


async def test_a_large_array_is_summed_up_so_and_loads(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helped: list[int] = []
    helping = Checksum._help

    def noted(check: Checksum, give_way: Callable[[], None]) -> None:
        helped.append(_thread.get_ident())
        helping(check, give_way)

    monkeypatch.setattr(Checksum, "_help", noted)
    array: Any = np.random.default_rng(1).random((1000, 500))
    for found in (array, array.T, array[::2]):
        await dump(found, tmp_path / "array", n_jobs=2, durable=False)
        np.testing.assert_array_equal(await load(tmp_path / "array"), found)
    assert len(helped) == 3
    assert _thread.get_ident() not in helped
    await dump(array, tmp_path / "array", n_jobs=1, durable=False)
    np.testing.assert_array_equal(await load(tmp_path / "array"), array)
    assert len(helped) == 3


@pytest.mark.usefixtures("no_thread_is_left")
def test_a_full_disk_ends_the_helper(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing: Callable[..., None] = dumping.FileSink._write_out

    def full(sink: dumping.FileSink, view: memoryview) -> None:
        if len(view) > 100_000:
            raise OSError(28, "No space left on device")
        writing(sink, view)

    monkeypatch.setattr(dumping.FileSink, "_write_out", full)
    options = dumping.DumpOptions.checked(None, n_jobs=2)
    with pytest.raises(OSError, match="No space"):
        dumping.dump_to_path(np.zeros(1_000_000), str(tmp_path / "array"), options)
    assert list(tmp_path.iterdir()) == []
