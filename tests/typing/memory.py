"""What a type checker knows of memoized functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_type

from aparallel import MemorizedFunction, MemorizedResult, Memory, delayed, gather_parallel
from aparallel import hash as content_hash

memory = Memory(None)


@memory.cache
def plain(x: int, *, y: str = "") -> list[int]:
    return [x]


@memory.cache
async def later(x: int) -> str:
    return str(x)


@memory.cache(ignore=["log"], ttl="1h")
def with_options(x: int, log: object) -> float:
    return x


@memory.cache(tags=["a"])
async def later_with_options(x: int) -> bytes:
    return bytes(x)


async def upper(text: str) -> str:
    return text.upper()


class Model:
    @memory.cache
    def predict(self, x: float) -> Sequence[float]:
        return [x]


async def promises(model: Model) -> None:
    assert_type(await plain(1, y="a"), list[int])
    assert_type(await later(1), str)
    assert_type(await with_options(1, None), float)
    assert_type(await later_with_options(1), bytes)
    assert_type(await model.predict(0.5), Sequence[float])
    assert_type(await plain.refresh(1), list[int])
    assert_type(await plain.check_call_in_cache(1), bool)
    assert_type(await plain.call_and_shelve(1), MemorizedResult[list[int]])
    assert_type(await (await plain.call_and_shelve(1)).get(), list[int])
    assert_type(await memory.eval(len, "ab"), int)
    assert_type(await memory.eval(upper, text="a"), str)
    assert_type(await gather_parallel(delayed(later)(x) for x in range(3)), list[str])
    assert_type(await content_hash([1]), str)
    cached: MemorizedFunction[[int], str] = later
    assert_type(await cached(1), str)

    await plain("1")  # type: ignore[arg-type]
    await memory.eval(len, 1)  # type: ignore[call-overload]
    await plain(1, z=2)  # type: ignore[call-arg]
    await later()  # type: ignore[call-arg]
    await model.predict("a")  # type: ignore[arg-type]
    await plain.refresh(x="1")  # type: ignore[arg-type]
    memory.cache(ignore=[1])  # type: ignore[list-item]
