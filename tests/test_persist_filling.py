"""Large memory is filled by several threads, and nobody can tell but by the time it takes."""

from __future__ import annotations

import concurrent.futures
import io
import os
import pathlib
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest

from aparallel import dump, dumps, load, loads
from aparallel._ground import cores
from aparallel._ground.stoppable import Stop, Stopped
from aparallel._persist import filling, sources
from aparallel._persist.filling import Filling
from aparallel._persist.sources import FileSource, MemorySource, Source
from aparallel.errors import ChecksumError, SignatureError, TruncatedFileError

SIZE = 1_000_003
PIECE = 1 << 14


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_WORTH", 1 << 16)
    monkeypatch.setattr(filling, "_PIECE", PIECE)


def content(size: int = SIZE) -> bytes:
    return np.random.default_rng(0).bytes(size)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("aparallel-read")]


class Scripted(Source):
    """Bytes whose pieces are read when the test lets them, by whichever thread asks."""

    reads_anywhere = True

    def __init__(self, data: bytes, stop: Stop | None = None) -> None:
        super().__init__(len(data), stop or Stop())
        self.data = data
        self.asked: list[int] = []
        self.failing: dict[int, Exception] = {}
        self.held: dict[int, threading.Event] = {}
        self.threads: set[str] = set()

    def _read(self, size: int) -> bytes:
        raise NotImplementedError

    def peek(self, size: int) -> bytes:
        raise NotImplementedError

    def skip(self, size: int) -> None:
        self.position += size

    def _read_at(self, view: memoryview, position: int) -> int:
        self.asked.append(position)
        self.threads.add(threading.current_thread().name)
        if (held := self.held.get(position)) is not None:
            assert held.wait(10)
        if position in self.failing:
            raise self.failing[position]
        count = min(len(view), 5_000)  # as a file may, fewer than asked for
        view[:count] = self.data[position : position + count]
        return count


def filled(source: Source, size: int = SIZE, threads: int = 3) -> tuple[bytes, list[bytes]]:
    memory: Any = np.empty(size, np.uint8)
    taken: list[bytes] = []
    fill = Filling(source, threads)
    try:
        fill.fill(memoryview(memory), lambda part: taken.append(bytes(part)))
    finally:
        fill.close()
        assert not readers()
    return memory.tobytes(), taken


@pytest.mark.parametrize("size", [SIZE, 1 << 16, (1 << 18) + 1])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_it_is_filled_and_taken_in_order(kind: str, size: int, tmp_path: pathlib.Path) -> None:
    data = content(size + 200)
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb", buffering=0) as file:
        source: Source = FileSource(file.fileno(), Stop()) if kind == "file" else MemorySource(memoryview(data), Stop())
        assert bytes(source.read(100)) == data[:100]  # some is read ahead
        memory, taken = filled(source, size)
        assert memory == b"".join(taken) == data[100:-100]
        assert max(map(len, taken)) == PIECE
        assert source.position == size + 100
        assert bytes(source.read(100)) == data[-100:]
        assert source.at_end()


def test_pieces_that_come_early_wait_for_the_first() -> None:
    source = Scripted(content())
    source.held[0] = threading.Event()
    order: list[int] = []

    class Noting(list[int]):
        def append(self, position: int) -> None:
            super().append(position)
            if position > SIZE // 2:
                source.held[0].set()

    source.asked = Noting()
    memory: Any = np.empty(SIZE, np.uint8)
    fill = Filling(source, 2)
    fill.fill(memoryview(memory), lambda part: order.append(len(part)))
    fill.close()
    assert memory.tobytes() == source.data
    assert sum(order) == SIZE
    assert len(source.threads) == 2


def test_a_signature_is_over_all_of_it_in_order() -> None:
    class Digest:
        seen = b""

        def update(self, data: Any) -> None:
            self.seen += bytes(data)

    source = Scripted(content())
    source.signature = digest = Digest()
    filled(source)
    assert digest.seen == source.data


def test_the_first_failure_in_the_file_is_raised_and_nobody_reads_on() -> None:
    source = Scripted(content())
    source.held[0] = threading.Event()

    class EveryRead(dict[int, Exception]):
        def __contains__(self, position: object) -> bool:
            return True

        def __getitem__(self, position: int) -> Exception:
            if position:
                source.held[0].set()
            return OSError("a later one" if position else "the first")

    # One thread is held with the first piece until another one has failed.
    source.failing = EveryRead()
    with pytest.raises(OSError, match="the first"):
        filled(source, threads=2)
    asked = len(source.asked)
    assert asked < 10
    assert not readers()


def test_a_stop_ends_all_threads() -> None:
    stop = Stop()
    source = Scripted(content(), stop)

    class Stopping(list[int]):
        def append(self, position: int) -> None:
            super().append(position)
            if len(self) == 20:
                stop.set()

    source.asked = Stopping()
    with pytest.raises(Stopped):
        filled(source)
    assert len(source.asked) < 25


def test_a_file_that_is_cut_meanwhile_is_truncated(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content())
    with path.open("r+b", buffering=0) as file:
        source = FileSource(file.fileno(), Stop())
        file.truncate(SIZE // 2)
        with pytest.raises(TruncatedFileError):
            filled(source)


def test_where_no_thread_can_be_had_one_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", refuse)
    source = Scripted(content())
    assert filled(source)[0] == source.data


def test_one_thread_or_little_to_read_starts_no_other() -> None:
    for threads, size in ((1, SIZE), (3, 1000)):
        source = MemorySource(memoryview(content(size)), Stop())
        fill = Filling(source, threads)
        memory: Any = np.empty(size, np.uint8)
        fill.fill(memoryview(memory))
        assert not readers()
        fill.close()
        assert memory.tobytes() == content(size)


def test_every_thread_offers_its_core_to_the_loop_after_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    offers: list[None] = []
    monkeypatch.setattr(cores, "offer_core", lambda: offers.append(None))
    _, taken = filled(Scripted(content()))
    assert len(offers) == len(taken)


@pytest.fixture
def array() -> Any:
    return np.frombuffer(content(3 * SIZE), np.uint8)[:3_000_000].view("f4")


async def test_a_large_array_is_read_by_several_threads(
    array: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.apl"
    await dump({"before": 1, "array": array, "small": np.arange(3)}, path, durable=False)
    used: set[str] = set()
    read_at = sources.FileSource._read_at

    def noted(source: FileSource, view: memoryview, position: int) -> int:
        used.add(threading.current_thread().name)
        return read_at(source, view, position)

    monkeypatch.setattr(sources.FileSource, "_read_at", noted)
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    found = await load(path, n_jobs=3)
    assert found["array"].tobytes() == array.tobytes()
    assert found["array"].flags.writeable
    assert any(name.startswith("aparallel-read") for name in used)
    assert not readers()
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) <= descriptors
    used.clear()
    await load(path, n_jobs=1)
    assert not used


async def test_every_changed_byte_of_a_large_array_is_found(array: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.apl"
    await dump(array, path, durable=False)
    whole = path.read_bytes()
    for position in range(1000, len(whole) - 1000, len(whole) // 23):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ChecksumError):
            await load(path, n_jobs=3)
        with pytest.raises(ChecksumError):
            await loads(bytes(damaged), n_jobs=3)
    for size in range(1000, len(whole) - 1, len(whole) // 11):
        path.write_bytes(whole[:size])
        with pytest.raises(TruncatedFileError):
            await load(path, n_jobs=3)
    assert not readers()


async def test_a_signed_large_array_is_verified(array: Any) -> None:
    data = await dumps(array, signing_key="key")
    assert (await loads(data, signing_key="key", n_jobs=3)).tobytes() == array.tobytes()
    with pytest.raises(SignatureError):
        await loads(data, signing_key="other", n_jobs=3)


async def test_progress_counts_what_was_read_so_far(array: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.apl"
    await dump(array, path, durable=False)
    counts: list[tuple[int, int | None]] = []
    await load(path, n_jobs=3, progress=lambda done, total: counts.append((done, total)))
    size = path.stat().st_size
    assert counts == sorted(counts)
    assert counts[-1] == (size, size)


async def test_large_arrays_of_joblib_and_texts_of_pickle_are_read_so_too(array: Any, tmp_path: pathlib.Path) -> None:
    joblib = pytest.importorskip("joblib")
    path = tmp_path / "file.pkl"
    joblib.dump([1, array, "text", np.asfortranarray(array.reshape(2, -1))], path)
    for trusted in (None, []):
        found = await load(path, n_jobs=3, trusted=trusted)
        assert found[1].tobytes() == array.tobytes()
        assert found[2] == "text"
        assert np.array_equal(found[3], array.reshape(2, -1), equal_nan=True)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(TruncatedFileError):
        await load(path, n_jobs=3)
    path.write_bytes(pickle.dumps([b"x" * SIZE, bytearray(SIZE), "end"], 5))
    assert await load(path, n_jobs=3) == [b"x" * SIZE, bytearray(SIZE), "end"]
    assert await load(io.BytesIO(path.read_bytes()), n_jobs=3) == [b"x" * SIZE, bytearray(SIZE), "end"]
    assert not readers()
