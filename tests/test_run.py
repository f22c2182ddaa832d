"""What Pool.run returns: a coroutine to whoever takes coroutines, a future to whoever asks for one."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import itertools
import pickle
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from variables import read_request_id, request_id
from waiting import started
from work import double, leave_and_wait

from aparallel import Pool, delayed
from aparallel._parallel import singles
from aparallel.errors import (
    BrokenWorkerError,
    ClosedPoolError,
    PoolSaturatedError,
    UnpicklableCallError,
    WrongLoopError,
)


def fail(text: str) -> None:
    raise LookupError(text)


def touch(path: str) -> None:
    Path(path).touch()


for function in (fail, touch):
    function.__module__ = "__main__"  # by value: no worker has to import pytest


@pytest.fixture(params=["process", "thread", "inline"])
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


# Each takes a call of pool.run and returns its result, as people do.


async def in_task_group(run: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(run)
    return task.result()


async def in_anyio_task_group(run: Any) -> Any:
    results = []

    async def keep() -> None:
        results.append(await run)

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
    return results[0]


async def gathered(run: Any) -> Any:
    return (await asyncio.gather(run))[0]


async def waited_for_as_a_task(run: Any) -> Any:
    done, _ = await asyncio.wait([asyncio.create_task(run)])
    return done.pop().result()


async def waited_for_as_a_future(run: Any) -> Any:
    done, _ = await asyncio.wait([asyncio.ensure_future(run)])
    return done.pop().result()


async def completed(run: Any) -> Any:
    return await next(iter(asyncio.as_completed([run])))


async def in_time(run: Any) -> Any:
    return await asyncio.wait_for(run, 20)


async def shielded(run: Any) -> Any:
    return await asyncio.shield(run)


async def awaited(run: Any) -> Any:
    return await run


async def called_back(run: Any) -> Any:
    done = asyncio.get_running_loop().create_future()
    run.add_done_callback(done.set_result)
    return (await done).result()


async def stepped(run: Any) -> Any:
    async def through() -> Any:
        return await run

    return await asyncio.create_task(through())


WAYS: list[Callable[[Any], Coroutine[Any, Any, Any]]] = [
    awaited,
    called_back,
    completed,
    gathered,
    in_anyio_task_group,
    in_task_group,
    in_time,
    shielded,
    stepped,
    waited_for_as_a_future,
    waited_for_as_a_task,
]


@pytest.mark.parametrize("way", WAYS)
async def test_run_can_be_waited_for_in_every_way(way: Any, backend: Any) -> None:
    async with Pool(1, backend) as pool:
        assert await way(pool.run(double, 21)) == 42
        with pytest.raises(Exception) as caught:  # noqa: PT011 (task groups wrap it)
            await way(pool.run(fail, "away"))
        errors = caught.value.exceptions if isinstance(caught.value, BaseExceptionGroup) else [caught.value]
        assert [repr(error) for error in errors] == ["LookupError('away')"]
        assert pool._engine.admitted.is_empty()


async def test_a_task_group_of_anyio_starts_run_itself(backend: Any, tmp_path: Path) -> None:
    async with Pool(1, backend) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.run, touch, str(tmp_path / "there"))
    assert (tmp_path / "there").exists()


async def test_run_is_a_coroutine_until_it_begins_and_a_future_from_then_on() -> None:
    async with Pool(1, "thread") as pool:
        run: Any = pool.run(double, 1)
        assert asyncio.iscoroutine(run)
        assert inspect.isawaitable(run)
        future = asyncio.ensure_future(run)
        assert future is run
        assert asyncio.isfuture(run)
        assert not asyncio.iscoroutine(run)
        assert await future == await future == 2

        task = asyncio.create_task(pool.run(double, 2))
        assert "Pool.run" in repr(task)
        await asyncio.sleep(0)
        assert "Pool.run" in repr(task)
        assert task.get_stack()
        assert await task == 4


async def test_frameworks_are_told_that_run_is_to_be_awaited() -> None:
    async with Pool(1, "inline") as pool:
        for run in (pool.run, pool.limit("a", 1).run, Pool.run, functools.partial(pool.run, double)):
            assert inspect.iscoroutinefunction(run)
        with warnings.catch_warnings(action="ignore"):  # it goes away with Python 3.16
            assert asyncio.iscoroutinefunction(pool.run)
        assert list(inspect.signature(pool.run).parameters)[:3] == ["fn", "args", "timeout"]
        assert await Pool.run(pool, double, 2) == 4
        with pytest.raises(TypeError, match=r"run\(\) missing 1 required"):
            pool.run()  # type: ignore[call-overload]


def test_run_can_be_made_before_any_loop_runs() -> None:
    pool = Pool(1, "thread")
    assert asyncio.run(in_time(pool.run(double, 4))) == 8


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_made_on_one_loop_runs_on_the_one_where_it_is_awaited(way: Any, backend: Any) -> None:
    async def make(pool: Pool) -> Any:
        return pool.run(double, 1), pool.run(fail, "away")

    async def use() -> None:
        async with Pool(1, backend) as pool:
            with ThreadPoolExecutor(1) as threads:
                good, bad = threads.submit(asyncio.run, make(pool)).result()
            assert await way(good) == 2
            with pytest.raises((LookupError, BaseExceptionGroup)):
                await way(bad)

    asyncio.run(use())


async def test_a_loop_in_another_thread_hands_a_run_to_the_loop_of_the_pool() -> None:
    async with Pool(1) as pool:
        loop = asyncio.get_running_loop()

        async def elsewhere() -> int:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(pool.run(double, 3), loop))

        assert await asyncio.to_thread(asyncio.run, elsewhere()) == 6


@pytest.mark.parametrize("way", [awaited, gathered])
async def test_a_run_is_refused_on_a_loop_that_is_not_the_pools(way: Any) -> None:
    async with Pool(1) as pool:
        run = pool.run(double, 3)
        assert await pool.run(double, 1) == 2
        with ThreadPoolExecutor(1) as threads, pytest.raises(WrongLoopError, match="belongs to another event loop"):
            threads.submit(asyncio.run, way(run)).result()


async def test_a_run_that_nobody_awaits_never_begins_and_says_so(tmp_path: Path) -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        with pytest.warns(RuntimeWarning, match=r"'Pool\.run' was never awaited"):
            pool.run(touch, str(tmp_path / "there"))  # type: ignore[unused-coroutine]
    assert not (tmp_path / "there").exists()


def test_a_run_that_is_made_where_no_loop_runs_has_its_name_too() -> None:
    with pytest.warns(RuntimeWarning, match=r"'Pool\.run' was never awaited"):
        Pool(1, "thread").run(double, 1)  # type: ignore[unused-coroutine]


async def test_a_run_that_is_closed_or_cancelled_first_never_begins(tmp_path: Path) -> None:
    path = str(tmp_path / "there")
    async with Pool(1) as pool:
        with warnings.catch_warnings(action="error"):
            pool.run(touch, path).close()
            task = asyncio.create_task(pool.run(touch, path))
            task.cancel()
            gathered = asyncio.gather(pool.run(touch, path), pool.run(touch, path))
            gathered.cancel()
            future = asyncio.ensure_future(pool.run(touch, path))
            future.cancel()
            waited = await asyncio.gather(task, gathered, future, return_exceptions=True)
            assert [type(error) for error in waited] == [asyncio.CancelledError] * 3
            with pytest.raises(LookupError, match="thrown in"):
                pool.run(touch, path).throw(LookupError("thrown in"))
            gc.collect()
        assert pool._engine.admitted.is_empty()
    assert not (tmp_path / "there").exists()


async def test_a_run_is_one_tasks_as_coroutines_are() -> None:
    async with Pool(1) as pool:
        run = pool.run(double, 1)
        first, second = asyncio.create_task(run), asyncio.create_task(run)
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert outcomes[0] == 2
        assert "is being awaited already" in repr(outcomes[1])
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await asyncio.create_task(run)
        cancelled = asyncio.create_task(run)
        cancelled.cancel()
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await cancelled


@pytest.mark.parametrize("way", [awaited, gathered, waited_for_as_a_task])
async def test_a_run_that_has_ended_can_be_awaited_and_closed_again(way: Any) -> None:
    async with Pool(1) as pool:
        run: Any = pool.run(double, 1)
        assert await way(run) == 2
        assert await run == 2
        run.close()
        run.close()
        assert await run == 2


async def test_a_run_that_is_closed_while_it_is_under_way_stops(tmp_path: Path) -> None:
    async with Pool(1) as pool:
        run = asyncio.ensure_future(pool.run(leave_and_wait, str(tmp_path / "there")))
        await started(tmp_path / "there")
        run.close()  # type: ignore[attr-defined]
        with pytest.raises(asyncio.CancelledError):
            await run
        assert pool.statistics().running == 0


async def test_a_run_tells_how_far_it_is_as_a_coroutine() -> None:
    async with Pool(1) as pool:
        run: Any = pool.run(double, 1)
        assert not run.cr_running
        assert not run.cr_suspended
        assert not asyncio.create_task(run).get_stack()
        await asyncio.sleep(0)
        assert inspect.getcoroutinestate(run) == inspect.CORO_SUSPENDED
        await run
        await asyncio.sleep(0)
        assert inspect.getcoroutinestate(run) == inspect.CORO_CLOSED


async def test_in_debug_mode_a_run_that_nobody_awaits_says_where_it_was_made() -> None:
    asyncio.get_running_loop().set_debug(True)
    async with Pool(1, "inline") as pool:
        with pytest.warns(RuntimeWarning, match=r"created at .most recent call last.\n(.*\n)* .*test_run\.py"):
            pool.run(double, 1)  # type: ignore[unused-coroutine]


Wrong = Callable[[Pool, Any], Any]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda pool, run: pool.gather(run),
        lambda pool, run: pool.gather([run, pool.run(double, 2)]),
        lambda pool, run: pool.gather(iter([run])),
        lambda pool, run: pool.gather(delayed(double)(1), run),
        lambda pool, run: pool.map(double, run),
        lambda pool, run: pool.run(run),
        lambda pool, run: pool.submit(run),
        lambda pool, run: delayed(run),
    ],
)
async def test_a_run_where_calls_belong_is_refused_and_neither_begins_nor_warns(wrong: Wrong, tmp_path: Path) -> None:
    async with Pool(1) as pool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(TypeError, match=r"call of Pool\.run, which|RunCoroutine"):
                await wrong(pool, pool.run(touch, str(tmp_path / "there")))
            gc.collect()
        assert [str(warning.message) for warning in caught] == []
        assert pool.statistics().completed == 0
    assert not (tmp_path / "there").exists()


async def test_a_run_that_is_unpacked_does_not_begin() -> None:
    async with Pool(1, "inline") as pool:
        run: Any = pool.run(double, 1)
        with pytest.raises(TypeError, match="iterable"):
            await pool.gather(*run)
        assert asyncio.iscoroutine(run)
        run.close()


async def test_a_submitted_call_where_calls_belong_is_refused() -> None:
    async with Pool(1, "inline") as pool:
        submitted: Any = pool.submit(double, 1)
        with pytest.raises(TypeError, match="Item 0 is a future"):
            await pool.gather(submitted)
        with pytest.raises(TypeError, match="Argument 1 of map"):
            await pool.map(double, submitted)
        assert await submitted == 2


async def test_who_limits_coroutines_by_a_semaphore_limits_calls() -> None:
    async with Pool(1, max_queued=1) as pool:
        few = asyncio.Semaphore(2)

        async def limited(run: Any) -> Any:
            async with few:
                return await run

        runs = [pool.run(double, x) for x in range(20)]
        assert await asyncio.gather(*map(limited, runs)) == [2 * x for x in range(20)]


@pytest.mark.parametrize("how", ["task", "gather", "future"])
async def test_cancelling_stops_a_call_however_it_is_held(how: str, tmp_path: Path) -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        run = pool.run(leave_and_wait, str(tmp_path / "there"))
        holders: dict[str, Any] = {
            "task": asyncio.create_task,
            "gather": asyncio.gather,
            "future": asyncio.ensure_future,
        }
        held = holders[how](run)
        await started(tmp_path / "there")
        before = time.monotonic()
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        assert time.monotonic() - before < 2  # of 60, on a machine that may be busy
        assert pool.statistics().running == 0
        assert await pool.run(double, 1) == 2


async def test_an_anyio_scope_cancels_a_run_that_is_a_task_of_its_own(tmp_path: Path) -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, leave_and_wait, str(tmp_path / "there"))
                await started(tmp_path / "there")
                scope.cancel()
        assert scope.cancelled_caught
        assert pool.statistics().running == 0


# Thousands at a time


async def test_gathered_calls_need_no_tasks() -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        before = asyncio.all_tasks()
        gathered = asyncio.gather(*(pool.run(double, x) for x in range(10)))
        assert asyncio.all_tasks() == before
        assert await gathered == [2 * x for x in range(10)]


async def test_thousands_begin_a_slice_at_a_time_and_in_order(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singles, "_BEGIN_SECONDS", 0.0)  # one look at the clock is one too many
    monkeypatch.setattr(singles, "_BEGIN_CALLS", 100)
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        await pool.run(double, 0)
        runs = asyncio.gather(*(pool.run(double, x) for x in range(300)))
        left = [300]
        while left[-1]:
            await asyncio.sleep(0)
            left.append(len(pool._runner.singles._to_begin))
        assert max(earlier - later for earlier, later in itertools.pairwise(left)) <= 100
        assert await runs == [2 * x for x in range(300)]


async def test_each_of_many_has_its_own_outcome_whatever_they_ask_for(backend: Any) -> None:
    unpicklable = delayed(bool)(threading.Lock())
    async with Pool(2, backend) as pool:
        runs: list[Any] = []
        expected: list[Any] = []
        for x in range(300):
            if x % 7 == 0:
                runs.append(pool.run(fail, str(x)))
                expected.append(LookupError)
            elif x % 11 == 0:
                size = 200_000 if x % 2 else 1_000_000
                runs.append(pool.run(len, "x" * size))
                expected.append(size)
            elif x % 13 == 0 and backend == "process":
                runs.append(pool.run(unpicklable))
                expected.append(UnpicklableCallError)
            elif x % 17 == 0:
                runs.append(pool.run(double, x, retries=2))
                expected.append(2 * x)
            elif x % 19 == 0:
                runs.append(pool.run(double, x, retries=-1))
                expected.append(ValueError)
            else:
                runs.append(pool.run(double, x))
                expected.append(2 * x)
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        assert [type(o) if isinstance(o, BaseException) else o for o in outcomes] == expected
        assert not any("Call 1" in str(o) for o in outcomes)  # they have no number: each is alone
        assert pool._engine.admitted.is_empty()


async def test_of_many_what_is_refused_is_refused_by_itself() -> None:
    async with Pool(1, max_queued=3) as pool:
        await pool.warm_up()
        outcomes = await asyncio.gather(*(pool.run(time.sleep, 0.05) for _ in range(10)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None)] * 4 + [PoolSaturatedError] * 6


async def test_many_of_a_key_keep_its_limit() -> None:
    async with Pool(2) as pool:
        view = pool.limit("a", 1)
        assert await asyncio.gather(*(view.run(double, x) for x in range(200))) == [2 * x for x in range(200)]


async def test_calls_that_were_asked_for_in_other_tasks_see_their_own_context() -> None:
    async with Pool(1, context_vars=[request_id]) as pool:

        async def ask(name: str) -> list[str]:
            request_id.set(name)
            return await asyncio.gather(*(pool.run(read_request_id) for _ in range(3)))

        assert [*await asyncio.gather(ask("ann"), ask("bob"))] == [["ann"] * 3, ["bob"] * 3]


async def test_calls_that_were_asked_for_see_the_context_of_that_moment(backend: Any) -> None:
    async with Pool(1, backend, context_vars=[request_id]) as pool:
        request_id.set("ann")
        first = asyncio.gather(*(pool.run(read_request_id) for _ in range(3)))
        request_id.set("bob")  # they have not begun
        second = asyncio.gather(*(pool.run(read_request_id) for _ in range(3)))
        assert await first == ["ann"] * 3
        assert await second == ["bob"] * 3


async def test_a_pool_that_closes_ends_what_had_been_asked_for_and_had_not_begun() -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        late = asyncio.gather(*(pool.run(double, x) for x in range(5000)), return_exceptions=True)
    outcomes = await late
    assert {type(outcome) for outcome in outcomes} <= {int, ClosedPoolError}
    assert outcomes[-1:] != [4999 * 2] or outcomes == [2 * x for x in range(5000)]


class Raising:
    """Raises when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
async def test_what_pickling_raises_harms_no_other_call(error: BaseException) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    async with Pool(1) as pool:
        runs = [pool.run(double, x) if x != 3 else pool.run(bool, Raising(error)) for x in range(300)]
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        assert [x for x, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)] == [3]
        assert told == [error]
        assert pool._engine.admitted.is_empty()


def test_a_program_that_exits_while_calls_begin_exits_once() -> None:
    exits = []

    class Exiting:
        def __reduce__(self) -> Any:
            exits.append(self)
            raise SystemExit(7)

    async def main() -> None:
        async with Pool(1) as pool:
            await asyncio.gather(*(pool.run(bool, Exiting()) for _ in range(3)), return_exceptions=True)

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert len(exits) == 1


async def test_many_on_a_loop_that_is_not_the_pools_are_refused_and_begin_nowhere() -> None:
    async with Pool(1) as pool:
        waiting = asyncio.gather(*(pool.run(double, x) for x in range(10)))

        async def elsewhere() -> list[Any]:
            return await asyncio.gather(pool.run(double, 1), pool.run(double, 2), return_exceptions=True)

        # Before the loop has a turn: what was gathered here has not begun.
        with ThreadPoolExecutor(1) as threads:
            outcomes = threads.submit(asyncio.run, elsewhere()).result()
        assert [type(outcome) for outcome in outcomes] == [WrongLoopError] * 2
        assert await waiting == [2 * x for x in range(10)]


async def test_asking_for_a_run_as_a_future_where_no_loop_runs_is_a_clear_error() -> None:
    async with Pool(1) as pool:
        run = pool.run(double, 1)
        with ThreadPoolExecutor(1) as threads, pytest.raises(WrongLoopError, match="No asyncio event loop is running"):
            threads.submit(asyncio.isfuture, run).result()


async def test_what_had_not_begun_when_the_pool_closed_ends_without_a_word_if_nobody_waits_for_it() -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with Pool(1) as pool:
        await pool.warm_up()
        late = asyncio.ensure_future(pool.run(double, 1))
    await asyncio.wait([late])
    assert "ClosedPoolError" in repr(late)
    del late
    gc.collect()
    assert told == []


async def test_functions_of_many_calls_are_as_they_are_now() -> None:
    factor = [2]

    def times(x: int) -> int:
        return factor[0] * x

    async with Pool(1) as pool:
        assert await asyncio.gather(*(pool.run(times, x) for x in range(3))) == [0, 2, 4]
        factor[0] = 3
        assert await asyncio.gather(*(pool.run(times, x) for x in range(3))) == [0, 3, 6]


async def test_a_crash_among_many_fails_one() -> None:
    def die() -> None:
        import os

        os._exit(3)

    async with Pool(2) as pool:
        runs = [pool.run(double, x) if x != 50 else pool.run(die) for x in range(100)]
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
    assert [x for x, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)] == [50]
    assert isinstance(outcomes[50], BrokenWorkerError)


class Failure(Exception):
    """One that can be watched."""


async def test_nothing_keeps_the_error_of_a_run() -> None:
    def fail_so() -> None:
        raise Failure

    async def failed(waiting: Any) -> weakref.ref[Exception]:
        try:
            await waiting
        except Failure as error:
            return weakref.ref(error)
        finally:
            del waiting
        raise AssertionError("it did not fail")

    async with Pool(1) as pool:
        gc.collect()
        gc.disable()
        try:
            errors = [
                await failed(pool.run(fail_so)),
                await failed(asyncio.gather(pool.run(fail_so))),
                await failed(asyncio.create_task(pool.run(fail_so))),
            ]
            await asyncio.sleep(0)
            assert [error() for error in errors] == [None, None, None]
        finally:
            gc.enable()


async def test_a_run_is_not_for_pickling() -> None:
    async with Pool(1, "inline") as pool:
        run = pool.run(double, 1)
        with pytest.raises(TypeError):
            pickle.dumps(run)
        run.close()
