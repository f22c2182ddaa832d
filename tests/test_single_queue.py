"""Single calls that share batches: each is still its own, in order, cancelled alone and kept by nobody."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from aparallel import Pool
from aparallel._ground.timings import Timing
from aparallel._parallel.batching import MESSAGE_CALLS
from aparallel._parallel.queues import Tallies
from aparallel._parallel.single_queue import JointOwner, SingleQueue
from aparallel.abc import Batch, Function, OnCancel, Sharing

CONTEXT = contextvars.Context()
FUNCTION = Function("f", "f", Timing())

Place = tuple[JointOwner, int]


@pytest.fixture
def queue() -> SingleQueue:
    return SingleQueue(2, Sharing(), tell, Tallies())


def tell(futures: list[asyncio.Future[Any] | None], values: list[Any], failed: Sequence[int]) -> None:
    for position, (future, value) in enumerate(zip(futures, values, strict=True)):
        if future is not None:
            (future.set_exception if position in failed else future.set_result)(value)


def enter(
    queue: SingleQueue,
    payload: Any,
    *,
    function: Function = FUNCTION,
    context: contextvars.Context = CONTEXT,
    timeout: float | None = None,
    on_cancel: OnCancel = "kill",
    retries: int = 0,
) -> Place:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return queue.enter(function, [payload], [future], context, timeout, on_cancel, retries)


def take_all(queue: SingleQueue, at_once: int = 1000) -> list[Any]:
    taken = []
    while queue.head() is not None:
        taken += queue.take(at_once).payloads
    return taken


async def test_calls_that_are_alike_share_an_owner_while_they_wait(queue: SingleQueue) -> None:
    first = [enter(queue, x) for x in range(3)]
    assert queue.take(2).payloads == [0, 1]
    later = [enter(queue, x) for x in range(3, 5)]
    assert [index for _, index in first + later] == [0, 1, 2, 3, 4]
    assert len({owner for owner, _ in first + later}) == 1
    assert queue.count == 3
    assert take_all(queue) == [2, 3, 4]


@pytest.mark.parametrize(
    "other",
    [
        {"function": Function("g", "g", Timing())},
        {"context": contextvars.Context()},
        {"timeout": 1.0},
        {"on_cancel": "abandon"},
        {"retries": 1},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_calls_that_are_treated_differently_share_none(queue: SingleQueue, other: dict[str, Any]) -> None:
    owners = [enter(queue, 0)[0], enter(queue, 1, **other)[0], enter(queue, 2)[0]]
    assert len(set(owners)) == 3
    assert take_all(queue) == [0, 1, 2]


async def test_a_batch_that_was_taken_back_is_joined_only_if_nothing_followed_it(queue: SingleQueue) -> None:
    for x in range(4):
        enter(queue, x)
    early, late = queue.take(2), queue.take(2)
    queue.push_back([early])
    assert enter(queue, 4)[0] is not early.owner  # its next index is taken, by a call that some worker has
    assert take_all(queue) == [0, 1, 4]
    queue.push_back([late])
    assert enter(queue, 5) == (late.owner, 4)
    assert take_all(queue) == [2, 3, 5]


async def test_no_owner_has_more_calls_than_fit_in_a_message(queue: SingleQueue) -> None:
    owners = [enter(queue, x)[0] for x in range(2 * MESSAGE_CALLS + 1)]
    assert len(set(owners)) == 3
    assert take_all(queue) == list(range(2 * MESSAGE_CALLS + 1))


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_cancelled_the_others_come_once_and_in_order(queue: SingleQueue, seed: int) -> None:
    """Against a model: what waits, in a list."""
    chance = random.Random(seed)
    waiting: list[tuple[int, Place]] = []
    sent: list[Batch] = []
    for step in range(3000):
        action = chance.choice(["enter", "enter", "drop", "drop", "take", "back"] if step > 300 else ["enter"])
        if action == "enter":
            waiting.append((step, enter(queue, step, timeout=chance.choice([None, None, None, 1.0]))))
        elif action == "drop" and waiting:
            _, place = waiting.pop(chance.randrange(len(waiting)))
            queue.drop(*place)
        elif action == "take" and queue.head() is not None:
            batch = queue.take(chance.randrange(1, 9))
            places = [(batch.owner, index) for index in range(batch.first, batch.last + 1)]
            assert list(zip(batch.payloads, places, strict=True)) == waiting[: len(batch)]
            del waiting[: len(batch)]
            sent.append(batch)
        elif action == "back" and sent:
            batch = sent.pop()
            queue.push_back([batch])
            places = [(batch.owner, index) for index in range(batch.first, batch.last + 1)]
            waiting = [*zip(batch.payloads, places, strict=True), *waiting]
        assert queue.count == len(waiting)
    assert take_all(queue, 7) == [payload for payload, _ in waiting]
    assert queue.holes == 0


class Argument:
    """Something that a weak reference can watch."""


async def test_cancelled_calls_do_not_pile_up_behind_one_that_waits(queue: SingleQueue) -> None:
    enter(queue, None)
    watched = []
    for _ in range(3 * MESSAGE_CALLS):
        argument = Argument()
        watched.append(weakref.ref(argument))
        queue.drop(*enter(queue, argument))
    del argument
    gc.collect()
    assert sum(reference() is not None for reference in watched) <= 1
    assert take_all(queue) == [None]


async def test_what_cancelled_calls_bring_along_is_let_go_of_when_none_waits_any_more(queue: SingleQueue) -> None:
    argument = Argument()
    watched = weakref.ref(argument)
    first, second = enter(queue, argument), enter(queue, argument)
    del argument
    queue.drop(*first)
    queue.drop(*second)
    assert watched() is None
    assert queue.head() is None


async def test_an_outcome_is_told_to_its_own_call_and_then_forgotten(queue: SingleQueue) -> None:
    places = [enter(queue, x) for x in range(4)]
    owner = places[0][0]
    futures = owner.futures[:]
    queue.drop(owner, 1)
    error = ValueError("of the third")
    value = Argument()
    owner.deliver(0, [value, "of nobody", error], [2])
    first, second, third, fourth = futures
    assert first is not None
    assert first.result() is value
    assert second is not None
    assert not second.done()
    assert third is not None
    assert third.exception() is error
    assert fourth is not None
    assert not fourth.done()
    assert owner.futures == [None, None, None, fourth]


def as_list(size: int) -> list[int]:
    return list(range(size))


async def test_a_call_cancelled_while_its_large_result_is_read_leaves_the_pool_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, may_read = asyncio.Event(), asyncio.Event()

    async def read_late(read: object, data: memoryview, buffers: object) -> str:
        reading.set()
        await may_read.wait()
        return "read"

    monkeypatch.setattr("aparallel._backends.reading.in_thread", read_late)
    async with Pool(1) as pool:
        cancelled, kept = (asyncio.ensure_future(pool.run(as_list, 100_000)) for _ in range(2))
        await reading.wait()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        assert pool.statistics().queued == 0
        may_read.set()
        assert await kept == "read"
        assert await pool.run(as_list, 1) == [0]
