"""What a Pool promises: calls, workers, settings, fairness, and a loop that stays free."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from traveling import by_value
from variables import (
    look_then_set,
    never_set_here,
    read_request_id,
    read_request_id_later,
    remember,
    remember_later,
    remembered,
    request_id,
    state,
)
from work import add, add_later, double, many_dicts, spin

from aparallel import Pool, PoolStatistics, cpu_count, delayed, errors

BACKENDS: list[Any] = ["process", "thread", "inline"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@by_value
def wait_for(gate: Path, started: Path | None = None) -> str:
    if started is not None:
        started.touch()
    deadline = time.monotonic() + 20
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(str(gate))
        time.sleep(0.002)
    return gate.name


async def see(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110  a file has no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def blocked(pool: Pool, folder: Path, count: int = 1) -> AsyncIterator[None]:
    """Keep *count* workers of *pool* busy inside the block."""
    gate = folder / "gate"
    tasks = []
    for number in range(count):
        started = folder / f"started{number}"
        tasks.append(asyncio.create_task(pool.run(wait_for, gate, started)))
        await see(started)
    try:
        yield
    finally:
        gate.touch()
        await asyncio.gather(*tasks)


# Calls


@each_backend
async def test_run_takes_a_function_and_arguments_or_a_call(backend: Any) -> None:
    async with Pool(1, backend) as pool:
        assert await pool.run(add, 1, 2) == 3
        assert await pool.run(delayed(add)(1, y=5)) == 6
        assert await pool.run(add_later, 1, 2) == 3
        with pytest.raises(TypeError, match="further arguments"):
            await pool.run(delayed(add)(1), 2)  # type: ignore[call-overload]


@each_backend
async def test_map_is_maps_parallel_twin(backend: Any) -> None:
    async with Pool(2, backend) as pool:
        assert await pool.map(double, range(20)) == list(map(double, range(20)))
        assert await pool.map(add, [1, 2, 3], [10, 20]) == [11, 22]
        assert await pool.map(double, []) == []
        with pytest.raises(TypeError, match="at least one iterable"):
            await pool.map(double)
        one, error, three = await pool.map(int, ["1", "two", "3"], return_exceptions=True)
        assert (one, type(error), three) == (1, ValueError, 3)


@each_backend
async def test_separate_runs_each_get_their_own_outcome(backend: Any) -> None:
    async with Pool(2, backend) as pool:
        calls = [pool.run(double, x) if x % 5 else pool.run(int, f"no{x}") for x in range(300)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    for x, result in enumerate(results):
        assert result == 2 * x if x % 5 else isinstance(result, ValueError)


async def test_separate_runs_made_at_once_share_messages() -> None:
    from aparallel._backends.process_worker import ProcessWorker

    sent: list[int] = []
    send = ProcessWorker.send

    def counting(self: Any, batches: Any) -> None:
        sent.append(sum(map(len, batches)))
        send(self, batches)

    async with Pool(1) as pool:
        await pool.gather([delayed(double)(x) for x in range(2000)])  # so that their time is known
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProcessWorker, "send", counting)
            await asyncio.gather(*[pool.run(double, x) for x in range(1000)])
    assert sum(sent) >= 1000
    assert len(sent) < 200


# Workers


@each_backend
async def test_warm_up_starts_all_workers(backend: Any) -> None:
    async with Pool(2, backend) as pool:
        await pool.warm_up()
        now = pool.statistics()
        assert (now.workers, now.idle, now.starting, now.busy) == (2, 2, 0, 0)
        await pool.warm_up()
        assert pool.statistics().workers == 2


async def test_workers_start_only_as_needed() -> None:
    async with Pool(4, "thread") as pool:
        assert pool.statistics().workers == 0
        await pool.run(double, 1)
        await pool.run(double, 1)
        assert pool.statistics().workers == 1


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_statistics_and_repr_tell_what_the_pool_does(backend: Any, tmp_path: Path) -> None:
    async with Pool(2, backend) as pool:
        assert pool.statistics() == PoolStatistics(2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        await pool.warm_up()
        assert repr(pool) == f"<Pool {backend} n_jobs=2: 2 idle, 0 busy, 0 queued>"
        async with blocked(pool, tmp_path):
            assert repr(pool) == f"<Pool {backend} n_jobs=2: 1 idle, 1 busy, 0 queued>"
            assert pool.statistics().running == 1
        with pytest.raises(ValueError, match="invalid literal"):
            await pool.run(int, "x")
        now = pool.statistics()
        assert (now.completed, now.failed, now.broken, now.running) == (1, 1, 0, 0)
        with pytest.raises(dataclasses.FrozenInstanceError):
            now.idle = 3  # type: ignore[misc]
    assert repr(pool) == f"<Pool {backend} n_jobs=2: closed>"


async def test_statistics_add_up_at_every_moment() -> None:
    seen: list[PoolStatistics] = []

    async with Pool(2) as pool:
        await pool.gather(
            (delayed(double)(x) for x in range(3000)), progress=lambda done, total: seen.append(pool.statistics())
        )
    for now in seen:
        assert now.workers == now.starting + now.idle + now.busy
        assert now.workers <= now.n_jobs == 2
    assert [now.completed for now in seen] == sorted(now.completed for now in seen)


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_a_saturated_pool_refuses_more(backend: Any, tmp_path: Path) -> None:
    async with Pool(1, backend, max_queued=2) as pool:
        async with blocked(pool, tmp_path):
            waiting = [asyncio.create_task(pool.run(double, x)) for x in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(errors.PoolSaturatedError) as caught:
                await pool.run(double, 3)
            assert caught.value.max_queued == 2
            waiting[0].cancel()  # leaves a place
            await asyncio.wait([waiting[0]])
            waiting.append(asyncio.create_task(pool.run(double, 4)))
            await asyncio.sleep(0)
        assert await waiting[1] == 2
        assert await waiting[2] == 8
        assert await pool.run(double, 5) == 10


async def test_a_pool_that_may_queue_nothing_takes_what_it_can_start() -> None:
    async with Pool(1, "thread", max_queued=0) as pool:
        assert await pool.run(double, 1) == 2
        assert await pool.run(double, 2) == 4


@each_backend
@pytest.mark.parametrize("initializer", [remember, remember_later])
async def test_the_initializer_ran_once_in_each_worker_before_its_calls(backend: Any, initializer: Any) -> None:
    state.clear()
    async with Pool(2, backend, initializer=initializer, initargs=(1, "two")) as pool:
        await pool.warm_up()
        for seen in await pool.gather([delayed(remembered)() for _ in range(6)], batch_size=1):
            assert seen == [[1, "two"]]


class NotesItsThread:
    """Becomes 7 in a worker, and notes which thread it was pickled in."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __reduce__(self) -> Any:
        self.threads.append(threading.get_ident())
        return int, (7,)


async def test_large_arguments_of_an_initializer_are_pickled_once_and_off_the_loop() -> None:
    noting, numbers, array = NotesItsThread(), list(range(100_000)), np.arange(200_000)
    async with Pool(2, initializer=remember, initargs=(numbers, array, noting)) as pool:
        await pool.warm_up()
        array[:] = 0  # whoever starts later gets the same as those before
        with pytest.raises(errors.BrokenWorkerError):
            await pool.run(os.abort)
        for ((*given, seven),) in await pool.gather([delayed(remembered)() for _ in range(6)], batch_size=1):
            assert given[0] == numbers
            assert (given[1] == np.arange(200_000)).all()
            assert seven == 7
    assert len(noting.threads) == 1
    assert threading.get_ident() not in noting.threads


@by_value
def tell_when_no_message_is_held(mark: Path, _large: bytes) -> None:
    def watch() -> None:
        from gc import get_objects

        while any(type(thing).__name__ == "Frame" for thing in get_objects()):
            time.sleep(0.002)
        mark.touch()

    threading.Thread(target=watch, daemon=True).start()


async def test_an_idle_worker_does_not_hold_what_its_initializer_came_in(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with Pool(1, initializer=tell_when_no_message_is_held, initargs=(mark, bytes(1_000_000))) as pool:
        await pool.warm_up()
        await see(mark)


async def test_an_initializer_that_is_large_and_cannot_be_pickled_fails_what_waits_for_workers() -> None:
    async with Pool(2, initializer=print, initargs=(list(range(100_000)), threading.Lock())) as pool:
        for attempt in (pool.run(double, 1), pool.warm_up(), pool.gather([delayed(double)(1)])):
            with pytest.raises(errors.InitializerError, match=r"print could not be pickled: argument 1 is a") as caught:
                await attempt
            assert type(caught.value.__cause__) is errors.UnpicklableCallError


@by_value
def refuse() -> None:
    raise LookupError("no licence")


@each_backend
async def test_a_failing_initializer_is_the_error_of_warm_up_and_of_calls(backend: Any) -> None:
    async with Pool(1, backend, initializer=refuse) as pool:
        with pytest.raises(errors.InitializerError, match=r"no licence\n.*tries it again") as caught:
            await pool.warm_up()
        assert type(caught.value.__cause__) is LookupError
        if backend != "inline":
            with pytest.raises(errors.InitializerError, match="no licence"):
                await pool.run(double, 1)


async def test_a_failing_initializer_has_nothing_imported_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_library.py").write_text("class OutOfMemory(RuntimeError): pass\n")
    monkeypatch.syspath_prepend(tmp_path)

    @by_value
    def load() -> None:
        import heavy_library  # type: ignore[import-not-found]

        raise heavy_library.OutOfMemory("of the device")

    async with Pool(1, initializer=load) as pool:
        with pytest.raises(errors.InitializerError, match="OutOfMemory: of the device") as caught:
            await pool.run(double, 1)
    cause = caught.value.__cause__
    assert isinstance(cause, errors.RemoteCallError)
    assert cause.type_name == "heavy_library.OutOfMemory"
    assert "heavy_library" not in sys.modules


@by_value
def hang_if_first(mark: Path) -> None:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    whole = mark.with_suffix(".whole")
    whole.write_text(str(os.getpid()))
    whole.rename(mark.with_suffix(".pid"))
    time.sleep(600)


@pytest.mark.parametrize("size", [8, 200_000, 1_000_000])
async def test_a_worker_that_does_not_get_ready_holds_no_calls(tmp_path: Path, size: int) -> None:
    async with Pool(2, initializer=hang_if_first, initargs=(tmp_path / "mark",)) as pool:
        async with asyncio.timeout(20):
            assert await pool.gather(delayed(len)(b"x" * size) for _ in range(20)) == [size] * 20
        now = pool.statistics()
        assert (now.running, now.queued, now.starting, now.completed) == (0, 0, 1, 20)


async def test_a_worker_that_dies_before_it_is_ready_loses_no_calls(tmp_path: Path) -> None:
    async with Pool(1, initializer=hang_if_first, initargs=(tmp_path / "mark",)) as pool:
        calls = [asyncio.ensure_future(pool.run(abs, -number)) for number in range(20)]
        await see(tmp_path / "mark.pid")
        os.kill(int((tmp_path / "mark.pid").read_text()), signal.SIGKILL)
        assert await asyncio.gather(*calls) == list(range(20))
        assert pool.statistics().broken == 0


async def test_workers_are_replaced_after_so_many_calls() -> None:
    async with Pool(1, max_calls_per_worker=3) as pool:
        pids = [await pool.run(os.getpid) for _ in range(7)]
        assert len(set(pids)) == 3
        assert max(map(pids.count, pids)) == 3
        many = await pool.gather(delayed(os.getpid)() for _ in range(10))
        assert max(map(many.count, many)) <= 3
        assert pool.statistics().broken == 0


async def test_workers_run_with_the_interpreter_that_was_asked_for(tmp_path: Path) -> None:
    wrapper = tmp_path / "mypython"
    wrapper.write_text(f'#!/bin/sh\nexport WRAPPED=yes\nexec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    async with Pool(1, executable=str(wrapper)) as pool:
        assert await pool.run(os.getenv, "WRAPPED") == "yes"


async def test_an_interpreter_that_is_not_there_is_named() -> None:
    async with Pool(1, executable="/no/such/python") as pool:
        with pytest.raises(errors.UnsupportedPlatformError, match="/no/such/python"):
            await pool.run(double, 1)


async def test_a_closed_pool_says_so() -> None:
    async with Pool(1, "thread") as pool:
        pass
    with pytest.raises(errors.ClosedPoolError, match="closed"):
        await pool.run(double, 1)
    await pool.aclose()


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_leaving_a_pool_waits_for_what_was_admitted(backend: Any) -> None:
    async with Pool(1, backend) as pool:
        tasks = [asyncio.create_task(pool.run(double, x)) for x in range(10)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*tasks) == [2 * x for x in range(10)]


async def test_a_pool_closes_after_its_spare_has_become_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aparallel._backends.child._SPARE_DELAY_SECONDS", 60.0)  # no further spare comes meanwhile
    async with asyncio.timeout(10):
        async with Pool(2) as pool:
            await pool.run(double, 1)
            pool._engine.backend.start_spare(asyncio.get_running_loop())
            async with blocked(pool, tmp_path):
                assert await pool.run(double, 1) == 2
            assert pool.statistics().workers == 2


# What workers are given


@each_backend
async def test_what_a_call_sets_in_a_chosen_variable_ends_with_the_call(backend: Any) -> None:
    async with Pool(1, backend, context_vars=[never_set_here]) as pool:
        assert [await pool.run(look_then_set) for _ in range(3)] == ["none"] * 3


@each_backend
async def test_chosen_context_variables_travel_with_each_call(backend: Any) -> None:
    async with Pool(1, backend, context_vars=[request_id]) as pool:

        async def handle(name: str) -> list[str]:
            request_id.set(name)
            return [
                await pool.run(read_request_id),
                await pool.run(read_request_id_later),
                *await pool.gather([delayed(read_request_id)()]),
            ]

        results = await asyncio.gather(*[asyncio.create_task(handle(f"r{x}")) for x in range(5)])
        assert results == [[f"r{x}"] * 3 for x in range(5)]
        assert await pool.run(read_request_id) == "none"


async def test_other_context_variables_do_not_travel_to_processes() -> None:
    request_id.set("mine")
    async with Pool(1) as pool:
        assert await pool.run(read_request_id) == "none"


def run_script(tmp_path: Path, body: str, **environ: str) -> str:
    script = tmp_path / "script.py"
    head = "import asyncio, contextvars, os\nfrom aparallel import *\n"
    script.write_text(head + textwrap.dedent(body))
    names = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=30, env={**names, **environ}
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.strip()


def test_a_context_variable_of_main_travels(tmp_path: Path) -> None:
    body = """
    var = contextvars.ContextVar("label")

    def read():
        return var.get("unset")

    async def main():
        async with Pool(1, context_vars=[var]) as pool:
            print(await pool.run(read))
            var.set("first")
            print(await pool.run(read), *await pool.gather([delayed(read)()]))
            var.set("second")
            print(await pool.run(read))

    asyncio.run(main())
    """
    assert run_script(tmp_path, body).split() == ["unset", "first", "first", "second"]


THREADS = """
def read():
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")

async def main():
    async with Pool(2{options}) as pool:
        print(*await pool.run(read))

asyncio.run(main())
"""


def test_inner_threads_share_the_cores_among_the_workers(tmp_path: Path) -> None:
    assert run_script(tmp_path, THREADS.format(options=""), APARALLEL_CPU_COUNT="8") == "4 4"
    assert run_script(tmp_path, THREADS.format(options=""), APARALLEL_CPU_COUNT="1") == "1 1"


def test_the_users_own_number_of_inner_threads_is_respected(tmp_path: Path) -> None:
    out = run_script(tmp_path, THREADS.format(options=""), APARALLEL_CPU_COUNT="8", OMP_NUM_THREADS="7")
    assert out == "7 4"


def test_inner_max_num_threads_wins_over_the_environment(tmp_path: Path) -> None:
    script = THREADS.format(options=", inner_max_num_threads=3")
    assert run_script(tmp_path, script, OMP_NUM_THREADS="7") == "3 3"


def test_inner_max_num_threads_of_a_gather_wins_over_the_environment(tmp_path: Path) -> None:
    body = """
    def read():
        return os.environ.get("OMP_NUM_THREADS")

    async def main():
        print(*await gather_parallel([delayed(read)()], inner_max_num_threads=3))

    asyncio.run(main())
    """
    assert run_script(tmp_path, body, OMP_NUM_THREADS="7") == "3"


async def test_the_default_of_inner_threads_is_in_this_processs_workers() -> None:
    if "OMP_NUM_THREADS" in os.environ:
        pytest.skip("the environment sets it")
    async with Pool(1) as pool:
        assert await pool.run(os.getenv, "OMP_NUM_THREADS") == str(cpu_count())


async def test_a_context_variable_whose_value_cannot_travel_is_named() -> None:
    var: contextvars.ContextVar[Any] = contextvars.ContextVar("connection")
    var.set({"lock": threading.Lock()})
    async with Pool(1, context_vars=[var]) as pool:
        for size in (1, 300_000):
            with pytest.raises(errors.UnpicklableCallError) as caught:
                await pool.run(len, b"x" * size)
            assert caught.value.part == "the context variable 'connection'['lock']"
            (error,) = await pool.gather([delayed(len)(b"x" * size)], return_exceptions=True)
            assert isinstance(error, errors.UnpicklableCallError)
            assert error.part == caught.value.part


async def test_an_interpreter_may_be_a_path() -> None:
    async with Pool(1, executable=Path(sys.executable)) as pool:
        assert await pool.run(abs, -1) == 1


BAD_POOLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"n_jobs": 0}, ValueError, "n_jobs"),
    ({"n_jobs": 1.0}, TypeError, "n_jobs"),
    ({"backend": "dask"}, ValueError, "'dask'"),
    ({"max_queued": -1}, ValueError, "max_queued"),
    ({"max_calls_per_worker": 0}, ValueError, "max_calls_per_worker"),
    ({"idle_timeout": 0}, ValueError, "idle_timeout"),
    ({"inner_max_num_threads": 0}, ValueError, "inner_max_num_threads"),
    ({"inner_max_num_threads": 1, "backend": "thread"}, ValueError, "inner_max_num_threads"),
    ({"executable": "python", "backend": "thread"}, ValueError, "executable"),
    ({"executable": 3}, TypeError, "executable=3"),
    ({"idle_timeout": "1"}, ValueError, "idle_timeout='1'"),
    ({"initializer": 3}, TypeError, "initializer"),
    ({"initializer": print, "initargs": 3}, TypeError, "initargs=3"),
    ({"initializer": print, "initargs": "path"}, TypeError, r"initargs=\(value,\)"),
    ({"initializer": print, "initargs": [threading.Lock()]}, errors.UnpicklableCallError, "print .*argument 0 is a"),
    ({"context_vars": "var"}, TypeError, "context_vars='var'"),
    ({"context_vars": contextvars.ContextVar("var")}, TypeError, "sequence"),
    ({"on_cancel": "stop"}, ValueError, "on_cancel"),
    ({"on_cancel": "kill", "backend": "thread"}, ValueError, "kill"),
]


@pytest.mark.parametrize(("options", "kind", "text"), BAD_POOLS, ids=lambda value: str(value)[:40])
def test_a_bad_pool_is_refused_where_it_is_made(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        Pool(**options)


# Fairness


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_a_short_gather_is_not_stuck_behind_a_long_one(backend: Any) -> None:
    async with Pool(2, backend) as pool:
        await pool.gather(delayed(spin)(0.001) for _ in range(20))
        done = 0

        def progress(count: int, total: int | None) -> None:
            nonlocal done
            done = count

        calls = [delayed(spin)(0.001) for _ in range(600)]
        long = asyncio.create_task(pool.gather(calls, progress=progress, pre_dispatch="all"))
        while not done:  # noqa: ASYNC110  counted by the pool
            await asyncio.sleep(0.001)
        await pool.gather([delayed(spin)(0.001) for _ in range(20)])
        assert done < 400
        results = await long
    assert len(results) == 600


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_fast_calls_do_not_wait_behind_a_slow_one_while_a_worker_is_idle(backend: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def maybe_slow(x: int) -> int:
        if x == 10:
            wait_for(gate)
        return x

    async with Pool(2, backend) as pool:
        await pool.gather([delayed(maybe_slow)(x) for x in range(100, 1000)])  # known to be fast
        done = 0

        def progress(count: int, total: int | None) -> None:
            nonlocal done
            done = count
            if count == 399:
                gate.touch()

        async with asyncio.timeout(15):
            calls = [delayed(maybe_slow)(x) for x in range(400)]
            assert await pool.gather(calls, progress=progress, pre_dispatch="all") == list(range(400))


# The loop stays free


class Ticker:
    """Measures how long the loop is held: the gaps between its turns, beyond the millisecond asked for."""

    def __init__(self) -> None:
        self.lags: list[float] = []

    async def run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.lags.append(time.perf_counter() - before - 0.001)


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticker]:
    ticker = Ticker()
    task = asyncio.create_task(ticker.run())
    await asyncio.sleep(0.01)
    ticker.lags.clear()
    try:
        yield ticker
    finally:
        task.cancel()


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_one_job_leaves_the_loop_free(backend: Any, tmp_path: Path) -> None:
    ticks = 0
    async with Pool(1, backend) as pool:
        async with blocked(pool, tmp_path):
            for _ in range(20):
                await asyncio.sleep(0)
                ticks += 1
    assert ticks == 20


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Garbage collection holds the loop too, which nobody can prevent: it is not what is measured."""
    import gc

    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def lags_of(work: Any) -> list[float]:
    """The lags of the best of ten runs: the machine has other work to do. Most often the first is good enough."""
    best: list[float] = []
    for _ in range(10):
        async with ticking() as ticker:
            kept = await work()
        if not best or max(ticker.lags) < max(best):
            best = ticker.lags
        del kept
        if max(best) < 0.06:
            break
    return best


@pytest.mark.usefixtures("no_collections")
async def test_a_large_argument_is_pickled_without_holding_the_loop() -> None:
    big = many_dicts(300_000)
    async with Pool(1) as pool:
        await pool.warm_up()
        lags = await lags_of(lambda: pool.run(len, big))
    assert max(lags) < 0.06
    assert median(lags) < 0.01


@pytest.mark.usefixtures("no_collections")
async def test_a_large_result_is_received_without_holding_the_loop() -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        lags = await lags_of(lambda: pool.run(many_dicts, 300_000))
    assert max(lags) < 0.06
    assert median(lags) < 0.01


@pytest.mark.usefixtures("no_collections")
async def test_a_large_result_of_bytes_is_received_without_holding_the_loop() -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        lags = await lags_of(lambda: pool.run(bytes, 150_000_000))
    assert max(lags) < 0.06
    assert median(lags) < 0.01


@pytest.mark.parametrize("megabytes", [3, 5, 31, 33])  # in memory that was cleared, that was not, and that is mapped
async def test_large_bytes_arrive_whole_one_after_the_other(megabytes: int) -> None:
    size = megabytes * 1_000_000
    async with Pool(1) as pool:
        for number in range(3):
            expected = bytes([number]) * size
            assert await pool.run(bytes.__mul__, bytes([number]), size) == expected


def test_memory_that_is_not_cleared_is_as_large_as_asked_for_or_an_error() -> None:
    from aparallel._ground.uncleared import uncleared_bytearray

    memory = uncleared_bytearray(5_000_000)
    memory[:] = bytes(5_000_000)
    assert memory == bytearray(5_000_000)
    with pytest.raises(MemoryError):
        uncleared_bytearray(1 << 62)
