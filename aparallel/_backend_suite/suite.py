"""The tests: through a pool, and with one worker by itself."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import unittest
from typing import TYPE_CHECKING, Any

from aparallel._backend_suite.calls import (
    colour,
    double,
    fail,
    fail_to_prepare,
    has_mark,
    later,
    mark,
    marks,
    paint,
    sleep_for_ever,
    turned_round,
)
from aparallel._backend_suite.driving import PATIENCE_SECONDS, Driven, driven, error_of, held, until
from aparallel._ground.call import delayed
from aparallel._parallel.pool import Pool
from aparallel.errors import BrokenWorkerError, CallTimeoutError, ClosedPoolError, InitializerError, RemoteCallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.call import Call
    from aparallel.abc import Backend


class BackendSuite:
    """What every backend must do. Inherit it, name the class ``Test...`` and say how to make a backend.

    What a backend cannot do, as its attributes tell, is skipped. Workers must see the file system of the tests.
    """

    def new_backend(self) -> Backend:
        """Return a new backend."""
        raise NotImplementedError

    def new_backend_with(self, initializer: Callable[[], object]) -> Backend:
        """Return a new backend whose workers call *initializer* before they are ready, if there can be such."""
        raise unittest.SkipTest("new_backend_with() is not defined: its workers run no initializer")

    # Through a pool: how calls end

    async def test_results_are_those_of_the_calls_in_their_order(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            assert await pool.gather(delayed(double)(x) for x in range(300)) == [2 * x for x in range(300)]

    async def test_a_failure_arrives_with_its_type_and_arguments_and_harms_no_other_call(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            calls: list[Call[Any]] = [delayed(double)(1), delayed(fail)("gone"), delayed(double)(2)]
            first, failure, last = await pool.gather(calls, return_exceptions=True)
            assert (first, last) == (2, 4)
            assert isinstance(failure, LookupError)
            assert failure.args == ("gone",)
            assert await pool.run(double, 3) == 6

    async def test_an_exit_in_a_call_is_an_error_of_that_call(self) -> None:
        async with Pool(1, self.new_backend()) as pool:
            (error,) = await pool.gather([delayed(exit)(3)], return_exceptions=True)
            assert isinstance(error, RemoteCallError)
            assert await pool.run(double, 3) == 6

    async def test_coroutine_functions_are_awaited(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            assert await pool.gather(delayed(later)(x) for x in range(5)) == list(range(5))

    async def test_large_arguments_and_results_arrive_whole(self) -> None:
        data = os.urandom(3 << 20)
        async with Pool(2, self.new_backend()) as pool:
            assert await pool.run(turned_round, data) == data[::-1]
            assert await pool.gather(delayed(turned_round)(data) for _ in range(3)) == [data[::-1]] * 3

    async def test_calls_see_the_callers_context_and_leave_it_as_it_was(self) -> None:
        backend = self.new_backend()
        if not backend.shares_memory:
            raise unittest.SkipTest("its workers do not share the caller's memory")
        colour.set("red")
        async with Pool(1, backend) as pool:
            assert [await pool.run(paint, "green"), await pool.run(paint, "blue")] == ["red", "red"]
            assert await pool.gather(delayed(paint)("green") for _ in range(3)) == ["red"] * 3
        assert colour.get() == "red"

    async def test_all_workers_end_with_the_pool(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            await pool.warm_up()
            assert pool.statistics().idle == 2
        assert pool.statistics().workers == 0

    # Through a pool: calls that stop

    async def test_a_queued_call_that_is_cancelled_never_runs_and_leaves_the_pool_whole(self) -> None:
        async with Pool(1, self.new_backend()) as pool:
            tasks = [asyncio.ensure_future(pool.run(double, x)) for x in range(50)]
            await asyncio.sleep(0)
            for task in tasks[1:]:
                task.cancel()
            await asyncio.wait(tasks)
            assert await pool.run(double, 3) == 6
            now = pool.statistics()
            assert (now.queued, now.running, now.busy) == (0, 0, 0)

    async def test_a_running_call_that_is_cancelled_may_be_waited_for(self) -> None:
        async with Pool(1, self.new_backend()) as pool:
            with held() as one:
                task = asyncio.ensure_future(pool.run(one.call, on_cancel="wait"))
                await one.started()
                task.cancel()
                await asyncio.wait([task], timeout=0.05)
                assert not task.done()
                one.let_go()
                await asyncio.wait([task])
                assert task.cancelled()
                assert one.has_ended()
            assert await pool.run(double, 3) == 6

    async def test_a_running_call_that_is_cancelled_may_be_abandoned_and_keeps_its_worker(self) -> None:
        async with Pool(1, self.new_backend()) as pool:
            with held() as one:
                task = asyncio.ensure_future(pool.run(one.call, on_cancel="abandon"))
                await one.started()
                task.cancel()
                await asyncio.wait([task], timeout=PATIENCE_SECONDS)
                assert task.cancelled()
                assert not one.has_ended()
                assert pool.statistics().busy == 1
                one.let_go()
                assert await pool.run(double, 3) == 6
                assert one.has_ended()

    async def test_a_running_call_that_is_cancelled_may_be_killed_and_ends_there(self) -> None:
        async with Pool(1, self._that_kills()) as pool:
            with held() as one:
                task = asyncio.ensure_future(pool.run(one.call, on_cancel="kill"))
                await one.started()
                task.cancel()
                await asyncio.wait([task], timeout=PATIENCE_SECONDS)
                assert task.cancelled()
                one.let_go()
                assert await pool.run(double, 3) == 6
                assert not one.has_ended()
            await until(lambda: pool.statistics().busy == 0, "the pool is at rest")

    async def test_a_call_that_overruns_its_timeout_is_stopped(self) -> None:
        backend = self.new_backend()
        if not backend.can_time:
            raise unittest.SkipTest("its calls cannot be stopped at any moment")
        async with Pool(1, backend) as pool:
            with tempfile.TemporaryDirectory() as folder:
                error = await error_of(CallTimeoutError, pool.run(sleep_for_ever, folder, timeout=0.1))
                assert error.timeout == 0.1
            assert await pool.run(double, 3) == 6

    async def test_a_timeout_that_nothing_can_keep_is_refused(self) -> None:
        backend = self.new_backend()
        if backend.can_time:
            raise unittest.SkipTest("its calls can be stopped at any moment")
        async with Pool(1, backend) as pool:
            await error_of(ValueError, pool.run(double, 3, timeout=1))
            with held() as one:
                await error_of(CallTimeoutError, pool.run(one.call, timeout=0.05, on_cancel="abandon"))
                assert not one.has_ended()

    async def test_calls_behind_a_slow_one_are_done_by_another_worker(self) -> None:
        async with Pool(2, self.new_backend()) as pool:
            await pool.warm_up()
            with held() as one:
                calls = [one.call, *(delayed(double)(x) for x in range(20))]
                async with pool.stream(calls, ordered=False, batch_size=len(calls)) as results:
                    quick = {await anext(results) for _ in range(20)}
                    assert quick == {2 * x for x in range(20)}
                    assert not one.has_ended()
                    one.let_go()
                    assert await anext(results) == "held"

    async def test_a_pool_that_closes_at_once_ends_what_runs(self) -> None:
        pool = Pool(1, self.new_backend())
        with held() as one:
            task = asyncio.ensure_future(pool.run(one.call))
            await one.started()
            await pool.aclose(timeout=0)
            await asyncio.wait([task], timeout=PATIENCE_SECONDS)
            assert isinstance(task.exception(), ClosedPoolError)
            assert not one.has_ended()

    # Through a pool: workers that die, and workers that do not start

    async def test_a_worker_that_dies_costs_the_call_that_it_ran_and_no_other(self) -> None:
        backend = self.new_backend()
        if backend.shares_memory:
            raise unittest.SkipTest("its workers would take the tests along")
        async with Pool(2, backend) as pool:
            calls: list[Call[Any]] = [delayed(double)(x) for x in range(20)]
            calls[7] = delayed(os._exit)(3)
            outcomes = await pool.gather(calls, batch_size=len(calls), return_exceptions=True)
            assert isinstance(outcomes.pop(7), BrokenWorkerError)
            assert outcomes == [2 * x for x in range(20) if x != 7]
            assert await pool.run(double, 3) == 6

    async def test_an_initializer_has_run_before_the_first_call(self) -> None:
        marks.clear()
        async with Pool(2, self.new_backend_with(mark)) as pool:
            assert await pool.gather(delayed(has_mark)() for _ in range(4)) == [True] * 4

    async def test_an_initializer_that_fails_is_the_error_of_the_calls_that_wait(self) -> None:
        async with Pool(1, self.new_backend_with(fail_to_prepare)) as pool:
            for attempt in (pool.run(double, 3), pool.warm_up()):
                error = await error_of(InitializerError, attempt)
                assert isinstance(error.__cause__, LookupError)
                assert error.__cause__.args == ("no licence",)
        assert pool.statistics().workers == 0

    # One worker by itself: what it tells, and when

    async def test_a_worker_tells_each_outcome_once_in_the_order_sent(self) -> None:
        async with driven(self.new_backend()) as slot:
            calls: list[Call[Any]] = [delayed(double)(x) for x in range(40)]
            calls[5] = calls[23] = delayed(fail)("odd")
            await slot.send(*calls[:1])  # before it is ready
            await slot.send(*calls[1:])
            outcomes = await slot.outcomes(40)
            assert slot.told.failed == [5, 23]
            assert [value for value in outcomes if not isinstance(value, LookupError)] == [
                2 * x for x in range(40) if x not in (5, 23)
            ]
            assert slot.told.ready == 1
        assert len(slot.told.values) == 40

    async def test_an_outcome_is_there_when_it_is_looked_for_though_the_next_call_goes_on(self) -> None:
        async with driven(self.new_backend()) as slot:
            with held() as one:
                await slot.send(delayed(double)(4), one.call)
                await one.started()
                assert await slot.outcomes(1) == [8]
                one.let_go()
                assert await slot.outcomes(2) == [8, "held"]

    async def test_what_has_not_started_can_be_taken_back(self) -> None:
        async with driven(self.new_backend()) as slot:
            with held() as one:
                await slot.send(one.call, *(delayed(double)(x) for x in range(3)))
                await one.started()
                slot.worker.recall()
                await until(lambda: bool(slot.told.recalled), "on_recalled")
                assert slot.told.recalled == [3]
                await slot.send(delayed(double)(10))
                one.let_go()
                assert await slot.outcomes(2) == ["held", 20]
            slot.worker.recall()
            await until(lambda: len(slot.told.recalled) == 2, "on_recalled")
            assert slot.told.recalled == [3, 0]
        assert len(slot.told.values) == 2

    async def test_a_worker_knows_since_when_its_call_runs(self) -> None:
        async with driven(self.new_backend()) as slot:
            assert slot.worker.running_since() is None
            before = time.monotonic()
            with held() as one:
                await slot.send(one.call)
                await one.started()
                await until(lambda: slot.worker.running_since() is not None, "running_since() is told")
                since = slot.worker.running_since()
                assert since is not None
                assert before <= since <= time.monotonic()
                one.let_go()
                await slot.outcomes(1)
            await until(lambda: slot.worker.running_since() is None, "running_since() is None again")

    async def test_a_worker_that_is_killed_says_how_much_had_not_started(self) -> None:
        async with driven(self._that_kills()) as slot:
            with held() as one:
                await slot.send(one.call, *(delayed(double)(x) for x in range(3)))
                await one.started()
                with slot.silent():
                    slot.worker.kill()
                assert (await slot.exit()).unstarted == 3
                one.let_go()
            assert slot.told.values == []
            assert not one.has_ended()

    async def test_a_worker_that_retires_ends_cleanly_and_tells_nothing_more(self) -> None:
        async with driven(self.new_backend()) as slot:
            await slot.send(delayed(double)(1))
            assert await slot.outcomes(1) == [2]
            with slot.silent():
                slot.worker.retire()
            end = await slot.exit()
            assert (end.unstarted, end.ready, end.error, end.signal) == (0, True, None, None)

    async def test_a_worker_that_retires_before_it_is_ready_ends_and_tells_nothing_more(self) -> None:
        async with driven(self.new_backend()) as slot:
            with slot.silent():
                slot.worker.retire()
            assert (await slot.exit()).error is None
            assert slot.told.values == []

    async def test_workers_end_when_all_are_to_be_killed_without_a_loop(self) -> None:
        backend = self.new_backend()
        slot = Driven(backend)
        await slot.send(delayed(double)(1))
        await slot.outcomes(1)
        backend.kill_all()
        backend.kill_all()  # there is nothing left, and that is no error
        await backend.aclose()

    def _that_kills(self) -> Backend:
        backend = self.new_backend()
        if not backend.can_kill:
            raise unittest.SkipTest("its running calls cannot be stopped")
        return backend
