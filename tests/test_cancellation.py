"""A call that stops, stops: however it is cancelled, wherever it is, and nothing of the pool is lost with it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest
from traveling import by_value

from aparallel import Pool, delayed, stream_parallel
from aparallel._backends.tending import Tending
from aparallel._parallel.single_queue import JointOwner
from aparallel.abc import Later
from aparallel.errors import AparallelError, CallTimeoutError, ClosedPoolError
from aparallel.testing import FakeBackend

LONG = 60.0
# Medians are held to what is promised, 0.1 s. Each single time may be longer on a machine that others use too: it must
# be far from how long the call would take, and no more.
AT_MOST = 2.0
PROMISED = 0.1

# What does not depend on the loop runs on one: workers are slow to start, and the suite should not be.
on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])


class Pipe:
    """Tells the test that a call has come this far; anything may write to it, even what is then killed."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "pipe")
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)

    def read_now(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._fd, 65536)
        return b""

    async def read(self, count: int = 1) -> bytes:
        """Wait for *count* bytes."""
        data = b""
        async with asyncio.timeout(20):
            while len(data) < count:
                data += self.read_now()
                await asyncio.sleep(0.001)
        return data

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path)
    yield pipe
    pipe.close()


@by_value
def tell(path: str, data: bytes, seconds: float = 0.0) -> int:
    with open(path, "wb", buffering=0) as file:
        file.write(data)
    time.sleep(seconds)
    return os.getpid()


@by_value
async def tell_and_wait(path: str, data: bytes, seconds: float = 0.0) -> int:
    with open(path, "wb", buffering=0) as file:  # noqa: ASYNC230
        file.write(data)
    await asyncio.sleep(seconds)
    return os.getpid()


@by_value
async def tell_and_wait_for(path: str, data: bytes, release: str) -> None:
    """Run until the file *release* exists."""
    with open(path, "wb", buffering=0) as file:  # noqa: ASYNC230
        file.write(data)
    while not os.path.exists(release):  # noqa: ASYNC110 (another process may make it)
        await asyncio.sleep(0.001)


@by_value
def catch_and_wait(path: str, release: str) -> str:
    """Run until the file *release* exists: a call that a thread cannot be made to drop."""
    with open(path, "wb", buffering=0) as file:
        file.write(b"r")
    while not os.path.exists(release):
        time.sleep(0.001)
    return "released"


async def assert_consistent(pool: Pool) -> None:
    """No slot is lost, and the next calls work."""
    async with asyncio.timeout(10):
        limit = pool.n_jobs
        assert await pool.gather([delayed(abs)(-3)] * (2 * limit), batch_size=1) == [3] * (2 * limit)
        # A worker that was killed is counted until it has been seen to end.
        while (now := pool.statistics()).running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert (now.queued, now.busy) == (0, 0), now
    assert now.workers <= limit, now
    assert all(value >= 0 for value in (now.queued, now.running, now.idle, now.starting)), now
    assert pool._engine.single_queue.count == 0


# The ways to cancel


async def by_task_cancel(call: Callable[[], Awaitable[Any]], started: Awaitable[Any]) -> float:
    task = asyncio.ensure_future(call())
    await started
    begin = time.monotonic()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    return time.monotonic() - begin


async def by_asyncio_timeout(call: Callable[[], Awaitable[Any]], started: Awaitable[Any]) -> float:
    begin = 0.0
    with pytest.raises(TimeoutError):  # noqa: PT012
        async with asyncio.timeout(None) as scope:

            async def expire() -> None:
                nonlocal begin
                await started
                begin = time.monotonic()
                scope.reschedule(asyncio.get_running_loop().time())

            expiry = asyncio.ensure_future(expire())
            await call()
    await expiry
    return time.monotonic() - begin


async def by_anyio_scope(call: Callable[[], Awaitable[Any]], started: Awaitable[Any]) -> float:
    begin = 0.0
    with anyio.CancelScope() as scope:

        async def expire() -> None:
            nonlocal begin
            await started
            begin = time.monotonic()
            scope.cancel()

        expiry = asyncio.ensure_future(expire())
        await call()
    assert scope.cancelled_caught
    await expiry
    return time.monotonic() - begin


async def by_nested_anyio_scopes(call: Callable[[], Awaitable[Any]], started: Awaitable[Any]) -> float:
    """The outer scope is cancelled; an inner one that is not must not hide it, nor be told that it was."""
    with anyio.CancelScope() as outer:

        async def nested() -> None:
            with anyio.CancelScope() as inner:
                try:
                    await call()
                finally:
                    assert not inner.cancel_called
                    assert outer.cancel_called
            raise AssertionError("the inner scope caught what was the outer one's")

        async with anyio.create_task_group() as group:
            group.start_soon(nested)
            await started
            begin = time.monotonic()
            outer.cancel()
    return time.monotonic() - begin


WAYS = [by_task_cancel, by_asyncio_timeout, by_anyio_scope, by_nested_anyio_scopes]


async def run_one(pool: Pool, fn: Callable[..., Any], *args: Any) -> None:
    await pool.run(fn, *args)


async def run_gather(pool: Pool, fn: Callable[..., Any], *args: Any) -> None:
    await pool.gather([delayed(fn)(*args)] * 2)


async def run_stream(pool: Pool, fn: Callable[..., Any], *args: Any) -> None:
    async with pool.stream(delayed(fn)(*args) for _ in range(2)) as results:
        async for _ in results:
            pass


USES = [run_one, run_gather, run_stream]


@pytest.mark.parametrize("use", USES)
async def test_cancelling_ends_the_running_process_call_and_frees_its_worker(use: Any, pipe: Pipe) -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        for way in WAYS:
            pid = await pool.run(os.getpid)
            took = await way(lambda: use(pool, tell, pipe.path, b"x", LONG), pipe.read())
            assert took < AT_MOST, way
            assert not alive(pid), way
            begin = time.monotonic()
            assert await pool.run(abs, -1) == 1
            assert time.monotonic() - begin < AT_MOST, way
            assert pipe.read_now() == b"", way  # the second call of the gather never ran
            await assert_consistent(pool)
        assert pool.statistics().broken == 0


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("use", USES)
async def test_cancelling_ends_the_running_inline_coroutine(use: Any, pipe: Pipe) -> None:
    async with Pool(1, "inline") as pool:
        for way in WAYS:
            took = await way(lambda: use(pool, tell_and_wait, pipe.path, b"x", LONG), pipe.read())
            assert took < AT_MOST, way
            assert pipe.read_now() == b"", way
            await assert_consistent(pool)


@pytest.mark.parametrize("way", ["cancel", "timeout"])
async def test_no_inline_call_begins_after_one_that_was_cancelled_while_it_held_the_loop(way: str) -> None:
    begun: list[int] = []

    def hold(x: int) -> None:
        begun.append(x)
        time.sleep(0.003)  # it cannot be stopped
        if x == 5:
            if way == "cancel":  # what asyncio does on Ctrl-C
                task.cancel()
            else:
                limit.reschedule(0)

    async def limited() -> None:
        async with limit:
            await asyncio.create_task(pool.gather(delayed(hold)(x) for x in range(20)))

    limit = asyncio.timeout(None)
    async with Pool(2, "inline") as pool:
        task = asyncio.create_task(limited())
        await asyncio.wait([task])
        assert task.cancelled() if way == "cancel" else isinstance(task.exception(), TimeoutError)
        assert begun == list(range(6))
        await assert_consistent(pool)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("backend", ["thread", "process"])
async def test_cancelling_waits_for_a_running_call_that_may_not_be_killed(
    backend: Any, use: Any, pipe: Pipe, tmp_path: Path
) -> None:
    async with Pool(1, backend, on_cancel="wait") as pool:
        for way in WAYS:
            release = str(tmp_path / way.__name__)
            started = asyncio.Event()

            async def start(started: asyncio.Event = started) -> None:
                await pipe.read()
                started.set()

            call = functools.partial(use, pool, catch_and_wait, pipe.path, release)
            waiting = asyncio.ensure_future(way(call, start()))
            await started.wait()
            # It is cancelled by now, or a step of the loop later; it must not return before the call is let go.
            done, _ = await asyncio.wait([waiting], timeout=0.03)
            assert not done, way
            Path(release).touch()
            await waiting
            await assert_consistent(pool)
            assert pipe.read_now() == b"", way


@on_one_loop
@pytest.mark.parametrize("backend", ["thread", "process"])
async def test_an_abandoned_call_keeps_its_slot_until_it_is_done(backend: Any, pipe: Pipe, tmp_path: Path) -> None:
    async with Pool(1, backend, on_cancel="abandon") as pool:
        release = str(tmp_path / "release")
        took = await by_task_cancel(lambda: run_one(pool, catch_and_wait, pipe.path, release), pipe.read())
        assert took < AT_MOST
        following = asyncio.ensure_future(pool.run(abs, -2))
        done, _ = await asyncio.wait([following], timeout=0.05)
        assert not done
        assert pool.statistics().busy == 1
        Path(release).touch()
        assert await following == 2
        await assert_consistent(pool)


async def test_cancelled_calls_end_within_the_promised_time_and_the_next_starts_at_once(pipe: Pipe) -> None:
    ends: list[float] = []
    nexts: list[float] = []

    def are_as_promised() -> bool:
        return max(map(statistics.median, (ends, nexts))) < PROMISED

    async with Pool(1) as pool:
        await pool.warm_up()
        # Fifteen times instead of five, if others use the machine so much that five are not enough.
        while len(ends) < 5 or (len(ends) < 15 and not are_as_promised()):
            ends.append(await by_task_cancel(lambda: run_one(pool, tell, pipe.path, b"x", LONG), pipe.read()))
            begin = time.monotonic()
            await pool.run(abs, -1)
            nexts.append(time.monotonic() - begin)
            await asyncio.sleep(0.25)  # the spare interpreter of the next round starts 0.1 s later
        await assert_consistent(pool)
    assert are_as_promised(), (ends, nexts)
    assert max(ends + nexts) < AT_MOST, (ends, nexts)


# What is not running


@on_one_loop
@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_a_cancelled_queued_call_never_runs_and_its_siblings_do(backend: Any, pipe: Pipe, tmp_path: Path) -> None:
    async with Pool(1, backend) as pool:
        release = tmp_path / "release"
        blocker = asyncio.ensure_future(pool.run(tell_and_wait_for, pipe.path, b"b", str(release)))
        await pipe.read()
        letters = [bytes((letter,)) for letter in b"cdefgh"]
        queued = [asyncio.ensure_future(pool.run(tell, pipe.path, letter)) for letter in letters]
        async with asyncio.timeout(20):
            while pool.statistics().queued < 6:  # noqa: ASYNC110 (they begin in the loop's next turns)
                await asyncio.sleep(0)
        queued[1].cancel()
        queued[4].cancel()
        await asyncio.wait([queued[1], queued[4]])
        assert pool.statistics().queued == 4
        release.touch()
        await blocker
        await asyncio.wait(queued)
        assert await pipe.read(4) == b"cefh"
        await assert_consistent(pool)
        assert pipe.read_now() == b""


@on_one_loop
@pytest.mark.parametrize("victim", [0, 1, 5, 9])
async def test_one_call_of_a_shared_message_is_cancelled_alone(victim: int, pipe: Pipe) -> None:
    """Ten quick calls travel together, one of them stalls: whichever is cancelled, only it is lost."""

    @by_value
    def work(path: str, index: int, stall: bool) -> int:
        if stall:
            with open(path, "wb", buffering=0) as file:
                file.write(b"s")
            time.sleep(0.15)
        return index

    async with Pool(1) as pool:
        await pool.warm_up()
        await pool.gather(delayed(work)(pipe.path, index, False) for index in range(500))  # its pace is known
        runs = [asyncio.ensure_future(pool.run(work, pipe.path, index, index == 1)) for index in range(10)]
        await pipe.read()
        runs[victim].cancel()
        results = await asyncio.gather(*runs, return_exceptions=True)
        if victim == 0:  # it had its result already, or as good as
            assert isinstance(results[0], asyncio.CancelledError) or results[0] == 0
        else:
            assert isinstance(results[victim], asyncio.CancelledError)
        expected = list(range(10))
        assert [*results[:victim], *results[victim + 1 :]] == [*expected[:victim], *expected[victim + 1 :]]
        await assert_consistent(pool)


async def test_cancelling_one_gather_leaves_the_other_gathers_of_the_pool_alone(pipe: Pipe) -> None:
    async with Pool(2) as pool:
        other = asyncio.ensure_future(pool.gather(delayed(pow)(2, index) for index in range(2000)))
        await by_task_cancel(lambda: run_gather(pool, tell, pipe.path, b"x", LONG), pipe.read())
        assert await other == [2**index for index in range(2000)]
        await assert_consistent(pool)


async def test_calls_cancelled_before_any_worker_is_ready_never_run_in_place_of_later_ones(pipe: Pipe) -> None:
    """All of these meet the worker's start; more than a byte can count."""
    async with Pool(1) as pool:
        for index in range(300):
            task = asyncio.ensure_future(pool.run(tell, pipe.path, b"%d" % (index % 10)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert await pool.run(pow, 2, 10) == 1024
        await assert_consistent(pool)


@on_one_loop
async def test_a_call_cancelled_while_its_arguments_are_pickled_is_not_counted_as_queued() -> None:
    async with Pool(1, max_queued=0) as pool:
        await pool.warm_up()
        for _ in range(3):
            task = asyncio.ensure_future(pool.run(len, list(range(1_000_000))))
            await asyncio.sleep(0.005)
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])
            assert pool._engine.single_queue.count == 0
        await assert_consistent(pool)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
async def test_interrupting_a_cell_of_a_notebook_stops_its_call(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    """ipykernel's handler of SIGINT asks the loop to end the cell without waking it, and asyncio sleeps on."""
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    loop = asyncio.get_running_loop()
    async with Pool(1) as pool:
        cell = asyncio.ensure_future(pool.run(tell, pipe.path, b"r", LONG))
        await pipe.read()
        before = signal.signal(signal.SIGALRM, lambda *_: loop.call_soon(cell.cancel))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            begin = time.monotonic()
            await asyncio.wait([cell])
        finally:
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - begin < AT_MOST
        assert cell.cancelled()
        await assert_consistent(pool)


# Ending by itself


@on_one_loop
async def test_a_call_that_ends_within_the_grace_keeps_its_worker(pipe: Pipe, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    async with Pool(1) as pool:
        await pool.warm_up()
        pid = await pool.run(os.getpid)
        kept = 0
        for _ in range(5):  # on a noisy machine some will miss the 20 ms
            with contextlib.suppress(FileNotFoundError):
                os.unlink(release)
            task = asyncio.ensure_future(pool.run(catch_and_wait, pipe.path, release))
            await pipe.read()
            task.cancel()
            Path(release).touch()
            await asyncio.wait([task])
            assert task.cancelled()
            now = await pool.run(os.getpid)
            kept += now == pid
            pid = now
        assert kept >= 3
        await assert_consistent(pool)


async def test_an_outcome_that_comes_with_the_cancellation_is_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    tasks: list[asyncio.Future[Any]] = []
    deliver = JointOwner.deliver

    def deliver_and_cancel(owner: JointOwner, *outcome: Any) -> None:
        deliver(owner, *outcome)
        tasks.pop().cancel()

    async with Pool(1, "thread") as pool:
        with monkeypatch.context() as patch:
            patch.setattr(JointOwner, "deliver", deliver_and_cancel)
            task = asyncio.create_task(pool.run(divide_by_zero))
            tasks.append(task)
            await asyncio.wait([task])
        assert task.cancelled()
        del task
        await assert_consistent(pool)
    gc.collect()
    assert noise == []


def divide_by_zero() -> None:
    raise ZeroDivisionError("nobody hears")


# timeout=


@on_one_loop
async def test_a_timeout_counts_execution_and_not_the_time_spent_queued() -> None:
    async with Pool(1) as pool:
        await pool.warm_up()
        async with asyncio.timeout(20):
            runs = [asyncio.ensure_future(pool.run(time.sleep, 0.05, timeout=0.5)) for _ in range(12)]
            assert await asyncio.gather(*runs) == [None] * 12
            assert await pool.gather([delayed(time.sleep)(0.05)] * 12, timeout=0.5, batch_size=12) == [None] * 12
        await assert_consistent(pool)


@on_one_loop
async def test_a_timeout_may_be_any_real_number() -> None:
    timeout: Any = Fraction(1, 20)
    async with asyncio.timeout(10), Pool(1) as pool:
        sleeping = delayed(time.sleep)(LONG)
        for attempt in (pool.run(sleeping, timeout=timeout), pool.gather([sleeping], timeout=timeout)):
            with pytest.raises(CallTimeoutError) as caught:
                await attempt
            assert caught.value.timeout == 0.05


@on_one_loop
async def test_a_timeout_does_not_count_what_a_worker_imports_for_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import os, time\nif os.getpid() != int(os.environ['PARENT']):\n    time.sleep(0.6)\ndef f(): return 1\n"
    )
    monkeypatch.setenv("PARENT", str(os.getpid()))
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("slow_to_import")
    async with Pool(1) as pool:
        assert await pool.run(module.f, timeout=0.3) == 1
        with pytest.raises(CallTimeoutError, match=r"^The call .* ran longer"):
            await pool.run(time.sleep, LONG, timeout=0.1)  # kills the worker: the next one imports anew
        assert await pool.gather([delayed(module.f)()] * 3, timeout=0.3) == [1, 1, 1]
        await assert_consistent(pool)


@on_one_loop
async def test_a_timeout_stops_its_call_alone(pipe: Pipe) -> None:
    async with Pool(2) as pool:
        await pool.warm_up()
        pid = await pool.run(os.getpid)
        calls = [delayed(time.sleep)(LONG if index == 3 else 0.001) for index in range(20)]
        begin = time.monotonic()
        results = await pool.gather(calls, timeout=0.3, batch_size=20, pre_dispatch="all", return_exceptions=True)
        assert 0.3 <= time.monotonic() - begin < 0.3 + 2 * AT_MOST
        error = results.pop(3)
        assert results == [None] * 19
        assert isinstance(error, CallTimeoutError)
        assert isinstance(error, TimeoutError)
        assert error.timeout == 0.3
        assert error.call
        assert pid  # whichever worker it was
        await assert_consistent(pool)
        assert pool.statistics().broken == 0


@on_one_loop
async def test_a_timeout_of_one_call_spares_those_that_share_its_message(pipe: Pipe) -> None:
    async with Pool(1) as pool:
        await pool.gather(delayed(time.sleep)(0.00001) for _ in range(300))  # its pace is known
        runs = [
            asyncio.ensure_future(pool.run(time.sleep, LONG if index == 4 else 0.0001, timeout=0.2))
            for index in range(9)
        ]
        results = await asyncio.gather(*runs, return_exceptions=True)
        assert isinstance(results.pop(4), CallTimeoutError)
        assert results == [None] * 8
        await assert_consistent(pool)


async def test_a_timed_out_call_can_be_abandoned_on_a_thread(tmp_path: Path, pipe: Pipe) -> None:
    release = str(tmp_path / "release")
    async with Pool(1, "thread", on_cancel="abandon") as pool:
        with pytest.raises(CallTimeoutError):
            await pool.run(catch_and_wait, pipe.path, release, timeout=0.05)
        assert pool.statistics().busy == 1
        Path(release).touch()
        await assert_consistent(pool)


@on_one_loop
@pytest.mark.parametrize("backend", ["thread", "inline"])
async def test_a_timeout_that_nothing_could_keep_is_refused(backend: Any) -> None:
    async with Pool(1, backend) as pool:
        with pytest.raises(ValueError, match="timeout"):
            await pool.run(abs, -1, timeout=1.0)
        with pytest.raises(ValueError, match="timeout"):
            await pool.gather([delayed(abs)(-1)], timeout=1.0)


async def test_thread_calls_cannot_be_killed_and_the_pool_says_so() -> None:
    with pytest.raises(ValueError, match="kill"):
        Pool(1, "thread", on_cancel="kill")


# Cancellation at every await of the clean-up


async def cancel_again_after(task: asyncio.Future[Any], steps: list[int]) -> None:
    """Cancel *task*, and again each time the loop has gone round so often; then wait for it."""
    for count in steps:
        task.cancel()
        for _ in range(count):
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.wait([task])


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("backend", ["process", "inline"])
async def test_cancelling_again_at_any_step_of_the_clean_up_loses_no_slot(backend: Any, use: Any, pipe: Pipe) -> None:
    async with Pool(1, backend) as pool:
        for step in [0, 1, 3, 8]:
            task = asyncio.ensure_future(use(pool, tell_and_wait, pipe.path, b"x", LONG))
            await pipe.read()
            await cancel_again_after(task, [step, step, 1, 1])
            assert task.cancelled()
            await assert_consistent(pool)
        assert pipe.read_now() == b""


@on_one_loop
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_cancelling_at_any_step_of_a_quick_call_loses_no_slot(backend: Any, use: Any) -> None:
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        for step in range(16):
            task = asyncio.ensure_future(use(pool, abs, -1))
            for _ in range(step):
                await asyncio.sleep(0)
            task.cancel()
            async with asyncio.timeout(10):
                await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
            await assert_consistent(pool)


@on_one_loop
@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_cancelling_aclose_at_any_step_still_ends_every_worker(backend: Any, step: int) -> None:
    pool = Pool(2, backend)
    await pool.gather([delayed(abs)(-1)] * 4, batch_size=1)
    gathering = asyncio.ensure_future(pool.gather([delayed(asyncio.sleep)(0.2)] * 3, batch_size=1))
    running = asyncio.ensure_future(pool.run(asyncio.sleep, 0.2))
    await asyncio.sleep(0.01)
    closing = asyncio.ensure_future(pool.aclose())
    await asyncio.sleep(0)
    for _ in range(step):
        await asyncio.sleep(0)
    await cancel_again_after(closing, [step, 1, 0])
    async with asyncio.timeout(10):
        results = await asyncio.gather(gathering, running, return_exceptions=True)
    assert all(isinstance(result, ClosedPoolError) for result in results), results
    await pool.aclose()
    assert pool.statistics().workers == 0
    with pytest.raises(ClosedPoolError):
        await pool.run(abs, -1)


async def test_level_triggered_cancellation_of_the_clean_up_loses_no_slot(pipe: Pipe) -> None:
    """An anyio scope cancels at every await again, in the clean-up too."""
    async with Pool(1) as pool:
        for _ in range(3):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    for use in USES:
                        group.start_soon(use, pool, tell, pipe.path, b"x", LONG)
                    await pipe.read()
                    scope.cancel()
            await assert_consistent(pool)


async def test_a_cancelled_pool_block_ends_its_calls_and_workers(pipe: Pipe) -> None:
    pids: list[int] = []

    async def block() -> None:
        async with Pool(1) as pool:
            pids.append(await pool.run(os.getpid))
            await pool.gather([delayed(tell)(pipe.path, b"x", LONG)] * 2)

    begin = await by_task_cancel(block, pipe.read())
    assert begin < AT_MOST * 2
    assert not alive(pids[0])


async def test_leaving_a_stream_early_ends_what_is_left_of_it(pipe: Pipe) -> None:
    async with Pool(1) as pool:
        async with pool.stream(delayed(tell)(pipe.path, b"x", LONG * bool(index)) for index in range(10)) as results:
            async for _ in results:
                break
            await pipe.read(2)
            begin = time.monotonic()
        assert time.monotonic() - begin < AT_MOST
        await assert_consistent(pool)
        assert pipe.read_now() == b""


async def test_a_consumer_that_fails_ends_the_stream_of_the_loops_own_pool(pipe: Pipe) -> None:
    with pytest.raises(LookupError):  # noqa: PT012
        async with stream_parallel((delayed(tell)(pipe.path, b"x", LONG) for _ in range(3)), n_jobs=1):
            await pipe.read()
            raise LookupError
    assert pipe.read_now() == b""


# Many


async def kill_often(rounds: int, folder: Pipe) -> None:
    async with Pool(2) as pool:
        await pool.warm_up()
        for number in range(rounds):
            tasks = [asyncio.ensure_future(pool.run(tell, folder.path, b"x", LONG)) for _ in range(2)]
            await folder.read(1 + number % 2)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            folder.read_now()
        await assert_consistent(pool)
        assert pool.statistics().broken == 0


async def cancel_queued_often(count: int) -> None:
    async with Pool(2) as pool:
        await pool.warm_up()
        tasks = [asyncio.ensure_future(pool.run(abs, -index)) for index in range(count)]
        await asyncio.sleep(0)
        for index, task in enumerate(tasks):
            if index % 10:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for index, result in enumerate(results):
            assert result == index or (index % 10 and isinstance(result, asyncio.CancelledError))
        await assert_consistent(pool)


async def test_kills_lose_no_slot_descriptor_or_child(pipe: Pipe) -> None:
    await kill_often(4, pipe)


async def test_cancellations_of_queued_calls_lose_no_slot() -> None:
    await cancel_queued_often(1000)


@pytest.mark.soak
async def test_300_kills_lose_no_slot_descriptor_or_child(pipe: Pipe) -> None:
    await kill_often(300, pipe)


@pytest.mark.soak
async def test_10000_cancellations_of_queued_calls_lose_no_slot() -> None:
    await cancel_queued_often(10_000)


# Whoever cancels all tasks of the loop cancels ours, too, perhaps before they have begun


def cancel_tasks(name: str) -> None:
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == name)
    task.cancel()


async def test_who_waits_for_a_result_is_told_that_nobody_reads_it() -> None:
    backend = FakeBackend()
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        future = pool.submit(abs, -1)
        worker = backend.workers[0]
        worker.begin()
        worker.running = None
        worker._events.on_outcomes([Later(asyncio.Event().wait)], [], 0.0)
        cancel_tasks("aparallel-decode")
        async with asyncio.timeout(20):
            with pytest.raises(AparallelError, match="not read"):
                await future
        assert pool.statistics().running == 0


async def test_who_waits_for_calls_is_told_that_nobody_draws_them() -> None:
    async with Pool(1, "inline") as pool, pool.stream([delayed(abs)(-1)]) as results:
        cancel_tasks("aparallel-draw")
        async with asyncio.timeout(20) as limit:
            with pytest.raises(asyncio.CancelledError):
                await anext(results)
        assert not limit.expired()


async def test_a_worker_that_waits_for_room_is_told_that_there_will_be_no_more() -> None:
    told = asyncio.Event()
    worker: Any = SimpleNamespace(loans=SimpleNamespace(tell_relieved=told.set))
    tending = Tending(set())
    tending.begin(asyncio.get_running_loop())
    tending.relieve(worker)
    (task,) = tending._relieving
    task.cancel()
    async with asyncio.timeout(20):
        await told.wait()
