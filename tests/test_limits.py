"""A pool on no more than so many workers for each key: how many, whose turn it is, and that idle keys cost nothing."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import without_collection
from work import same

from aparallel import LimitedPool, LimitStatistics, Pool, delayed, gather_parallel, stream_parallel
from aparallel._parallel.queues import Turns
from aparallel.errors import ClosedPoolError, PoolSaturatedError
from aparallel.testing import FakeBackend, FakeWorker


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the loop's own turns are what is waited for)
            await asyncio.sleep(0)


def holders(backend: FakeBackend, who: str) -> list[FakeWorker]:
    """The workers that have calls whose argument begins with *who*."""
    return [worker for worker in backend.workers if worker.alive and any(x.startswith(who) for x in held(worker))]


def held(worker: FakeWorker) -> list[str]:
    """The arguments of the calls that a worker has."""
    calls = [*worker.waiting, *([worker.running] if worker.running else [])]
    return [call.args[0] for call in calls]


async def finish_all(backend: FakeBackend, done: Callable[[], object], seconds: float = 0.5) -> list[str]:
    """Let workers finish one call after the other until *done*; return the calls' arguments in that order."""
    order = []
    async with asyncio.timeout(10):
        while not done():
            for worker in list(backend.workers):
                if worker.alive and worker.waiting:
                    order.append(worker.waiting[0].args[0])
                    worker.finish(1, seconds)
            await asyncio.sleep(0)
    return order


# How many workers


@pytest.mark.parametrize("seconds", [1e-6, 0.5], ids=["fast", "slow"])
async def test_all_views_of_a_key_together_use_no_more_workers_than_its_limit(seconds: float) -> None:
    backend = FakeBackend()
    async with Pool(4, backend) as pool:
        await pool.warm_up()

        async def consume(view: LimitedPool) -> None:
            async with view.stream(delayed(same)(f"a{x}") for x in range(30)) as results:
                async for _ in results:
                    pass

        tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(pool.limit("a", 2).run(same, f"a{x}")) for x in range(30)
        ]
        tasks += [asyncio.ensure_future(pool.limit("a", 2).gather([delayed(same)("a")] * 30)) for _ in range(3)]
        tasks += [asyncio.ensure_future(consume(pool.limit("a", 2))) for _ in range(3)]
        tasks += [asyncio.ensure_future(gather_parallel([delayed(same)("a")] * 30, pool=pool.limit("a", 2)))]
        tasks += [asyncio.ensure_future(pool.limit("a", 2).map(same, ["a"] * 30))]
        others = [asyncio.ensure_future(pool.run(same, f"b{x}")) for x in range(100)]
        most = 0
        while not all(task.done() for task in tasks + others):
            most = max(most, len(holders(backend, "a")))
            for worker in backend.workers:
                if worker.waiting:
                    worker.finish(1, seconds)
                most = max(most, len(holders(backend, "a")))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, *others)
        assert most == 2


class Most:
    """Counts how many calls run at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def run(self, seconds: float) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(seconds)
        with self.lock:
            self.now -= 1


async def test_no_more_calls_of_a_key_run_at_a_time_than_its_limit() -> None:
    counted, free = Most(), Most()
    async with Pool(4, "thread") as pool:
        await asyncio.gather(
            *(pool.limit("a", 2).run(counted.run, 0.001) for _ in range(60)),
            *(pool.limit("a", 2).gather([delayed(counted.run)(0.001)] * 20) for _ in range(3)),
            *(pool.run(free.run, 0.002) for _ in range(60)),
        )
    assert counted.most == 2
    assert free.most >= 2


async def test_one_key_cannot_take_every_worker() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        flood = [asyncio.ensure_future(pool.limit("a", 1).run(same, f"a{x}")) for x in range(100)]
        await until(lambda: holders(backend, "a"))
        for other in (pool, pool.limit("b", 1)):
            task = asyncio.ensure_future(other.run(same, "b"))
            await until(lambda: holders(backend, "b"))
            holders(backend, "b")[0].finish()
            assert await task == "b"
        await finish_all(backend, lambda: all(task.done() for task in flood))


async def test_calls_that_wait_behind_anothers_slow_call_move_to_a_free_worker() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        warm = asyncio.ensure_future(pool.run(same, "warm"))
        await until(lambda: holders(backend, "warm"))
        holders(backend, "warm")[0].finish()
        await warm
        blocker, first = (asyncio.ensure_future(pool.run(same, name)) for name in ("other", "slow"))
        await until(lambda: holders(backend, "other") and holders(backend, "slow"))
        slow, other = holders(backend, "slow")[0], holders(backend, "other")[0]
        keyed = asyncio.ensure_future(pool.limit("a", 1).run(same, "a"))
        await until(lambda: holders(backend, "a"))
        (holder,) = holders(backend, "a")
        holder.begin()  # what was sent before it turns slow
        free = other if holder is slow else slow
        free.finish(len(free.waiting))
        await until(lambda: holders(backend, "a") == [free])
        free.finish()
        assert await keyed == "a"
        holder.finish(len(holder.waiting) + 1)
        await asyncio.gather(blocker, first)


async def test_a_key_gives_its_worker_back_however_its_call_ends() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        view = pool.limit("a", 1)
        for end in ("cancel", "die"):
            first = asyncio.ensure_future(view.run(same, "a1"))
            second = asyncio.ensure_future(view.run(same, "a2"))
            await until(lambda: holders(backend, "a1"))
            (worker,) = holders(backend, "a1")
            worker.begin()
            if end == "cancel":
                first.cancel()
            else:
                worker.die()
            await until(lambda: holders(backend, "a2"))
            holders(backend, "a2")[0].finish()
            assert await second == "a2"
            await asyncio.wait([first])
            with pytest.raises((asyncio.CancelledError, RuntimeError)):
                first.result()
        assert view.statistics() == LimitStatistics("a", 1, None, 0, 0, 0)


async def test_an_abandoned_call_counts_until_it_is_done() -> None:
    started, gate = threading.Event(), threading.Event()

    def wait_for_gate() -> None:
        started.set()
        gate.wait(10)

    async with Pool(2, "thread") as pool:
        task = asyncio.ensure_future(pool.limit("a", 1).run(wait_for_gate, on_cancel="abandon"))
        await until(started.is_set)
        task.cancel()
        await asyncio.wait([task])
        gc.collect()
        view = pool.limit("a", 1)
        assert view.statistics().busy == 1
        with pytest.raises(PoolSaturatedError):
            await view.run(same, 1, queue_timeout=0.02)
        gate.set()
        assert await view.run(same, 1) == 1


async def test_a_call_may_wait_for_others_of_its_own_key_on_an_inline_pool() -> None:
    async def outer(depth: int) -> int:
        if not depth:
            return 0
        return 1 + max(await pool.limit("a", 1).gather(delayed(outer)(depth - 1) for _ in range(2)))

    async with Pool(2, "inline") as pool, asyncio.timeout(5):
        view = pool.limit("a", 1)
        assert await asyncio.gather(*(view.run(outer, 2) for _ in range(3))) == [2, 2, 2]
        assert view.n == 1
        assert view.statistics().busy == 0


@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_a_limited_pool_runs_calls_as_its_pool_does(backend: Any) -> None:
    async with Pool(2, backend) as pool:
        view = pool.limit("a", 1)
        assert await view.run(same, 1) == 1
        assert await view.run(delayed(same)(x=2), timeout=None) == 2
        assert await view.gather(delayed(same)(x) for x in range(100)) == list(range(100))
        assert await view.gather(delayed(same)(1), delayed(same)("x")) == [1, "x"]
        assert await view.map(same, range(5), n_jobs=1) == list(range(5))
        async with view.stream(delayed(same)(x) for x in range(5)) as results:
            assert [result async for result in results] == list(range(5))
        assert await gather_parallel((delayed(same)(x) for x in range(5)), pool=view) == list(range(5))
        async with stream_parallel((delayed(same)(x) for x in range(5)), pool=view) as results:
            assert [result async for result in results] == list(range(5))
        with pytest.raises(ZeroDivisionError):
            await view.run(divmod, 1, 0)
        with pytest.raises(ValueError, match="another pool"):
            await view.gather([delayed(same)(1)], pool=pool)  # type: ignore[call-overload]
        assert view.pool is pool
        assert view.backend_name == backend
    with pytest.raises(ClosedPoolError):
        await view.run(same, 1)


async def test_a_limited_pool_says_what_its_key_does() -> None:
    backend = FakeBackend()
    async with Pool(3, backend) as pool:
        await pool.warm_up()
        view = pool.limit("a", 2, max_queued=5)
        tasks = [asyncio.ensure_future(pool.limit("a", 2, max_queued=5).run(same, f"a{x}")) for x in range(4)]
        tasks.append(asyncio.ensure_future(pool.run(same, "b")))
        await until(lambda: pool.statistics().running == 3)
        assert view.statistics() == LimitStatistics("a", 2, 5, busy=2, queued=2, running=2)
        assert repr(view) == f"<LimitedPool 'a' n=2: 2 busy, 2 queued of {pool!r}>"
        assert pool.statistics().queued == 2
        await finish_all(backend, lambda: all(task.done() for task in tasks))
        assert view.statistics() == LimitStatistics("a", 2, 5, busy=0, queued=0, running=0)


# Whose turn it is


async def test_keys_and_calls_without_one_are_served_in_turn_however_many_each_has_waiting() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        blocker = asyncio.ensure_future(pool.run(same, "first"))
        await until(lambda: holders(backend, "first"))
        tasks = [asyncio.ensure_future(pool.limit("a", 1).run(same, f"a{x}")) for x in range(40)]
        tasks += [asyncio.ensure_future(pool.limit("a", 1).gather([delayed(same)("a")] * 10)) for _ in range(4)]
        tasks += [asyncio.ensure_future(pool.run(same, "free")) for _ in range(40)]
        tasks += [asyncio.ensure_future(pool.limit("b", 1).run(same, f"b{x}")) for x in range(5)]
        await until(lambda: pool.statistics().queued >= 90)
        order = await finish_all(backend, lambda: all(task.done() for task in [blocker, *tasks]))
        begin = [name[0] for name in order[1:16]]
        assert sorted(begin) == ["a"] * 5 + ["b"] * 5 + ["f"] * 5, order


async def test_runs_and_gathers_of_a_key_are_served_in_turn() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        view = pool.limit("k", 1)
        blocker = asyncio.ensure_future(view.run(same, "first"))
        await until(lambda: holders(backend, "first"))
        tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(view.gather([delayed(same)("gather")] * 10, pre_dispatch="all"))
        ]
        tasks += [asyncio.ensure_future(view.run(same, "run")) for _ in range(10)]
        await until(lambda: view.statistics().queued == 20)
        order = await finish_all(backend, lambda: all(task.done() for task in [blocker, *tasks]))
        assert sorted(order[1:11]) == ["gather"] * 5 + ["run"] * 5, order


class Waiting:
    """Someone who has turns, and may only use some slots."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.spent = 0.0
        self.count = 1
        self.allowed = {0, 1}

    def has_calls(self) -> bool:
        return self.count > 0

    def queue_for(self, slot: Any) -> Any:
        return self if slot in self.allowed else None

    def queues(self) -> Any:
        return [self]


ACTIONS = st.tuples(
    st.sampled_from(["add", "remove", "empty", "serve", "allow", "forbid"]), st.integers(0, 4), st.integers(0, 1)
)


@given(st.lists(ACTIONS, max_size=120))
@settings(max_examples=200)
def test_the_turn_is_always_of_one_who_was_given_least(actions: list[tuple[str, int, int]]) -> None:
    turns = Turns()
    everyone = [Waiting(name) for name in range(5)]
    present: set[Waiting] = set()
    for action, name, slot in actions:
        one = everyone[name]
        if action == "add":
            one.count = 1
            turns.add(one)
            present.add(one)
        elif action == "remove":
            turns.remove(one)
            present.discard(one)
        elif action == "empty":
            one.count = 0
            present.discard(one)
        elif action == "allow":
            one.allowed.add(slot)
        elif action == "forbid":
            one.allowed.discard(slot)
        able = [one for one in present if slot in one.allowed]
        found: Any = turns.queue_for(slot)
        assert (found is None) == (not able)
        if found is not None:
            assert found in able
            assert found.spent == min(one.spent for one in able)
            if action == "serve":
                turns.charge(found, 1.0)
        assert turns.has_calls() == bool(present)


# What may wait


async def test_a_keys_own_queue_refuses_its_calls_and_no_others() -> None:
    backend = FakeBackend()
    async with Pool(2, backend, max_queued=10) as pool:
        await pool.warm_up()
        view = pool.limit("tenant", 1, max_queued=2)
        tasks = [asyncio.ensure_future(view.run(same, f"a{x}")) for x in range(5)]
        await until(lambda: sum(task.done() for task in tasks) == 2)
        error = tasks[-1].exception()
        assert isinstance(error, PoolSaturatedError)
        assert (error.max_queued, error.key) == (2, "'tenant'")
        assert "'tenant'" in str(error)
        with pytest.raises(PoolSaturatedError):
            await view.gather([delayed(same)("a")])
        assert pool.statistics().refused == 3
        others = [asyncio.ensure_future(other.run(same, "b")) for other in (pool, pool.limit("b", 1))]
        order = await finish_all(backend, lambda: all(task.done() for task in tasks + others))
        assert sorted(order) == ["a0", "a1", "a2", "b", "b"]
        assert tasks[-2].exception() is not None


async def test_a_key_at_its_limit_leaves_the_pools_free_workers_to_others() -> None:
    """What waits for its key's limit fills the pool's queue, but a call that need not wait needs no place there."""
    backend = FakeBackend()
    async with Pool(3, backend, max_queued=4) as pool:
        await pool.warm_up()
        flood = [asyncio.ensure_future(pool.limit("a", 1).run(same, f"a{x}")) for x in range(10)]
        await until(lambda: holders(backend, "a"))
        others = [asyncio.ensure_future(pool.run(same, f"b{x}", queue_timeout=0)) for x in range(2)]
        await until(lambda: len(holders(backend, "b")) == 2)
        with pytest.raises(PoolSaturatedError):
            await pool.run(same, "c")
        await finish_all(backend, lambda: all(task.done() for task in flood + others))
        results = await asyncio.gather(*flood, *others, return_exceptions=True)
        assert sum(isinstance(result, PoolSaturatedError) for result in results) == 5
        assert results[-2:] == ["b0", "b1"]


async def test_a_calls_time_to_wait_counts_for_its_keys_limit_too() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        view = pool.limit("a", 1)
        running = asyncio.ensure_future(view.run(same, "a"))
        await until(lambda: holders(backend, "a"))
        holders(backend, "a")[0].begin()
        for seconds in (0, 0.02):
            with pytest.raises(PoolSaturatedError, match="with key 'a'") as caught:
                await view.run(same, "late", queue_timeout=seconds)
            assert caught.value.queue_timeout == seconds
        holders(backend, "a")[0].finish()
        assert await running == "a"


# What n is


async def test_the_latest_limit_of_a_key_holds_for_all_its_views_at_once() -> None:
    backend = FakeBackend()
    async with Pool(4, backend) as pool:
        await pool.warm_up()
        view = pool.limit("a", 1)
        tasks = [asyncio.ensure_future(view.run(same, f"a{x}")) for x in range(20)]
        await until(lambda: len(holders(backend, "a")) == 1)
        pool.limit("a", 3)
        assert view.n == 3
        await until(lambda: len(holders(backend, "a")) == 3)
        pool.limit("a", 1)
        await asyncio.sleep(0)
        assert len(holders(backend, "a")) == 3  # what runs goes on
        for worker in holders(backend, "a"):
            worker.finish(1, 0.5)
        await asyncio.sleep(0)
        assert len(holders(backend, "a")) == 1
        await finish_all(backend, lambda: all(task.done() for task in tasks))


@pytest.mark.parametrize("n", [0, -1, 1.5, True, None, "2"])
async def test_a_bad_number_of_workers_is_refused(n: Any) -> None:
    pool = Pool(1, "inline")
    with pytest.raises(ValueError, match="n="):
        pool.limit("a", n)
    with pytest.raises(ValueError, match="max_queued="):
        pool.limit("a", 1, max_queued=-1)
    with pytest.raises(TypeError, match="hashed"):
        pool.limit([], 1)  # type: ignore[arg-type]


async def test_long_keys_are_cut_short_for_people() -> None:
    pool = Pool(1, "inline")
    assert len(repr(pool.limit("x" * 10_000, 1))) < 200


# What is left of a key


async def keys_leave_nothing(count: int) -> None:
    """Each of so many keys runs, gathers, is refused or cancelled once; what is left is what was there before."""
    async with Pool(2, "inline") as pool:

        async def use(number: int) -> None:
            view = pool.limit(f"key{number}", 1, max_queued=5)
            if number % 50 == 0:
                await view.gather([delayed(same)(number)] * 2)
            elif number % 50 == 1:
                task = asyncio.ensure_future(view.run(same, number))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            elif number % 50 == 2:
                results = await asyncio.gather(
                    *(view.run(same, number, queue_timeout=0) for _ in range(3)), return_exceptions=True
                )
                assert any(isinstance(result, PoolSaturatedError) for result in results)
            else:
                assert await view.run(same, number) == number

        async def use_many(first: int) -> None:
            for start in range(first, first + count // 2, 10):
                await asyncio.gather(*(use(number) for number in range(start, start + 10)))

        await use_many(0)
        gc.collect()
        assert len(pool._engine.quotas) == 0
        assert not pool._engine.use().scheduler.backlog.turns.entries
        objects = len(gc.get_objects())
        await use_many(count)
        gc.collect()
        assert len(pool._engine.quotas) == 0
        assert len(gc.get_objects()) < objects + 500


async def test_keys_that_are_idle_leave_nothing() -> None:
    await keys_leave_nothing(4000)


@pytest.mark.soak
async def test_a_million_keys_that_are_idle_leave_nothing() -> None:
    await keys_leave_nothing(1_000_000)


async def test_a_key_goes_with_its_last_call_and_view_and_not_when_a_cycle_is_found() -> None:
    async with Pool(1, "thread") as pool:
        with without_collection():
            assert await pool.limit("a", 1).run(same, 1) == 1
            assert await pool.limit("a", 1).gather([delayed(same)(1)]) == [1]
            assert len(pool._engine.quotas) == 0


async def test_thousands_of_keys_that_wait_cost_time_in_proportion() -> None:
    backend = FakeBackend()

    async def seconds_for(count: int) -> float:
        tasks = [asyncio.ensure_future(pool.limit(x, 1).run(same, "a")) for x in range(count)]
        await until(lambda: pool.statistics().queued >= count - 1)
        begin = time.perf_counter()
        while pool.statistics().running:
            backend.workers[0].finish(1, 0.5)
        seconds = time.perf_counter() - begin
        assert await asyncio.gather(*tasks) == ["a"] * count
        return seconds

    async with Pool(1, backend) as pool:
        await pool.warm_up()
        few, many = min([await seconds_for(500) for _ in range(3)]), await seconds_for(5000)
        assert many < 40 * few  # were each as long as there are others, it would be 100 times


request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="")


async def test_a_key_may_be_anything_hashable() -> None:
    async with Pool(1, "inline") as pool:
        for key in (None, 1, ("a", 2), frozenset("ab"), request, b"x"):
            assert await pool.limit(key, 1).run(same, 1) == 1
