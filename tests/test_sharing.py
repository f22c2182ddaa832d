"""Arrays that many calls get: written once while they do not change, seen as they were when a call was drawn."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traveling import by_value

from aparallel import Pool, delayed, gather_parallel
from aparallel._transfer import known
from aparallel._transfer.encoding import ProcessEncoder
from aparallel._transfer.functions import Functions
from aparallel._transfer.lending import Lender
from aparallel._transfer.out_of_band import TooLarge
from aparallel._transfer.packing import Packer
from aparallel._transfer.shipment import LazyMemory
from aparallel._transfer.users import User
from aparallel.abc import Sharing
from aparallel.errors import ClosedPoolError, SharingError, UnpicklableCallError

on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])

SIZE = 2000


@by_value
def total(array: Any) -> float:
    return float(array.sum())


@by_value
def total_of(things: Any) -> float:
    return float(sum(thing.sum() for thing in things))


@by_value
def add(array: Any, value: float) -> None:
    array += value


@by_value
def column(frame: Any) -> float:
    return float(frame["number"].sum())


class Writes:
    """Counts what goes into shared memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        original = Lender.write

        def write(lender: Lender, sources: Any, *args: Any) -> Any:
            self.sizes.extend(source.nbytes for source in sources)
            return original(lender, sources, *args)

        monkeypatch.setattr(Lender, "write", write)

    def take(self) -> int:
        count = sum(size == SIZE * 8 for size in self.sizes)
        self.sizes.clear()
        return count


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def ones() -> Any:
    return np.ones(SIZE)


@on_one_loop
class TestWrittenOnce:
    @pytest.mark.parametrize("cut", [lambda a: a, lambda a: a[::2].repeat(2)[::1], np.asfortranarray])
    async def test_an_array_of_many_calls_is_written_once_per_gather_and_not_again_for_the_next(
        self, writes: Writes, cut: Callable[[Any], Any]
    ) -> None:
        array = cut(ones())
        async with Pool(2, max_nbytes=1000) as pool:
            assert await pool.gather([delayed(total)(array) for _ in range(20)]) == [SIZE] * 20
            assert writes.take() == 1
            assert await pool.gather(delayed(total)(array) for _ in range(20)) == [SIZE] * 20
            async with pool.stream(delayed(total)(array) for _ in range(20)) as results:
                assert [result async for result in results] == [SIZE] * 20
            for _ in range(5):
                assert await pool.run(total, array) == SIZE
            assert writes.take() == 0

    async def test_a_view_that_is_not_contiguous_is_written_once_too(self, writes: Writes) -> None:
        array = np.ones((SIZE, 2))
        async with Pool(2, max_nbytes=1000) as pool:
            assert await pool.gather(delayed(total)(array[:, 0]) for _ in range(20)) == [SIZE] * 20
        assert writes.take() == 1

    async def test_an_array_met_twice_in_one_call_is_written_once(self, writes: Writes) -> None:
        array = ones()
        async with Pool(1, max_nbytes=1000) as pool:
            assert await pool.run(total_of, [array, array[:], {"same": array}["same"]]) == 3 * SIZE
        assert writes.take() == 1

    async def test_only_the_first_call_of_a_list_leaves_the_loop_for_its_array(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hops: list[Any] = []
        original = ProcessEncoder.encode_large

        async def encode_large(encoder: ProcessEncoder, call: Any, index: int | None) -> Any:
            hops.append(index)
            return await original(encoder, call, index)

        monkeypatch.setattr(ProcessEncoder, "encode_large", encode_large)
        monkeypatch.setattr(known, "begin_to_watch", lambda *_: None)
        array = ones()
        async with Pool(2, max_nbytes=1000) as pool:
            assert await pool.gather([delayed(total)(array) for _ in range(20)]) == [SIZE] * 20
            assert hops == [0]
            hops.clear()
            assert await pool.gather(delayed(total)(array) for _ in map(str, range(20))) == [SIZE] * 20
            assert hops == list(range(20))  # it might have changed

    async def test_a_shared_array_is_written_by_share_alone(self, writes: Writes) -> None:
        array = ones()
        async with Pool(2, max_nbytes=1000) as pool:
            async with pool.share(array) as shared:
                assert writes.take() == 1
                for given in (shared, array, shared.array):
                    assert await pool.gather(delayed(total)(given) for _ in range(10)) == [SIZE] * 10
                    assert await pool.run(total, given) == SIZE
                assert writes.take() == 0


def test_a_call_that_must_leave_the_loop_keeps_none_of_the_arrays_that_it_referred_to_there() -> None:
    memory = LazyMemory()
    packer = Packer(Functions(), memory, Sharing(max_nbytes=1000), User())
    written, new = ones(), ones()
    packer.pack_large(([written], {}, None))
    with pytest.raises(TooLarge):
        packer.pack(([written, new], {}, None))
    packer.user = None
    closed = len(memory.trim(math.inf)[0])  # it may be let go of now, and closed the next time
    segments, remains = memory.trim(math.inf)
    assert (closed + len(segments), remains) == (1, False)
    memory.close()


# Functions that bring arrays along


@by_value
class Table:
    """A class with methods: the usual home of a large array."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers

    def total(self) -> float:
        return float(self.numbers.sum())

    def __call__(self) -> float:
        return self.total()

    async def wait_and_total(self) -> float:
        return self.total()

    def is_writeable(self) -> bool:
        return bool(self.numbers.flags.writeable)


def closure(array: Any) -> Callable[[], float]:
    return lambda: float(array.sum())


def default(array: Any) -> Callable[[], float]:
    def total(numbers: Any = array) -> float:
        return float(numbers.sum())

    return by_value(total)


def helper_of_closure(array: Any) -> Callable[[], float]:
    helper = closure(array)
    return lambda: helper() + 0


def uses_global(array: Any) -> Callable[[], float]:
    space: dict[str, Any] = {"__name__": "__main__", "numbers": array}
    exec("def total():\n    return float(numbers.sum())", space)
    found: Callable[[], float] = space["total"]
    return found


BRINGERS = pytest.mark.parametrize(
    "bring",
    [
        closure,
        default,
        helper_of_closure,
        uses_global,
        Table,
        lambda array: Table(array).total,
        lambda array: functools.partial(Table(array).total),
        lambda array: Table(array).wait_and_total,
    ],
    ids=["closure", "default", "helper", "global", "callable", "method", "partial", "coroutine"],
)


@on_one_loop
class TestArraysOfFunctions:
    """What a function closes over, or is a method of, is shared like its arguments."""

    @BRINGERS
    async def test_they_are_written_once_and_seen_as_they_are_at_each_draw(self, bring: Any, writes: Writes) -> None:
        array = ones()
        function = bring(array)

        def refilled() -> Iterator[Any]:
            for value in (1, 1, 2, 2, 3):
                array[:] = value
                yield delayed(function)()

        async with Pool(2, max_nbytes=1000) as pool:
            assert await pool.gather([delayed(function)() for _ in range(5)]) == [SIZE] * 5
            assert await pool.gather(delayed(function)() for _ in range(5)) == [SIZE] * 5
            assert await pool.run(function) == SIZE
            assert writes.take() == 1
            assert await pool.gather(refilled()) == [SIZE, SIZE, 2 * SIZE, 2 * SIZE, 3 * SIZE]
            assert writes.take() == 2
            async with pool.share(array) as shared:
                writes.take()
                assert await pool.gather([delayed(bring(shared))(), delayed(bring(shared.array))()]) == [3 * SIZE] * 2
                assert writes.take() == 0
            with pytest.raises(SharingError, match="closed"):
                await pool.run(bring(shared))

    @pytest.mark.parametrize(("mode", "writeable"), [("r", False), ("c", True)])
    async def test_they_are_mapped_as_arguments_are(self, mode: Any, writeable: bool) -> None:
        async with Pool(1, max_nbytes=1000, mmap_mode=mode) as pool:
            assert await pool.run(Table(ones()).is_writeable) is writeable
            with pytest.raises(SharingError, match=r"share\(a, mode='r\+'\)"):
                await pool.gather([delayed(Table(ones()).total)()], mmap_mode="r+")

    async def test_without_shared_memory_they_travel_with_the_function(self, writes: Writes) -> None:
        array = np.ones(100_000)
        async with Pool(1, max_nbytes=None) as pool:
            assert await pool.gather(delayed(Table(array).total)() for _ in range(2)) == [100_000] * 2
        assert not writes.sizes

    async def test_an_array_met_in_the_function_and_in_an_argument_is_one_array(self) -> None:
        array = ones()

        def is_same(given: Any) -> bool:
            return given is array

        async with Pool(1, max_nbytes=1000) as pool:
            assert await pool.run(by_value(is_same), array)


# Nobody computes with what was


@on_one_loop
class TestStaleness:
    """What a serial loop would give, in every case in which memory is used again."""

    @pytest.fixture(autouse=True, params=["hashed", "watched"])
    def looked_at(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hash what may have changed; or have the kernel tell, where it does, of small arrays, too."""
        if request.param == "watched":
            monkeypatch.setattr(known, "_SMALL_BYTES", 0)
            monkeypatch.setattr(known, "_UNCHANGED_LARGE", 1)
        else:
            monkeypatch.setattr(known, "begin_to_watch", lambda *_: None)

    # Each cut with either number of workers under soak, and with one of them in the suite.
    @pytest.mark.parametrize(
        ("cut", "n_jobs"),
        [
            pytest.param(cut, n_jobs, marks=[] if (number + n_jobs) % 2 else [pytest.mark.soak])
            for number, cut in enumerate([lambda a: a, lambda a: a[:], lambda a: a[::2], lambda a: a.reshape(2, -1).T])
            for n_jobs in (1, 2)
        ],
    )
    async def test_one_buffer_refilled_between_the_calls_of_a_generator(self, cut: Any, n_jobs: int) -> None:
        buffer = np.zeros(SIZE)

        def calls() -> Iterator[Any]:
            for value in range(30):
                buffer[:] = value
                yield delayed(total)(cut(buffer))

        async def calls_later() -> AsyncIterator[Any]:
            for call in calls():
                await asyncio.sleep(0)
                yield call

        expected = [value * cut(buffer).size for value in range(30)]
        async with Pool(n_jobs, max_nbytes=1000) as pool:
            assert await pool.gather(calls()) == expected
            assert await pool.gather(calls_later()) == expected
            async with pool.stream(calls_later()) as results:
                assert [result async for result in results] == expected
            async with pool.stream(calls(), pre_dispatch=1) as results:
                assert [result async for result in results] == expected

    async def test_a_list_of_a_kind_of_its_own_that_refills_one_buffer_while_it_is_iterated(self) -> None:
        buffer = np.zeros(SIZE)

        class Batches(list[Any]):
            def __iter__(self) -> Iterator[Any]:
                for value in super().__iter__():
                    buffer[:] = value
                    yield delayed(total)(buffer)

        async with Pool(2, max_nbytes=1000) as pool:
            assert await pool.gather(Batches(range(10))) == [value * SIZE for value in range(10)]

    @pytest.mark.parametrize("between", [False, True])
    async def test_a_list_whose_array_changes_and_is_drawn_for_another_gather_meanwhile(self, between: bool) -> None:
        array = np.ones(SIZE)
        async with Pool(2, max_nbytes=1000) as pool:
            first = pool.stream([delayed(total)(array)] * 12, pre_dispatch=2)
            async with first as results:
                seen = [await anext(results)]
                if between:  # another one that finds it as it was
                    assert await pool.gather(delayed(total)(array) for _ in range(2)) == [SIZE] * 2
                array[:] = 2
                assert await pool.gather([delayed(total)(array)] * 2) == [2 * SIZE] * 2
                array[:] = 3
                assert await pool.gather(delayed(total)(array) for _ in range(2)) == [3 * SIZE] * 2
                seen += [result async for result in results]
            assert seen == [SIZE] * 12
            assert await pool.run(total, array) == 3 * SIZE

    async def test_one_element_changed_between_two_calls_of_a_generator(self) -> None:
        buffer = np.zeros(SIZE)

        def calls() -> Iterator[Any]:
            for position in range(0, SIZE, 97):
                buffer[position] = 1
                yield delayed(total)(buffer)

        async with Pool(2, max_nbytes=1000) as pool:
            assert await pool.gather(calls()) == list(range(1, len(range(0, SIZE, 97)) + 1))

    async def test_an_array_changed_between_gathers_streams_and_runs(self) -> None:
        array = np.zeros(SIZE)
        async with Pool(2, max_nbytes=1000) as pool:
            for value in range(4):
                array[:] = value
                expected = value * SIZE
                assert await pool.gather([delayed(total)(array)] * 3) == [expected] * 3
                array[0] += 1
                assert await pool.run(total, array) == expected + 1
                array[0] += 1
                async with pool.stream([delayed(total)(array)]) as results:
                    assert [result async for result in results] == [expected + 2]
                array[0] += 1
                assert await pool.gather([delayed(total_of)([array[::2], array[1::2]])]) == [expected + 3]

    async def test_gather_parallel_between_which_an_array_changes(self) -> None:
        array = np.zeros(300_000)
        for value in range(3):
            array[-1] = value
            assert await gather_parallel([delayed(total)(array)] * 2, n_jobs=2) == [value] * 2

    async def test_an_array_that_changes_and_changes_back(self) -> None:
        array = np.zeros(SIZE)
        async with Pool(1, max_nbytes=1000) as pool:
            for value in (0, 1, 0, 1, 2, 0):
                array[7] = value
                assert await pool.run(total, array) == value

    async def test_an_array_that_was_made_read_only_after_it_changed(self) -> None:
        array = np.zeros(SIZE)
        async with Pool(1, max_nbytes=1000) as pool:
            assert await pool.run(total, array) == 0
            array[:] = 1
            array.flags.writeable = False
            assert await pool.run(total, array) == SIZE
            array.flags.writeable = True
            array[:] = 2
            assert await pool.run(total, array) == 2 * SIZE
            array[:] = 3
            array.flags.writeable = False
            assert await pool.gather([delayed(total)(array)] * 2) == [3 * SIZE] * 2

    async def test_a_read_only_view_whose_base_changes(self) -> None:
        base = np.zeros(SIZE)
        view = base[:]
        view.flags.writeable = False
        broadcast = np.broadcast_to(base, (2, SIZE))
        async with Pool(1, max_nbytes=1000) as pool:
            for value in range(3):
                base[:] = value
                assert await pool.run(total, view) == value * SIZE
                assert await pool.run(total, broadcast) == value * 2 * SIZE

    async def test_a_writable_view_of_what_has_become_read_only(self) -> None:
        base = np.zeros(SIZE)
        view = base[:]
        base.flags.writeable = False

        def refill() -> Iterator[Any]:
            for value in range(3, 6):
                view[:] = value
                yield delayed(total)(view)

        async with Pool(1, max_nbytes=1000) as pool:
            for value in range(3):
                view[:] = value
                assert await pool.run(total, view) == value * SIZE
            assert await pool.gather(refill()) == [value * SIZE for value in range(3, 6)]

    async def test_an_array_over_memory_that_is_not_numpys(self) -> None:
        raw = bytearray(SIZE * 8)
        writable = np.frombuffer(raw)
        readonly = np.frombuffer(memoryview(raw).toreadonly())
        async with Pool(1, max_nbytes=1000) as pool:
            for value in range(3):
                writable[:] = value
                for array in (writable, readonly, np.frombuffer(raw)):
                    assert await pool.run(total, array) == value * SIZE

    async def test_a_window_into_an_array_that_changes(self) -> None:
        array = np.zeros(SIZE)
        async with Pool(1, max_nbytes=1000) as pool:
            for value in range(3):
                array[0] = value
                windows = np.lib.stride_tricks.sliding_window_view(array, 100)
                assert await pool.run(total, windows) == value

    async def test_new_arrays_where_others_were(self) -> None:
        """A freed array's memory comes back for the next of its size."""
        async with Pool(1, max_nbytes=1000) as pool:
            for value in range(50):
                array = np.full(SIZE, float(value))
                assert await pool.run(total, array) == value * SIZE
                del array

            def calls() -> Iterator[Any]:
                for value in range(50):
                    yield delayed(total)(np.full(SIZE, float(value)))

            assert await pool.gather(calls()) == [value * SIZE for value in range(50)]

    async def test_a_record_of_the_same_bytes_that_changes_outside_its_fields(self) -> None:
        raw = np.zeros((SIZE, 2), "i8")
        odd = raw.view({"names": ["b"], "formats": ["i8"], "offsets": [8], "itemsize": 16})[::2, 0]
        even = raw.view({"names": ["a"], "formats": ["i8"], "offsets": [0], "itemsize": 16})[::2, 0]
        sums = by_value(lambda array: int(array[array.dtype.names[0]].sum()))
        async with Pool(1, max_nbytes=100) as pool:
            for value in range(3):
                raw[:, 0] = value
                raw[:, 1] = 10 * value
                assert await pool.run(sums, even) == value * SIZE // 2
                assert await pool.run(sums, odd) == 10 * value * SIZE // 2

    async def test_gathers_that_run_at_the_same_time_on_one_array(self) -> None:
        array = np.ones(SIZE)
        async with Pool(2, max_nbytes=1000) as pool:
            for value in range(1, 4):
                array[:] = value
                gathers = [pool.gather([delayed(total)(array)] * 5) for _ in range(6)]
                gathers += [pool.gather(delayed(total)(array) for _ in range(5)) for _ in range(6)]
                runs = [pool.run(total, array) for _ in range(10)]
                found = await asyncio.gather(*gathers, *runs)
                assert found == [[value * SIZE] * 5] * 12 + [value * SIZE] * 10

    async def test_arrays_beyond_what_is_remembered(self) -> None:
        arrays = [np.zeros(20_000) for _ in range(40)]
        arrays += [np.zeros(1_000_000) for _ in range(12)]
        async with Pool(2, max_nbytes=1000) as pool:
            for value in range(3):
                for array in arrays:
                    array[3] = value
                assert await pool.map(total, arrays) == [value] * len(arrays)


# Sharing by name


@on_one_loop
class TestShare:
    async def test_all_ways_to_open_and_close(self) -> None:
        array = ones()
        async with Pool(1, max_nbytes=1000) as pool:
            async with pool.share(array) as shared:
                assert await pool.run(total, shared) == SIZE
            assert shared.closed
            async with await pool.share(array) as shared:
                assert await pool.run(total, shared) == SIZE
            assert shared.closed
            shared = await pool.share(array)
            assert not shared.closed
            assert shared.value is array
            assert np.array_equal(shared.array, array)
            shared.close()
            shared.close()
            assert shared.closed
            assert "closed" in repr(shared)

    @pytest.mark.parametrize("backend", ["process", "thread", "inline"])
    async def test_after_its_end_using_it_is_an_error_that_says_so(self, backend: Any) -> None:
        options: Any = {"max_nbytes": 1000} if backend == "process" else {}
        async with Pool(1, backend=backend, **options) as pool:
            async with pool.share(ones()) as shared:
                kept = shared.array
            with pytest.raises(ValueError, match="closed"):
                await pool.run(total, shared)
            with pytest.raises(ValueError, match="closed"):
                await pool.gather([delayed(total)(shared)])
            if backend == "process":
                with pytest.raises(ValueError, match="closed"):
                    await pool.run(total_of, [kept[::2]])
            assert kept.sum() == SIZE
            assert await pool.run(total, kept.copy()) == SIZE

    async def test_the_object_itself_counts_as_unchanged_while_it_is_shared(self) -> None:
        array = ones()
        async with Pool(1, max_nbytes=1000) as pool:
            async with pool.share(array):
                array[:] = 5
                assert await pool.run(total, array) == SIZE
                assert await pool.gather([delayed(total)(array)]) == [SIZE]
            assert await pool.run(total, array) == 5 * SIZE

    @pytest.mark.parametrize("how", ["dropped", "cancelled"])
    async def test_what_was_shared_by_nobody_is_not_kept_unchanged(self, how: str) -> None:
        array = np.ones(100_000)
        async with Pool(1, max_nbytes=1000) as pool:
            if how == "dropped":
                await pool.share(array)
            else:
                sharing = asyncio.ensure_future(_share(pool, array))
                await asyncio.sleep(0)
                sharing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sharing
            gc.collect()
            deadline = asyncio.get_running_loop().time() + 5
            array[:] = 2
            # The thread that was writing for the cancelled one may still do so.
            while (await pool.run(total, array)) != 200_000:
                assert asyncio.get_running_loop().time() < deadline
                gc.collect()

    async def test_its_array_outlives_the_object_if_that_is_dropped_but_not_closed(self) -> None:
        async with Pool(1, max_nbytes=1000) as pool:
            array = (await pool.share(np.zeros(SIZE), mode="r+")).array
            gc.collect()
            array[:] = 3
            assert await pool.run(total, array) == 3 * SIZE
            await pool.run(add, array, 1)
            assert array.sum() == 4 * SIZE

    async def test_handles_and_their_arrays_may_lie_anywhere_in_the_arguments(self) -> None:
        def sums(things: Any, *, more: Any) -> list[float]:
            return [float(things["a"][0].sum()), float(more.sum()), float(things["slice"].sum())]

        array = ones()
        async with Pool(1, max_nbytes=1000) as pool, pool.share(array) as shared:
            things = {"a": [shared], "slice": shared.array[10:20]}
            assert await pool.gather([delayed(by_value(sums))(things, more=shared)]) == [[SIZE, SIZE, 10]]
            square = shared.array.reshape(40, 50)
            for view in (square.T, square[::-1, ::3], square[5], shared.array[7:7], square.view("i8")):
                assert await pool.run(total, view) == view.sum()

    async def test_one_shared_array_twice_in_one_call_has_the_same_memory(self) -> None:
        def aliased(first: Any, second: Any) -> bool:
            first[0] = 42
            return bool(second[0] == 42)

        async with Pool(1, max_nbytes=1000) as pool, pool.share(ones(), mode="r+") as shared:
            assert await pool.run(by_value(aliased), shared, shared.array)
            assert await pool.run(by_value(aliased), shared.array, shared.array[:10])

    async def test_what_is_written_to_a_writable_share_is_seen_on_all_sides(self) -> None:
        async with Pool(2, max_nbytes=1000) as pool, pool.share(np.zeros(SIZE), mode="r+") as shared:
            array = shared.array
            assert array.flags.writeable
            array[:] = 1
            assert await pool.run(total, shared) == SIZE
            await pool.run(add, shared, 1)
            assert (array == 2).all()
            await pool.gather(delayed(add)(array[start::4], start) for start in range(4))
            assert array[:4].tolist() == [2, 3, 4, 5]
            assert await pool.run(total, array) == array.sum()
            assert (shared.value == 0).all()

    async def test_a_read_only_share_can_be_written_by_nobody(self) -> None:
        async with Pool(1, max_nbytes=1000) as pool, pool.share(ones()) as shared:
            with pytest.raises(ValueError, match="read-only"):
                shared.array[0] = 1
            with pytest.raises(ValueError, match="read-only"):
                await pool.run(add, shared, 1)
            with pytest.raises(ValueError, match="read-only"):
                await pool.run(add, shared.array[5:], 1)
            with pytest.raises(ValueError, match=r"mode='r\+'"):
                await pool.gather([delayed(add)(shared, 1)], mmap_mode="r+")
            assert await pool.run(total, shared) == SIZE

    async def test_mode_c_gives_each_call_a_copy_of_its_own(self) -> None:
        def write(array: Any) -> float:
            array[:] = 7
            return float(array.sum())

        async with Pool(1, max_nbytes=1000) as pool, pool.share(ones(), mode="c") as shared:
            for given in (shared, shared.array):
                assert await pool.run(by_value(write), given) == 7 * SIZE
                assert await pool.run(total, given) == SIZE

    async def test_a_share_that_nobody_awaited_says_so(self) -> None:
        async with Pool(1) as pool:
            with pytest.raises(UnpicklableCallError, match=r"write shared = await pool\.share\(a\)"):
                await pool.run(np.sum, pool.share(ones()))

    async def test_shares_of_one_array_are_independent(self) -> None:
        array = ones()
        async with Pool(1, max_nbytes=1000) as pool:
            first = await pool.share(array)
            array[:] = 2
            second = await pool.share(array)
            assert await pool.gather([delayed(total)(first), delayed(total)(second)]) == [SIZE, 2 * SIZE]
            second.close()
            assert await pool.run(total, first) == SIZE
            first.close()
            array[:] = 3
            assert await pool.run(total, array) == 3 * SIZE

    @pytest.mark.parametrize("mode", ["w", "rw", None])
    async def test_a_mode_that_there_is_not_is_named_as_it_was_given(self, mode: Any) -> None:
        async with Pool(1) as pool:
            with pytest.raises(ValueError, match=rf"^mode={mode!r} is not 'r' "):
                await pool.share(ones(), mode=mode)

    async def test_anything_that_can_be_pickled_can_be_shared(self) -> None:
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame({"number": np.ones(SIZE), "text": ["a"] * SIZE})
        async with Pool(2, max_nbytes=1000) as pool:
            async with pool.share(frame) as shared:
                assert await pool.gather(delayed(column)(shared) for _ in range(4)) == [SIZE] * 4
                assert await pool.run(column, frame) == SIZE
                with pytest.raises(TypeError, match="DataFrame"):
                    shared.array  # noqa: B018
            things = {"list": list(range(100_000)), "array": ones(), "empty": np.zeros(0), "number": 3}
            async with pool.share(things) as shared_things:
                size = by_value(lambda things: len(things["list"]) + len(things["array"]) + len(things["empty"]))
                assert await pool.run(size, shared_things) == 100_000 + SIZE
            for small in (5, None, "text", np.zeros(0), np.array(3.0), np.zeros(3)):
                async with pool.share(small) as shared_small:
                    assert await pool.run(str, shared_small) == str(small)

    async def test_writable_sharing_of_what_is_no_array_is_an_error_that_says_so(self) -> None:
        async with Pool(1) as pool:
            for value in ({"a": 1}, [ones()], np.array([None]), 5):
                with pytest.raises(TypeError, match=type(value).__name__):
                    await pool.share(value, mode="r+")
            with pytest.raises(ValueError, match="mode='w'"):
                pool.share(ones(), mode="w")  # type: ignore[arg-type]

    async def test_what_lies_in_a_file_is_not_shared_writable_through_memory(self, tmp_path: Path) -> None:
        np.save(tmp_path / "numbers.npy", ones())
        mapped = np.load(tmp_path / "numbers.npy", mmap_mode="r+")
        async with Pool(1, max_nbytes=1000) as pool:
            for value in (np.asarray(mapped), np.asarray(mapped)[10:]):
                with pytest.raises(TypeError, match=r"in a file.*mmap_mode='r\+'"):
                    await pool.share(value, mode="r+")
            async with pool.share(np.array(mapped), mode="r+") as shared:
                await pool.run(add, shared, 1)
                assert shared.array.sum() == 2 * SIZE
        assert mapped.sum() == SIZE

    async def test_a_read_only_share_cannot_be_shared_writable(self) -> None:
        async with Pool(1, max_nbytes=1000) as pool, pool.share(ones()) as shared:
            with pytest.raises((TypeError, ValueError), match=r"read-only|r\+"):
                await pool.share(shared.array, mode="r+")

    async def test_a_closed_pool_shares_nothing(self) -> None:
        async with Pool(1) as pool:
            shared = await pool.share(ones())
        assert shared.closed
        with pytest.raises(ClosedPoolError):
            await pool.share(ones())

    async def test_another_pool_refuses_or_takes_what_was_shared_elsewhere(self) -> None:
        async with Pool(1, max_nbytes=1000) as first, Pool(1, max_nbytes=1000) as second:
            async with first.share(ones()) as shared:
                assert await first.run(total, shared) == SIZE
                try:
                    found = await second.run(total, shared.array)
                except ValueError as error:
                    assert "pool" in str(error)  # noqa: PT017
                else:
                    assert found == SIZE

    async def test_a_worker_that_starts_later_gets_what_was_shared_before(self) -> None:
        import os
        import signal

        async with Pool(1, max_nbytes=1000) as pool, pool.share(ones()) as shared:
            pid = await pool.run(os.getpid)
            assert await pool.run(total, shared) == SIZE
            os.kill(pid, signal.SIGKILL)
            while True:
                try:
                    assert await pool.run(os.getpid) != pid
                    break
                except Exception as error:
                    assert "SIGKILL" in str(error)  # noqa: PT017
            assert await pool.run(total, shared) == SIZE

    @pytest.mark.parametrize("backend", ["thread", "inline"])
    async def test_threads_and_inline_workers_get_the_object_itself(self, backend: Any) -> None:
        array = np.zeros(SIZE)
        async with Pool(1, backend=backend) as pool:
            async with pool.share(array, mode="r+") as shared:
                assert await pool.run(id, shared) == id(array)
                assert await pool.gather([delayed(id)(shared)]) == [id(array)]
                await pool.run(add, shared, 1)
                await pool.run(add, shared.array, 1)
                assert (array == 2).all()
                assert (shared.array == 2).all()
            async with pool.share({"a": 1}) as shared_dict:
                assert await pool.run(len, shared_dict) == 1


async def _share(pool: Pool, array: Any) -> Any:
    return await pool.share(array)
