"""Whatever NumPy can make arrives equal: as an argument in a worker and as a result here, all through shared memory."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import numpy as np
import pytest
from anyio import from_thread, to_thread
from hypothesis import given, settings
from hypothesis import strategies as st
from traveling import by_value

from aparallel import Pool, delayed, gather_parallel, parallel_config
from aparallel.errors import UnpicklableCallError

on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])

# Functions that run in workers.


@by_value
def same(value: Any) -> Any:
    return value


@by_value
def look(array: Any) -> tuple[Any, ...]:
    """What a worker sees of an array, and the array."""
    flags = array.flags
    return array, type(array).__name__, array.dtype, array.shape, flags.c_contiguous, flags.f_contiguous


@by_value
def write(array: Any) -> Any:
    array[...] = 7
    return array.sum()


@by_value
def total(array: Any) -> Any:
    return array.sum()


@by_value
def is_writeable(array: Any) -> bool:
    return bool(array.flags.writeable)


@by_value
def is_mapped(array: Any) -> bool:
    """Whether an array's memory lies in a memfd or an unnamed file of ours."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, _, end = line.split()[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                return "memfd:aparallel" in line or "aparallel" in line or "(deleted)" in line
    return False


# Making arrays

DTYPES = [
    np.dtype(name)
    for name in (
        *(
            "?",
            "b1",
            "i1",
            "u1",
            "<i2",
            ">i2",
            "<i4",
            ">u4",
            "<i8",
            ">i8",
            "<f2",
            ">f2",
            "<f4",
            ">f4",
            "<f8",
            ">f8",
            "g",
        ),
        *("<c8", ">c8", "<c16", ">c16", "G", "S1", "S7", "<U3", ">U2", "V3", "V16"),
        *("<M8[ns]", ">M8[D]", "M8[us]", "<m8[s]", ">m8[ms]", "M8"),
    )
] + [
    np.dtype([("x", "<f4"), ("y", ">i2")]),
    np.dtype([("x", "i1"), ("y", "f8")], align=True),
    np.dtype({"names": ["b", "a"], "formats": ["<i4", "S3"], "offsets": [8, 1], "itemsize": 24}),
    np.dtype([("inner", [("p", "<i2"), ("q", "<M8[s]")]), ("many", ">f4", (2, 3))]),
    np.dtype([(("a title", "t"), "<u2")]),
    np.dtype("<f8", metadata={"unit": "m"}),
]


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


def _unaligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    moved: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, raw, 1) if array.nbytes else array
    if array.nbytes:
        moved[...] = array
    return moved


WAYS: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "as it is": lambda array: array,
    "Fortran order": np.asfortranarray,
    "transposed": lambda array: array.T,
    "every second": lambda array: array[..., ::2] if array.ndim else array,
    "backwards": lambda array: np.flip(array) if array.ndim else array,
    "first axis backwards": lambda array: array[::-1] if array.ndim else array,
    "axes swapped": lambda array: array.swapaxes(0, -1) if array.ndim > 1 else array,
    "broadcast": lambda array: np.broadcast_to(array, (3, *array.shape)),
    "part": lambda array: array[1:, ...] if array.ndim else array,
    "read-only": _read_only,
    "unaligned": _unaligned,
    "new axis": lambda array: array[..., np.newaxis],
}


def filled(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """An array of every kind of value that *dtype* has."""
    if dtype.names is not None:
        array = np.zeros(shape, dtype)
        for name in dtype.names:
            field = array[name]
            field[...] = filled(field.dtype, field.shape, seed + 1)
        return array
    random = np.random.default_rng(seed)
    if dtype.kind in "SU":
        return random.integers(0, 1000, shape).astype(f"{dtype.kind}5").astype(dtype)
    if dtype.kind == "V":
        return np.frombuffer(random.bytes(dtype.itemsize * int(np.prod(shape))), dtype).reshape(shape).copy()
    if dtype.kind in "Mm":
        unit = np.datetime_data(dtype)[0]
        if unit == "generic":
            return np.full(shape, "NaT", dtype)
        array = random.integers(-1000, 1000, shape).astype(f"{dtype.kind}8[{unit}]").astype(dtype)
        if array.size:
            array.flat[0] = "NaT"
        return array
    array = random.integers(0, 100, shape).astype(dtype)
    if dtype.kind in "fc" and array.size:
        array.flat[0] = np.nan
        array.flat[-1] = -0.0
    return array


def assert_equal(found: Any, expected: Any) -> None:
    """Equal in type, dtype, shape and every element, NaN and signs of zero included."""
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    assert found.dtype.str == expected.dtype.str
    assert found.dtype.metadata == expected.dtype.metadata
    assert found.shape == expected.shape
    assert_same_elements(np.asarray(found), np.asarray(expected))


def assert_same_elements(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    if found.dtype.names is None:
        assert found.tobytes() == expected.tobytes()
        return
    assert found.dtype.fields == expected.dtype.fields
    for name in found.dtype.names:
        assert_same_elements(found[name], expected[name])


any_array = st.builds(
    lambda dtype, shape, seed, way: WAYS[way](filled(dtype, shape, seed)),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.integers(0, 1000),
    st.sampled_from(sorted(WAYS)),
)


async def check_all(check: Callable[..., None], strategy: st.SearchStrategy[Any], examples: int) -> None:
    """Run *check*, which waits for coroutines of this loop, in a thread with examples of *strategy*."""
    tested = settings(max_examples=examples, database=None)(given(strategy)(check))
    await to_thread.run_sync(tested)


# What arrives


@on_one_loop
class TestValues:
    async def test_every_array_arrives_equal_on_both_sides_and_is_ordinary_when_it_is_back(self) -> None:
        async with Pool(1, max_nbytes=0) as pool:

            def check(array: np.ndarray[Any, Any]) -> None:
                seen, kind, dtype, shape, c_order, f_order = from_thread.run(pool.run, look, array)
                assert_equal(seen, array)
                assert (kind, dtype, shape) == ("ndarray", array.dtype, array.shape)
                # What is in no order arrives in C order, as by every pickle.
                ordered = array if array.flags.c_contiguous or array.flags.f_contiguous else np.ascontiguousarray(array)
                assert (c_order, f_order) == (ordered.flags.c_contiguous, ordered.flags.f_contiguous)
                assert (seen.flags.c_contiguous, seen.flags.f_contiguous) == (c_order, f_order)
                assert seen.flags.writeable

            await check_all(check, any_array, 300)

    @pytest.mark.parametrize(
        "max_nbytes", [0, 1000, *(pytest.param(each, marks=pytest.mark.soak) for each in (100, None, "1M"))]
    )
    async def test_every_nesting_arrives_equal_whatever_part_of_it_is_shared(self, max_nbytes: Any) -> None:
        nested = st.recursive(
            any_array | st.integers() | st.text(max_size=5) | st.binary(max_size=200) | st.none(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
                | st.tuples(inner, inner)
                | st.builds(Record, inner, inner)
                | st.builds(Thing, inner)
            ),
            max_leaves=6,
        )
        async with Pool(1, max_nbytes=max_nbytes) as pool:

            def check(value: Any) -> None:
                assert_alike(from_thread.run(pool.run, same, value), value)

            await check_all(check, nested, 40)

    async def test_arrays_of_a_megabyte_and_more_arrive_equal_in_every_order(self) -> None:
        base = np.arange(3 * 500 * 700, dtype=">f8").reshape(3, 500, 700)
        arrays = [
            base,
            base.T,
            base[:, ::2],
            base[::-1],
            base.transpose(1, 0, 2),
            base[:, 1:, 3:],
            np.asfortranarray(base),
        ]
        async with Pool(2) as pool:
            for array, result in zip(arrays, await pool.map(same, arrays), strict=True):
                assert_equal(result, array)
                assert result.flags.f_contiguous == array.flags.f_contiguous

    async def test_one_array_met_twice_in_a_call_is_one_array_there_and_back(self) -> None:
        array = np.arange(1000.0)

        def twice(first: Any, second: Any) -> Any:
            return first is second["again"], [first, second["again"]]

        async with Pool(1, max_nbytes=100) as pool:
            one, (first, second) = await pool.run(by_value(twice), array, {"again": array})
        assert one
        assert first is second

    async def test_two_views_of_one_array_arrive_each_with_its_own_elements(self) -> None:
        base = np.arange(20_000).reshape(100, 200)
        views = [base, base[:50], base[50:], base[:, ::3], base.T, base[::-1], base.view("M8[s]"), base.reshape(-1)]
        async with Pool(1, max_nbytes=100) as pool:
            for result, view in zip(await pool.run(same, views), views, strict=True):
                assert_equal(result, view)

    async def test_two_views_of_the_same_bytes_as_different_records_do_not_get_mixed_up(self) -> None:
        base = np.arange(4000, dtype=np.int64)[::2]
        raw = np.zeros(4000, "V16")
        raw.view(np.int64).reshape(-1, 2)[:] = np.arange(8000).reshape(-1, 2)
        first = raw[::2].view({"names": ["a"], "formats": ["<i8"], "offsets": [0], "itemsize": 16})
        second = raw[::2].view({"names": ["b"], "formats": ["<i8"], "offsets": [8], "itemsize": 16})
        async with Pool(1, max_nbytes=0) as pool:
            for given_ in ([first, second, base], [second, first, base], [second], [first]):
                for result, view in zip(await pool.run(same, given_), given_, strict=True):
                    assert_equal(result, view)

    async def test_object_arrays_are_pickled_with_what_they_hold(self) -> None:
        objects = np.array([1, "two", None, [3], np.arange(1000)], dtype=object)
        records = np.array([(1, "one"), (2, [2])], dtype=[("number", int), ("thing", object)])
        async with Pool(1, max_nbytes=0) as pool:
            back, backs = await pool.run(same, (objects, records))
        assert back.dtype == object
        assert list(back[:4]) == [1, "two", None, [3]]
        assert_equal(back[4], objects[4])
        assert backs.dtype == records.dtype
        assert backs.tolist() == records.tolist()

    @pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="this NumPy has no variable-width strings")
    async def test_variable_width_strings_are_pickled(self) -> None:
        words = np.array(["short", "w" * 5000] * 500, dtype=np.dtypes.StringDType())
        async with Pool(1, max_nbytes=0) as pool:
            back = await pool.run(same, words)
        assert back.dtype == words.dtype
        assert back.tolist() == words.tolist()

    async def test_scalars_of_numpy_keep_their_types(self) -> None:
        values = [
            np.float32(1.5),
            np.int8(-3),
            np.datetime64("2020-01-01"),
            np.bool_(True),
            np.str_("text"),
            np.void(b"ab"),
        ]
        async with Pool(1, max_nbytes=0) as pool:
            back = await pool.run(same, values)
        assert back == values
        assert [type(value) for value in back] == [type(value) for value in values]


@by_value
@dataclasses.dataclass
class Record:
    first: Any
    second: Any


@by_value
class Thing:
    def __init__(self, content: Any) -> None:
        self.content = content


def assert_alike(found: Any, expected: Any) -> None:
    if isinstance(expected, np.ndarray):
        assert_equal(found, expected)
        return
    assert type(found).__name__ == type(expected).__name__
    if isinstance(expected, Record | Thing):
        found, expected = vars(found), vars(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_alike(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_alike(*pair)
    else:
        assert found == expected


# Subclasses


class Named(np.ndarray):  # type: ignore[type-arg]
    """A subclass as NumPy's guide has them: with an attribute."""

    name: Any

    def __array_finalize__(self, source: Any) -> None:
        self.name = getattr(source, "name", None)


class Reduced(np.ndarray):  # type: ignore[type-arg]
    """One that pickles in its own way."""

    note: Any

    def __reduce__(self) -> Any:
        return _make_reduced, (np.asarray(self), self.note)


def _make_reduced(array: Any, note: Any) -> Any:
    made = np.asarray(array).view(Reduced)
    made.note = note
    return made


for _thing in (Named, Reduced, _make_reduced):
    by_value(_thing)


@on_one_loop
@pytest.mark.parametrize("max_nbytes", [0, "1M"])
class TestSubclasses:
    async def test_a_subclass_keeps_its_type_and_attributes_large_or_small(self, max_nbytes: Any) -> None:
        array = np.arange(1000.0).reshape(10, 100).view(Named)
        array.name = "metres"
        async with Pool(1, max_nbytes=max_nbytes) as pool:
            for given_ in (array, array[::2], array.T):
                back = await pool.run(same, given_)
                assert_equal(back, given_)
                assert back.name == "metres"

    async def test_a_subclass_that_pickles_in_its_own_way_keeps_it(self, max_nbytes: Any) -> None:
        array = np.arange(1000.0).view(Reduced)
        array.note = ["kept"]
        async with Pool(1, max_nbytes=max_nbytes) as pool:
            back = await pool.run(same, array)
        assert type(back).__name__ == "Reduced"
        assert_equal(np.asarray(back), np.asarray(array))
        assert back.note == ["kept"]

    async def test_a_subclass_of_a_subclass_made_while_the_pool_runs_keeps_its_type(self, max_nbytes: Any) -> None:
        async with Pool(1, max_nbytes=max_nbytes) as pool:
            gone = type("Gone", (np.ndarray,), {"__reduce__": Reduced.__reduce__})
            await pool.run(same, np.arange(1000.0).view(Named))
            del gone
            gc.collect()  # there are as many types of arrays as before when the next one is made

            @by_value
            class Late(Named):
                pass

            array = np.arange(1000.0).view(Late)
            array.name = 5
            back = await pool.run(same, array)
            assert_equal(back, array)
            assert back.name == 5

    @pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
    @pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")  # NumPy 2.5
    async def test_matrices_and_record_arrays_keep_their_types(self, max_nbytes: Any) -> None:
        matrix = np.asmatrix(np.arange(1000.0).reshape(10, 100))
        records = np.rec.fromarrays([np.arange(500), np.linspace(0, 1, 500)], names="number,part")
        structured = np.zeros(300, [("a", "i4"), ("b", "f8")]).view(np.recarray)
        letters = np.char.array(["abc", "de"] * 200)
        async with Pool(1, max_nbytes=max_nbytes) as pool:
            for array in (matrix, records, structured, letters, records[::2]):
                back = await pool.run(same, array)
                assert_equal(back, array)
            back = await pool.run(same, records)
            assert back.part[-1] == 1.0
            assert type(back[0]) is np.record

    @pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
    async def test_masked_arrays_keep_mask_fill_value_and_hardness(self, max_nbytes: Any) -> None:
        data = np.arange(600.0).reshape(20, 30)
        plain = np.ma.masked_array(data)
        masked = np.ma.masked_array(data, data % 3 == 0, fill_value=-1)
        hard = np.ma.masked_array(data.astype("f4"), data > 5, hard_mask=True)
        records = np.ma.masked_array(np.zeros(300, [("a", "i4"), ("b", "f8")]), [(True, False)] * 300)
        matrix = np.ma.masked_array(np.asmatrix(data), data > 5)
        cases = [plain, masked, hard, masked[::2], masked.T, np.ma.masked_array(np.array(5.0), True), records, matrix]
        async with Pool(1, max_nbytes=max_nbytes) as pool:
            for array in cases:
                back = await pool.run(same, array)
                assert type(back) is np.ma.MaskedArray
                assert back.dtype == array.dtype
                assert back.shape == array.shape
                assert type(back.data) is type(array.data)
                assert (back.mask is np.ma.nomask) == (array.mask is np.ma.nomask)
                assert np.array_equal(np.ma.getmaskarray(back), np.ma.getmaskarray(array))
                assert_same_elements(np.asarray(back.data), np.asarray(array.data))
                assert back.fill_value == array.fill_value
                assert back.hardmask == array.hardmask
            back = await pool.run(same, masked)
            back[0, 1] = np.ma.masked
            back[0, 0] = 5.0
            assert back.mask[0, 1]
            assert back[0, 0] == 5.0
            assert masked.mask[0, 0]


# Other libraries


@on_one_loop
class TestOtherLibraries:
    async def test_data_frames_arrive_equal_and_in_shared_memory(self) -> None:
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame(
            {
                "number": np.arange(3000.0),
                "other": np.linspace(0, 1, 3000),
                "count": np.arange(3000),
                "text": [f"row {i}" for i in range(3000)],
                "kind": pd.Categorical(["a", "b", "c"] * 1000),
                "time": pd.date_range("2020-01-01", periods=3000, freq="h", tz="UTC"),
                "maybe": pd.array([1, None, 3] * 1000, dtype="Int64"),
            },
            index=pd.RangeIndex(10, 3010),
        )

        def column(frame: Any) -> Any:
            return frame["number"].to_numpy()

        def mapped(frame: Any) -> bool:
            return is_mapped(frame["number"].to_numpy())

        async with Pool(1, max_nbytes=1000) as pool:
            pd.testing.assert_frame_equal(await pool.run(same, frame), frame)
            pd.testing.assert_series_equal(await pool.run(same, frame["time"]), frame["time"])
            pd.testing.assert_index_equal(
                await pool.run(same, pd.Index(np.arange(1000.0))), pd.Index(np.arange(1000.0))
            )
            assert np.array_equal(await pool.run(by_value(column), frame), np.arange(3000.0))
            assert await pool.run(by_value(mapped), frame)
            back = await pool.run(same, frame)
            back.loc[10, "number"] = -1.0
            assert frame.loc[10, "number"] == 0.0

    async def test_a_data_frame_changed_between_two_calls_arrives_changed(self) -> None:
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame({"number": np.zeros(3000), "more": np.zeros(3000)})

        def sum_of(frame: Any) -> float:
            return float(frame["number"].sum())

        async with Pool(1, max_nbytes=1000) as pool:
            sums = []
            for value in range(5):
                frame.loc[value, "number"] = 1.0
                sums.append(await pool.run(by_value(sum_of), frame))
        assert sums == [1.0, 2.0, 3.0, 4.0, 5.0]

    async def test_arrow_arrays_and_tables_arrive_equal(self) -> None:
        pa = pytest.importorskip("pyarrow")
        numbers = pa.array(range(5000))
        table = pa.table(
            {"number": numbers, "text": [f"row {i}" for i in range(5000)], "gaps": pa.array([None, 1.5] * 2500)}
        )
        async with Pool(1, max_nbytes=1000) as pool:
            assert (await pool.run(same, table)).equals(table)
            assert (await pool.run(same, numbers[17:4000])).equals(numbers[17:4000])
            assert (await pool.run(same, {"nested": [table]}))["nested"][0].equals(table)
            assert (await pool.run(same, pa.chunked_array([numbers, numbers]))).equals(
                pa.chunked_array([numbers, numbers])
            )

    @pytest.mark.parametrize("make", [bytes, bytearray], ids=["bytes", "bytearray"])
    async def test_buffers_that_a_class_exports_arrive_equal(self, make: Callable[[int], Any]) -> None:
        async with Pool(1, max_nbytes=1000) as pool:
            for size in (0, 10, 100_000):
                back = await pool.run(same, Exporting(make(size), "kept"))
                assert bytes(back.buffer) == bytes(size)
                assert back.note == "kept"


@by_value
class Exporting:
    """Pickles its buffer out of band, as protocol 5 lets any class."""

    def __init__(self, buffer: Any, note: str) -> None:
        self.buffer = buffer
        self.note = note

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Exporting, (PickleBuffer(self.buffer), self.note)


# How arguments are mapped


@on_one_loop
class TestModes:
    async def test_a_large_argument_is_read_only_and_writing_raises_numpys_error(self) -> None:
        array = np.zeros(1000)
        async with Pool(1, max_nbytes=1000) as pool:
            assert await pool.run(is_mapped, array)
            assert not await pool.run(is_writeable, array)
            with pytest.raises(ValueError, match="read-only"):
                await pool.run(write, array)
            assert await pool.run(total, array) == 0

    async def test_mode_c_gives_every_call_a_copy_of_its_own(self) -> None:
        array = np.zeros(1000)
        async with Pool(1, max_nbytes=1000, mmap_mode="c") as pool:
            assert await pool.run(is_mapped, array)
            for _ in range(3):
                assert await pool.run(write, array) == 7000
                assert await pool.run(total, array) == 0
            assert await pool.gather([delayed(write)(array), delayed(total)(array), delayed(total)(array)]) == [
                7000,
                0,
                0,
            ]
        assert not array.any()

    async def test_mode_c_keeps_the_arrays_of_a_call_apart_in_few_mappings(self) -> None:
        def write_each(arrays: Any) -> tuple[list[float], int]:
            for value, array in enumerate(arrays):
                array[:] = value
            with open("/proc/self/maps") as maps:
                return [float(array.sum()) for array in arrays], sum("memfd:aparallel" in line for line in maps)

        arrays = [np.zeros(200) for _ in range(2000)]
        async with Pool(1, max_nbytes=1000, mmap_mode="c") as pool:
            for _ in range(2):
                sums, mappings = await pool.run(by_value(write_each), arrays)
                assert sums == [value * 200 for value in range(2000)]
                assert mappings < 20
            assert not any(array.any() for array in await pool.run(same, arrays))

    async def test_a_gathers_options_override_the_pools(self) -> None:
        array = np.zeros(1000)
        async with Pool(1, max_nbytes=1000) as pool:
            assert await pool.gather([delayed(write)(array)], mmap_mode="c") == [7000]
            assert await pool.gather([delayed(is_mapped)(array)], max_nbytes=None) == [False]
            assert await pool.gather([delayed(is_mapped)(array)], max_nbytes=8000) == [False]
            assert await pool.gather([delayed(is_mapped)(array)], max_nbytes=7999) == [True]
            async with pool.stream([delayed(is_writeable)(array)], mmap_mode="c") as results:
                assert [result async for result in results] == [True]
            with parallel_config(mmap_mode="c"):
                assert await pool.gather([delayed(is_writeable)(array)]) == [True]
            assert await pool.gather([delayed(is_writeable)(array)]) == [False]

    async def test_parallel_config_sets_how_arrays_travel(self) -> None:
        array = np.zeros(1000)
        with parallel_config(max_nbytes="1k", mmap_mode="c", n_jobs=1):
            assert await gather_parallel([delayed(is_mapped)(array), delayed(is_writeable)(array)]) == [True, True]

    async def test_max_nbytes_none_sends_everything_through_the_socket(self) -> None:
        array = np.arange(500_000.0)
        async with Pool(1, max_nbytes=None) as pool:
            assert not await pool.run(is_mapped, array)
            assert_equal(await pool.run(same, array), array)

    @pytest.mark.parametrize("max_nbytes", [8191, "8191", "7.9 kB", "0.0078M", np.int64(8191)])
    async def test_what_is_larger_than_max_nbytes_is_shared(self, max_nbytes: Any) -> None:
        async with Pool(1, max_nbytes=max_nbytes) as pool:
            assert await pool.run(is_mapped, np.zeros(1024 + 64))
            assert not await pool.run(is_mapped, np.zeros(512))

    @pytest.mark.parametrize(
        ("option", "value", "error"),
        [
            ("max_nbytes", -1, ValueError),
            ("max_nbytes", "much", ValueError),
            ("max_nbytes", "-5M", ValueError),
            ("max_nbytes", 1.5, (TypeError, ValueError)),
            ("max_nbytes", [], TypeError),
            ("mmap_mode", "w", ValueError),
            ("mmap_mode", "w+", ValueError),
            ("mmap_mode", None, ValueError),
            ("mmap_mode", ["r"], (TypeError, ValueError)),
            ("temp_folder", "/nowhere/at/all", ValueError),
            ("temp_folder", 5, TypeError),
        ],
    )
    async def test_a_bad_option_is_named_with_its_value_where_it_is_given(
        self, option: str, value: Any, error: Any
    ) -> None:
        options: dict[str, Any] = {option: value}
        said = str(value) if isinstance(value, str) else repr(value)
        with pytest.raises(error) as caught:
            Pool(1, **options)
        assert said in str(caught.value)
        with pytest.raises(error):
            await gather_parallel([delayed(same)(1)], **options)
        with pytest.raises(error), parallel_config(**options):
            pass
        async with Pool(1) as pool:
            with pytest.raises(error):
                await pool.gather([delayed(same)(1)], **options)
            with pytest.raises(error):
                async with pool.stream([delayed(same)(1)], **options):
                    pass

    async def test_mode_r_plus_refuses_ordinary_arrays_and_says_what_to_do(self) -> None:
        async with Pool(1, max_nbytes=1000, mmap_mode="r+") as pool:
            with pytest.raises(ValueError, match=r"share\(a, mode='r\+'\)"):
                await pool.run(write, np.zeros(1000))
            with pytest.raises(ValueError, match=r"share\(a, mode='r\+'\)"):
                await pool.gather([delayed(same)([np.zeros(1000)])])
            assert await pool.run(total, np.ones(10)) == 10  # small ones are data


# Arrays in files


@by_value
def sees(array: Any) -> tuple[Any, ...]:
    base = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return getattr(base, "filename", None), array.flags.writeable, np.array(array)


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "numbers"
    np.arange(61_000.0).tofile(path)
    return path


@on_one_loop
class TestMemmaps:
    async def test_a_memmap_travels_as_a_reference_to_its_file(self, numbers: Path) -> None:
        array = np.memmap(numbers, "f8", "r+")
        async with Pool(1) as pool:
            filename, writeable, content = await pool.run(sees, array)
            assert os.fspath(filename) == str(numbers)
            assert not writeable
            assert np.array_equal(content, array)
            array[5] = -1
            assert (await pool.run(sees, array))[2][5] == -1

    @pytest.mark.parametrize("offset", [0, 8, 4104])
    async def test_views_of_a_memmap_arrive_equal_as_references(self, numbers: Path, offset: int) -> None:
        array = np.memmap(numbers, "f8", "r", offset, (60_000,))
        square = array.reshape(200, 300)
        views = [array[1000:2000], array[::7], array[::-1], square.T, square[5:, ::-3], square[:, 7]]
        views += [
            np.asarray(array),
            np.asarray(array)[10:20],
            array[7:8].reshape(()),
            array.view(">i4"),
            array.view("V8"),
        ]
        views += [np.broadcast_to(array[:10], (3, 10))]
        async with Pool(1) as pool:
            for view in views:
                filename, writeable, content = await pool.run(sees, view)
                assert os.fspath(filename) == str(numbers)
                assert not writeable
                assert_equal(content, np.array(view))
                assert_equal(await pool.run(same, view), np.array(view))
            assert await pool.run(same, array[7]) == array[7]

    async def test_views_that_are_empty_arrive_equal(self, numbers: Path) -> None:
        array = np.memmap(numbers, "f8", "r")
        async with Pool(1) as pool:
            for view in (array[5:5], array[:600].reshape(20, 30)[:, 4:4], np.asarray(array)[len(array) :]):
                back = await pool.run(same, view)
                assert (back.shape, back.dtype) == (view.shape, view.dtype)

    async def test_a_file_of_numpys_format_opened_as_a_map_is_a_reference(self, tmp_path: Path) -> None:
        path = tmp_path / "matrix.npy"
        np.save(path, np.arange(6000, dtype=">i4").reshape(60, 100, order="F"))
        array = np.load(path, mmap_mode="r")
        async with Pool(1) as pool:
            filename, _, content = await pool.run(sees, array)
        assert os.fspath(filename) == str(path)
        assert_equal(content, np.array(array))

    async def test_mode_r_plus_writes_into_the_file(self, numbers: Path) -> None:
        array = np.memmap(numbers, "f8", "r+")
        async with Pool(1, mmap_mode="r+") as pool:
            await pool.run(write, array[10:20])
            await pool.run(write, np.asarray(array)[30:40:2])
        assert (array[10:20] == 7).all()
        assert array[30:40].tolist() == [7, 31, 7, 33, 7, 35, 7, 37, 7, 39]
        assert np.fromfile(numbers)[10] == 7

    async def test_mode_r_plus_refuses_a_map_that_is_read_only_here(self, numbers: Path) -> None:
        async with Pool(1, mmap_mode="r+") as pool:
            with pytest.raises(ValueError, match=r"mode='r\+'"):
                await pool.run(write, np.memmap(numbers, "f8", "r"))
        assert np.fromfile(numbers)[1] == 1

    async def test_mode_c_leaves_the_file_alone(self, numbers: Path) -> None:
        array = np.memmap(numbers, "f8", "r+")
        async with Pool(1, mmap_mode="c") as pool:
            assert await pool.run(write, array) == 7 * len(array)
            assert (await pool.run(sees, array))[2][1] == 1
        assert np.fromfile(numbers)[1] == 1

    async def test_a_map_that_is_copied_on_write_here_is_data(self, numbers: Path) -> None:
        array = np.memmap(numbers, "f8", "c")
        array[:] = 3
        async with Pool(1) as pool:
            filename, _, content = await pool.run(sees, array)
            assert filename is None
            assert (content == 3).all()
            assert (await pool.run(sees, array[::2]))[2].sum() == 3 * len(array) / 2

    async def test_of_a_deleted_or_replaced_file_the_callers_own_data_is_sent(self, numbers: Path) -> None:
        array = np.memmap(numbers, "f8", "r")
        expected = np.array(array)
        async with Pool(1) as pool:
            np.zeros(61_000).tofile(new := numbers.with_name("new"))
            new.replace(numbers)
            assert_equal(await pool.run(same, array), expected)
            assert_equal(await pool.run(same, array[::3]), expected[::3])
            os.unlink(numbers)
            assert_equal(await pool.run(same, array), expected)

    async def test_a_file_replaced_on_the_way_fails_the_call_with_a_clear_error(self, numbers: Path) -> None:
        array = np.memmap(numbers, "f8", "r")

        class Replacing:
            def __reduce__(self) -> Any:
                np.zeros(61_000).tofile(new := numbers.with_name("new"))
                new.replace(numbers)
                return int, (5,)

        async with Pool(1) as pool:
            with pytest.raises(UnpicklableCallError, match="was replaced"):
                await pool.run(same, [array, Replacing()])
            assert await pool.run(same, 5) == 5

    async def test_a_memmap_in_a_result_comes_back_as_an_ordinary_array(self, numbers: Path) -> None:
        def opened(path: Any) -> Any:
            return np.memmap(path, "f8", "r+")

        for max_nbytes in (1000, None):
            async with Pool(1, max_nbytes=max_nbytes) as pool:
                back = await pool.run(by_value(opened), str(numbers))
                assert_equal(back, np.fromfile(numbers))
                back[:] = 0
                assert np.fromfile(numbers)[1] == 1

    async def test_a_map_of_a_file_without_a_name_is_data(self) -> None:
        import tempfile

        with tempfile.TemporaryFile() as file:
            file.write(bytes(80_000))
            file.flush()
            array = np.memmap(file, "f8", "r")
            async with Pool(1) as pool:
                assert_equal(await pool.run(same, array), np.zeros(10_000))
