"""Workers live as long as their pool, a pool as long as its loop, and neither longer than the program."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from aparallel import Pool, delayed, gather_parallel, stream_parallel
from aparallel._backends.inline import InlineBackend
from aparallel.errors import ClosedPoolError, WrongLoopError

NEW_LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_dead(pids: list[int], seconds: float = 2.0) -> None:
    """Within two seconds, as promised."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        left = [pid for pid in pids if alive(pid)]
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{left} of {pids} survived")
        time.sleep(0.005)


async def worker_pids(**options: Any) -> list[int]:
    """The process IDs of workers of the loop's own pool, each of which ran something."""
    results = await gather_parallel([delayed(tell_pid)() for _ in range(8)], batch_size=1, **options)
    return sorted(set(results))


def tell_pid() -> int:
    time.sleep(0.005)
    return os.getpid()


# Workers need not import this module, nor pytest with it.
tell_pid.__module__ = "__main__"


# The pool that belongs to the loop


async def test_the_loops_own_pool_is_reused_grows_and_shrinks() -> None:
    two = {*await worker_pids(n_jobs=2), *await worker_pids(n_jobs=2)}  # the first may be done before both are up
    assert len(two) <= 2
    three = await worker_pids(n_jobs=3)
    assert len(three) <= 3
    one = await worker_pids(n_jobs=1)
    assert len(one) == 1
    deadline = time.monotonic() + 10
    while sum(map(alive, {*two, *three} - {*one})):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_gathers_at_the_same_time_share_the_loops_own_pool() -> None:
    parts = await asyncio.gather(*(worker_pids(n_jobs=2) for _ in range(4)))
    assert len({pid for part in parts for pid in part}) <= 2


def test_nothing_is_left_after_asyncio_run() -> None:
    wait_until_dead(asyncio.run(worker_pids(n_jobs=2)))


def test_nothing_is_left_after_uvloop_run() -> None:
    wait_until_dead(uvloop.run(worker_pids(n_jobs=2)))


@pytest.mark.parametrize("new_loop", NEW_LOOPS)
def test_nothing_is_left_after_a_loop_that_is_only_closed(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = new_loop()
    pids = loop.run_until_complete(worker_pids(n_jobs=2))
    loop.close()
    wait_until_dead(pids)


@pytest.mark.parametrize("new_loop", NEW_LOOPS)
def test_a_pool_in_a_variable_does_not_survive_its_closed_loop(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    loop = new_loop()
    pool = Pool(1)
    pid = loop.run_until_complete(pool.run(os.getpid))
    loop.close()
    wait_until_dead([pid])
    with pytest.raises(WrongLoopError, match="which has closed"):
        asyncio.run(pool.run(abs, -1))


def test_a_pool_used_while_its_loop_does_not_run_says_so() -> None:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        pool = Pool(1, "inline")
        assert loop.run_until_complete(pool.run(abs, -1)) == 1
        with pytest.raises(WrongLoopError, match="which does not run now"):
            asyncio.run(pool.run(abs, -1))


@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("new_loop", NEW_LOOPS)
def test_a_loop_that_ends_with_work_under_way_ends_the_work(
    new_loop: Callable[[], asyncio.AbstractEventLoop], backend: Any, steps: int
) -> None:
    """As ``asyncio.run`` ends it: tasks are cancelled, then async generators finished, then the loop closed."""
    tasks: list[asyncio.Future[Any]] = []

    async def main() -> None:
        if steps % 2:
            await gather_parallel([delayed(abs)(-1)], n_jobs=1, backend=backend)
        call = delayed(asyncio.sleep)(60) if backend != "thread" else delayed(time.sleep)(0.05)
        tasks.append(asyncio.ensure_future(gather_parallel([call] * 3, n_jobs=1, backend=backend)))
        for _ in range(steps):
            await asyncio.sleep(0.01 if steps > 2 else 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert tasks[0].cancelled()


async def gather_long() -> None:
    await gather_parallel([delayed(time.sleep)(60)] * 3, n_jobs=1)


async def stream_long() -> None:
    async with stream_parallel([delayed(time.sleep)(60)] * 3, n_jobs=1) as results:
        async for _ in results:
            pass


async def run_long() -> None:
    async with Pool(1) as pool:
        await pool.run(time.sleep, 60)


async def gather_long_on_a_pool() -> None:
    async with Pool(1) as pool:
        await pool.gather([delayed(time.sleep)(60)] * 3)


@pytest.mark.parametrize("new_loop", NEW_LOOPS)
@pytest.mark.parametrize("work", [gather_long, stream_long, run_long, gather_long_on_a_pool])
def test_a_task_that_is_dropped_with_its_closed_loop_raises_nothing(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    work: Callable[[], Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unraisable: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: unraisable.append(report.exc_value))
    loop = new_loop()
    loop.set_exception_handler(lambda loop, context: None)  # asyncio reports that tasks were pending
    task = loop.create_task(work())
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    del task
    gc.collect()
    assert unraisable == []


@pytest.mark.parametrize("steps", range(4))
def test_a_loop_that_ends_while_a_pool_closes_does_not_hang(steps: int) -> None:
    async def main() -> None:
        pool = Pool(1)
        await pool.warm_up()
        asyncio.ensure_future(pool.aclose())  # noqa: RUF006
        for _ in range(steps):
            await asyncio.sleep(0)

    run_in_thread(lambda: asyncio.run(main()))


def run_in_thread(function: Callable[[], object]) -> None:
    """Run it and fail, instead of hanging, if it does not return."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("new_loop", NEW_LOOPS)
def test_a_closed_loop_with_tasks_pending_leaves_no_worker(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    script = """
import asyncio, os, sys, time, uvloop
from aparallel import Pool
async def main(pids):
    pool = Pool(2)
    await pool.warm_up()
    pids += [await pool.run(os.getpid)]
    globals()["task"] = asyncio.ensure_future(pool.run(time.sleep, 60))
    globals()["pool"] = pool
    await asyncio.sleep(0.05)
loop = NEW_LOOP()
pids = []
loop.run_until_complete(main(pids))
loop.close()
print(*pids, flush=True)
end = time.monotonic() + 2
while (left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < end:
    time.sleep(0.005)
print(*left, flush=True)
os._exit(0)
"""
    name = "uvloop.new_event_loop" if new_loop is uvloop.new_event_loop else "asyncio.new_event_loop"
    done = run_script(script.replace("NEW_LOOP", name))
    assert done.stdout.splitlines()[1] == ""


@pytest.mark.parametrize("end", ["loop.close()", "loop.close(); del loop, task; gc.collect()", ""])
@pytest.mark.parametrize(
    "use",
    [
        "gather_parallel(forever())",
        "stream_parallel(forever()).__aenter__()",
        "gather_parallel([delayed(asyncio.sleep)(60)], backend='inline')",
    ],
    ids=["async-source", "stream", "inline"],
)
def test_what_a_closed_loop_leaves_unfinished_raises_nothing(use: str, end: str) -> None:
    """Besides what asyncio itself says of tasks that were pending."""
    script = f"""
import asyncio, gc
from aparallel import delayed, gather_parallel, stream_parallel
async def forever():
    yield delayed(abs)(-1)
    await asyncio.sleep(60)
async def main():
    global task
    task = asyncio.ensure_future({use})
    await asyncio.sleep(0.05)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
{end}
"""
    done = run_script(script)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_loops_that_have_ended_are_not_kept_alive() -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await gather_parallel([delayed(abs)(-1)] * 3, backend="thread", n_jobs=1)

    for _ in range(4):
        asyncio.run(main())
    gc.collect()
    assert sum(loop() is not None for loop in loops) <= 1


def test_several_loops_in_several_threads_have_pools_of_their_own() -> None:
    found: list[list[int]] = []

    def serve() -> None:
        found.append(asyncio.run(worker_pids(n_jobs=1)))

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len({pid for pids in found for pid in pids}) == 3
    wait_until_dead([pid for pids in found for pid in pids])


# The wrong loop


async def test_a_pool_used_from_another_loop_says_so() -> None:
    async with Pool(1, "thread") as pool:
        await pool.run(abs, -1)
        failures: list[BaseException] = []

        def use() -> None:
            for act in (lambda: pool.run(abs, -1), lambda: pool.gather([delayed(abs)(-1)]), pool.aclose, pool.warm_up):
                try:
                    asyncio.run(act())
                except WrongLoopError as error:
                    failures.append(error)

        await asyncio.to_thread(use)
        assert len(failures) == 4
        assert await pool.run(abs, -2) == 2


def test_without_a_loop_the_error_says_so() -> None:
    pool = Pool(1, "thread")
    for coroutine in (pool.run(abs, -1), gather_parallel([delayed(abs)(-1)]), pool.warm_up()):
        with pytest.raises(WrongLoopError, match="asyncio"):
            coroutine.send(None)


def test_under_trio_the_error_names_it() -> None:
    trio = pytest.importorskip("trio")

    async def gather() -> None:
        await gather_parallel([delayed(abs)(-1)])

    async def stream() -> None:
        async with stream_parallel([delayed(abs)(-1)]):
            pass

    async def pool() -> None:
        async with Pool(1):
            pass

    for use in (gather, stream, pool):
        with pytest.raises(WrongLoopError, match="trio"):
            trio.run(use)


# Closing


@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_aclose_is_idempotent_and_a_closed_pool_says_so(backend: Any) -> None:
    pool = Pool(1, backend)
    assert await pool.run(abs, -1) == 1
    await asyncio.gather(pool.aclose(), pool.aclose())
    await pool.aclose()
    assert "closed" in repr(pool)
    with pytest.raises(ClosedPoolError):
        await pool.run(abs, -1)
    with pytest.raises(ClosedPoolError):
        await pool.gather([delayed(abs)(-1)])
    with pytest.raises(ClosedPoolError):
        async with pool.stream([delayed(abs)(-1)]):
            pass
    with pytest.raises(ClosedPoolError):
        await pool.warm_up()


async def test_a_pool_that_was_never_used_closes() -> None:
    pool = Pool(1)
    await pool.aclose()
    with pytest.raises(ClosedPoolError):
        await pool.run(abs, -1)


async def test_a_pool_can_close_while_its_spare_interpreter_starts_or_stands_in() -> None:
    """A worker that was killed took the spare; the next spare is yet to come."""
    for pause in (0.0, 0.09, 0.12):
        async with asyncio.timeout(10):
            async with Pool(1) as pool:
                await pool.warm_up()
                task = asyncio.ensure_future(pool.run(time.sleep, 60))
                await asyncio.sleep(0.05)
                task.cancel()
                await asyncio.wait([task])
                await asyncio.sleep(pause)


@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_a_normal_exit_waits_for_the_calls_admitted(backend: Any) -> None:
    async with Pool(1, backend) as pool:
        running = asyncio.ensure_future(pool.run(asyncio.sleep, 0.05, "done"))
        gathering = asyncio.ensure_future(pool.gather(delayed(abs)(-x) for x in range(5)))
        await asyncio.sleep(0)
    assert running.done()
    assert gathering.done()
    assert await running == "done"
    assert await gathering == list(range(5))


@pytest.mark.parametrize("backend", ["process", "inline"])
async def test_an_exit_by_an_exception_cancels_the_calls_admitted(backend: Any) -> None:
    begin = time.monotonic()
    tasks: list[asyncio.Future[Any]] = []
    with pytest.raises(LookupError):  # noqa: PT012
        async with Pool(1, backend) as pool:
            await pool.warm_up()
            tasks.append(asyncio.ensure_future(pool.run(asyncio.sleep, 60)))
            tasks.append(asyncio.ensure_future(pool.gather([delayed(asyncio.sleep)(60)] * 2)))
            await asyncio.sleep(0.05)
            raise LookupError
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, ClosedPoolError) for result in results), results
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_idle_workers_go_after_the_idle_timeout_and_come_back(backend: Any) -> None:
    async with Pool(2, backend, idle_timeout=0.1) as pool:
        await pool.warm_up()
        deadline = time.monotonic() + 5
        while pool.statistics().workers:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        assert await pool.run(abs, -1) == 1


# A fork of the caller, and the caller's death


def run_script(script: str, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
    with running_script(script) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # forked copies too, which hold the pipes open
            out, err = process.communicate()
            pytest.fail(f"it hangs: {out}{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextlib.contextmanager
def running_script(script: str) -> Any:
    """Start it in a process group of its own; what is left of that is killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        process.wait()


FORKS = """
import asyncio, os, sys
from aparallel import Pool
async def main():
    async with Pool(1) as pool:
        pid = await pool.run(os.getpid)
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        child = os.fork()
        if child == 0:
            if sys.version_info >= (3, 14):  # there asyncio forgets at a fork what runs, and so goes on after sys.exit
                asyncio._set_running_loop(loop)
                asyncio.tasks._enter_task(loop, task)
            CHILD
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert await pool.run(os.getpid) == pid
        print("unaffected")
asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "import gc; gc.collect(); os._exit(0)"])
def test_a_forked_copy_of_the_caller_that_ends_leaves_the_workers_alone(end: str) -> None:
    done = run_script(FORKS.replace("CHILD", end))
    assert done.returncode == 0, done.stderr
    assert "unaffected" in done.stdout


FORKS_WHILE_READING = """
import asyncio, builtins, os, stat, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on forks warn where there are threads
from aparallel import Pool, delayed
def is_held(fd):
    try:
        kind = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind)
before = {fd for fd in range(100) if is_held(fd)}
class Forks:
    def __reduce__(self):
        return eval, ("fork()",)
def make():
    return Forks(), "x" * 50_000
def fork():
    child = os.fork()
    if child == 0:
        os._exit(sum(map(is_held, set(range(100)) - before - in_use)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
builtins.fork = fork
async def main():
    global in_use
    in_use = {fd for fd in range(100) if is_held(fd)}
    async with Pool(3) as pool:
        await pool.warm_up()
        print("held:", (await pool.run(make))[0])
asyncio.run(main())
"""


def test_a_copy_forked_while_a_result_is_read_lets_go_of_all_workers() -> None:
    done = run_script(FORKS_WHILE_READING)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == "held: 0\n"


KILLED = """
import asyncio, os, subprocess, sys, time
from aparallel import Pool
def sleep(path):
    report(path)
    time.sleep(100)
def compute(path):
    report(path)
    pow(7, 10**9)
def add(path):
    report(path)
    sum(range(10**11))
def grandchild(path):
    children = [subprocess.Popen(["sleep", "100"]) for _ in range(2)]
    report(path, *[child.pid for child in children])
    time.sleep(100)
def report(path, *more):
    with open(path, "w") as file:
        print(os.getpid(), *more, file=file, flush=True)
async def main(path):
    pool = Pool(2)
    await pool.warm_up()
    BEFORE
    await pool.run(WORK, path)
asyncio.run(main(sys.argv[1]) if len(sys.argv) > 1 else main("PATH"))
"""


@pytest.mark.parametrize("work", ["sleep", "compute", "add", "grandchild"])
def test_no_child_survives_the_caller_that_is_killed(work: str, tmp_path: Path) -> None:
    kill_and_count(work, "pass", tmp_path)


def test_no_child_survives_the_caller_that_is_killed_though_its_forked_copy_lives(tmp_path: Path) -> None:
    kill_and_count("sleep", "os.fork() or time.sleep(100)", tmp_path)


def kill_and_count(work: str, before: str, folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    script = KILLED.replace("WORK", work).replace("BEFORE", before).replace("PATH", str(pipe))
    with running_script(script) as process:
        with open(pipe, encoding="utf-8") as file:
            told = [int(word) for word in file.readline().split()]
        pids = sorted({*told, *descendants(process.pid, but_not_in_group_of=process.pid)})
        assert len(pids) >= 2 + (work == "grandchild")
        time.sleep(0.05)  # into the C code
        process.kill()
        wait_until_dead(pids)


def descendants(pid: int, but_not_in_group_of: int) -> set[int]:
    found: set[int] = set()
    children: set[int] = set()
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="utf-8") as file:
                children |= set(map(int, file.read().split()))
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(child) != but_not_in_group_of:
                found.add(child)
        found |= descendants(child, but_not_in_group_of)
    return found


INTERRUPTED = """
import asyncio, os, sys, time
from aparallel import Pool, delayed, gather_parallel
def work(x):
    print("begun", flush=True)
    time.sleep(100)
async def main():
    pool = Pool(2)
    await pool.warm_up()
    tasks = asyncio.ensure_future(gather_parallel([delayed(work)(x) for x in range(4)], n_jobs=2))
    USE  # nothing is awaited before it: once calls have begun, it has
asyncio.run(main())
"""


@pytest.mark.parametrize("use", ["await tasks", "await pool.run(work, 1)", "await pool.gather([delayed(work)(1)])"])
def test_ctrl_c_ends_the_program_promptly_without_orphans_or_noise(use: str) -> None:
    with running_script(INTERRUPTED.replace("USE", use)) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        pids = sorted(descendants(process.pid, but_not_in_group_of=process.pid))
        assert len(pids) >= 3
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=10)
        assert time.monotonic() - begin < 2
        wait_until_dead(pids)
        assert process.returncode in (-signal.SIGINT, 130)
        assert errors.count("Traceback") <= 2  # the caller's own: KeyboardInterrupt during CancelledError
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert "_worker" not in errors
        assert "never retrieved" not in errors


def test_a_script_that_forgets_its_pool_exits_and_leaves_nothing() -> None:
    script = """
import asyncio, os
from aparallel import Pool
async def main():
    global pool
    pool = Pool(2)
    await pool.warm_up()
    print(await pool.run(os.getpid), flush=True)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    wait_until_dead([int(done.stdout)])
    assert done.stderr == ""


# Nested use


@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
def test_nested_use_multiplies_no_processes_and_ends(backend: str) -> None:
    """In a worker, gathers run on threads, deeper in line."""
    script = """
import asyncio, os, threading
from aparallel import delayed, gather_parallel
def where():
    return os.getpid(), threading.get_ident()
async def deepest():
    here = where()
    return here, await gather_parallel([delayed(where)() for _ in range(4)])
async def inner():
    return os.getpid(), await gather_parallel([delayed(deepest)() for _ in range(4)], n_jobs=2)
async def main():
    for process, inners in await gather_parallel([delayed(inner)() for _ in range(4)], n_jobs=2, backend="BACKEND"):
        for (pid, thread), deep in inners:
            assert pid == process, "a process more"
            if "BACKEND" == "process":
                assert process != os.getpid()
            assert set(deep) == {(pid, thread)}, "not in line"
    print("done")
asyncio.run(main())
"""
    done = run_script(script.replace("BACKEND", backend))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert done.stderr == ""


async def test_a_pool_that_is_dropped_finishes_what_it_has_begun_and_keeps_no_workers() -> None:
    pool = Pool(2)
    await pool.warm_up()
    pids = sorted({*await pool.gather([delayed(tell_pid)()] * 8, batch_size=1)})
    begun = pool.submit(tell_pid)
    later = pool.run(tell_pid)
    del pool
    gc.collect()
    pids += [await begun, await later]
    await asyncio.to_thread(wait_until_dead, pids)


async def test_an_inline_pool_can_be_used_from_its_own_calls() -> None:
    async with Pool(1, "inline") as pool:

        async def outer() -> list[int]:
            async with pool.stream([delayed(abs)(-3)] * 2) as results:
                streamed = [result async for result in results]
            return [await pool.run(abs, -1), *await pool.gather([delayed(abs)(-2)] * 2), *streamed]

        task = asyncio.ensure_future(pool.run(outer))
        done, _ = await asyncio.wait([task], timeout=2)
        task.cancel()
        await asyncio.wait([task])
        assert done, "it waits for itself"
        assert await task == [1, 2, 2, 3, 3]
        assert pool.statistics().n_jobs == 1


async def test_a_loops_own_pool_that_grows_while_its_calls_wait_for_others_keeps_its_workers() -> None:
    backend, reached, go_on = InlineBackend(), asyncio.Event(), asyncio.Event()

    async def nest(depth: int) -> None:
        if depth:
            await gather_parallel([delayed(nest)(depth - 1)], n_jobs=1, backend=backend)
        else:
            reached.set()
            await go_on.wait()

    async with asyncio.timeout(5):
        nesting = asyncio.create_task(gather_parallel([delayed(nest)(3)], n_jobs=1, backend=backend))
        await reached.wait()
        assert await gather_parallel([delayed(abs)(-1)], n_jobs=2, backend=backend) == [1]
        go_on.set()
        await nesting
        assert await gather_parallel([delayed(abs)(-2)], n_jobs=2, backend=backend) == [2]


async def test_a_thread_pool_used_from_its_own_calls_says_so() -> None:
    async with Pool(1, "thread") as pool:

        async def outer() -> int:
            return await pool.run(abs, -1)

        with pytest.raises(WrongLoopError):
            await pool.run(outer)


WARMED_UP = """
import asyncio, sys, threading
from aparallel import Pool

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "cloudpickle":
            print("on the loop:", threading.current_thread() is threading.main_thread())

async def main():
    async with Pool(1) as pool:
        WARM_UP
        print(await pool.submit(lambda: 1))

sys.meta_path.insert(0, Finder())
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("warm_up", "on_the_loop"), [("await pool.warm_up()", False), ("await pool.run(abs, 1)", True)]
)
def test_a_pool_that_was_warmed_up_imports_nothing_for_what_is_submitted(warm_up: str, on_the_loop: bool) -> None:
    script = WARMED_UP.replace("WARM_UP", warm_up)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == (f"on the loop: {on_the_loop}\n1\n", "")
