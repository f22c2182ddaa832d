"""Functions of every kind that a worker can import by name, without pytest."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any


def double(x: int) -> int:
    return 2 * x


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    def method(self, x: int) -> int:
        return self.factor * x

    @classmethod
    def of_class(cls, x: int) -> str:
        return f"{cls.__name__}{x}"

    @staticmethod
    def static(x: int) -> int:
        return 3 * x

    class Nested:
        @staticmethod
        def static(x: int) -> int:
            return 4 * x


def traced(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return "traced", fn(*args)

    return wrapper


@traced
def decorated(x: int) -> int:
    return x + 1


@functools.lru_cache
def cached(x: int) -> int:
    return x + 2


class Locked:
    @staticmethod
    @functools.lru_cache
    def cached(x: int) -> int:
        with _lock:
            return x + 3


_lock = threading.Lock()


@functools.singledispatch
def dispatched(x: Any) -> str:
    return "any"


@dispatched.register
def _(x: int) -> str:
    return "int"


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


def closure(n: int) -> Callable[[int], int]:
    return lambda x: n * x


def factorial(n: int) -> int:
    def inner(k: int) -> int:
        return k * inner(k - 1) if k else 1

    return inner(n)
