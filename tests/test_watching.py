"""Arrays that are watched instead of hashed: what a call sees is the same, and nobody pays who does not gain."""

from __future__ import annotations

import gc
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pages import PAGE, WRITERS, numbers, open_descriptors
from test_pages import watch as watch_array
from traveling import by_value

from aparallel import Pool, delayed
from aparallel._transfer import known
from aparallel._transfer.arguments import ArgumentMemory
from aparallel._transfer.encoding import ProcessEncoder
from aparallel._transfer.users import User

on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])

SIZE = 16 * PAGE


@by_value
def total(array: Any) -> int:
    return int(array.sum())


@by_value
def total_and(array: Any, _: Any) -> int:
    return int(array.sum())


@by_value
class Changing:
    """Changes an array when it is pickled."""

    def __init__(self, array: Any, change: int) -> None:
        self.array = array
        self.change = change

    def __reduce__(self) -> Any:
        if self.change:
            self.array += self.change
        return int, ()


class Looks:
    """Counts how often a buffer was hashed to be compared, and how often it was begun to be watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashed = self.begun = 0
        digest_of, begin = known.digest_of, known.begin_to_watch

        def counted(*args: Any) -> bytes:
            self.hashed += 1
            return digest_of(*args)

        def begun(*args: Any) -> Any:
            self.begun += 1
            return begin(*args)

        monkeypatch.setattr(known, "digest_of", counted)
        monkeypatch.setattr(known, "begin_to_watch", begun)
        monkeypatch.setattr(known, "_SMALL_BYTES", 0)

    def take(self) -> tuple[int, int]:
        found = self.hashed, self.begun
        self.hashed = self.begun = 0
        return found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    if watch_array(numbers()) is None:
        pytest.skip("this kernel does not tell what was written, or must not")
    return Looks(monkeypatch)


class Draws:
    """Draws buffers as an encoder does: on the loop, which may only refer to what was written, then in a thread."""

    def __init__(self) -> None:
        self.memory = ArgumentMemory(bool)
        self.user = User()
        self.referred = False

    def draw(self, array: Any) -> bytes:
        """Return what a call that is drawn now would get."""
        self.user.begin_moment()
        view = memoryview(array).cast("B")
        reference = self.memory.reference_to(view, "r", self.user, lambda: True)
        self.referred = reference is not None
        if reference is not None:
            content = reference.content
        else:
            [(content, _)], _ = self.memory.place([view], None, "r", self.user)
        return bytes(content.segment.parts.read()[content.offset : content.offset + content.nbytes])

    def close(self) -> None:
        self.memory.close()


@pytest.fixture
def draws() -> Iterator[Draws]:
    drawing = Draws()
    yield drawing
    drawing.close()


class TestWhatPays:
    def test_an_array_that_stays_as_it_is_is_hashed_twice_then_referred_to(self, draws: Draws, looks: Looks) -> None:
        array = numbers(SIZE)
        for number in range(20):
            assert draws.draw(array) == array.tobytes()
            assert draws.referred is (number > 2)
        assert looks.take() == (2, 1)

    def test_one_that_is_refilled_between_draws_is_never_watched(self, draws: Draws, looks: Looks) -> None:
        array = numbers(SIZE)
        draws.draw(array)
        array[:] = 255
        draws.draw(array)
        looks.take()
        for value in range(50):
            array[:] = value
            assert draws.draw(array) == array.tobytes()
        assert looks.take() == (50, 0)

    def test_one_with_a_counter_that_goes_on_between_draws_is_never_watched(self, draws: Draws, looks: Looks) -> None:
        array = numbers(SIZE)
        for value in range(2):
            array[5] = value
            draws.draw(array)
        looks.take()
        for value in range(50):
            array[5] = value + 2
            assert draws.draw(array) == array.tobytes()
        assert looks.take() == (50, 0)

    @pytest.mark.parametrize("period", [1, 2, 3, 4, 5])
    def test_one_that_is_written_soon_after_is_watched_ever_more_rarely(
        self, period: int, draws: Draws, looks: Looks
    ) -> None:
        array = numbers(SIZE)
        values = itertools.repeat(1) if period == 1 else itertools.count()
        for draw in range(200):
            if draw % period == 0:
                array[:] = next(values) % 256  # the same as before, or other values
            assert draws.draw(array) == array.tobytes()
        assert looks.take()[1] <= 8

    def test_one_that_stays_long_between_changes_is_watched_again(self, draws: Draws, looks: Looks) -> None:
        array = numbers(SIZE)
        for value in range(5):
            array[:] = value
            for _ in range(30):
                assert draws.draw(array) == array.tobytes()
        hashed, begun = looks.take()
        assert begun == 5
        assert hashed <= 15

    def test_two_views_that_overlap_drawn_in_turn_do_not_end_each_others_watch(
        self, draws: Draws, looks: Looks
    ) -> None:
        array = numbers(SIZE)
        for _ in range(20):
            for view in (array, array[PAGE:], array[: SIZE // 2]):
                assert draws.draw(view) == view.tobytes()
        assert looks.take()[0] <= 6

    def test_pools_that_draw_the_same_array_do_not_end_each_others_watch(self, draws: Draws, looks: Looks) -> None:
        array = numbers(SIZE)
        other = Draws()
        for _ in range(20):
            assert draws.draw(array) == other.draw(array) == array.tobytes()
        assert looks.take() == (4, 2)
        other.close()
        del other
        for _ in range(20):
            assert draws.draw(array) == array.tobytes()
        assert looks.take()[0] <= 1

    def test_what_is_small_is_watched_once_it_has_come_often(
        self, draws: Draws, looks: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(known, "_SMALL_BYTES", 100 * PAGE)
        for size, hashed in ((200 * PAGE, 2), (SIZE, 8)):
            array = numbers(size)
            for _ in range(30):
                assert draws.draw(array) == array.tobytes()
            assert looks.take() == (hashed, 1)

    def test_a_kernel_that_refuses_is_asked_ever_more_rarely(
        self, draws: Draws, looks: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("aparallel._transfer.pages._may_be_watched", lambda *_: False)
        array = numbers(SIZE)
        for _ in range(200):
            assert draws.draw(array) == array.tobytes()
        hashed, begun = looks.take()
        assert hashed == 199
        assert begun <= 8

    def test_on_the_loop_not_even_the_kernel_is_asked_about_what_is_huge(
        self, draws: Draws, looks: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("aparallel._transfer.arguments._ON_LOOP_BYTES", SIZE - 1)
        array = numbers(SIZE)
        for _ in range(5):
            assert draws.draw(array) == array.tobytes()
            assert not draws.referred
        assert looks.take() == (2, 1)

    def test_nothing_is_watched_once_it_is_forgotten_or_its_array_is_gone(self, draws: Draws, looks: Looks) -> None:
        gc.collect()
        before = open_descriptors()
        arrays = [numbers(SIZE) for _ in range(3)]
        for array in arrays * 3:
            draws.draw(array)
        assert len([name for name in open_descriptors() - before if "userfaultfd" in name or "pagemap" in name]) == 2
        del array
        arrays.pop()
        draws.user = User()
        assert draws.draw(arrays[0]) == arrays[0].tobytes()
        draws.memory.trim(float("inf"))
        arrays.clear()
        gc.collect()
        assert not [name for name in open_descriptors() - before if "userfaultfd" in name or "pagemap" in name]


PARTS = st.tuples(st.integers(0, 3), st.integers(4, 16)).map(lambda ends: slice(ends[0] * 5000, ends[1] * 4096))
STEPS = st.one_of(
    st.tuples(
        st.just("write"), st.sampled_from(WRITERS), st.floats(0, 1), st.one_of(st.just(1), st.integers(1, 3 * PAGE))
    ),
    st.tuples(st.just("draw"), st.sampled_from([0, 1]), st.one_of(st.just(slice(None)), PARTS)),
    st.tuples(st.just("draw"), st.just(0), st.just(slice(None))),
    st.tuples(st.just("renew")),
    st.tuples(st.just("trim")),
)


@settings(max_examples=150)
@given(steps=st.lists(STEPS, max_size=25), kind=st.sampled_from(["array", "bytearray", "read-only view", "zeros"]))
def test_a_draw_gives_what_is_there_whatever_was_written_in_between(steps: list[tuple[Any, ...]], kind: str) -> None:
    def make() -> Any:
        if kind == "bytearray":
            return np.frombuffer(bytearray(numbers(SIZE).tobytes()), np.uint8)
        return np.zeros(SIZE, np.uint8) if kind == "zeros" else numbers(SIZE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "_SMALL_BYTES", 0)
        patch.setattr(known, "_UNCHANGED_LARGE", 1)
        array = make()
        pools = [Draws(), Draws()]
        for name, *details in steps:
            if name == "write":
                write, fraction, length = details
                start = int(fraction * (SIZE - 1))
                write(memoryview(array), start, os.urandom(min(length, SIZE - start)))
            elif name == "draw":
                view = array[details[1]]
                if kind == "read-only view":
                    view.flags.writeable = False
                assert pools[details[0]].draw(view) == view.tobytes()
            elif name == "renew":  # its memory may be that of the one before
                array = None
                array = make()
            else:
                for pool in pools:
                    pool.memory.trim(float("inf"))
        for pool in pools:
            pool.close()


class TestTraps:
    """Memory that changes hands, or that NumPy does not know."""

    def drawn_often(self, draws: Draws, array: Any) -> None:
        for _ in range(4):
            assert draws.draw(array) == array.tobytes()

    def test_an_array_that_is_resized_in_place_and_back(self, draws: Draws, looks: Looks) -> None:
        for size in (SIZE, 3 << 20, 17 << 20):  # what has more than 32 MB has a mapping of its own
            array = np.full(size, 7, np.uint8)
            for other in (2 * size, size, size // 2, size, size):
                self.drawn_often(draws, array)
                try:
                    array.resize(other, refcheck=False)
                except ValueError:  # NumPy refuses while there is a weak reference to it
                    draws.user = User()
                    draws.memory.trim(float("inf"))
                    array.resize(other, refcheck=False)
            self.drawn_often(draws, array)
            array[size // 2] = 9
            self.drawn_often(draws, array)

    def test_a_bytearray_that_grows_and_shrinks_between_draws(self, draws: Draws, looks: Looks) -> None:
        data = bytearray(b"7" * SIZE)
        for _ in range(3):
            self.drawn_often(draws, np.frombuffer(data, np.uint8))
            data += b"8" * SIZE * 40
            self.drawn_often(draws, np.frombuffer(data, np.uint8))
            del data[SIZE:]
            data[SIZE // 2] ^= 1

    def test_other_containers_of_bytes(self, draws: Draws, looks: Looks) -> None:
        import array
        import mmap

        pa = pytest.importorskip("pyarrow")
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame({"a": np.zeros(SIZE), "b": np.zeros(SIZE)})
        column = frame["a"].to_numpy(copy=False)
        column.flags.writeable = True
        holders: list[Any] = [
            array.array("d", bytes(SIZE)),
            bytearray(SIZE),
            mmap.mmap(-1, SIZE),
            mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
            pa.allocate_buffer(SIZE),
            column,
        ]
        for holder in holders:
            for value in range(3):
                for _ in range(4):
                    assert draws.draw(holder) == bytes(memoryview(holder).cast("B"))
                memoryview(holder).cast("B")[SIZE // 2 + value] = value + 1

    def test_memory_that_other_processes_write_to(self, draws: Draws, looks: Looks, tmp_path: Any) -> None:
        (tmp_path / "file").write_bytes(bytes(SIZE))
        for mode in ("r+", "c"):
            with open(tmp_path / "file", "r+b") as file:
                mapped = np.memmap(file, np.uint8, mode)
            for value in range(3):
                self.drawn_often(draws, mapped.view(np.ndarray))
                with open(tmp_path / "file", "r+b") as file:
                    file.seek(SIZE // 2)
                    file.write(bytes([value + 1]))
        assert looks.take()[0] > 10  # hashed each time

    def test_a_write_of_the_same_bytes_is_no_change(self, draws: Draws, looks: Looks) -> None:
        array = numbers(SIZE)
        self.drawn_often(draws, array)
        array[:] = array.copy()
        self.drawn_often(draws, array)

    def test_a_change_that_is_taken_back_is_no_change(self, draws: Draws, looks: Looks) -> None:
        array = numbers(SIZE)
        for place in (0, SIZE // 2, SIZE - 1):
            self.drawn_often(draws, array)
            array[place] ^= 1
            array[place] ^= 1
            self.drawn_often(draws, array)


def test_whatever_a_thread_wrote_while_draws_went_on_is_seen_by_the_next(draws: Draws, looks: Looks) -> None:
    """A draw may see some of it; what must not be is that it goes on doing so."""
    array = numbers(SIZE)
    choose = random.Random(0)
    for _ in range(150):
        places = [choose.choice((0, SIZE - 1, choose.randrange(SIZE))) for _ in range(choose.randrange(1, 20))]

        def write(places: list[int] = places) -> None:
            for place in places:
                array[place] ^= 1
                if place % 3:  # and back
                    array[place] ^= 1

        thread = threading.Thread(target=write)
        thread.start()
        while thread.is_alive():
            draws.draw(array)
        thread.join()
        for _ in range(3):
            assert draws.draw(array) == array.tobytes()


@pytest.mark.parametrize("rounds", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_threads_of_two_pools_that_draw_at_the_same_time_see_what_is_there(
    looks: Looks, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """Watches begin and end all the time, and with the last one the descriptors are closed."""
    monkeypatch.setattr(known.Habit, "is_worth_watching", True)
    array = numbers(SIZE)
    memories = ArgumentMemory(bool), ArgumentMemory(bool)
    views = array, array, array[5000:], array[: SIZE // 2], array[SIZE // 3 : -100]
    choose = random.Random(0)

    def draw_some(seed: float) -> bool:
        choose, drawing = random.Random(seed), Draws()
        for _ in range(3):
            drawing.memory, view = choose.choice(memories), choose.choice(views)
            if drawing.draw(view) != view.tobytes():
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        for _ in range(rounds):
            for _ in range(choose.choice((0, 0, 1, 3))):
                array[choose.choice((0, SIZE - 1, choose.randrange(SIZE)))] ^= 1
            assert all(threads.map(draw_some, [choose.random() for _ in range(4)]))
    for memory in memories:
        memory.close()


@on_one_loop
class TestPools:
    async def test_calls_of_a_generator_that_runs_code_leave_the_loop_for_their_array_thrice(
        self, looks: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hops: list[Any] = []
        original = ProcessEncoder.encode_large

        async def encode_large(encoder: ProcessEncoder, call: Any, index: int | None) -> Any:
            hops.append(index)
            return await original(encoder, call, index)

        monkeypatch.setattr(ProcessEncoder, "encode_large", encode_large)
        array = numbers(SIZE)
        async with Pool(2, max_nbytes=1000) as pool:
            calls: Callable[[], Any] = lambda: (delayed(total)(array) for _ in map(str, range(20)))  # noqa: E731
            assert await pool.gather(calls()) == [total(array)] * 20
            assert hops == [0, 1, 2]  # to write it, to find it unchanged, and to begin to watch it
            assert await pool.gather(calls()) == [total(array)] * 20
            for _ in range(5):
                assert await pool.run(total, array) == total(array)
            assert hops == [0, 1, 2]
            array[SIZE // 2] ^= 1
            assert await pool.run(total, array) == total(array)
            assert len(hops) == 4

    async def test_a_call_sees_its_array_as_its_own_later_arguments_leave_it(
        self, looks: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(known, "_UNCHANGED_LARGE", 1)
        array = np.zeros(SIZE, np.uint8)

        def calls() -> Iterator[Any]:
            for change in [0, 0, 0, 0, 1, 0, 0, 0, 2]:
                yield delayed(total_and)(array, Changing(array, change))

        async with Pool(1, max_nbytes=1000) as pool:
            assert await pool.gather(calls()) == [0, 0, 0, 0, SIZE, SIZE, SIZE, SIZE, 3 * SIZE]
            seen = [await pool.run(total_and, array, Changing(array, change)) for change in [0, 0, 0, 0, 1, 0]]
            assert seen == [3 * SIZE] * 4 + [4 * SIZE] * 2

    async def test_a_closed_pool_watches_nothing(self, looks: Looks) -> None:
        gc.collect()
        before = open_descriptors()
        array = numbers(SIZE)
        async with Pool(1, max_nbytes=1000) as pool:
            for _ in range(4):
                assert await pool.run(total, array) == total(array)
        assert looks.take() == (2, 1)
        del pool
        gc.collect()
        assert not open_descriptors() - before
