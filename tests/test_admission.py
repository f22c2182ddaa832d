"""Calls that a pool does not take, or not in time: they never run, hold no place, and say when to come again."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traveling import by_value
from work import same

from aparallel import Pool, delayed
from aparallel.abc import WorkerEvents
from aparallel.errors import PoolSaturatedError
from aparallel.testing import FakeBackend, FakeWorker

BACKENDS: list[Any] = ["process", "thread", "inline"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)

SOON = 0.02


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (the loop's own turns are what is waited for)
            await asyncio.sleep(0)


async def refusal(awaitable: Any) -> PoolSaturatedError:
    with pytest.raises(PoolSaturatedError) as caught:
        async with asyncio.timeout(5):
            await awaitable
    return caught.value


async def learn_that_calls_are_fast(pool: Pool, worker: FakeWorker) -> None:
    """Calls that are known to be fast travel together, and behind others."""
    task = asyncio.ensure_future(pool.run(same, 0))
    await until(lambda: worker.waiting)
    worker.finish()
    await task


# The time in the queue


async def test_a_call_that_waits_too_long_is_withdrawn_and_leaves_no_trace() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        running = asyncio.ensure_future(pool.run(same, 1, queue_timeout=SOON))
        await until(lambda: backend.workers)
        (worker,) = backend.workers
        worker.begin()
        error = await refusal(pool.run(same, 2, queue_timeout=SOON))
        assert error.queue_timeout == SOON
        assert error.max_queued is None
        assert f"queue_timeout={SOON}" in str(error)
        now = pool.statistics()
        assert (now.queued, now.running, now.refused, now.failed) == (0, 1, 1, 0)
        worker.finish()
        assert await running == 1  # it had started, so its time in the queue was over
        assert not worker.waiting


async def test_a_call_behind_another_in_a_worker_is_taken_back_when_its_time_is_over() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        await learn_that_calls_are_fast(pool, worker)
        tasks = [asyncio.ensure_future(pool.run(same, x, queue_timeout=SOON if x % 2 else None)) for x in range(6)]
        await until(lambda: len(worker.waiting) == 6)
        worker.begin()
        for task in tasks[1::2]:
            await refusal(task)
        assert pool.statistics().refused == 3
        worker.finish()
        await until(lambda: len(worker.waiting) == 2)  # those that may wait for ever have come back
        worker.finish(2)
        assert await asyncio.gather(*tasks[::2]) == [0, 2, 4]


async def test_a_call_that_was_started_once_is_not_withdrawn_while_it_waits_to_be_run_again() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        backend.ready = False
        (first,) = backend.workers
        again = asyncio.ensure_future(pool.run(same, 1, queue_timeout=SOON, retries=1))
        await until(lambda: first.waiting)
        first.begin()
        first.die()
        await until(lambda: len(backend.workers) == 2)
        await refusal(pool.run(same, 2, queue_timeout=SOON))  # its time is over later
        assert not again.done()
        second = backend.workers[1]
        second.become_ready()
        await until(lambda: second.waiting)
        second.finish()
        assert await again == 1


class Hesitant(FakeWorker):
    """A worker that takes its time to say what it has given back."""

    recalling = False

    def recall(self) -> None:
        self.recalling = True

    def answer(self) -> None:
        self.recalling = False
        super().recall()


class HesitantBackend(FakeBackend):
    def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> FakeWorker:
        worker = Hesitant(loop, events)
        self.workers.append(worker)
        loop.call_soon(worker.become_ready)
        return worker


async def hesitating(pool: Pool, backend: FakeBackend) -> tuple[Hesitant, asyncio.Future[int], asyncio.Future[int]]:
    """Return a worker that runs a call while another is taken back from it."""
    await pool.warm_up()
    worker = backend.workers[0]
    assert isinstance(worker, Hesitant)
    await learn_that_calls_are_fast(pool, worker)
    first = asyncio.ensure_future(pool.run(same, 1))
    second = asyncio.ensure_future(pool.run(same, 2, queue_timeout=SOON))
    await until(lambda: len(worker.waiting) == 2)
    worker.begin()
    await until(lambda: worker.recalling)
    return worker, first, second


async def test_a_call_that_its_worker_starts_while_it_is_taken_back_runs() -> None:
    backend = HesitantBackend()
    async with Pool(1, backend) as pool:
        worker, first, second = await hesitating(pool, backend)
        worker.finish()
        worker.begin()
        worker.answer()
        worker.finish()
        assert await asyncio.gather(first, second) == [1, 2]
        assert pool.statistics().refused == 0


async def test_a_worker_that_dies_while_a_call_is_taken_back_does_not_make_it_run() -> None:
    backend = HesitantBackend()
    async with Pool(1, backend) as pool:
        worker, first, second = await hesitating(pool, backend)
        worker.die()
        with pytest.raises(RuntimeError, match="died"):
            await first
        await refusal(second)
        assert not any(worker.waiting for worker in backend.workers)
        assert pool.statistics().queued == 0


async def test_a_call_cancelled_while_it_is_taken_back_is_neither_run_nor_refused() -> None:
    backend = HesitantBackend()
    async with Pool(1, backend) as pool:
        worker, first, second = await hesitating(pool, backend)
        second.cancel()
        await asyncio.sleep(0)
        worker.answer()
        worker.finish()
        assert await first == 1
        with pytest.raises(asyncio.CancelledError):
            await second
        now = pool.statistics()
        assert (now.queued, now.running, now.refused) == (0, 0, 0)


async def test_a_worker_that_does_not_get_ready_has_not_started_its_call() -> None:
    backend = FakeBackend(ready=False)
    async with Pool(1, backend) as pool:
        error = await refusal(pool.run(same, 1, queue_timeout=SOON))
        assert "workers: 1, still starting: 1" in str(error)
        (worker,) = backend.workers
        assert not worker.waiting
        worker.become_ready()


async def test_without_patience_a_call_has_a_free_worker_or_is_refused_at_once() -> None:
    backend = FakeBackend(ready=False)
    async with Pool(2, backend) as pool:
        tasks = [asyncio.ensure_future(pool.run(same, x, queue_timeout=0)) for x in range(4)]
        for task in tasks[2:]:
            error = await refusal(task)
            assert error.queue_timeout == 0
        await asyncio.sleep(SOON)
        for worker in backend.workers:  # the start of one that was free is no waiting
            worker.become_ready()
            worker.begin()
        assert len(backend.workers) == 2
        await refusal(pool.run(same, 4, queue_timeout=0))
        for worker in backend.workers:
            worker.finish()
        assert await asyncio.gather(*tasks[:2]) == [0, 1]
        assert pool.statistics().refused == 3


async def test_without_patience_a_call_is_not_sent_behind_another() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        await learn_that_calls_are_fast(pool, worker)
        first = asyncio.ensure_future(pool.run(same, 1))
        await until(lambda: worker.waiting)
        await refusal(pool.run(same, 2, queue_timeout=0))
        assert [call.args for call in worker.waiting] == [(1,)]
        worker.finish()
        assert await first == 1


async def test_the_pool_says_how_long_calls_may_wait_unless_a_call_does() -> None:
    backend = FakeBackend()
    async with Pool(1, backend, queue_timeout=SOON) as pool:
        running = asyncio.ensure_future(pool.run(same, 1))
        await until(lambda: backend.workers and backend.workers[0].waiting)
        backend.workers[0].begin()
        patient = asyncio.ensure_future(pool.run(same, 2, queue_timeout=None))
        error = await refusal(pool.run(same, 3))
        assert error.queue_timeout == SOON
        backend.workers[0].finish(1)
        await until(lambda: backend.workers[0].waiting)
        backend.workers[0].finish(1)
        assert await asyncio.gather(running, patient) == [1, 2]


@by_value
def note(folder: Path, name: str, gate: str) -> str:
    (folder / name).touch()
    deadline = time.monotonic() + 20
    while gate and not (folder / gate).exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    return name


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_what_was_withdrawn_never_runs(backend: Any, tmp_path: Path) -> None:
    async with Pool(1, backend) as pool:
        await pool.run(note, tmp_path, "warm", "")
        running = asyncio.ensure_future(pool.run(note, tmp_path, "running", "gate"))
        tasks = [asyncio.ensure_future(pool.run(note, tmp_path, f"late{x}", "", queue_timeout=0.05)) for x in range(50)]
        patient = [asyncio.ensure_future(pool.run(note, tmp_path, f"patient{x}", "")) for x in range(50)]
        for task in tasks:
            await refusal(task)
        (tmp_path / "gate").touch()
        assert await asyncio.gather(running, *patient) == ["running", *(f"patient{x}" for x in range(50))]
    assert not list(tmp_path.glob("late*"))


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_under_any_load_a_call_runs_or_is_refused_and_never_both(backend: Any, tmp_path: Path) -> None:
    """Their time ends in every state: waiting, sent ahead, being taken back, running."""
    async with Pool(2, backend) as pool:
        tasks = []
        for number in range(600):
            wait = 0.0002 * (number % 40)
            tasks.append(asyncio.ensure_future(pool.run(note, tmp_path, str(number), "", queue_timeout=wait)))
            if number % 20 == 0:
                await asyncio.sleep(0.001)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = {str(x) for x, result in enumerate(results) if isinstance(result, PoolSaturatedError)}
        assert {result for result in results if isinstance(result, str)} == {path.name for path in tmp_path.iterdir()}
        assert refused.isdisjoint(path.name for path in tmp_path.iterdir())
        assert len(refused) + len(list(tmp_path.iterdir())) == 600
        now = pool.statistics()
        assert (now.queued, now.running, now.refused, now.completed) == (0, 0, len(refused), 600 - len(refused))


async def test_many_calls_that_wait_too_long_cost_time_in_proportion() -> None:
    backend = FakeBackend()

    async def seconds_for(count: int) -> float:
        tasks = [asyncio.ensure_future(pool.run(same, x, queue_timeout=0.001)) for x in range(count)]
        await asyncio.sleep(0)
        begin = time.perf_counter()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, PoolSaturatedError) for result in results)
        return time.perf_counter() - begin

    async with Pool(1, backend) as pool:
        running = asyncio.ensure_future(pool.run(same, 1))
        await until(lambda: backend.workers and backend.workers[0].waiting)
        backend.workers[0].begin()
        few, many = min([await seconds_for(1000) for _ in range(3)]), await seconds_for(10_000)
        assert many < 40 * few  # were each as long as there are others, it would be 100 times
        backend.workers[0].finish()
        await running
        assert pool.statistics().refused == 13_000


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1", True])
async def test_a_bad_time_to_wait_is_refused(seconds: Any) -> None:
    with pytest.raises(ValueError, match="queue_timeout="):
        Pool(1, "inline", queue_timeout=seconds)
    async with Pool(1, "inline") as pool:
        with pytest.raises(ValueError, match="queue_timeout="):
            await pool.run(same, 1, queue_timeout=seconds)


# The length of the queue


async def test_a_call_that_is_cancelled_or_withdrawn_leaves_its_place_at_once() -> None:
    backend = FakeBackend()
    async with Pool(1, backend, max_queued=1) as pool:
        running = asyncio.ensure_future(pool.run(same, 1))
        await until(lambda: backend.workers and backend.workers[0].waiting)
        backend.workers[0].begin()
        for _ in range(3):
            waiting = asyncio.ensure_future(pool.run(same, 2))
            await asyncio.sleep(0)
            await refusal(pool.run(same, 3))
            waiting.cancel()
            await asyncio.sleep(0)
            await refusal(pool.run(same, 4, queue_timeout=SOON))
        backend.workers[0].finish()
        await running
        assert pool.statistics().queued == 0


async def test_calls_whose_arguments_are_being_pickled_count_as_waiting() -> None:
    async with Pool(1, max_queued=2) as pool:
        await pool.warm_up()
        tasks = [asyncio.ensure_future(pool.run(len, list(range(200_000)))) for _ in range(10)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, PoolSaturatedError)]
        assert len(refused) == 7
        assert results.count(200_000) == 3
        assert await pool.run(same, 1) == 1


async def test_nobody_is_told_to_try_again_in_about_0_seconds() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        (worker,) = backend.workers
        await learn_that_calls_are_fast(pool, worker)
        backend.ready = False
        worker.die()
        error = await refusal(pool.run(same, 1, queue_timeout=SOON))
        assert error.retry_after == 0
        assert "Try again later" in str(error)
        backend.workers[-1].become_ready()


async def test_retry_after_is_the_time_that_what_waits_and_runs_will_take() -> None:
    backend = FakeBackend()
    async with Pool(2, backend, max_queued=3) as pool:
        await pool.warm_up()
        tasks = [asyncio.ensure_future(pool.run(same, x)) for x in range(5)]
        # Not until two are with workers: they begin in several ticks where the core is lost meanwhile.
        await until(lambda: pool.statistics().queued == 3)
        assert (await refusal(pool.run(same, 5))).retry_after is None  # nobody knows yet
        for _ in range(3):
            backend.workers[0].finish(1, seconds=0.5)
            await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(pool.run(same, x)) for x in range(5, 8)]
        await until(lambda: pool.statistics().queued == 3)
        error = await refusal(pool.run(same, 8))
        assert error.max_queued == 3
        assert error.retry_after == pytest.approx((3 + 2) * 0.5 / 2)
        assert "3 calls wait" in str(error)
        assert "in about 1.2 seconds" in str(error)
        for _ in range(3):
            for worker in backend.workers:
                if worker.waiting:
                    worker.finish()
                    await asyncio.sleep(0)
        assert await asyncio.gather(*tasks) == list(range(8))


def test_the_error_survives_pickling() -> None:
    error = PoolSaturatedError("text", max_queued=1, queue_timeout=2.0, key="'k'", retry_after=3.0)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == ("text", vars(error))
    assert (copy.max_queued, copy.queue_timeout, copy.key, copy.retry_after) == (1, 2.0, "'k'", 3.0)


async def test_overload_is_refused_and_what_is_served_does_not_wait_for_it() -> None:
    """Five times what the workers can do, for a while."""
    backend = FakeBackend()
    most = 0
    async with Pool(2, backend, max_queued=20) as pool:
        await pool.warm_up()
        waited: list[int] = []
        now = 0

        async def ask() -> None:
            arrived = now
            await pool.run(same, 1)
            waited.append(now - arrived)

        tasks = []
        for now in range(400):  # noqa: B007 (the time)
            tasks += [asyncio.ensure_future(ask()) for _ in range(10)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            most = max(most, pool.statistics().queued)
            for worker in backend.workers:
                if worker.waiting:
                    worker.finish(1, seconds=0.01)
            await asyncio.sleep(0)
        refused = pool.statistics().refused
        while pool.statistics().running:
            for worker in backend.workers:
                if worker.waiting:
                    worker.finish(1, seconds=0.01)
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {type(None), PoolSaturatedError}
        assert most <= 20
        assert 0.75 < refused / 4000 < 0.85
        assert max(waited) <= 20 / 2 + 2


@each_backend
async def test_gathers_and_streams_are_refused_at_their_begin_but_never_their_calls(backend: Any) -> None:
    async with Pool(1, backend, max_queued=0) as pool:
        assert await pool.gather(delayed(same)(x) for x in range(100)) == list(range(100))
        running = asyncio.ensure_future(pool.run(asyncio.sleep, 0.1))
        await until(lambda: pool.statistics().running)
        await refusal(pool.gather([delayed(same)(1)]))
        with pytest.raises(PoolSaturatedError):
            async with pool.stream([delayed(same)(1)]):
                pass
        await running
