"""What ``delayed`` tells a type checker. Checked by mypy, never run."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any, TypeVar, assert_type

from aparallel import Call, delayed

N = TypeVar("N", int, float)
T = TypeVar("T")


def area(width: int, height: int = 1, *, unit: str = "m") -> float:
    return float(width * height)


async def fetch(key: str) -> bytes:
    return key.encode()


def double(number: N) -> N:
    return number + number


def identity(value: T) -> T:
    return value


def first(values: Iterable[T], *, skip: int = 0) -> T:
    return list(values)[skip]


def parse(text: str) -> Any:
    return text


async def fetch_anything(key: str) -> Any:
    return key


class Model:
    def predict(self, row: list[float]) -> int:
        return len(row)

    def __call__(self, row: str) -> bool:
        return bool(row)


def a_call_has_its_functions_result_type(model: Model) -> None:
    assert_type(delayed(area)(2, 3, unit="cm"), Call[float])
    assert_type(delayed(model.predict)([1.0]), Call[int])
    assert_type(delayed(model)("row"), Call[bool])
    assert_type(delayed(len)([1]), Call[int])
    assert_type(delayed(partial(area, 2))(3), Call[float])
    assert_type(delayed(lambda: 1)(), Call[int])
    assert_type(delayed(double)(1), Call[int])


def a_generic_functions_call_has_the_type_that_its_arguments_give() -> None:
    assert_type(delayed(identity)(3), Call[int])
    assert_type(delayed(first)(["a"], skip=0), Call[str])
    assert_type(delayed(random.choice)([1]), Call[int])
    assert_type(delayed(copy.deepcopy)("a"), Call[str])
    assert_type(delayed(reduce)(lambda a, b: a + b, [1]), Call[int])
    delayed(first)([1], skip="a")  # type: ignore[arg-type]


def so_has_that_of_an_overloaded_function() -> None:
    assert_type(delayed(abs)(-1), Call[int])
    assert_type(delayed(max)([1]), Call[int])
    assert_type(delayed(min)(2, 3), Call[int])


def a_function_may_return_anything() -> None:
    assert_type(delayed(parse)("a"), Call[Any])
    delayed(parse)(1)  # type: ignore[arg-type]
    delayed(fetch_anything)("a")


def a_coroutine_functions_call_is_of_what_is_awaited() -> None:
    assert_type(delayed(fetch)("key"), Call[bytes])


def wrong_arguments_are_rejected(model: Model) -> None:
    delayed(area)("2")  # type: ignore[arg-type]
    delayed(area)(2, unit=3)  # type: ignore[arg-type]
    delayed(fetch)("key", 3)  # type: ignore[call-arg]
    delayed(area)(2, color="red")  # type: ignore[call-arg]
    delayed(area)()  # type: ignore[call-arg]
    delayed(fetch)(1)  # type: ignore[arg-type]
    delayed(model.predict)("row")  # type: ignore[arg-type]
    delayed(3)  # type: ignore[call-overload]


def calling_a_call_runs_it_here() -> None:
    assert_type(delayed(area)(2)(), float)


def parts_can_be_read_and_not_written(call: Call[float]) -> None:
    assert_type(call.func, Callable[..., float])
    assert_type(call.args, tuple[Any, ...])
    assert_type(call.keywords, dict[str, Any])
    call.func = area  # type: ignore[misc]
    call.args = ()  # type: ignore[misc]


def a_call_of_a_narrower_type_is_a_call_of_a_wider_one() -> list[Call[object]]:
    return [delayed(area)(2), delayed(fetch)("key")]
