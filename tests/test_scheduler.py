"""What the scheduler decides, on fake workers: every order of events is forced, none waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

from aparallel import Call, Pool, delayed
from aparallel._ground.encoding import DirectEncoder, Drawn
from aparallel._parallel.slots import Slot, SlotEvents, State
from aparallel.abc import Moments, Sharing, WorkerEvents
from aparallel.errors import BrokenWorkerError, CallTimeoutError, PoolSaturatedError
from aparallel.testing import FakeBackend, FakeWorker


def same(x: int) -> int:
    return x


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (the loop's own turns are what is waited for)
            await asyncio.sleep(0)


async def finish_all(backend: FakeBackend, task: asyncio.Future[object], seconds: float = 1e-6) -> None:
    """Let every worker finish whatever it has until *task* is done."""
    async with asyncio.timeout(5):
        while not task.done():
            for worker in list(backend.workers):
                if worker.alive and (worker.running or worker.waiting):
                    worker.finish(len(worker.waiting) + (worker.running is not None), seconds)
            await asyncio.sleep(0)


async def test_calls_of_an_unknown_function_travel_one_at_a_time() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        task = asyncio.ensure_future(pool.gather(delayed(same)(x) for x in range(100)))
        await until(lambda: len(backend.workers) == 2)
        assert [worker.messages for worker in backend.workers] == [[1], [1]]
        await finish_all(backend, task)
        assert await task == list(range(100))
        assert max(max(worker.messages) for worker in backend.workers) > 10  # once it was known to be fast


async def test_slow_calls_never_travel_together() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        task = asyncio.ensure_future(pool.gather(delayed(same)(x) for x in range(20)))
        await finish_all(backend, task, seconds=0.5)
        assert {size for worker in backend.workers for size in worker.messages} == {1}


class TurningBackend(FakeBackend):
    """Knows in which tick of the loop each worker was started."""

    start_holds_loop = True

    def __init__(self) -> None:
        super().__init__()
        self._turns = 0
        self._turn: asyncio.Handle | None = None
        self.started: list[int] = []

    def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> FakeWorker:
        if self._turn is None:
            self._turn = loop.call_soon(self._count, loop)
        self.started.append(self._turns)
        return super().start(loop, events)

    def _count(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turns += 1
        self._turn = loop.call_soon(self._count, loop)

    async def aclose(self) -> None:
        assert self._turn is not None
        self._turn.cancel()


@pytest.mark.parametrize("how", ["gather", "run", "submit", "warm_up"])
async def test_one_worker_is_started_in_each_tick_where_that_holds_the_loop(how: str) -> None:
    backend = TurningBackend()
    async with Pool(5, backend) as pool:
        task: asyncio.Future[Any]
        if how == "warm_up":
            task = asyncio.ensure_future(pool.warm_up())
        elif how == "gather":
            task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(8)]))
        else:
            task = asyncio.gather(*(getattr(pool, how)(same, x) for x in range(8)))
        await until(lambda: len(backend.workers) == 5)
        await finish_all(backend, task)
        assert len(set(backend.started)) == 5, backend.started


async def test_without_patience_a_call_waits_for_its_worker_to_be_started_in_the_next_tick() -> None:
    backend = TurningBackend()
    async with Pool(3, backend) as pool:
        tasks = [asyncio.ensure_future(pool.run(same, x, queue_timeout=0)) for x in range(4)]
        await until(lambda: len(backend.workers) == 3)
        with pytest.raises(PoolSaturatedError):
            await tasks.pop()
        await finish_all(backend, asyncio.gather(*tasks))
        assert len(set(backend.started)) == 3


class HeavyEncoder(DirectEncoder):
    """Says that every call has 300 KB of arguments."""

    def draw(self, calls: Iterator[Any], limit: int, first: int, seconds: float) -> Drawn:
        drawn = super().draw(calls, limit, first, seconds)
        drawn.size = drawn.count * 300 * 1024
        return drawn

    def size_of(self, payload: Any) -> int:
        return 300 * 1024


class HeavyBackend(FakeBackend):
    def encoder(self, sharing: Sharing, moments: Moments) -> DirectEncoder:
        return HeavyEncoder(self._timings)


@pytest.mark.parametrize("how", ["gather", "run", "submit"])
async def test_messages_have_a_megabyte_of_arguments_at_most_and_workers_two_of_them(how: str) -> None:
    backend = HeavyBackend()
    async with Pool(1, backend) as pool:
        for _ in range(5):  # it is known to be fast
            await finish_all(backend, asyncio.ensure_future(pool.run(same, 0)))
        (worker,) = backend.workers
        worker.messages.clear()
        task: asyncio.Future[Any]
        if how == "gather":
            task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(40)]))
        else:
            task = asyncio.gather(*(getattr(pool, how)(same, x) for x in range(40)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert max(worker.messages) == 3
        assert 4 <= sum(worker.messages) <= 6  # with three, it has less than a megabyte
        await finish_all(backend, task)
        assert await task == list(range(40))
        assert max(worker.messages) == 3


async def test_a_batch_size_counts_calls_however_large_they_are() -> None:
    backend = HeavyBackend()
    async with Pool(1, backend) as pool:
        task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(40)], batch_size=20))
        await finish_all(backend, task)
        assert backend.workers[0].messages == [20, 20]


async def test_a_call_goes_to_the_worker_that_was_used_last() -> None:
    backend = FakeBackend()
    async with Pool(3, backend) as pool:
        await pool.warm_up()
        task = asyncio.ensure_future(pool.run(same, 1))
        await until(lambda: any(worker.waiting for worker in backend.workers))
        used = next(worker for worker in backend.workers if worker.waiting)
        await finish_all(backend, task)
        task = asyncio.ensure_future(pool.run(same, 2))
        await until(lambda: any(worker.waiting for worker in backend.workers))
        assert used.waiting
        await finish_all(backend, task)


async def test_calls_behind_one_that_turns_slow_move_to_an_idle_worker() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(10)], batch_size=10))
        await until(lambda: any(worker.waiting for worker in backend.workers))
        slow = next(worker for worker in backend.workers if worker.waiting)
        other = next(worker for worker in backend.workers if worker is not slow)
        slow.begin()
        await until(lambda: len(other.waiting) == 9)
        assert not slow.waiting
        other.finish(9)
        slow.finish()
        assert await task == list(range(10))


async def test_a_worker_that_is_ready_serves_the_calls_for_which_no_other_can_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aparallel._parallel.workforce._SECONDS_BETWEEN_STARTS", 0.05)
    backend = FakeBackend(ready=False)
    async with Pool(2, backend) as pool:
        task = asyncio.ensure_future(pool.gather(delayed(same)(x) for x in range(4)))
        await until(lambda: len(backend.workers) == 2)
        first, *_ = backend.workers
        first.become_ready()
        for count in range(2, 5):  # three in a row
            await until(lambda count=count: len(backend.workers) == count)
            backend.workers[-1].die()
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(backend.workers) == 4  # no more for now
        assert not task.done()
        await until(lambda: len(backend.workers) == 5)
        await finish_all(backend, task)
        assert await task == list(range(4))


async def test_calls_that_are_on_their_way_are_not_taken_back_though_a_worker_is_idle() -> None:
    class Looked(FakeWorker):
        looks = 0

        def look(self) -> None:
            self.looks += 1

    class LookedBackend(FakeBackend):
        def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> FakeWorker:
            worker = Looked(loop, events)
            self.workers.append(worker)
            loop.call_soon(worker.become_ready)
            return worker

    backend = LookedBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(10)], batch_size=10))
        await until(lambda: any(worker.waiting for worker in backend.workers))
        first = next(worker for worker in backend.workers if worker.waiting)
        await until(lambda: cast(Looked, first).looks >= 3)
        assert [worker.messages for worker in backend.workers if worker.messages] == [[10]]
        first.begin()
        await until(lambda: not first.waiting)
        await finish_all(backend, task)
        assert await task == list(range(10))


async def test_a_gather_of_one_worker_does_not_wait_behind_anothers_slow_call() -> None:
    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        await finish_all(backend, asyncio.ensure_future(pool.run(same, 0)))  # it is known to be fast
        runs = [asyncio.ensure_future(pool.run(same, x)) for x in range(2)]
        await until(lambda: all(worker.waiting for worker in backend.workers))
        task = asyncio.ensure_future(pool.gather([delayed(same)(2)], n_jobs=1))
        await until(lambda: any(len(worker.waiting) == 2 for worker in backend.workers))
        slow, free = sorted(backend.workers, key=lambda worker: -len(worker.waiting))
        slow.begin()
        free.finish()
        await until(lambda: free.waiting)
        assert not slow.waiting
        free.finish()
        assert await task == [2]
        slow.finish()
        assert sorted(await asyncio.gather(*runs)) == [0, 1]


async def test_a_call_between_two_of_a_gather_of_one_worker_does_not_wait_behind_the_slow_one() -> None:
    more = asyncio.Event()

    async def two() -> AsyncIterator[Call[int]]:
        yield delayed(same)(1)
        await more.wait()
        yield delayed(same)(2)

    backend = FakeBackend()
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        await finish_all(backend, asyncio.ensure_future(pool.run(same, 0)))  # it is known to be fast
        unknown = asyncio.ensure_future(pool.run(abs, -9))  # nothing is sent behind this one
        await until(lambda: any(worker.waiting for worker in backend.workers))
        free = next(worker for worker in backend.workers if worker.waiting)
        slow = next(worker for worker in backend.workers if worker is not free)
        task = asyncio.ensure_future(pool.gather(two(), n_jobs=1))
        await until(lambda: len(slow.waiting) == 1)
        run = asyncio.ensure_future(pool.run(same, 3))
        await until(lambda: len(slow.waiting) == 2)
        more.set()
        await until(lambda: len(slow.waiting) == 3)
        slow.begin()
        free.finish()
        await until(lambda: free.waiting)
        free.finish()
        assert await run == 3
        assert not slow.waiting
        await finish_all(backend, task)
        assert await asyncio.gather(task, unknown) == [[1, 2], 9]


async def test_a_death_costs_the_running_call_and_nothing_else() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        task = asyncio.ensure_future(
            pool.gather([delayed(same)(x) for x in range(10)], batch_size=10, return_exceptions=True)
        )
        await until(lambda: worker.waiting)
        worker.finish(3)
        worker.begin()
        worker.die(exitcode=None, signal=11)
        await finish_all(backend, task)
        results = await task
        broken = results[3]
        assert isinstance(broken, BrokenWorkerError)
        assert broken.signal == 11
        assert [x for x in results if x is not broken] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert pool.statistics().broken == 1


async def test_a_call_that_no_worker_lives_to_begin_is_given_up_and_no_other() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        task = asyncio.ensure_future(
            pool.gather([delayed(same)(x) for x in range(3)], batch_size=3, return_exceptions=True)
        )
        deaths = 0
        while True:
            await until(lambda: backend.workers[-1].alive and backend.workers[-1].waiting)
            worker = backend.workers[-1]
            if worker.waiting[0].args == (1,):
                break
            worker.become_ready()
            worker.die(None, 9)
            deaths += 1
        assert deaths == 10
        await finish_all(backend, task)
        first, *others = await task
        assert others == [1, 2]
        assert isinstance(first, BrokenWorkerError)
        assert first.signal == 9
        assert "10 workers in a row died before they could begin call 0" in str(first)
        assert pool.statistics().broken == 1


async def test_deaths_between_which_calls_end_cost_no_call_that_had_not_begun() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(30)], batch_size=30))
        for _ in range(25):
            await until(lambda: backend.workers[-1].alive and backend.workers[-1].waiting)
            backend.workers[-1].become_ready()
            backend.workers[-1].finish()
            backend.workers[-1].die(None, 9)
        await finish_all(backend, task)
        assert await task == list(range(30))


async def test_retries_run_a_lost_call_again_and_no_other() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(3)], batch_size=3, retries=1))
        await until(lambda: worker.waiting)
        worker.finish()
        worker.begin()
        worker.die()
        await finish_all(backend, task)
        assert await task == [0, 1, 2]


async def test_retries_of_a_single_call_leave_those_in_its_batch_alone() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (first,) = backend.workers
        await finish_all(backend, asyncio.ensure_future(pool.run(same, 0)))  # it is known to be fast
        once, lost, again, after = (
            asyncio.ensure_future(pool.run(same, x, retries=1 if x == 3 else 0)) for x in range(1, 5)
        )
        await until(lambda: len(first.waiting) == 4)
        first.finish()
        first.begin()
        first.die()
        await until(lambda: len(backend.workers) == 2 and len(backend.workers[1].waiting) == 2)
        second = backend.workers[1]
        second.begin()
        second.die()
        await until(lambda: len(backend.workers) == 3 and len(backend.workers[2].waiting) == 2)
        assert [call.args for call in backend.workers[2].waiting] == [(3,), (4,)]
        backend.workers[2].finish(2)
        assert await asyncio.gather(once, again, after) == [1, 3, 4]
        with pytest.raises(BrokenWorkerError):
            await lost
        now = pool.statistics()
        assert (now.completed, now.failed, now.broken, now.queued, now.running) == (4, 1, 2, 0, 0)


async def test_a_cancelled_call_is_not_run_again_when_its_worker_dies() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        task = asyncio.ensure_future(pool.run(same, 1, retries=3, on_cancel="wait"))
        await until(lambda: worker.waiting)
        worker.begin()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()  # it waits for its worker
        worker.die()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not any(worker.waiting for worker in backend.workers)
        now = pool.statistics()
        assert (now.queued, now.running, now.broken) == (0, 0, 0)


async def test_a_worker_that_never_becomes_ready_does_not_hold_calls_that_another_can_run() -> None:
    backend = FakeBackend(ready=False)
    async with Pool(2, backend) as pool:
        task = asyncio.ensure_future(pool.gather(delayed(same)(x) for x in range(6)))
        await until(lambda: len(backend.workers) == 2)
        backend.workers[1].become_ready()

        def serve() -> bool:
            worker: FakeWorker = backend.workers[1]
            if worker.waiting:
                worker.finish(len(worker.waiting))
            return task.done()

        await until(serve)
        assert await task == list(range(6))


async def test_what_a_starting_worker_was_to_have_goes_at_once_to_one_that_is_free() -> None:
    backend = FakeBackend(ready=False)
    async with Pool(2, backend) as pool:
        task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(2)]))
        await until(lambda: len(backend.workers) == 2)
        first, second = backend.workers
        assert [len(first.waiting), len(second.waiting)] == [1, 1]
        second.become_ready()
        second.finish()
        await asyncio.sleep(0)
        assert [len(first.waiting), len(second.waiting)] == [0, 1]  # no timer had a turn
        second.finish()
        assert await task == [0, 1]


@pytest.mark.parametrize("ready", [True, False])
async def test_many_calls_of_a_worker_that_are_cancelled_in_one_moment_are_taken_back_together(ready: bool) -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await finish_all(backend, asyncio.ensure_future(pool.run(same, 0)))  # it is known to be fast
        backend.ready = ready
        backend.workers[0].die()
        ending = [pool.submit(same, x) for x in range(50)]
        staying = [pool.submit(same, x) for x in range(50)]
        (worker,) = (each for each in backend.workers if each.alive)
        await until(lambda: len(worker.waiting) == 100)
        before = len(worker.messages)
        for call in ending:
            call.cancel()
        await until(lambda: len(worker.waiting) == 50)
        assert len(worker.messages) - before < 10  # not once for each
        await until(lambda: all(call.cancelled() for call in ending))
        worker.become_ready()
        worker.finish(50)
        assert await asyncio.gather(*staying) == list(range(50))


async def test_one_that_has_begun_before_it_was_known_to_be_ready_does_not_keep_others_calls_where_they_are() -> None:
    backend = FakeBackend(ready=False)
    async with Pool(3, backend) as pool:
        task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(3)]))
        await until(lambda: len(backend.workers) == 3)
        begun, starting, free = backend.workers
        begun.begin()
        free.become_ready()
        free.finish()
        await until(lambda: begun.messages and not starting.waiting)
        assert [len(starting.waiting), len(free.waiting)] == [0, 1]
        free.finish()
        begun.become_ready()
        begun.finish()
        assert await task == [0, 1, 2]


async def test_a_worker_that_becomes_ready_without_calls_takes_those_of_one_that_is_not() -> None:
    backend = FakeBackend(ready=False)
    async with Pool(2, backend) as pool:
        warming = asyncio.ensure_future(pool.warm_up())
        await until(lambda: len(backend.workers) == 2)
        task = asyncio.ensure_future(pool.run(same, 1))
        await until(lambda: any(worker.waiting for worker in backend.workers))
        (busy,) = (worker for worker in backend.workers if worker.waiting)
        (free,) = (worker for worker in backend.workers if not worker.waiting)
        free.become_ready()
        await asyncio.sleep(0)
        assert [len(busy.waiting), len(free.waiting)] == [0, 1]
        free.finish()
        assert await task == 1
        busy.become_ready()
        await warming


async def test_two_gathers_share_the_workers_fairly() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        long = asyncio.ensure_future(pool.gather(delayed(same)(x) for x in range(1000)))
        await until(lambda: worker.waiting)
        worker.finish(seconds=0.01)
        short = asyncio.ensure_future(pool.gather(delayed(same)(-x) for x in range(5)))
        finished = 0
        async with asyncio.timeout(5):
            while not short.done():
                if worker.waiting:
                    worker.finish(seconds=0.01)
                    finished += 1
                await asyncio.sleep(0)
        assert finished < 20
        long.cancel()
        await asyncio.wait([long])


async def test_a_call_that_ends_within_the_grace_keeps_its_worker() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        task = asyncio.ensure_future(pool.run(same, 1))
        await until(lambda: worker.waiting)
        worker.begin()
        task.cancel()
        await asyncio.sleep(0)
        worker.finish()
        await asyncio.wait([task])
        assert task.cancelled()
        assert worker.alive
        assert pool.statistics().idle == 1


async def test_a_cancelled_call_that_goes_on_is_killed_and_its_worker_replaced_at_once() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        task = asyncio.ensure_future(pool.run(same, 1))
        await until(lambda: worker.waiting)
        worker.begin()
        task.cancel()
        await asyncio.wait([task])
        assert not worker.alive
        assert len(backend.workers) == 2
        now = pool.statistics()
        assert (now.workers, now.queued, now.running, now.broken) == (1, 0, 0, 0)


async def test_a_timeout_counts_from_the_start_of_its_call_and_ends_only_that() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        task = asyncio.ensure_future(
            pool.gather([delayed(same)(x) for x in range(3)], batch_size=3, timeout=0.03, return_exceptions=True)
        )
        await until(lambda: worker.waiting)
        worker.finish()
        worker.begin()
        await until(lambda: not worker.alive)
        await finish_all(backend, task)
        first, second, third = await task
        assert (first, third) == (0, 2)
        assert isinstance(second, CallTimeoutError)


async def test_a_call_taken_for_overdue_that_ends_meanwhile_leaves_the_next_its_whole_timeout() -> None:
    class Late(FakeWorker):
        """It finishes its running call while it is asked to give back the others."""

        def recall(self) -> None:
            self.finish()
            self.begin()
            super().recall()

    class LateBackend(FakeBackend):
        def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> FakeWorker:
            worker = Late(loop, events)
            self.workers.append(worker)
            loop.call_soon(worker.become_ready)
            return worker

    backend = LateBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        calls = [delayed(same)(x) for x in range(3)]
        task = asyncio.ensure_future(pool.gather(calls, batch_size=3, timeout=0.05, return_exceptions=True))
        await until(lambda: worker.waiting)
        worker.begin()
        await until(lambda: not worker.waiting)
        since = worker.running_since()
        assert since is not None
        assert pool.statistics().completed == 1
        await until(lambda: not worker.alive)
        assert time.monotonic() >= since + 0.05
        await finish_all(backend, task)
        first, second, third = await task
        assert (first, third) == (0, 2)
        assert isinstance(second, CallTimeoutError)
        assert "timeout=0.05" in str(second)


@pytest.mark.parametrize("going", [State.KILLED, State.OVERRAN, State.LEAVING])
def test_a_slot_on_its_way_out_is_never_given_calls_again(going: State) -> None:
    slot = Slot(cast("SlotEvents", None), 0, 2048)
    way = {State.KILLED: [State.RECALLING, State.HELD, State.DYING], State.OVERRAN: [State.RECALLING, State.HELD]}
    for state in [*way.get(going, ()), going]:
        slot.enter(state)
    assert slot.is_going()
    for state in set(State) - {State.LEAVING}:
        with pytest.raises(AssertionError):
            slot.enter(state)


class OwnClock(asyncio.SelectorEventLoop):
    """A loop whose clock has another zero than ``time.monotonic``, as the loops of some test tools have."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@pytest.mark.parametrize("ahead", [-1000.0, 1000.0])
def test_a_loop_may_have_a_clock_of_its_own(ahead: float) -> None:
    async def calls_move_from_behind_a_slow_one() -> None:
        backend = FakeBackend(ready=False)
        async with Pool(2, backend) as pool:
            task = asyncio.ensure_future(pool.gather([delayed(same)(x) for x in range(2)], batch_size=2))
            await until(lambda: backend.workers and backend.workers[0].waiting)
            slow = backend.workers[0]
            slow.become_ready()
            slow.begin()
            await until(lambda: len(backend.workers) == 2 and backend.workers[1].waiting)
            backend.workers[1].become_ready()
            await finish_all(backend, task)
            assert await task == [0, 1]

    async def a_call_has_its_whole_timeout_and_an_idle_worker_its_time() -> None:
        backend = FakeBackend()
        async with Pool(1, backend, idle_timeout=0.03) as pool:
            task = asyncio.ensure_future(pool.run(same, 1, timeout=0.05))
            await until(lambda: backend.workers and backend.workers[0].waiting)
            worker = backend.workers[0]
            worker.begin()
            begin = time.monotonic()
            with pytest.raises(CallTimeoutError):
                await task
            assert time.monotonic() >= begin + 0.05
            begin = time.monotonic()
            await until(lambda: not any(worker.alive for worker in backend.workers))
            assert time.monotonic() < begin + 1

    loop = OwnClock()
    loop.ahead = ahead
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(calls_move_from_behind_a_slow_one())
    loop = OwnClock()
    loop.ahead = ahead
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(a_call_has_its_whole_timeout_and_an_idle_worker_its_time())


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("no thread")], ids=type)
async def test_a_worker_that_cannot_be_started_tells_the_calls_that_wait(error: Exception) -> None:
    class Full(FakeBackend):
        def start(self, loop: object, events: object) -> FakeWorker:
            raise error

    async with asyncio.timeout(10), Pool(1, Full()) as pool:
        for attempt in (pool.run(same, 1), pool.gather(delayed(same)(x) for x in range(3)), pool.warm_up()):
            with pytest.raises(type(error), match=str(error.args[-1])):
                await attempt


async def test_an_async_source_is_drawn_on_while_no_worker_can_be_started() -> None:
    class Full(FakeBackend):
        def start(self, loop: object, events: object) -> FakeWorker:
            raise RuntimeError("no thread")

    async def calls() -> AsyncIterator[Call[int]]:
        for x in range(10):
            yield delayed(same)(x)

    async with asyncio.timeout(10), Pool(1, Full()) as pool:
        results = await pool.gather(calls(), return_exceptions=True, pre_dispatch=2)
    assert [type(result) for result in results] == [RuntimeError] * 10
