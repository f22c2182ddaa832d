"""What a backend says of itself is all that a pool knows of it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from aparallel import Pool, cpu_count, delayed, gather_parallel
from aparallel.errors import BrokenWorkerError
from aparallel.testing import FakeBackend

if TYPE_CHECKING:
    from aparallel.abc import Batch

colour: ContextVar[str] = ContextVar("colour", default="none")


async def admitted(pool: Pool, count: int) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(pool.run(abs, -x)) for x in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def finish_all(backend: FakeBackend, tasks: list[asyncio.Task[Any]]) -> list[Any]:
    while not all(task.done() for task in tasks):
        for worker in backend.workers:
            while worker.running or worker.waiting:
                worker.finish()
        await asyncio.sleep(0)
    return [task.result() for task in tasks]


@pytest.mark.parametrize("most", [1, 3, 16])
async def test_a_worker_never_has_more_calls_than_it_may(most: int) -> None:
    backend = FakeBackend()
    backend.max_outstanding = most
    held = 0
    async with Pool(1, backend) as pool:
        await finish_all(backend, await admitted(pool, 1))  # how long a call takes is known from here on
        tasks = await admitted(pool, 100)
        (worker,) = backend.workers
        while worker.waiting:
            held = max(held, len(worker.waiting))
            worker.finish()
            await asyncio.sleep(0)
        assert await finish_all(backend, tasks) == list(range(100))
    assert held == most


@pytest.mark.parametrize("shares_memory", [True, False])
async def test_only_calls_that_share_the_callers_memory_have_its_context(shares_memory: bool) -> None:
    backend = FakeBackend()
    backend.shares_memory = shares_memory
    seen: list[Batch] = []
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        send = worker.send
        worker.send = lambda batches: (seen.extend(batches), send(batches))[1]  # type: ignore[method-assign,func-returns-value]
        colour.set("red")
        tasks = await admitted(pool, 10)
        assert await finish_all(backend, tasks) == list(range(10))
    contexts = [batch.owner.context for batch in seen]
    assert {context.get(colour) for context in contexts} == ({"red"} if shares_memory else {None})
    # Without a context of their own, calls have nothing to be kept apart by.
    assert (len({id(context) for context in contexts}) > 1) is shares_memory


class Mute(FakeBackend):
    """Its workers die before they can run a call."""

    def start(self, loop: asyncio.AbstractEventLoop, events: Any) -> Any:
        worker = super().start(loop, events)
        loop.call_soon(worker.die, 7)
        return worker

    def describe(self) -> str:
        return "the lift"


async def test_the_error_of_workers_that_do_not_start_says_what_does_not() -> None:
    async with Pool(1, Mute(ready=False)) as pool:
        with pytest.raises(BrokenWorkerError, match=r"exit code 7.* Check that the lift starts"):
            await pool.run(abs, -1)


class Threaded(FakeBackend):
    """Says what threads its libraries may use."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, bool]] = []

    def limit_threads(self, count: int, forced: bool) -> bool:
        self.told.append((count, forced))
        return False


async def test_a_backend_is_told_how_many_threads_its_workers_may_use() -> None:
    backend = Threaded()
    ended = asyncio.ensure_future(gather_parallel([delayed(abs)(-1)], n_jobs=1, backend=backend))
    while not ended.done():
        await asyncio.sleep(0)
        for worker in backend.workers:
            while worker.running or worker.waiting:
                worker.finish()
    assert ended.result() == [1]
    assert backend.told == [(cpu_count(), False)]
