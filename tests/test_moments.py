"""Calls between whose draws nothing can have changed: one look at their arrays serves them all."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest

import aparallel
from aparallel import Pool, delayed
from aparallel._transfer import holding, known
from aparallel._transfer.lending import Lender, NoDescriptorError
from aparallel._transfer.stillness import is_inert, is_still

T = TypeVar("T")

on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])


def by_value(thing: T) -> T:
    """Have *thing* travel by value: a worker that imported this module would import pytest."""
    thing.__module__ = "__main__"
    return thing


@by_value
def total(array: Any, *_: Any, **__: Any) -> float:
    return float((array[0] if isinstance(array, tuple) else array).sum())


@by_value
def totals(*arrays: Any) -> list[float]:
    return [float(array.sum()) for array in arrays]


@by_value
def numbered(array: Any, number: int) -> int:
    return number if array.sum() == array.size else -1


NUMBERS = [1, 2, 3]
CALLS = [delayed(total)(NUMBERS), delayed(total)(NUMBERS)]


def loop(array: Any) -> Iterator[Any]:
    for number in range(3):
        yield delayed(total)(array, number)


def under_other_names(array: Any) -> Iterator[Any]:
    call, fn = delayed, total
    return (call(fn)(array, number, key=number) for number in NUMBERS)


def with_variables(array: Any) -> Iterator[Any]:
    step, offset = 3, 1.5
    for number in range(3):
        start = number * step
        stop = start + step
        yield delayed(total)(array, start, stop, start * offset)


STEP = 4

STILL: dict[str, Callable[[Any], Iterator[Any]]] = {
    "a generator": loop,
    "a range": lambda a: (delayed(total)(a, n) for n in range(3)),
    "a large range": lambda a: (delayed(total)(a, n) for n in range(1 << 70)),
    "a list": lambda a: (delayed(total)(a, n) for n in NUMBERS),
    "a tuple": lambda a: (delayed(total)([a, n]) for n in (1, 2)),
    "arrays": lambda a: (delayed(total)(part) for part in [a, a[:5]]),
    "numbered": lambda a: (delayed(total)((a, n), k=m) for n, m in enumerate(NUMBERS)),
    "pairs": lambda a: (delayed(total)({"a": a, "n": n}, m) for n, m in zip(NUMBERS, range(4), strict=False)),
    "keys": lambda a: (delayed(total)(a, {n: a, "a": a}) for n in range(4)),
    "items": lambda a: (delayed(total)(a, k, v) for k, v in {1: 2, 3: 4}.items()),
    "without end": lambda a: (delayed(total)(a) for _ in itertools.repeat(None)),
    "the module": lambda a: (aparallel.delayed(total)(a) for _ in NUMBERS),
    "other names": under_other_names,
    "computed": lambda a: (delayed(total)(a, n * 2, -1 - n, n / 3, (n + 1) % 2 << 3) for n in range(3)),
    "parts": lambda a: (delayed(total)(a, slice(n, min(n + STEP, len(a)))) for n in range(0, len(a), STEP)),
    "the rest": lambda a: (delayed(total)(a, slice(None, abs(n), None)) for n in range(3)),
    "computed from variables": with_variables,
    "calls": lambda _: (call for call in CALLS),
    "an iterator of calls": lambda _: iter(CALLS),
}


def refilled(array: Any) -> Iterator[int]:
    for number in range(3):
        array[:] = number
        yield number


def filling(array: Any) -> Iterator[Any]:
    for number in range(3):
        array.fill(number)
        yield delayed(total)(array)


def assigning(array: Any) -> Iterator[Any]:
    for number in range(3):
        array[:] = number
        yield delayed(total)(array)


def adding(array: Any) -> Iterator[Any]:
    for _ in range(3):
        array += 1
        yield delayed(total)(array)


def changing_afterwards(array: Any) -> Iterator[Any]:
    for _ in range(3):
        yield delayed(total)(array)
        array += 1


def changing_at_the_end(array: Any) -> Iterator[Any]:
    for _ in range(3):
        yield delayed(total)(array)
    array += 1
    yield delayed(total)(array)


def one_by_one(array: Any) -> Iterator[Any]:
    yield delayed(total)(array)
    np.add(array, 1, out=array)
    yield delayed(total)(array)


def filled(array: Any, value: int) -> Any:
    array[:] = value
    return array


def adding_up(array: Any) -> Iterator[Any]:
    total_of = array
    for number in range(3):
        yield delayed(total)(array, number)
        total_of += number


def least_by_anything(array: Any) -> Iterator[Any]:
    def key(number: int) -> int:
        array.fill(number)
        return number

    return (delayed(total)(array, min(number, 2, key=key)) for number in range(3))


class Index:
    def __init__(self, array: Any) -> None:
        self.array = array

    def __add__(self, number: int) -> Any:
        return self.refilled

    def __len__(self) -> int:
        return len(self.refilled)

    def __hash__(self) -> int:
        return hash(self.refilled[0])

    def __lt__(self, other: Any) -> bool:
        self.array += 1
        return True

    @property
    def refilled(self) -> Any:
        self.array += 1
        return self.array

    def __bool__(self) -> bool:
        self.array += 1
        return True

    def __pos__(self) -> Any:
        return self.refilled

    def __iter__(self) -> Iterator[Any]:
        self.array += 1
        return iter((self.array, 1))


def taken_apart_later(array: Any) -> Iterator[Any]:
    for _, index in enumerate([Index(array), Index(array)]):
        b, n = index
        yield delayed(total)(b, n)


CHANGING: dict[str, Callable[[Any], Iterator[Any]]] = {
    "filling": filling,
    "assigning": assigning,
    "adding": adding,
    "changing afterwards": changing_afterwards,
    "changing at the end": changing_at_the_end,
    "one by one": one_by_one,
    "drawn from one that changes": lambda a: (delayed(total)(a, n) for n in refilled(a)),
    "zipped with one that changes": lambda a: (delayed(total)(a, n) for n, _ in zip(NUMBERS, refilled(a), strict=True)),
    "numbering one that changes": lambda a: (delayed(total)(a, n) for n, _ in enumerate(refilled(a))),
    "counting with anything": lambda a: (
        delayed(total)(a, n) for n, _ in zip(NUMBERS, itertools.count(), strict=False)
    ),
    "map": lambda a: map(delayed(total), map(filled, itertools.repeat(a), NUMBERS)),
    "calling": lambda a: (delayed(total)(filled(a, n)) for n in NUMBERS),
    "calling in a tuple": lambda a: (delayed(total)((a, a.fill(n))) for n in NUMBERS),
    "calling in a loop inside": lambda a: (delayed(total)(a, [a.fill(n) for _ in range(2)]) for n in NUMBERS),
    "an operator": lambda a: (delayed(total)(a, a.__iadd__(n)) for n in NUMBERS),
    "a property": lambda a: (delayed(total)(index.refilled) for index in [Index(a), Index(a)]),
    "a condition": lambda a: (delayed(total)(a) for index in [Index(a), Index(a)] if index),
    "taken apart": lambda a: (delayed(total)(b, n) for b, n in [Index(a), Index(a)]),
    "taken apart in pairs": lambda a: (delayed(total)(b, n) for _, (b, n) in enumerate([Index(a), Index(a)])),
    "taken apart later": taken_apart_later,
    "adding up": adding_up,
    "an operator of anything": lambda a: (delayed(total)(a, index + 1) for index in [Index(a), Index(a)]),
    "an operator of a variable": lambda a: (delayed(total)(a, index + n) for index in [Index(a)] for n in range(2)),
    "an operator in pairs": lambda a: (delayed(total)(a, i + n) for n, i in enumerate([Index(a), Index(a)])),
    "the length of anything": lambda a: (delayed(total)(a, len(index)) for index in [Index(a), Index(a)]),
    "the least of anything": lambda a: (delayed(total)(a, min(i, i).array[0]) for i in [Index(a), Index(a)]),
    "the least by anything": least_by_anything,
    "a sign": lambda a: (delayed(total)(+index) for index in [Index(a), Index(a)]),
    "spread out": lambda a: (delayed(total)(*index) for index in [Index(a), Index(a)]),
}


@pytest.mark.parametrize("make", STILL.values(), ids=STILL)
def test_a_loop_that_only_makes_calls_is_recognised(make: Callable[[Any], Iterator[Any]]) -> None:
    calls = make(np.ones(9))
    next(calls)
    assert is_still(calls)


@pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING)
def test_a_loop_that_may_run_anything_else_is_not(make: Callable[[Any], Iterator[Any]]) -> None:
    calls = make(np.ones(9))
    next(calls)
    assert not is_still(calls)


def test_a_loop_that_makes_dictionaries_with_any_keys_is_not() -> None:
    array = np.ones(9)
    for calls in (
        (delayed(total)({index: array}) for index in [Index(array), Index(array)]),
        (delayed(total)({"a": array, index: array}) for index in [Index(array), Index(array)]),
    ):
        next(calls)
        assert not is_still(calls)


def test_what_is_called_delayed_and_is_not_ours_may_do_anything() -> None:
    code = "calls = (delayed(print)(n) for n in range(3))"
    names: dict[str, Any] = {"delayed": lambda fn: filled, "range": builtins.range}
    exec(code, names)
    assert not is_still(names["calls"])


@on_one_loop
async def test_calls_see_arrays_as_a_serial_loop_would_leave_them() -> None:
    async with Pool(2, max_nbytes=1000) as pool:
        for name, make in CHANGING.items():
            expected = [call() for call in make(np.ones(2000))]
            assert await pool.gather(make(np.ones(2000))) == expected, name
            async with pool.stream(make(np.ones(2000))) as results:
                assert [result async for result in results] == expected, name


@by_value
class Refilling:
    """Changes an array when it is pickled."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        self.array += 1
        return int, (self.array[0],)


@on_one_loop
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {1: x}, slice])
async def test_calls_see_arrays_as_their_own_arguments_leave_them(wrap: Any) -> None:
    array = np.zeros(2000)

    async with Pool(1, max_nbytes=1000) as pool:
        things = [wrap(Refilling(array)) for _ in range(6)]
        seen = await pool.gather(delayed(total)(array, thing) for thing in things)
    assert seen == [2000, 4000, 6000, 8000, 10_000, 12_000]


def test_what_is_made_of_numbers_texts_and_arrays_is_pickled_by_nobodys_code() -> None:
    class Text(str):
        __slots__ = ()

    endless: list[Any] = []
    endless.append(endless)
    assert is_inert(((1, "a", b"", None), {"k": [np.ones(3), np.float64(1), slice(np.int8(1), None)]}))
    for thing in (Text(), int, np.array([1, None]), endless, list(range(1000)), Refilling(None)):
        assert not is_inert([thing]), thing


class Checks:
    """Counts how often an array was compared with what was written of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = known.digest_of

        def digest_of(*args: Any) -> bytes:
            self.count += 1
            return original(*args)

        monkeypatch.setattr(known, "digest_of", digest_of)
        monkeypatch.setattr(known, "begin_to_watch", lambda *_: None)  # nor does the kernel tell anything


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    monkeypatch.setattr(holding, "_HOLD_SECONDS", 60.0)
    return Checks(monkeypatch)


@on_one_loop
class TestOneLook:
    async def test_serves_all_calls_that_are_drawn_together(self, checks: Checks) -> None:
        array = np.ones(2000)
        async with Pool(2, max_nbytes=1000) as pool:
            calls = (delayed(total)(array, n, key=array) for n in range(20))
            assert await pool.gather(calls, pre_dispatch="all") == [2000] * 20
            assert checks.count == 0
            half, other = array[::2], np.zeros(3000)
            both = (delayed(totals)(array, half, other) for _ in range(20))
            assert await pool.gather(both, pre_dispatch="all") == [[2000, 1000, 0]] * 20
            assert checks.count == 1  # the array, as it was written for the calls before

    async def test_is_one_for_each_call_if_anything_can_happen_in_between(self, checks: Checks) -> None:
        array = np.ones(2000)

        def counted() -> Iterator[Any]:
            for _ in range(10):
                yield delayed(total)(array, sum(NUMBERS))

        async with Pool(2, max_nbytes=1000) as pool:
            assert await pool.gather(counted(), pre_dispatch="all") == [2000] * 10
            assert checks.count == 9

    @pytest.mark.parametrize("ahead", [1, 2])
    async def test_holds_no_longer_than_until_others_run(self, ahead: int) -> None:
        array = np.ones(2000)
        seen = []
        async with Pool(1, max_nbytes=1000) as pool:
            calls = (delayed(total)(array) for _ in range(5))
            async with pool.stream(calls, pre_dispatch=ahead) as results:
                async for result in results:
                    seen.append(result)
                    array += 1
        drawn_ahead = [2000.0] * (ahead - 1)
        assert seen[: ahead + 1] == [*drawn_ahead, 2000.0, 4000.0 if ahead == 1 else seen[ahead]]
        assert seen == sorted(seen)
        assert ahead == 2 or seen == [2000.0 * step for step in range(1, 6)]

    async def test_does_not_serve_calls_that_carry_other_arrays(self) -> None:
        arrays = [np.full(2000, float(number)) for number in range(6)]
        async with Pool(2, max_nbytes=1000) as pool:
            calls = (delayed(totals)(a, b) for a in arrays for b in arrays)
            expected = [[2000.0 * a, 2000.0 * b] for a in range(6) for b in range(6)]
            assert await pool.gather(calls, pre_dispatch="all") == expected
            numbered = (delayed(totals)(arrays[0], a, *()) for a in arrays)
            assert await pool.gather(numbered, pre_dispatch="all") == [[0.0, 2000.0 * a] for a in range(6)]
            in_turn = (delayed(total)(a) for a in [*arrays, *arrays, np.ones(3), np.ones(2000)])
            expected_in_turn = [2000.0 * a for a in range(6)] * 2
            assert await pool.gather(in_turn, pre_dispatch="all") == [*expected_in_turn, 3.0, 2000.0]

    async def test_leaves_no_call_out_when_one_cannot_be_sent(self) -> None:
        array, cursed = np.ones(2000), (number for number in NUMBERS)
        async with Pool(2, max_nbytes=1000) as pool:
            calls = (delayed(total)(array, more) for more in [1, 2, cursed, 3, 4])
            results = await pool.gather(calls, pre_dispatch="all", return_exceptions=True)
        assert [type(result) for result in results] == [float, float, type(results[2]), float, float]
        assert isinstance(results[2], Exception)

    async def test_is_taken_again_when_nothing_could_be_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        array = np.ones(2000)

        def write(*_: Any) -> Any:
            raise NoDescriptorError("none is left", nbytes=16_000)

        async with Pool(2, max_nbytes=1000) as pool:
            monkeypatch.setattr(Lender, "write", write)
            numbers = (delayed(numbered)(array, n) for n in range(9))
            assert await pool.gather(numbers, pre_dispatch="all") == list(range(9))
            monkeypatch.undo()
            assert await pool.gather(delayed(numbered)(array, n) for n in range(9)) == list(range(9))

    async def test_leaves_nothing_out_where_none_was_given(self) -> None:
        array = np.ones(2000)
        async with Pool(2, max_nbytes=1000) as pool:
            with pytest.raises(TypeError, match="Item 1"):
                await pool.gather(call for call in [delayed(total)(array), None, delayed(total)(array)])
