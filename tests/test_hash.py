"""``await hash(obj)``: equal content, and only equal content, gives equal digests, in every process."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import functools
import gc
import json
import operator
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time
import weakref
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, Self
from uuid import UUID

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

import aparallel
from aparallel._memory import digest, hashing
from aparallel._memory.cycles import encode_graph
from aparallel._memory.hashing import value_digest
from aparallel.errors import UnstableValueError

pd = pytest.importorskip("pandas")


@dataclass
class Point:
    x: int
    y: Any = field(default_factory=list)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Names(set[str]):
    pass


class Size(NamedTuple):
    width: int
    height: int


class Hooked:
    def __init__(self, content: Any) -> None:
        self.content = content
        self.lock = threading.Lock()

    def __aparallel_key__(self) -> Any:
        return self.content


class Made:
    def __init__(self, content: int) -> None:
        self.content = content

    @classmethod
    def of(cls, content: int) -> Made:
        return cls(content)

    def __reduce__(self) -> Any:
        return type(self).of, (self.content,)


class MadeToo(Made):
    pass


class MadeInPart(Made):
    def __reduce__(self) -> Any:
        return functools.partial(MadeInPart, self.content), ()


class Quantity(np.ndarray[Any, Any]):
    def __new__(cls, content: list[int], unit: str) -> Self:
        self = np.array(content).view(cls)
        self._unit = unit
        return self


class Bare(np.ndarray[Any, Any]):
    __slots__ = ()


Pair = namedtuple("Pair", "left right")  # noqa: PYI024  # another kind of tuple


def double(x: int) -> int:
    return 2 * x


# Each is a different value; each is built anew at every call.
DIFFERENT: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in (None, True, False, 0, 1, -1, 2**200, 1.0, 0.0, -0.0, float("inf"))),  # type: ignore[misc]
    *(lambda value=value: value for value in (1j, 1 + 0j, "", "1", "a", "\ud800", "é", b"", b"1", ..., NotImplemented)),  # type: ignore[misc]
    lambda: "x" * 1_000_000,
    lambda: b"x" * 1_000_000,
    lambda: bytearray(b"x" * 1_000_000),
    lambda: bytearray(b"1"),
    lambda: (),
    lambda: (1,),
    lambda: (1, 2),
    lambda: (2, 1),
    lambda: ((1,), 2),
    lambda: (1, (2,)),
    list,
    lambda: [1],
    lambda: [[1]],
    set,
    lambda: {1},
    lambda: {1, 2},
    lambda: {"a", "b", "c", "d", "e"},
    lambda: frozenset({1}),
    lambda: Names(["a", "b", "c"]),
    dict,
    lambda: {1: 2},
    lambda: {2: 1},
    lambda: {"1": 2},
    lambda: {"a": 1, "b": 2, "c": {"d", "e", "f"}},
    lambda: OrderedDict(a=1, b=2),
    lambda: OrderedDict(b=2, a=1),
    lambda: defaultdict(list, a=[1]),
    lambda: defaultdict(set, a=[1]),
    lambda: Counter("abracadabra"),
    lambda: deque([1, 2]),
    lambda: deque([1, 2], maxlen=3),
    lambda: ChainMap({1: 2}, {3: 4}),
    lambda: range(3),
    lambda: range(0, 6, 2),
    lambda: slice(3),
    lambda: slice(1, 3),
    lambda: memoryview(b"abc"),
    lambda: Colour.RED,
    lambda: Colour.BLUE,
    lambda: Colour,
    lambda: int,
    lambda: Point,
    lambda: Point(1, 2),
    lambda: Point(2, 1),
    lambda: Point(1, {"a", "b", "c", "d"}),
    lambda: Slotted(1, 2),
    lambda: Slotted(1, [2]),
    lambda: Size(1, 2),
    lambda: Pair(1, 2),
    lambda: Hooked("a"),
    lambda: Hooked("b"),
    lambda: Made(1),
    lambda: Made(2),
    lambda: MadeToo(1),
    lambda: MadeInPart(1),
    lambda: MadeInPart(2),
    lambda: dt.date(2020, 1, 1),
    lambda: dt.datetime(2020, 1, 1),  # noqa: DTZ001
    lambda: dt.datetime(2020, 1, 1, fold=1),  # noqa: DTZ001
    lambda: dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
    lambda: dt.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
    lambda: dt.time(1),
    lambda: dt.timedelta(1),
    lambda: decimal.Decimal("1.0"),
    lambda: decimal.Decimal("1.00"),
    lambda: Fraction(1, 2),
    lambda: UUID(int=1),
    lambda: pathlib.PurePosixPath("a/b"),
    lambda: pathlib.PureWindowsPath("a/b"),
    lambda: pathlib.Path("a/b"),
    lambda: ValueError("a"),
    lambda: ValueError("b"),
    lambda: TypeError("a"),
    lambda: len,
    lambda: sorted,
    lambda: [1].append,
    lambda: operator.itemgetter(1),
    lambda: functools.partial(pow, 2),
    lambda: functools.partial(pow, 3),
    lambda: double,
    lambda: Point(1).__repr__,
    lambda: json,
    lambda: np.int64(1),
    lambda: np.int32(1),
    lambda: np.float64(1),
    lambda: np.float64(-0.0),
    lambda: np.datetime64("2020-01-01"),
    lambda: np.datetime64("2020-01-01T00"),
    lambda: np.dtype("i4"),
    lambda: np.dtype(">i4"),
    lambda: np.dtype([("a", "i4")]),
    lambda: np.dtype([("b", "i4")]),
    lambda: np.dtype([(("title", "b"), "i4")]),
    lambda: np.dtype([("a", "i4")], align=True),
    lambda: np.sum,
    lambda: np.arange(6),
    lambda: np.arange(6, dtype=">i8"),
    lambda: np.arange(6, dtype="i4"),
    lambda: np.arange(6.0),
    lambda: np.arange(6).reshape(2, 3),
    lambda: np.arange(6).reshape(3, 2),
    lambda: np.asfortranarray(np.arange(6).reshape(2, 3)),
    lambda: np.arange(6).reshape(3, 2).T,
    lambda: np.array(5),
    lambda: np.array([5]),
    lambda: np.array([]),
    lambda: np.zeros((0, 2)),
    lambda: np.zeros((2, 0)),
    lambda: np.array(["a", "bc"]),
    lambda: np.array(["a", "bc"], dtype=object),
    lambda: np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    lambda: np.array([(1, 2.5)], dtype=np.dtype([("a", "i4"), ("b", "f8")], align=True)),
    lambda: np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    lambda: np.array(["2020", "2021"], dtype="M8[Y]"),
    lambda: np.ma.array([1, 2, 3], mask=[0, 1, 0]),
    lambda: np.ma.array([1, 2, 3], mask=[1, 0, 0]),
    lambda: Quantity([1], "m"),
    lambda: Quantity([1], "s"),
    lambda: np.arange(6).view(Bare),
    lambda: np.longdouble(1) / 3,
    lambda: np.random.default_rng(0),
    lambda: np.random.default_rng(1),
    lambda: pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
    lambda: pd.DataFrame({"b": ["x", "y"], "a": [1, 2]}),
    lambda: pd.DataFrame({"a": [1, 2], "b": ["x", "z"]}),
    lambda: pd.DataFrame({"a": [1, 2]}, index=["p", "q"]),
    lambda: pd.DataFrame({"a": [1, 2]}),
    lambda: pd.Series([1, 2], name="a"),
    lambda: pd.Series([1, 2]),
    lambda: pd.Series([1, None], dtype="Int64"),
    lambda: pd.Series(["a", "b", "a"], dtype="category"),
    lambda: pd.Series(pd.date_range("2020", periods=3, tz="UTC")),
    lambda: pd.date_range("2020", periods=3),
    lambda: pd.MultiIndex.from_product([[1, 2], ["a", "b"]]),
    lambda: pd.interval_range(0, 3),
    lambda: pd.Timestamp("2020"),
    lambda: pd.NA,
    lambda: pd.NaT,
]


def test_different_values_have_different_digests() -> None:
    digests = [value_digest(make()) for make in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)


def test_equal_values_have_equal_digests_whenever_they_are_built() -> None:
    for make in DIFFERENT:
        assert value_digest(make()) == value_digest(make())


REPORT_DIGESTS = """
import json, test_hash
print(json.dumps([test_hash.value_digest(make()).hex() for make in test_hash.DIFFERENT]))
"""

REPORT_PICKLED = """
import pickle, sys
from aparallel._memory.hashing import value_digest
print(*(value_digest(value).hex() for value in pickle.load(sys.stdin.buffer)), sep="\\n")
"""


def run_with_seed(seed: str, script: str, stdin: bytes = b"") -> str:
    paths = pathlib.Path(__file__).parent, pathlib.Path(aparallel.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        input=stdin,
        capture_output=True,
        timeout=100,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode()


@pytest.mark.parametrize("seed", ["1", pytest.param("2", marks=pytest.mark.soak)])
def test_digests_are_the_same_in_every_process_and_under_every_hash_seed(seed: str) -> None:
    there = json.loads(run_with_seed(seed, REPORT_DIGESTS))
    assert there == [value_digest(make()).hex() for make in DIFFERENT]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.dates()
    | st.decimals()
    | st.fractions()
    | st.sampled_from(Colour),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
        | st.builds(Point, st.integers(), inner)
        | st.sets(st.text(max_size=3) | st.integers() | st.floats() | st.tuples(st.text(max_size=2)), max_size=8)
        | st.frozensets(st.binary(max_size=3), max_size=8)
    ),
    max_leaves=12,
)


def test_digests_of_any_plain_value_are_the_same_under_every_hash_seed() -> None:
    values: list[Any] = []

    @settings(max_examples=150, database=None)
    @given(plain)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    here = [value_digest(value).hex() for value in values]
    assert run_with_seed("3", REPORT_PICKLED, stdin=pickle.dumps(values)).split() == here


def is_same(a: Any, b: Any) -> bool:
    """Whether two plain values have the same type and content, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Point):
        return is_same((a.x, a.y), (b.x, b.y))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(any(is_same(x, y) for y in b.items()) for x in a.items())
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(is_same(x, y) for y in b) for x in a)
    if isinstance(a, float):
        return a.hex() == b.hex() and np.signbit(a) == np.signbit(b)
    if isinstance(a, complex):
        return is_same((a.real, a.imag), (b.real, b.imag))
    return repr(a) == repr(b)


small = st.recursive(
    st.sampled_from([None, True, 1, 1.0, 0.0, -0.0, "", "1", b"1", 1 + 0j]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.sampled_from([1, "1", b"1"]), inner, max_size=2)
        | st.sets(st.sampled_from([1, "1", b"1"]), max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=400)
@given(small, small)
def test_digests_are_equal_exactly_when_type_and_content_are(a: Any, b: Any) -> None:
    assert (value_digest(a) == value_digest(b)) == is_same(a, b)


@settings(max_examples=150)
@given(plain)
def test_recursion_and_the_graph_agree(value: Any) -> None:
    assert encode_graph(value, hashing.apart) == hashing.encode(value)


def test_order_of_dicts_and_sets_does_not_matter() -> None:
    assert value_digest({"a": 1, "b": [2]}) == value_digest({"b": [2], "a": 1})
    assert value_digest({8, 0, 16}) == value_digest({16, 8, 0})


def test_shared_and_repeated_references_do_not_matter() -> None:
    part = [1, 2]
    assert value_digest([part, part]) == value_digest([[1, 2], [1, 2]])
    text = "longtext"
    assert value_digest([text, text]) == value_digest(["longtext", "longtext"])


def test_a_value_shared_at_every_level_takes_no_time() -> None:
    value: list[Any] = []
    for _ in range(200):
        value = [value, value]
    other: list[Any] = []
    for _ in range(200):
        other = [other, other]
    assert value_digest(value) == value_digest(other)


def test_depth_is_no_limit() -> None:
    def nested(depth: int, end: Any) -> Any:
        for _ in range(depth):
            end = [end]
        return end

    assert value_digest(nested(20_000, 1)) == value_digest(nested(20_000, 1))
    assert value_digest(nested(20_000, 1)) != value_digest(nested(20_000, 2))
    assert value_digest(nested(20_000, 1)) != value_digest(nested(20_001, 1))


def ring(*labels: Any) -> list[Any]:
    """Lists in a circle."""
    nodes: list[Any] = [[label] for label in labels]
    for node, after in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        node.append(after)
    return nodes[0]  # type: ignore[no-any-return]


def test_cycles_end_and_are_told_apart() -> None:
    assert value_digest(ring(1)) == value_digest(ring(1))
    assert value_digest(ring(1, 2, 3)) == value_digest(ring(1, 2, 3))
    # Following references for ever, one meets the same.
    assert value_digest(ring(1, 2)) == value_digest(ring(1, 2, 1, 2))
    different = [ring(1), ring(2), ring(1, 2), ring(2, 1), ring(1, 2, 3), ring(1, 3, 2), [ring(1)], [1, [1]]]
    assert len({value_digest(value) for value in different}) == len(different)


def test_many_entangled_objects_take_no_exponential_time() -> None:
    def everybody_knows_everybody(last: int) -> Any:
        people = [Point(number) for number in range(29)] + [Point(last)]
        for person in people:
            person.y = list(people)
        return people[0]

    assert value_digest(everybody_knows_everybody(1)) == value_digest(everybody_knows_everybody(1))
    assert value_digest(everybody_knows_everybody(1)) != value_digest(everybody_knows_everybody(2))


def test_an_array_equals_its_copies_views_and_memory_maps(tmp_path: pathlib.Path) -> None:
    array = np.arange(240).reshape(4, 5, 12)
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert type(mapped) is np.memmap
    assert value_digest(mapped) == value_digest(array) == value_digest(array.copy())
    for view in (array[1:3], array[:, ::2], array[::-1], array[..., 3], array.transpose(1, 0, 2)[1:, :, 1:]):
        assert value_digest(view) == value_digest(view.copy())
    read_only = array.copy()
    read_only.flags.writeable = False
    assert value_digest(read_only) == value_digest(array)
    mapped._mmap.close()


def test_an_array_that_is_not_in_one_piece_is_hashed_in_pieces() -> None:
    array = np.random.default_rng(0).random((3, 1000, 1500))
    for view in (array[:, :, 1:], array[:, ::3], array[::2]):
        assert value_digest(view) == value_digest(np.ascontiguousarray(view))
        assert value_digest(view) != value_digest(np.ascontiguousarray(view) + 1)


def test_bytes_that_mean_nothing_do_not_count() -> None:
    aligned = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    clean, dirty = np.zeros(3, aligned), np.full(3 * aligned.itemsize, 255, "u1").view(aligned)
    dirty["a"], dirty["b"] = 0, 0
    assert value_digest(clean) == value_digest(dirty)
    long = np.full(3 * np.dtype("g").itemsize, 255, "u1").view("g")
    long[:] = 1
    assert value_digest(long) == value_digest(np.ones(3, "g"))


def test_sparse_arrays_of_three_dimensions_count_by_all_of_them() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    first, second = (sparse.coo_array(([1.0], ([at], [1], [2])), shape=(2, 3, 4)) for at in (0, 1))
    assert value_digest(first) == value_digest(first.copy()) != value_digest(second)


def test_frames_count_by_content_and_not_by_their_blocks() -> None:
    at_once = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    by_column = pd.DataFrame({"a": [1, 2]})
    by_column["b"] = [3, 4]
    assert value_digest(at_once) == value_digest(by_column)
    whole = pd.MultiIndex.from_product([[1, 2], ["a", "b"]])
    assert value_digest(whole[:2]) == value_digest(pd.MultiIndex.from_product([[1], ["a", "b"]]))
    masked = pd.array([1, 2, 3], dtype="Int64")
    masked[1] = pd.NA
    assert value_digest(masked) == value_digest(pd.array([1, None, 3], dtype="Int64"))


def test_functions_count_by_name_code_and_what_they_close_over() -> None:
    def adder(n: Any) -> Callable[[int], int]:
        return lambda x: x + n  # type: ignore[no-any-return]

    assert value_digest(adder(1)) == value_digest(adder(1))
    assert value_digest(adder(1)) != value_digest(adder(2))
    assert value_digest(adder([1])) != value_digest(adder([2]))
    assert value_digest(lambda x: x + 1) != value_digest(lambda x: x + 2)


def test_functions_that_were_hashed_are_not_kept() -> None:
    def named(content: list[int]) -> Callable[[], int]:
        return lambda: len(content)

    def with_default() -> Callable[..., int]:
        return lambda content=[1]: len(content)

    def recursive() -> Callable[[int], int]:
        def fn(n: int) -> int:
            return fn(n - 1) if n else 0

        return fn

    functions: list[Any] = [named([1]), with_default(), recursive()]
    digests = [value_digest(fn) for fn in functions]
    assert digests == [value_digest(fn) for fn in functions]
    references = [weakref.ref(fn) for fn in functions]
    functions.clear()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_a_function_that_closes_over_itself_ends() -> None:
    def make(step: int) -> Callable[[int], int]:
        def count(n: int) -> int:
            return n and count(n - step)

        return count

    assert value_digest(make(1)) == value_digest(make(1))
    assert value_digest(make(1)) != value_digest(make(2))


def test_a_changed_closure_is_seen() -> None:
    held = [1]

    def fn() -> list[int]:
        return held

    before = value_digest(fn)
    held.append(2)
    assert value_digest(fn) != before


def test_classes_made_in_a_function_count_by_what_they_do() -> None:
    def make(number: int) -> type:
        class Local:
            value = number

            def method(self) -> int:
                return number

        return Local

    assert value_digest(make(1)) == value_digest(make(1))
    assert value_digest(make(1)()) == value_digest(make(1)())
    assert value_digest(make(1)) != value_digest(make(2))
    assert value_digest(make(1)()) != value_digest(make(2)())


def test_annotations_of_a_class_made_in_a_function_do_not_count() -> None:
    def made(attribute: str) -> Any:
        namespace: dict[str, Any] = {"__name__": "a"}
        source = f"def make():\n    class Local:\n        {attribute}\n    return Local"
        exec(compile(source, "a", "exec", dont_inherit=True), namespace)  # not our way to compile annotations
        return namespace["make"]()

    assert value_digest(made("x: int = 1")) == value_digest(made("x: float = 1")) == value_digest(made("x = 1"))
    assert value_digest(made("x: int = 2")) != value_digest(made("x: int = 1"))


def test_what_pickle_knows_by_its_name_counts_by_more() -> None:
    special = pytest.importorskip("scipy.special")

    def cached_in(module: str, source: str) -> Any:
        namespace: dict[str, Any] = {"__name__": module, "lru_cache": functools.lru_cache}
        exec(f"@lru_cache\ndef f(x): {source}", namespace)
        return namespace["f"]

    values = [cached_in("a", "return x"), cached_in("b", "return x"), cached_in("a", "return -x")]
    values += [np.log1p, special.log1p, np.expm1, special.expm1]
    assert len(set(map(value_digest, values))) == len(values)
    assert value_digest(cached_in("a", "return x")) == value_digest(values[0])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (object, "object"),
        (threading.Lock, "_thread.lock"),
        (lambda: (x for x in ()), "generator"),
        (lambda: sys.stderr.buffer, "_io\\."),
        (lambda: np.frompyfunc(len, 1, 1), "ufunc"),
        (lambda: Point(1, [threading.Lock()]), r"_thread.lock \(inside list, in dict, in Point, in list\)"),
    ],
)
def test_what_has_no_stable_content_says_so_and_what_to_do(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(UnstableValueError, match=name) as caught:
        value_digest([make()])
    assert "__aparallel_key__" in str(caught.value)
    assert "ignore=" in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.type_name, copy.inside) == (
        str(caught.value),
        caught.value.type_name,
        caught.value.inside,
    )


def test_the_hook_decides() -> None:
    one, same, other = Hooked({"a": 1}), Hooked({"a": 1}), Hooked({"a": 2})
    assert value_digest(one) == value_digest(same) != value_digest(other)


async def test_hash_is_the_same_on_the_loop_and_off_it(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"a": list(range(50)), "b": Point(1)}
    on_loop = await aparallel.hash(value)
    monkeypatch.setattr("aparallel._memory.hashing.LOOP_BUDGET", 0)
    threads = threading.active_count()
    assert await aparallel.hash(value) == on_loop
    assert threading.active_count() >= threads
    assert len(on_loop) == 64
    assert int(on_loop, 16) > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: [{"a": i} for i in range(60_000)],
        lambda: np.random.default_rng(0).random(3_000_000),
        lambda: ["x" * 100_000] * 300,
    ],
)
async def test_large_values_do_not_hold_the_loop(make: Callable[[], Any]) -> None:
    value = make()
    await aparallel.hash(1)
    await aparallel.hash(np.zeros(100_000))  # imports and threads are there
    gc.collect()
    for _ in range(10):  # the machine has other work to do: one time must be good, and most often it is the first
        hashing = asyncio.ensure_future(aparallel.hash(value))
        turns, longest, last = 0, 0.0, time.perf_counter()
        while not hashing.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            turns, longest, last = turns + 1, max(longest, now - last), now
        assert await hashing
        assert turns > 3
        if longest < 0.2:
            break
    else:
        pytest.fail(f"the loop was held for {longest:.3f} s, ten times")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_hashing_big_arrays_works_in_a_forked_child() -> None:
    script = """
import os, numpy as np
from aparallel._memory.hashing import value_digest
array = np.ones(3_000_000)
here = value_digest(array)
child = os.fork()
if child == 0:
    os._exit(0 if value_digest(array) == here else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_with_seed("0", script).strip() == "0"


def test_a_forked_child_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_most_threads", digest._most_threads)
    digest._after_fork_in_child()
    assert digest._most_threads == 1
    assert digest.digest(b"x" * (2 << 20)) == digest.blake3(b"x" * (2 << 20)).digest()


def test_hashing_in_slices_changes_no_digest() -> None:
    data = bytes(range(256)) * (5 << 12)
    assert digest.digest(data) == blake3(data).digest()
    hasher = digest.Hasher()
    hasher.update(np.frombuffer(data[:-1], np.uint8))
    hasher.update(data[-1:])
    assert hasher.digest() == blake3(data).digest()
