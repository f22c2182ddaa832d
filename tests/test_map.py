"""``Pool.map`` gives what ``map`` would, whatever it draws at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import pytest
from traveling import by_value

from aparallel import Pool, delayed
from aparallel._ground.call import Call, MappedCalls
from aparallel._transfer import encoding
from aparallel._transfer.functions import Functions
from aparallel._transfer.shipment import LazyMemory
from aparallel.abc import Moments, Sharing

Backend = Literal["process", "thread", "inline"]


@by_value
def echo(*args: Any) -> Any:
    return args


MIXED: list[Any] = [*range(700), "text", b"bytes", None, 2.5, [1, 2], "x" * 100_000, (1,), 10**40, True, *range(900)]

SOURCES: dict[str, Callable[[], list[Iterable[Any]]]] = {
    "a range": lambda: [range(2000)],
    "a list": lambda: [list(range(2000))],
    "numbers, then others": lambda: [MIXED],
    "others, then numbers": lambda: [["x", *range(2000)]],
    "bytes": lambda: [bytes(range(256)) * 5],
    "a text": lambda: ["text" * 300],
    "a generator": lambda: [(x for x in range(2000))],
    "a dict": lambda: [dict.fromkeys(range(2000))],
    "two": lambda: [range(2000), MIXED],
    "three": lambda: [range(2000), range(1500), [0.5] * 1800],
    "one of them endless": lambda: [range(100), itertools.count()],
    "nothing": lambda: [[]],
    "nothing beside something": lambda: [range(5), []],
}


@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
@pytest.mark.parametrize("source", SOURCES)
async def test_it_gives_what_map_gives(source: str, backend: Backend) -> None:
    async with Pool(2, backend) as pool:
        for _ in range(2):  # as it does not know the function, and as it does
            assert await pool.map(echo, *SOURCES[source]()) == list(map(echo, *SOURCES[source]()))


async def test_a_generator_is_drawn_one_item_at_a_time_as_its_items_may_change() -> None:
    def changing() -> Iterator[list[int]]:
        item = [0]
        for number in range(300):
            item[0] = number
            yield item

    async with Pool(2) as pool:
        assert await pool.map(sum, changing()) == list(range(300))


@by_value
def fail_at(number: int) -> int:
    if number == 1500:
        raise LookupError(number)
    return number


class DataSet:
    """As those of PyTorch are: it has items by number, and nothing to iterate with."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


async def test_items_may_be_had_by_number_only() -> None:
    async with Pool(2) as pool:
        found: Any = DataSet([*range(100)])
        assert await pool.map(abs, found) == list(range(100))
        calls: Any = DataSet([delayed(abs)(-x) for x in range(100)])
        assert await pool.gather(calls) == list(range(100))


async def test_failures_are_where_they_were() -> None:
    async with Pool(2) as pool:
        with pytest.raises(LookupError, match="1500"):
            await pool.map(fail_at, range(2000))
        found = await pool.map(fail_at, range(2000), return_exceptions=True)
    assert [x for x in found if type(x) is not int] == [found[1500]]
    assert type(found[1500]) is LookupError


async def test_as_many_are_drawn_as_is_allowed() -> None:
    async with Pool(2) as pool:
        assert await pool.map(abs, range(100), pre_dispatch=3) == list(range(100))
        assert await pool.map(abs, range(100), batch_size=7) == list(range(100))
        assert await pool.map(abs, range(100), n_jobs=1) == list(range(100))


async def test_progress_knows_how_many_there_are() -> None:
    told: list[tuple[int, int | None]] = []
    async with Pool(2) as pool:
        await pool.map(max, range(50), [1] * 40, progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (40, 40)
        told.clear()
        await pool.map(abs, (x for x in range(50)), progress=lambda done, total: told.append((done, total)))
    assert told[0][1] is None


def encoder() -> encoding.ProcessEncoder:
    return encoding.ProcessEncoder(Functions(), [], LazyMemory(), Sharing(), Moments.SUCCESSIVE)


def test_plain_items_of_a_list_are_drawn_without_making_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(calls: MappedCalls) -> Call[Any]:
        raise AssertionError("a call was made")

    drawn = encoder().draw(iter(MappedCalls(abs, [["x", 1]])), 10, 0, 10)
    assert drawn.groups[0][1] == ["x", 1]
    monkeypatch.setattr(MappedCalls, "__next__", refuse)
    drawn = encoder().draw(iter(MappedCalls(abs, [range(1000)])), 990, 0, 10)
    assert (drawn.count, drawn.exhausted, drawn.groups[0][1]) == (990, False, list(range(990)))
    with pytest.raises(AssertionError):
        encoder().draw(iter(MappedCalls(abs, [(x for x in range(10))])), 10, 0, 10)


def test_the_clock_is_read_while_items_are_drawn() -> None:
    drawn = encoder().draw(iter(MappedCalls(abs, [range(100_000)])), 100_000, 0, 0.0)
    assert drawn.count <= 1024


def test_nothing_is_waited_for_when_there_are_no_more_items() -> None:
    calls = MappedCalls(abs, [range(100)])
    assert encoder().draw(iter(calls), 1000, 0, 3600.0).exhausted
    assert encoder().draw(iter(calls), 1000, 100, 3600.0).exhausted


async def test_what_maps_at_the_same_time_does_not_mix() -> None:
    async with Pool(2) as pool:
        one, two = await asyncio.gather(pool.map(abs, range(3000)), pool.map(str, range(3000)))
    assert one == list(range(3000))
    assert two == [str(x) for x in range(3000)]
