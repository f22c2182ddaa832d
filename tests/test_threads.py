"""A hop to a thread and back: what is cancelled when, and that no thread outlives its loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import anyio
import pytest
import uvloop
from memory_support import until

from aparallel._ground.hop import in_thread
from aparallel._ground.threads import Threads, afterwards, start_apart

NEW_LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]

number: ContextVar[int] = ContextVar("number")


async def reached(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


def own_threads() -> int:
    return sum(thread.name == "aparallel-thread" for thread in threading.enumerate())


async def test_a_hop_runs_in_a_copy_of_the_callers_context() -> None:
    number.set(1)

    def look() -> tuple[int, bool]:
        seen = number.get()
        number.set(2)
        return seen, threading.current_thread() is threading.main_thread()

    assert await in_thread(look) == (1, False)
    assert number.get() == 1


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_what_the_function_raises_is_raised_here(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await in_thread(fail)
    assert caught.value is error


async def test_stop_iteration_becomes_an_error_that_a_future_takes() -> None:
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        await in_thread(next, iter(()))
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_no_more_threads_than_the_limit_and_no_more_than_needed() -> None:
    threads = Threads(3)
    before = own_threads()
    for _ in range(5):
        await threads.start(int)
    assert own_threads() == before + 1
    barrier = threading.Barrier(3)
    await asyncio.gather(*(threads.start(barrier.wait) for _ in range(9)))
    assert own_threads() == before + 3


async def test_no_more_threads_stay_idle_than_may() -> None:
    threads = Threads(100, idle=2)
    before = own_threads()
    barrier = threading.Barrier(20)
    await asyncio.gather(*(threads.start(barrier.wait) for _ in range(20)))
    await until(lambda: own_threads() <= before + 2)
    barrier = threading.Barrier(3)
    await asyncio.gather(*(threads.start(barrier.wait) for _ in range(3)))


async def test_native_cancellation_goes_on_at_once_and_the_place_is_free_when_the_thread_is() -> None:
    threads = Threads(1)
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()
        ended.set()

    first = threads.start(work)
    await reached(begun)
    second = threads.start(ended.is_set)
    third = threads.start(pytest.fail, "its future was cancelled before it began")
    first.cancel()
    third.cancel()
    assert not ended.is_set()
    go_on.set()
    assert await second
    await threads.start(int)


async def test_an_anyio_scope_waits_for_the_thread() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        go_on.wait()
        ended.set()
        return "done"

    async def hop() -> None:
        nonlocal result
        result = await in_thread(work)

    result = ""
    async with anyio.create_task_group() as group:
        group.start_soon(hop)
        await reached(begun)
        group.cancel_scope.cancel()
        asyncio.get_running_loop().call_later(0.01, go_on.set)
    assert ended.is_set()
    assert result == "done"


async def test_hops_one_after_the_other_see_that_an_anyio_scope_is_cancelled() -> None:
    with anyio.move_on_after(0.01) as scope:
        while True:
            await in_thread(int)
    assert scope.cancelled_caught


@pytest.mark.parametrize("new_loop", NEW_LOOPS)
def test_threads_end_with_their_loop(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = new_loop()
    loop.run_until_complete(in_thread(int))
    threads = [thread for thread in threading.enumerate() if thread.name == "aparallel-thread"]
    assert threads
    loop.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_loops_in_several_threads_have_threads_of_their_own() -> None:
    barrier = threading.Barrier(8)

    async def main() -> list[int]:
        return await asyncio.gather(*(in_thread(barrier.wait) for _ in range(4)))

    results: list[int] = []
    runners = [threading.Thread(target=lambda: results.extend(asyncio.run(main()))) for _ in range(2)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(10)
    assert sorted(results) == list(range(8))


def run_script(script: str, *arguments: object) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_interpreters_exit_waits_for_what_a_thread_does_and_for_no_idle_one(tmp_path: Path) -> None:
    script = """
import asyncio, sys, time
from aparallel._ground.hop import in_thread

def write():
    with open(sys.argv[1], "w") as file:
        file.write("begun")
        file.flush()
        time.sleep(0.3)
        file.write(" and done")

async def main():
    await in_thread(int)
    task = asyncio.create_task(in_thread(write))
    await asyncio.sleep(0.1)
    return task

loop = asyncio.new_event_loop()  # never closed
task = loop.run_until_complete(main())
"""
    run_script(script, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "begun and done"


@pytest.mark.parametrize("close", ["loop.close()", "pass"])
def test_the_interpreters_exit_does_not_wait_for_data_that_nobody_brings(close: str) -> None:
    script = f"""
import asyncio, aparallel

async def chunks():
    yield b"x"
    await asyncio.sleep(3600)

async def main():
    task = asyncio.create_task(aparallel.load(chunks()))
    await asyncio.sleep(0.05)
    return task

loop = asyncio.new_event_loop()
task = loop.run_until_complete(main())
{close}
print("end")
"""
    assert run_script(script) == "end\n"


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 12, 2), reason="no thread can be started at its exit")
def test_a_loop_that_had_threads_serves_what_runs_last_at_the_interpreters_exit() -> None:
    script = """
import asyncio, atexit

loop = asyncio.new_event_loop()
atexit.register(lambda: print(loop.run_until_complete(in_thread(str, "at exit"))))  # runs after those of later imports

from aparallel._ground.hop import in_thread

print(loop.run_until_complete(in_thread(str, "before")))
"""
    assert run_script(script) == "before\nat exit\n"


async def test_no_thread_is_waited_for_that_cannot_begin_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    for start in (Threads(1).start, start_apart):
        with pytest.raises(RuntimeError, match="the interpreter is ending"):
            start(int)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    script = """
import asyncio, os, sys
from aparallel._ground.hop import in_thread

loop = asyncio.new_event_loop()
loop.run_until_complete(in_thread(int))
# Not while the loop runs: the child would run it to the end of its turn, and might read the wake-up that the parent
# waits for, as both have the same socket.
if child := os.fork():
    print(loop.run_until_complete(in_thread(str, "parent")), flush=True)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(asyncio.run(in_thread(str, "child")), flush=True)
# Not by the interpreter's exit: asyncio closes the inherited loop there, and takes its wake-up out of the epoll that
# the parent has, too.
os._exit(0)
"""
    assert sorted(run_script(script).split()) == ["child", "parent"]


def test_clean_up_does_not_hold_the_loop_while_another_thread_imports_anyio() -> None:
    script = """
import asyncio, importlib.util, sys, threading
from aparallel._ground.shield import outlast

NAME = "anyio._backends._asyncio"
importing, cleaned_up = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            importing.set()
            print("in time" if cleaned_up.wait(5) else "late", flush=True)
            execute(module)

        spec.loader.exec_module = exec_module
        return spec

async def main():
    sys.meta_path.insert(0, Slow())
    thread = threading.Thread(target=importlib.import_module, args=[NAME])
    thread.start()
    importing.wait()
    await outlast([asyncio.ensure_future(asyncio.sleep(0))])
    cleaned_up.set()
    thread.join()

asyncio.run(main())
"""
    assert run_script(script) == "in time\n"


async def test_what_a_job_leaves_for_afterwards_is_done_when_its_loop_has_the_result() -> None:
    threads, has_result, done = Threads(1), threading.Event(), threading.Event()

    def left() -> None:
        if has_result.wait(10):
            done.set()

    def job() -> str:
        afterwards(left)
        return "result"

    assert await threads.start(job) == "result"
    assert not done.is_set()
    has_result.set()
    await threads.start(int)  # the only thread's next job waits for it
    assert done.is_set()


async def test_other_jobs_do_not_wait_for_what_a_job_leaves_for_afterwards() -> None:
    threads, may_end, ended = Threads(2), threading.Event(), threading.Event()

    def left() -> None:
        may_end.wait(10)
        ended.set()

    await threads.start(afterwards, left)
    await threads.start(int)
    assert not ended.is_set()
    may_end.set()
    await reached(ended)


async def test_it_is_done_after_a_job_that_fails_too() -> None:
    done = threading.Event()

    def job() -> None:
        afterwards(done.set)
        raise OSError("no space")

    with pytest.raises(OSError, match="space"):
        await start_apart(job)
    await reached(done)


def test_in_a_thread_without_a_job_it_is_done_at_once() -> None:
    done: list[int] = []
    afterwards(lambda: done.append(1))
    assert done == [1]
