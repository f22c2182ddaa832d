"""A crash costs one call: whatever a call does to its worker, and wherever, the others keep their results."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import operator
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from traveling import by_value

from aparallel import Pool, delayed
from aparallel._backends import channel, child
from aparallel._wire import frames
from aparallel._wire.outbox import CLAIMED, COUNT, Outbox
from aparallel.errors import (
    BrokenWorkerError,
    CallTimeoutError,
    InitializerError,
    PoolSaturatedError,
    RemoteCallError,
    RemoteTraceback,
    UnpicklableCallError,
    UnpicklableResultError,
    UnsupportedPlatformError,
)

T = TypeVar("T")


# What a crash is, as functions of the standard library with arguments: these travel anywhere by name.
CRASHES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "error": (operator.truediv, (1, 0)),
    "sys.exit": (sys.exit, (7,)),
    "os._exit": (os._exit, (3,)),
    "segfault": (ctypes.string_at, (0,)),
    "SIGKILL": (signal.raise_signal, (signal.SIGKILL,)),
}
DEADLY = {"os._exit": (3, None), "segfault": (None, signal.SIGSEGV), "SIGKILL": (None, signal.SIGKILL)}
BATCH = 100

# What does not depend on the loop runs on one: workers are slow to start, and the suite should not be.
on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])


class CrashesWhenRead:
    """Its pickle is harmless; reading it crashes."""

    def __init__(self, crash: str) -> None:
        self.crash = crash

    def __reduce__(self) -> tuple[Any, ...]:
        return CRASHES[self.crash]


@by_value
class CrashesWhenPickled:
    """Can be made anywhere; pickling it runs *function*."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        self.function(*self.args)
        raise AssertionError("it survived")


@by_value
class SendsACrash:
    """Made in a worker; reading it in the parent runs *function*."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], padding: bytes = b"") -> None:
        self.function = function
        self.args = args
        self.padding = padding

    def __reduce__(self) -> tuple[Any, ...]:
        # A list of the padding first, so that a large result is read in a thread.
        return self.function, self.args, None, iter([self.padding])


@by_value
def crash_at(index: int, bad: int, function: Callable[..., Any], args: tuple[Any, ...]) -> int:
    if index == bad:
        function(*args)
    return index


@by_value
def result_at(index: int, bad: int, result_type: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return result_type(*args) if index == bad else index


@by_value
def second(_: object, value: T) -> T:
    return value


@pytest.fixture
def no_core_dumps() -> Iterator[None]:
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.fixture
async def pool(no_core_dumps: None) -> AsyncIterator[Pool]:
    async with Pool(1) as pool:
        yield pool
        await assert_works(pool)


async def assert_works(pool: Pool) -> None:
    async with asyncio.timeout(10):
        assert await pool.run(abs, -5) == 5
    now = pool.statistics()
    assert (now.queued, now.running, now.busy) == (0, 0, 0)
    assert now.workers <= now.n_jobs


def call_of(stage: str, crash: str, index: int = 0, bad: int = 0) -> Any:
    """A call that gives *index*, except that number *bad* crashes."""
    function, args = CRASHES[crash]
    if stage == "unpickling the call":
        return delayed(second)(CrashesWhenRead(crash) if index == bad else None, index)
    if stage == "running":
        return delayed(crash_at)(index, bad, function, args)
    if stage == "pickling the result":
        return delayed(result_at)(index, bad, CrashesWhenPickled, (function, args))
    return delayed(result_at)(index, bad, SendsACrash, (function, args))


def assert_right_error(error: object, stage: str, crash: str) -> None:
    if crash in DEADLY:
        assert type(error) is BrokenWorkerError
        assert (error.exitcode, error.signal) == DEADLY[crash]
        assert ("memory" if crash == "SIGKILL" else "stderr") in str(error)
        assert error.call
        return
    if stage == "running":
        if crash == "error":
            assert type(error) is ZeroDivisionError
            assert error.args == ("division by zero",)
            assert isinstance(error.__cause__, RemoteTraceback)
        else:
            assert type(error) is RemoteCallError
            assert "crash_at" in str(error)
            assert error.type_name == "SystemExit"
            assert error.text == "7"
            assert "SystemExit" in error.traceback
        return
    expected = UnpicklableCallError if stage == "unpickling the call" else UnpicklableResultError
    assert type(error) is expected
    assert error.call
    assert error.call.casefold() in str(error).casefold()
    reason = error.__cause__
    if crash == "error":
        assert isinstance(reason, ZeroDivisionError)
    else:
        assert isinstance(reason, RemoteCallError | SystemExit)


STAGES = ["unpickling the call", "running", "pickling the result"]
CASES = [(stage, crash) for stage in STAGES for crash in CRASHES]
# The parent reads results itself: what ends a process there ends the program, as it should.
CASES += [("unpickling the result", "error"), ("unpickling the result", "sys.exit")]


@pytest.mark.parametrize(("stage", "crash"), CASES)
async def test_a_crash_costs_its_call_and_says_what_it_was(pool: Pool, stage: str, crash: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is what this is about
        await pool.run(call_of(stage, crash))
    assert_right_error(caught.value, stage, crash)
    await assert_works(pool)
    assert pool.statistics().broken == (crash in DEADLY)


@on_one_loop
@pytest.mark.parametrize(("stage", "crash"), CASES)
async def test_a_crash_in_a_batch_costs_one_call_of_a_hundred(pool: Pool, stage: str, crash: str) -> None:
    bad = 57
    calls = [call_of(stage, crash, index, bad) for index in range(BATCH)]
    results = await pool.gather(calls, batch_size=BATCH, pre_dispatch="all", return_exceptions=True)
    assert_right_error(results[bad], stage, crash)
    assert [*results[:bad], *results[bad + 1 :]] == [*range(bad), *range(bad + 1, BATCH)]
    assert pool.statistics().broken == (crash in DEADLY)


@on_one_loop
@pytest.mark.parametrize("crash", CRASHES)
async def test_a_crash_among_tiny_calls_that_share_a_message_costs_one_call(pool: Pool, crash: str) -> None:
    """Their outcomes wait in the worker for company, and must be found there when it dies."""
    bad = 57
    await pool.gather(call_of("running", crash, index, -1) for index in range(500))  # so that their pace is known
    runs = [asyncio.create_task(pool.run(call_of("running", crash, index, bad))) for index in range(BATCH)]
    results = await asyncio.gather(*runs, return_exceptions=True)
    assert_right_error(results[bad], "running", crash)
    assert [*results[:bad], *results[bad + 1 :]] == [*range(bad), *range(bad + 1, BATCH)]


async def test_first_crash_of_a_gather_is_raised_and_the_rest_is_cancelled(pool: Pool) -> None:
    calls = [call_of("running", "SIGKILL", index, 5) for index in range(BATCH)]
    with pytest.raises(BrokenWorkerError, match="SIGKILL"):
        await pool.gather(calls, batch_size=BATCH)
    assert pool.statistics().queued == 0


@on_one_loop
@pytest.mark.parametrize("crash", ["error", "sys.exit"])
async def test_a_large_result_that_cannot_be_read_fails_alone(pool: Pool, crash: str) -> None:
    function, args = CRASHES[crash]

    @by_value
    def large() -> Any:
        return [b"x" * 3_000_000, SendsACrash(function, args)]

    with pytest.raises(UnpicklableResultError) as caught:
        await pool.run(large)
    assert caught.value.call == f"the call {large.__qualname__}"
    assert str(caught.value).startswith(f"The call {large.__qualname__} ran, but its result could not be rebuilt here")
    assert isinstance(caught.value.__cause__, ZeroDivisionError if crash == "error" else SystemExit)


@on_one_loop
@pytest.mark.parametrize("crash", ["error", "sys.exit"])
async def test_a_coroutine_that_crashes_leaves_the_workers_own_loop_usable(pool: Pool, crash: str) -> None:
    function, args = CRASHES[crash]

    @by_value
    async def fails() -> None:
        await asyncio.sleep(0)
        function(*args)

    @by_value
    async def works() -> int:
        await asyncio.sleep(0)
        return os.getpid()

    pid = await pool.run(works)
    with pytest.raises((ZeroDivisionError, RemoteCallError)):
        await pool.run(fails)
    assert await pool.run(works) == pid


@on_one_loop
@pytest.mark.parametrize("backend", ["thread", "inline"])
@pytest.mark.parametrize("crash", ["error", "sys.exit"])
async def test_a_call_in_this_process_may_exit_or_fail_without_harm(backend: Any, crash: str) -> None:
    async with Pool(1, backend) as pool:
        results = await pool.gather([call_of("running", crash, index, 2) for index in range(5)], return_exceptions=True)
        assert [*results[:2], *results[3:]] == [0, 1, 3, 4]
        if crash == "error":
            assert type(results[2]) is ZeroDivisionError
        else:
            assert type(results[2]) is RemoteCallError
            assert (results[2].type_name, results[2].text) == ("SystemExit", "7")
        await assert_works(pool)


# The worker dies while its outcome travels, or while nobody looks


class Pipe:
    """Tells the test, through a descriptor that outlives any worker, that a call has come this far."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "pipe")
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    async def read(self, count: int = 1) -> bytes:
        """Wait for *count* bytes."""
        data = b""
        async with asyncio.timeout(20):
            while len(data) < count:
                with contextlib.suppress(BlockingIOError):
                    data += os.read(self._fd, count - len(data))
                await asyncio.sleep(0.001)
        return data

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path)
    yield pipe
    pipe.close()


async def test_sigkill_in_the_middle_of_a_large_result_loses_only_that_call(pool: Pool) -> None:
    """The worker blocks in its send, as nobody reads while the loop is held, and is killed there."""

    @by_value
    def large() -> bytes:
        return bytes(40_000_000)

    await pool.warm_up()  # with what pickles by value
    pid = await pool.run(os.getpid)
    running = asyncio.create_task(pool.run(large))
    before = asyncio.create_task(pool.run(abs, -1))
    after = [asyncio.create_task(pool.run(abs, -index)) for index in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    deadline = time.monotonic() + 10
    while "wait" not in (state := wait_channel(pid)) or "send" not in state:
        if state == "0" or time.monotonic() > deadline:  # the kernel does not tell: long enough all the same
            time.sleep(0.3)  # noqa: ASYNC251  # the loop is held on purpose
            break
        time.sleep(0.001)  # noqa: ASYNC251
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BrokenWorkerError) as caught:
        await running
    assert caught.value.signal == signal.SIGKILL
    assert await before == 1
    assert await asyncio.gather(*after) == list(range(10))


def wait_channel(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text(encoding="utf-8") or "0"
    except OSError:
        return "0"


async def test_an_idle_worker_killed_from_outside_is_replaced_and_no_call_is_lost() -> None:
    async with Pool(2) as pool:
        await pool.warm_up()
        for _ in range(3):
            pids = set(await pool.gather([delayed(os.getpid)()] * 8))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            # At once: the pool may not know yet.
            assert await pool.gather(delayed(abs)(-x) for x in range(50)) == list(range(50))
        assert pool.statistics().broken == 0
        assert pool.statistics().workers <= 2


@on_one_loop
async def test_a_forked_copy_that_returns_from_the_call_does_not_speak_for_the_worker(pool: Pool) -> None:
    @by_value
    def forks() -> int:
        if pid := os.fork():
            os.waitpid(pid, 0)
        return os.getpid()

    @by_value
    async def forks_in_coroutine() -> int:
        return forks()

    pid = await pool.run(os.getpid)
    for function in (forks, forks_in_coroutine):
        assert await pool.run(function) == pid
    assert await pool.gather([delayed(forks)()] * 5, batch_size=5) == [pid] * 5
    assert pool.statistics().completed == 8


@on_one_loop
async def test_a_forked_copy_that_has_closed_its_output_ends_all_the_same(pool: Pool) -> None:
    @by_value
    def forks() -> int:
        if pid := os.fork():
            return os.waitpid(pid, 0)[1]
        sys.stdout.close()
        return -1

    assert await pool.run(forks) == 0


@on_one_loop
async def test_a_forked_copy_that_fails_in_the_call_does_not_speak_for_the_worker(pool: Pool) -> None:
    @by_value
    def forks() -> int:
        if pid := os.fork():
            os.waitpid(pid, 0)
            return os.getpid()
        raise SystemExit(4)

    pid = await pool.run(os.getpid)
    assert await pool.gather([delayed(forks)()] * 5, batch_size=5) == [pid] * 5


@on_one_loop
async def test_a_forked_copy_that_returns_an_array_does_not_put_its_own_in_place_of_the_workers(
    pool: Pool, tmp_path: Path
) -> None:
    path = tmp_path / "copy may go on"
    os.mkfifo(path)

    @by_value
    def forks() -> Any:
        import numpy as np

        if pid := os.fork():
            return pid
        path.read_bytes()
        return np.zeros(1_000_000)

    @by_value
    def ones(copy: int) -> Any:
        import numpy as np

        if copy:
            os.waitpid(copy, 0)
        return np.ones(1_000_000)

    copy = await pool.run(forks)
    await pool.run(ones, 0)
    for _ in range(5):  # that result's memory has been given back by then, and is the next one's
        await pool.run(abs, 1)
    path.write_bytes(b"go")
    assert (await pool.run(ones, copy) == 1).all()


@on_one_loop
async def test_an_initializer_that_forks_leaves_one_worker() -> None:
    @by_value
    def forks() -> None:
        os.fork()

    async with Pool(1, initializer=forks) as pool:
        async with asyncio.timeout(10):
            assert await pool.gather([delayed(abs)(-x) for x in range(50)], batch_size=1) == list(range(50))
            assert len(set(await pool.gather([delayed(os.getpid)()] * 20, batch_size=1))) == 1


async def test_a_worker_whose_forked_copy_lives_on_can_die(pool: Pool) -> None:
    """The copy holds the worker's socket open: its end must be seen all the same."""

    @by_value
    def forks_and_dies() -> None:
        if os.fork() == 0:
            time.sleep(60)
        os._exit(9)

    async with asyncio.timeout(10):
        with pytest.raises(BrokenWorkerError) as caught:
            await pool.run(forks_and_dies)
    assert caught.value.exitcode == 9


@by_value
def close_all(start: int) -> None:
    os.closerange(start, 4096)


@pytest.mark.parametrize("start", [0, 3])
async def test_a_call_that_closes_all_descriptors_harms_no_other(pool: Pool, start: int) -> None:
    calls = [delayed(abs)(-1)] * 20 + [delayed(close_all)(start)] + [delayed(abs)(-1)] * 20
    async with asyncio.timeout(10):
        results = await pool.gather(calls, batch_size=41, pre_dispatch="all", return_exceptions=True)
    assert results[:20] == results[21:] == [1] * 20
    assert results[20] is None or isinstance(results[20], BrokenWorkerError | OSError)


@pytest.mark.parametrize("kind", [frames.OUTCOMES, frames.VALUE_IN_SEGMENT, 0])
async def test_a_call_that_writes_into_our_socket_ends_its_worker_and_no_more(pool: Pool, kind: int) -> None:
    @by_value
    def writes(kind: int) -> None:
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, bytes([kind]) * 100)
        time.sleep(60)  # its own outcome must not come before what it wrote is read

    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    with pytest.raises(BrokenWorkerError):
        await pool.run(writes, kind)
    assert await pool.run(abs, -1) == 1
    assert len(told) <= 1


async def test_megabytes_on_descriptors_1_and_2_arrive_whole_and_disturb_nothing(
    pool: Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    @by_value
    def writes(count: int) -> int:
        for fd, letter in ((1, b"o"), (2, b"e")):
            for _ in range(count):
                os.write(fd, letter * 999 + b"\n")
        return count

    assert await pool.run(writes, 3000) == 3000
    out, err = capfd.readouterr()
    assert out == ("o" * 999 + "\n") * 3000
    assert err == ("e" * 999 + "\n") * 3000


@on_one_loop
async def test_nothing_to_read_from_stdin(pool: Pool) -> None:
    assert await pool.run(os.read, 0, 1) == b""


# Errors that resist


@on_one_loop
async def test_an_error_whose_text_is_hostile_arrives_as_an_error(pool: Pool) -> None:
    @by_value
    def fails(kind: str) -> None:
        class Text(str):
            __slots__ = ()

        class HostileError(Exception):
            def __str__(self) -> str:
                if kind == "subclass":
                    return Text("told")
                if kind == "exit":
                    sys.exit(3)
                raise ValueError("no text")

        raise HostileError

    for kind in ("subclass", "error", "exit"):
        async with asyncio.timeout(10):
            with pytest.raises(Exception) as caught:  # noqa: PT011  # its type may have to be another
                await pool.run(fails, kind)
        assert not isinstance(caught.value, BrokenWorkerError), kind
    assert pool.statistics().broken == 0


class NoTextError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def refuse() -> None:
    raise NoTextError


class Unbuildable:
    def __reduce__(self) -> Any:
        return refuse, ()


class Refusing:
    def __reduce__(self) -> Any:
        raise NoTextError


@on_one_loop
@pytest.mark.parametrize("kind", [Unbuildable, Refusing])
async def test_what_cannot_travel_for_an_error_without_a_text_says_so(pool: Pool, kind: Any) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(UnpicklableResultError, match="NoTextError"):
            await pool.run(kind)
        with pytest.raises(UnpicklableCallError, match="NoTextError"):
            await pool.run(id, kind())
        failed, one = await pool.gather([delayed(kind)(), delayed(abs)(-1)], return_exceptions=True)
        assert (type(failed), one) == (UnpicklableResultError, 1)


async def test_an_initializer_that_exits_or_fails_without_a_text_is_named() -> None:
    for initializer, told in ((sys.exit, "worker: SystemExit\n"), (refuse, "worker: NoTextError")):
        async with asyncio.timeout(20), Pool(1, initializer=initializer) as pool:
            with pytest.raises(InitializerError, match=told):
                await pool.run(abs, -1)


@on_one_loop
async def test_an_error_that_is_neither_true_nor_false_brings_its_traceback(pool: Pool) -> None:
    @by_value
    def fails() -> None:
        class UndecidedError(Exception):
            def __bool__(self) -> bool:
                raise ValueError("not me")

        raise UndecidedError("the text")

    with pytest.raises(Exception, match="the text") as caught:
        await pool.run(fails)
    told = str(caught.value.__cause__)
    assert "in fails" in told
    assert "UndecidedError: the text" in told


class FrozenError(Exception):
    """As ``dataclass(frozen=True)`` makes them: not even the cause can be set from Python."""

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenError, self.args

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to {name!r}")


class FunctionThatCannotBeRead:
    """Its pickle is harmless; reading it fails with a text of *length* letters."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __reduce__(self) -> tuple[Any, ...]:
        return fail_at_length, (self.length,)

    def __call__(self, number: int) -> int:
        return number


def fail_at_length(length: int) -> None:
    raise ValueError("x" * length)


@on_one_loop
async def test_functions_that_cannot_be_rebuilt_fail_alone_and_count_for_no_time(pool: Pool) -> None:
    """However long the texts are, which fill the outbox or go without it."""
    functions: list[Any] = [FunctionThatCannotBeRead(100_000), *[FunctionThatCannotBeRead(3_000)] * 100]
    async with asyncio.timeout(10):
        results = await pool.gather([delayed(fn)(1) for fn in functions], batch_size=20, return_exceptions=True)
        assert {type(result) for result in results} == {UnpicklableCallError}
        # Had these calls counted for hours, those that wait would be said to take as long.
        waiting = [pool.submit(time.sleep, 0.1) for _ in range(3)]
        with pytest.raises(PoolSaturatedError) as caught:
            await pool.run(time.sleep, 0.1, queue_timeout=0)
        assert caught.value.retry_after is None or caught.value.retry_after < 10
        await asyncio.gather(*waiting)


@on_one_loop
async def test_an_error_that_cannot_be_changed_arrives_too(pool: Pool) -> None:
    error = FrozenError("as it was")

    @by_value
    def fails(error: Exception) -> None:
        raise error

    async with asyncio.timeout(10):
        with pytest.raises((FrozenError, RemoteCallError), match="as it was"):
            await pool.run(fails, error)


@on_one_loop
class SoleError(Exception):
    """There is one, wherever it is read, whichever was pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sole_error, ()


def sole_error() -> SoleError:
    return SOLE


SOLE = SoleError("the only one")


def raise_sole() -> None:
    try:
        raise SoleError("another")
    except SoleError as error:
        raise SOLE from error


@on_one_loop
async def test_an_error_that_is_its_own_cause_when_it_is_read_arrives_each_time(pool: Pool) -> None:
    for _ in range(3):
        with pytest.raises(SoleError) as caught:
            await pool.run(raise_sole)
        assert caught.value is SOLE
        assert isinstance(SOLE.__cause__, RemoteTraceback)
        assert SOLE.__cause__.__cause__ is None


async def test_an_error_whose_first_base_does_not_make_it_arrives_as_itself(pool: Pool) -> None:
    def fail() -> None:
        class Own(Exception):
            pass

        class Both(Own, MemoryError):  # MemoryError.__new__ refuses to make one
            pass

        raise Both("text", 5)

    with pytest.raises(MemoryError) as caught:
        await pool.run(by_value(fail))
    assert type(caught.value).__name__ == "Both"
    assert caught.value.args == ("text", 5)


@on_one_loop
async def test_an_error_that_cannot_be_rebuilt_here_tells_its_story(pool: Pool) -> None:
    @by_value
    def fails() -> None:
        class Unreadable(Exception):
            def __reduce__(self) -> tuple[Any, ...]:
                return sys.exit, (5,)

        raise Unreadable("hidden")

    with pytest.raises(RemoteCallError) as caught:
        await pool.run(fails)
    assert caught.value.text == "hidden"
    assert "Unreadable" in caught.value.type_name
    assert "Unreadable" in caught.value.traceback


@on_one_loop
@pytest.mark.parametrize("name", ["KeyboardInterrupt", "StopIteration", "GeneratorExit", "asyncio.CancelledError"])
@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_what_would_mean_something_else_here_arrives_wrapped(backend: Any, name: str) -> None:
    @by_value
    def fails() -> None:
        namespace: dict[str, Any] = {"asyncio": asyncio}
        raise eval(name, namespace)("why")

    async with Pool(1, backend) as pool:
        with pytest.raises(RemoteCallError) as caught:
            await pool.run(fails)
        assert caught.value.type_name.rpartition(".")[2] == name.rpartition(".")[2]
        await assert_works(pool)


# Retries and retirement


@by_value
def die_first(folder: str, times: int) -> int:
    """Die as often as *times*, counted in files, then return how often."""
    count = len(os.listdir(folder))
    if count < times:
        with open(f"{folder}/{count}", "w", encoding="utf-8"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return count


@on_one_loop
async def test_retries_run_a_call_again_after_its_worker_died(pool: Pool, tmp_path: Path) -> None:
    results = await pool.gather([delayed(die_first)(str(tmp_path), 2)], retries=2)
    assert results == [2]
    assert pool.statistics().broken == 2


@on_one_loop
async def test_a_call_is_not_retried_more_often_than_asked_and_by_default_not_at_all(
    pool: Pool, tmp_path: Path
) -> None:
    for retries, left in ((0, 1), (1, 3)):
        told = rf"run {retries + 1} times \(retries={retries}\)" if retries else "give retries="
        with pytest.raises(BrokenWorkerError, match=told):
            await pool.gather([delayed(die_first)(str(tmp_path), 10)], retries=retries)
        assert len(os.listdir(tmp_path)) == left


@on_one_loop
@pytest.mark.parametrize("limited", [False, True], ids=["pool", "limited"])
async def test_a_single_call_is_run_again_as_often_as_asked_and_by_default_not_at_all(
    pool: Pool, tmp_path: Path, limited: bool
) -> None:
    calls = pool.limit("key", 1) if limited else pool
    with pytest.raises(BrokenWorkerError, match="give retries="):
        await calls.run(die_first, str(tmp_path), 3)
    with pytest.raises(BrokenWorkerError, match=r"SIGKILL(.|\n)*run 2 times \(retries=1\)"):
        await calls.run(die_first, str(tmp_path), 10, retries=1)
    assert len(os.listdir(tmp_path)) == 3
    others = [asyncio.ensure_future(calls.run(abs, -index)) for index in range(20)]
    assert await calls.run(die_first, str(tmp_path), 5, retries=2) == 5
    assert await asyncio.gather(*others) == list(range(20))
    assert await calls.map(die_first, [str(tmp_path)], [6], retries=1) == [6]
    assert pool.statistics().broken == 6


@pytest.mark.parametrize("retries", [-1, 1.5, "1", True, None])
async def test_a_number_of_retries_that_is_none_is_refused(retries: Any) -> None:
    async with Pool(1, "inline") as pool:
        with pytest.raises(ValueError, match="retries="):
            await pool.run(abs, -1, retries=retries)


@on_one_loop
async def test_retries_do_not_repeat_calls_that_failed_by_themselves(pool: Pool, pipe: Pipe) -> None:
    @by_value
    def fails(path: str) -> None:
        with open(path, "wb") as file:
            file.write(b"x")
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        await pool.gather([delayed(fails)(pipe.path)], retries=5)
    assert await pipe.read() == b"x"
    with pytest.raises(ValueError, match="no luck"):
        await pool.run(fails, pipe.path, retries=5)
    assert await pipe.read() == b"x"
    with contextlib.suppress(BlockingIOError):
        assert os.read(pipe._fd, 10) == b""


@on_one_loop
@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_workers_that_retire_while_calls_pour_in_lose_none(backend: Any) -> None:
    async with Pool(2, backend, max_calls_per_worker=7) as pool:
        runs = [asyncio.create_task(pool.run(abs, -index)) for index in range(60)]
        gathered = await pool.gather(delayed(abs)(-index) for index in range(60))
        assert gathered == await asyncio.gather(*runs) == list(range(60))
        now = pool.statistics()
        assert (now.completed, now.failed, now.broken, now.queued, now.running) == (120, 0, 0, 0, 0)


@on_one_loop
async def test_a_worker_runs_no_more_calls_than_allowed() -> None:
    async with Pool(1, max_calls_per_worker=3) as pool:
        pids = await pool.gather([delayed(os.getpid)()] * 9, batch_size=1)
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


# Workers that cannot start


async def test_an_interpreter_that_exits_at_once_is_a_clear_error_and_no_hang() -> None:
    async with Pool(2, executable="/bin/false") as pool:
        async with asyncio.timeout(10):
            with pytest.raises(BrokenWorkerError, match="/bin/false") as caught:
                await pool.run(abs, -1)
            assert caught.value.exitcode == 1
            with pytest.raises(BrokenWorkerError):
                await pool.warm_up()
            with pytest.raises(BrokenWorkerError):
                await pool.gather(delayed(abs)(-x) for x in range(5))
        assert pool.statistics().queued == 0


@on_one_loop
async def test_an_interpreter_that_is_missing_is_a_clear_error() -> None:
    async with Pool(2, executable="/nowhere/python") as pool:
        with pytest.raises(UnsupportedPlatformError, match="/nowhere/python"):
            await pool.run(abs, -1)
        with pytest.raises(UnsupportedPlatformError):
            await pool.warm_up()


@by_value
def initialize(how: str) -> None:
    if how == "raises":
        raise LookupError("no licence")
    if how == "sys.exit":
        sys.exit("no licence")
    os._exit(5)


@on_one_loop
@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
@pytest.mark.parametrize("how", ["raises", "sys.exit"])
async def test_an_initializer_that_fails_fails_the_calls_that_wait(backend: Any, how: str) -> None:
    async with Pool(1, backend, initializer=initialize, initargs=(how,)) as pool:
        async with asyncio.timeout(10):
            for _ in range(2):
                with pytest.raises(InitializerError, match="no licence") as caught:
                    await pool.run(abs, -1)
                cause = caught.value.__cause__
                assert isinstance(cause, LookupError if how == "raises" else RemoteCallError)
            with pytest.raises(InitializerError):
                await pool.warm_up()
        assert pool.statistics().queued == 0


@on_one_loop
async def test_an_initializer_that_ends_the_process_is_no_hang() -> None:
    async with Pool(1, initializer=initialize, initargs=("os._exit",)) as pool:
        async with asyncio.timeout(10):
            with pytest.raises(BrokenWorkerError) as caught:
                await pool.run(abs, -1)
        assert caught.value.exitcode == 5


async def test_warming_up_counts_no_worker_that_is_leaving() -> None:
    async with Pool(1, max_calls_per_worker=1) as pool:
        await pool.run(abs, -1)
        await pool.warm_up()
        assert pool.statistics().workers == 1


async def test_warming_up_a_pool_that_closes_starts_no_worker_afterwards() -> None:
    pool = Pool(2)
    warming = asyncio.create_task(pool.warm_up())
    await asyncio.sleep(0)
    await pool.aclose()
    async with asyncio.timeout(5):
        await asyncio.wait([warming])
    warming.exception()
    assert pool.statistics().workers == 0


# A kill that races a completion


async def race_kills_against_completions(rounds: int) -> None:
    """Kill workers at random moments of streams of short calls: each call has its own result or BrokenWorkerError."""
    async with Pool(2) as pool:
        await pool.warm_up()
        lost = 0
        for number in range(rounds):
            pids = set(await pool.gather([delayed(os.getpid)()] * 8, batch_size=1))
            calls = [delayed(pow)(3, index + 200 * (index % 7 == 0)) for index in range(300)]
            gathering = asyncio.create_task(pool.gather(calls, return_exceptions=True))
            await asyncio.sleep(0.0003 * (number % 13))
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                results = await gathering
            for call, result in zip(calls, results, strict=True):
                if isinstance(result, BaseException):
                    assert isinstance(result, BrokenWorkerError), result
                    lost += 1
                else:
                    assert result == call()
            assert pool.statistics().broken == lost <= 2 * (number + 1)
        await assert_works(pool)


async def test_a_kill_that_races_completions_loses_at_most_the_running_call() -> None:
    await race_kills_against_completions(15)


@pytest.mark.soak
async def test_many_kills_that_race_completions_lose_at_most_the_running_calls() -> None:
    await race_kills_against_completions(300)


async def test_a_worker_that_kills_itself_just_after_its_outcome_loses_no_outcome(pool: Pool) -> None:
    """The outcome is on its way, or still in the worker's memory, when a thread of the worker ends it."""

    @by_value
    def dies_soon(seconds: float) -> int:
        import threading

        def end() -> None:
            time.sleep(seconds)
            os._exit(0)

        threading.Thread(target=end).start()
        return 1

    for step in range(8):
        result = (await pool.gather([delayed(dies_soon)(step * 0.0001)], return_exceptions=True))[0]
        assert result == 1 or isinstance(result, BrokenWorkerError)
        assert await pool.run(abs, -2) == 2


@by_value
def scribble(position: int, value: int) -> None:
    """Do what a wild pointer may have done before its segfault: write to the memory that outcomes wait in."""
    outbox = next(found for found in gc.get_objects() if type(found) is Outbox)
    outbox.head[position] = value
    outbox.clear()
    outbox.write(b"\xff" * 1000)
    os._exit(3)


@on_one_loop
@pytest.mark.parametrize(("position", "value"), [(COUNT, 3), (CLAIMED, 0), (CLAIMED, 1 << 40)])
async def test_a_crash_that_writes_over_the_workers_memory_costs_its_call_and_no_other(
    pool: Pool, position: int, value: int
) -> None:
    async with asyncio.timeout(10):
        assert await pool.gather(delayed(abs)(-x) for x in range(20)) == list(range(20))
        with pytest.raises(BrokenWorkerError) as caught:
            await pool.run(scribble, position, value)
        assert caught.value.exitcode == 3
        await assert_works(pool)


async def test_what_the_system_refuses_to_send_costs_its_worker_and_no_call(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = channel.Channel._send_some
    refusals = [OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))]

    def refuse_once(self: channel.Channel) -> int:
        if refusals:
            raise refusals.pop()
        return send(self)

    await pool.warm_up()
    monkeypatch.setattr(channel.Channel, "_send_some", refuse_once)
    async with asyncio.timeout(10):
        assert await pool.run(abs, -2) == 2
    assert not refusals
    await assert_works(pool)


async def test_a_terminated_worker_reports_its_signal(pool: Pool, pipe: Pipe) -> None:
    @by_value
    def waits(path: str) -> None:
        with open(path, "wb") as file:
            file.write(b"x")
        time.sleep(60)

    pid = await pool.run(os.getpid)
    running = asyncio.create_task(pool.run(waits, pipe.path))
    await pipe.read()
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(BrokenWorkerError, match="SIGTERM") as caught:
        await running
    assert (caught.value.signal, caught.value.exitcode) == (signal.SIGTERM, None)


# Systems that tell of a process's end in other ways


class Kqueue:
    """Tells of a process's end as macOS does. *wait* is Linux's way to know of it."""

    def __init__(self, wait: Callable[..., object]) -> None:
        self.wait = wait

    def control(self, changes: list[int], events: int) -> list[int]:
        with contextlib.suppress(ChildProcessError):
            self.wait(os.P_PID, changes[0], os.WEXITED | os.WNOWAIT)
        return changes

    def close(self) -> None:
        """Nothing to do."""


@on_one_loop
@pytest.mark.parametrize("way", ["waitid", "kqueue"])
async def test_crashes_kills_and_ends_are_noticed_without_a_descriptor_of_the_process(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    if way == "kqueue":  # macOS, with Python before 3.13
        wait = os.waitid
        monkeypatch.delattr(os, "waitid")
        names = ("KQ_FILTER_PROC", "KQ_EV_ADD", "KQ_NOTE_EXIT")
        double = SimpleNamespace(kqueue=lambda: Kqueue(wait), kevent=lambda pid, *_: pid, **dict.fromkeys(names, 0))
        monkeypatch.setattr(child, "select", double)
    async with asyncio.timeout(20), Pool(1) as pool:
        await pool.warm_up()
        with pytest.raises(BrokenWorkerError) as caught:
            await pool.run(os._exit, 3)
        assert caught.value.exitcode == 3
        with pytest.raises(CallTimeoutError):
            await pool.run(time.sleep, 60, timeout=0.05)
        assert await pool.run(abs, -2) == 2


@on_one_loop
async def test_a_worker_whose_end_nobody_would_hear_of_is_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import child_processes  # not above: workers load this module for its classes

    start, most = threading.Thread.start, 0

    def start_few(thread: threading.Thread) -> None:
        nonlocal most
        if thread.name.startswith("aparallel-wait"):
            if most == 0:
                raise RuntimeError("can't start new thread")
            most -= 1
        start(thread)

    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(threading.Thread, "start", start_few)
    children = child_processes()
    async with asyncio.timeout(20), Pool(1) as pool:
        with pytest.raises(RuntimeError, match="new thread"):
            await pool.run(abs, -2)
        assert child_processes() == children
        most = 1
        await pool.warm_up()
        assert await pool.run(abs, -2) == 2
        assert len(child_processes() - children) == 1  # no spare
