"""Workers of a lower priority: every one of them, whenever it starts, and nothing else."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest
from priorities import child_priority, look, priority, what_the_initializer_saw

from aparallel import Pool, delayed, gather_parallel
from aparallel.testing import FakeBackend

NICE = 5

pytestmark = pytest.mark.skipif(os.name != "posix" or os.nice(0) > 19 - NICE, reason="no lower priority is left")


async def test_every_worker_has_the_lower_priority_and_this_process_keeps_its_own() -> None:
    before = priority()
    async with Pool(2, nice=NICE, initializer=look) as pool:
        await pool.warm_up()
        assert set(await asyncio.gather(*(pool.run(priority) for _ in range(8)))) == {before + NICE}
        assert await pool.run(what_the_initializer_saw) == [before + NICE]
        assert await pool.run(child_priority) == before + NICE
        assert priority() == before
        assert f"nice={NICE}" in repr(pool)
    assert priority() == before


async def test_a_replacement_has_it_whether_it_stood_by_or_not() -> None:
    async with Pool(1, nice=NICE) as pool:
        await pool.warm_up()  # a spare stands by from here on
        pids = {await pool.run(os.getpid)}
        for _ in range(3):  # the second one comes before the next spare does
            with pytest.raises(TimeoutError):
                await pool.run(time.sleep, 60, timeout=0.01)
            assert await pool.run(priority) == priority() + NICE
            pids.add(await pool.run(os.getpid))
        assert len(pids) == 4


async def test_without_it_the_loop_goes_first() -> None:
    async with Pool(1) as pool:
        assert await pool.run(priority) == min(priority() + 10, 19)
        assert "nice" not in repr(pool)
    assert await gather_parallel([delayed(priority)()]) == [min(priority() + 10, 19)]


async def test_workers_may_have_the_callers_own_priority() -> None:
    async with Pool(1, nice=0) as pool:
        assert await pool.run(priority) == priority()
        assert "nice=0" in repr(pool)


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="a filter of system calls")
def test_where_a_lower_priority_is_forbidden_workers_keep_the_programs() -> None:
    code = """
    import asyncio, ctypes, os, struct
    from aparallel import Pool

    # seccomp(2): EPERM for setpriority, allow all else. Instructions: code, jumps, value.
    rules = (0x20, 0, 0, 0), (0x15, 0, 1, 141), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(program)), 0, 0) == 0

    async def main():
        async with Pool(1) as pool:
            assert await pool.run(os.getpriority, os.PRIO_PROCESS, 0) == os.getpriority(os.PRIO_PROCESS, 0)

    asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("nice", [-1, 20, 1.5, True, "5"])
def test_a_bad_priority_is_refused(nice: Any) -> None:
    with pytest.raises(ValueError, match="nice="):
        Pool(1, nice=nice)


@pytest.mark.parametrize("backend", ["thread", "threading", "inline", FakeBackend()])
def test_workers_that_cannot_have_one_say_so(backend: Any) -> None:
    with pytest.raises(ValueError, match="nice=5"):
        Pool(1, backend, nice=NICE)
    Pool(1, backend, nice=0)
