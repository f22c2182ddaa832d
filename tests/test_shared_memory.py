"""Shared memory goes back, whoever is killed, whatever is short: counted in descriptors, mappings and Shmem."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traveling import by_value

from aparallel import Pool, delayed
from aparallel._ground.room import Room, parse_available
from aparallel._transfer import borrowing
from aparallel._transfer.arguments import ArgumentMemory
from aparallel._transfer.borrowing import Borrower
from aparallel._transfer.lending import Lender, NoDescriptorError
from aparallel._transfer.segments import Hold
from aparallel._transfer.shared_memory import Mapping, Parts, _temporary_folder, create_in_file, create_in_memory
from aparallel._transfer.writing import Raw
from aparallel.errors import BrokenWorkerError, SharedMemoryError

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="there is no /proc to count in")


on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])

MB = 1 << 20


async def assert_freed_without_collector(attempt: Callable[[], Awaitable[weakref.ref[Any]]]) -> None:
    """Assert that what *attempt* refers to goes by reference counts alone."""
    gc.collect()
    gc.disable()
    try:
        arrays = [await attempt() for _ in range(5)]
        deadline = time.monotonic() + 5
        while any(array() is not None for array in arrays):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    finally:
        gc.enable()


@by_value
def full(size: int, value: float) -> Any:
    import numpy as np

    return np.full(size // 8, value)


@by_value
def same(value: Any) -> Any:
    return value


@by_value
def total(array: Any) -> float:
    return float(array.sum())


@by_value
def divide_by_first(array: Any) -> float:
    return 1 // int(array[0])


@by_value
def refuse(array: Any) -> None:
    try:
        int(array)
    except TypeError as reason:
        cause = reason
    error = ValueError("refused")
    raise error from cause


@by_value
def worker_state() -> tuple[int, int]:
    """Our mappings and descriptors of shared memory in a worker."""
    with open("/proc/self/maps") as maps:
        mapped = sum("memfd:aparallel" in line for line in maps)
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return mapped, sum("memfd:aparallel" in link for link in links)


def mapped_here() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:aparallel" in line for line in maps)


def descriptors_here() -> int:
    return len(os.listdir("/proc/self/fd"))


def shmem() -> int:
    """Bytes of shared memory on this machine; others use it too."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("Shmem:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("/proc/meminfo tells no Shmem")


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        gc.collect()
        await asyncio.sleep(0.01)


# Results


@on_one_loop
class TestResults:
    async def test_results_are_writable_memory_of_their_own(self) -> None:
        @by_value
        def kept(array: Any, cache: list[Any] = []) -> Any:  # noqa: B006 (kept by the worker)
            cache.append(array)
            return array, array[:], array[::2]

        argument = np.zeros(50_000)
        async with Pool(1, max_nbytes=1000) as pool:
            (a, b, c), (d, e, f) = [await pool.run(kept, argument) for _ in range(2)]
            for value, array in enumerate((a, b, c, d, e, f), 1):
                assert array.flags.writeable
                array[:] = value
            for value, array in enumerate((a, b, c, d, e, f), 1):
                assert (array == value).all()
            assert not argument.any()

    async def test_what_a_worker_returns_and_changes_later_does_not_change_here(self) -> None:
        def make() -> Callable[[float], Any]:
            state: list[Any] = []

            def step(value: float) -> Any:
                import numpy as np

                if not state:
                    state.append(np.zeros(50_000))
                state[0][:] = value
                return state[0]

            return step

        step = by_value(make())
        async with Pool(1, max_nbytes=1000) as pool:
            results = [await pool.run(step, float(value)) for value in range(20)]
            results += await pool.gather(delayed(step)(float(value)) for value in range(20, 40))
        assert [float(result[0]) for result in results] == [float(value) for value in range(40)]
        assert all((result == result[0]).all() for result in results)

    async def test_a_part_of_a_read_only_argument_is_writable_when_it_is_back(self) -> None:
        async with Pool(1) as pool:
            for cut in (lambda a: a[:10], lambda a: a[::3], lambda a: a[:0], lambda a: a, lambda a: {"x": [a[5:7]]}):
                back = await pool.run(by_value(cut), np.zeros(300_000))
                array = back["x"][0] if isinstance(back, dict) else back
                assert array.flags.writeable

    @pytest.mark.parametrize("kind", [ValueError, by_value(type("OfTheScript", (ValueError,), {}))])
    async def test_an_argument_in_an_error_is_writable_when_it_is_back(self, kind: type[Exception]) -> None:
        def fail(array: Any) -> None:
            raise kind("not these", array, array[::2])

        array = np.arange(50_000.0)
        async with Pool(1, max_nbytes=1000) as pool:
            with pytest.raises(ValueError, match="not these") as caught:
                await pool.run(by_value(fail), array)
            _, whole, half = caught.value.args
            assert (whole == array).all()
            assert (half == array[::2]).all()
            whole[:] = half[:] = 1
            assert await pool.run(total, array) == array.sum()

    async def test_two_results_in_one_object_that_are_one_array_stay_one(self) -> None:
        async with Pool(1, max_nbytes=1000) as pool:
            first, second = await pool.run(by_value(lambda a: [a, a]), np.zeros(5000))
        assert first is second

    async def test_results_outlive_the_pool_and_memory_goes_back_when_they_are_dropped(self) -> None:
        before = mapped_here()
        async with Pool(2, max_nbytes=1000) as pool:
            results = await pool.gather(delayed(full)(MB, i) for i in range(20))
        assert [float(result.sum()) for result in results] == [i * MB / 8 for i in range(20)]
        assert mapped_here() > before
        del results[1:]
        assert (results[0] == 0).all()
        results[0][:] = 5
        results.clear()
        await until(lambda: mapped_here() == before)

    async def test_memory_goes_back_while_the_pool_lives(self) -> None:
        before = mapped_here(), descriptors_here()
        async with Pool(1, max_nbytes=1000) as pool:
            at_first = await pool.run(worker_state)
            idle = descriptors_here()
            results = await pool.gather(delayed(same)(np.full(MB // 8, i)) for i in range(30))
            assert all((result == i).all() for i, result in enumerate(results))
            del results

            def gone() -> bool:
                # Where a worker and the spare put their outcomes is mapped, and the spare has five descriptors.
                return mapped_here() <= before[0] + 2 and descriptors_here() <= idle + 5

            await until(gone)
            deadline = time.monotonic() + 5
            while await pool.run(worker_state) != at_first:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        await until(lambda: descriptors_here() <= before[1])

    async def test_arguments_are_let_go_of_without_the_garbage_collector(self) -> None:
        async def attempt(pool: Pool) -> Any:
            array = np.zeros(50_000)
            assert await pool.run(total, array) == 0
            return weakref.ref(array)

        async with Pool(1, max_nbytes=1000) as pool:
            await attempt(pool)
            await assert_freed_without_collector(lambda: attempt(pool))

    async def test_the_arguments_of_a_failed_run_are_let_go_of_without_the_garbage_collector(self) -> None:
        async def attempt(pool: Pool) -> Any:
            array = np.zeros(50_000)
            with pytest.raises(ZeroDivisionError):
                await pool.run(divide_by_first, array)
            return weakref.ref(array)

        async with Pool(1, max_nbytes=1000) as pool:
            await attempt(pool)
            await assert_freed_without_collector(lambda: attempt(pool))
            memory = pool._engine.backend._tending.memory.get()  # type: ignore[attr-defined]
            assert all(segment.is_free for segment in memory.lender.segments.values())

    async def test_a_worker_lets_go_of_the_arguments_of_failed_calls_without_its_garbage_collector(self) -> None:
        async with Pool(1, max_nbytes=1000, initializer=gc.disable) as pool:
            memory = pool._engine.backend._tending.memory.get()  # type: ignore[attr-defined]
            for _ in range(5):
                with pytest.raises(ValueError, match="refused"):
                    await pool.run(refuse, np.zeros(50_000))
            await pool.run(same, 0)
            assert all(segment.lent == 0 for segment in memory.lender.segments.values())

    async def test_gathers_of_ever_new_arrays_write_into_the_memory_of_the_last(self) -> None:
        async with Pool(1, max_nbytes=1000) as pool:
            memory = pool._engine.backend._tending.memory.get()  # type: ignore[attr-defined]
            arrays = [np.full(MB // 8, float(value)) for value in range(20)]
            for value, array in enumerate(arrays):
                assert await pool.gather([delayed(total)(array) for _ in range(3)]) == [value * MB // 8] * 3
                await pool.run(same, 0)  # by then the worker has given it back
            assert len(memory.lender.segments) <= 3
            # What was written for an earlier one is not taken for it again.
            for value, array in enumerate(arrays):
                assert await pool.run(total, array) == value * MB // 8

    async def test_one_segment_serves_one_result_after_the_other(self) -> None:
        """Memory that was given back is used again: fresh pages cost ten times what the copy does."""
        address = by_value(lambda array: array.__array_interface__["data"][0])
        async with Pool(1, max_nbytes=1000) as pool:
            places = set()
            for value in range(30):
                result = await pool.run(full, MB, value)
                assert (result == value).all()
                places.add(result.__array_interface__["data"][0])
                del result
                await pool.run(address, np.zeros(10))  # by then the worker knows
        assert len(places) <= 3

    async def test_many_live_results_need_no_descriptors(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with Pool(2, max_nbytes=1000) as pool:
            await pool.run(worker_state)
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_here() + 60, hard))
            try:
                results = await pool.gather(delayed(full)(2000, i) for i in range(600))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [float(result[0]) for result in results] == list(range(600))
        assert all((result == i).all() for i, result in enumerate(results))

    async def test_beyond_many_mappings_small_results_are_copied_and_their_memory_is_given_back_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Pool(1, max_nbytes=1000) as pool:
            mapped = [await pool.run(full, 8000, value) for value in range(3)]
            monkeypatch.setattr(borrowing, "_MANY_MAPPINGS", 1)
            copied = [await pool.run(full, 8000, value) for value in range(3, 20)]
            copied[-1] += 1
            large = await pool.run(full, MB, 1.0)
            assert all(array.ctypes.data in Mapping.alive for array in [*mapped, large])
            assert not any(array.ctypes.data in Mapping.alive for array in copied)
            monkeypatch.undo()
            again = [await pool.run(full, 8000, value) for value in range(30, 35)]
            assert [int(array[-1]) for array in [*mapped, *copied, *again]] == [*range(19), 20, *range(30, 35)]
            assert large.sum() == MB // 8
            assert (await pool.run(worker_state))[1] <= len(mapped) + len(again) + 4


# Arguments that stay


@on_one_loop
class TestKeptArguments:
    async def test_what_a_worker_keeps_stays_as_it_was_though_memory_is_used_again(self) -> None:
        def make() -> Callable[[Any], Any]:
            kept: list[Any] = []

            def keep(array: Any) -> list[float]:
                if array is not None:
                    kept.append(array[::2] if len(kept) % 2 else array)
                return [float(one[0]) if (one == one[0]).all() else -1.0 for one in kept]

            return keep

        keep = by_value(make())
        async with Pool(1, max_nbytes=1000) as pool:
            for value in range(20):
                await pool.run(keep, np.full(20_000, float(value)))
                for other in range(5):  # of the same size, dropped at once
                    assert await pool.run(total, np.full(20_000, other)) == other * 20_000
            assert await pool.run(keep, None) == list(range(20))

    async def test_a_fork_of_a_worker_that_keeps_an_argument_finds_it_unchanged(self) -> None:
        def fork(array: Any, leave: bool) -> tuple[int, int]:
            """Leave a child behind that, when a byte comes, tells whether *array* is still what it was."""
            ask, tell = os.pipe()
            answer, reply = os.pipe()
            if not (pid := os.fork()):
                os.setsid()
                os.read(ask, 1)
                os.write(reply, b"y" if (array == 1).all() else b"n")
                os._exit(0)
            if leave:
                raise RuntimeError(f"{pid} {os.getpid()} {tell} {answer}")
            return os.getpid(), (tell << 16) + answer

        def ask(fds: int) -> bytes:
            os.write(fds >> 16, b"?")
            answer = os.read(fds & 0xFFFF, 1)
            os.wait()
            return answer

        async with Pool(1, max_nbytes=1000) as pool:
            _, fds = await pool.run(by_value(fork), np.ones(50_000), False)
            gc.collect()
            for value in range(2, 30):
                assert await pool.run(total, np.full(50_000, value)) == 50_000 * value
            assert await pool.run(by_value(ask), fds) == b"y"

    async def test_a_fork_that_outlives_its_killed_worker_finds_its_argument_unchanged(self, tmp_path: Path) -> None:
        def fork_and_die(array: Any, folder: str) -> None:
            """The child is in its session before the worker dies."""
            ready, told = os.pipe()
            if os.fork():
                os.read(ready, 1)
                os.kill(os.getpid(), signal.SIGKILL)
            os.setsid()
            os.write(told, b".")
            deadline = time.monotonic() + 20
            while not os.path.exists(folder + "/ask") and time.monotonic() < deadline:
                time.sleep(0.01)
            with open(folder + "/answer.new", "w") as file:
                file.write("same" if (array == 1).all() else "changed")
            os.rename(folder + "/answer.new", folder + "/answer")
            os._exit(0)

        async with Pool(1, max_nbytes=1000) as pool:
            with pytest.raises(BrokenWorkerError):
                await pool.run(by_value(fork_and_die), np.ones(50_000), str(tmp_path))
            gc.collect()
            for value in range(2, 30):
                assert await pool.run(total, np.full(50_000, value)) == 50_000 * value
            (tmp_path / "ask").touch()
            await until((tmp_path / "answer").exists)
        assert (tmp_path / "answer").read_text() == "same"

    async def test_a_fork_of_this_process_keeps_results_and_shares_as_they_were(self) -> None:
        async with Pool(1, max_nbytes=1000) as pool:
            shared = await pool.share(np.ones(50_000))
            array, result = shared.array, await pool.run(full, 400_000, 1.0)
            ask, tell = os.pipe()
            if not (pid := os.fork()):
                os.read(ask, 1)
                os._exit(0 if (array == 1).all() and (result == 1).all() else 1)
            shared.close()
            del shared, array, result
            gc.collect()
            for value in range(2, 20):
                assert (await pool.run(same, np.full(50_000, value)) == value).all()
            os.write(tell, b".")
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0  # noqa: ASYNC222 (it ends at once)
            os.close(ask)
            os.close(tell)


# Kills


@on_one_loop
class TestKills:
    async def check(self, rounds: int, disturb: Callable[[Pool, asyncio.Task[Any], random.Random], Any]) -> None:
        before = mapped_here(), descriptors_here(), shmem()
        choose = random.Random(5)
        async with Pool(2, max_nbytes=1000) as pool:
            await pool.run(worker_state)
            for turn in range(rounds):
                arrays = [np.full(200_000, turn + i) for i in range(4)]
                gathering = asyncio.ensure_future(pool.gather(delayed(same)(array) for array in arrays * 2))
                await asyncio.sleep(choose.random() * 0.02)
                await disturb(pool, gathering, choose)
                try:
                    results = await gathering
                except (BrokenWorkerError, asyncio.CancelledError):
                    pass
                else:
                    assert [float(result[-1]) for result in results] == [turn + i for i in range(4)] * 2
                results = None
            # All is well after that.
            assert (await pool.run(same, np.ones(200_000)) == 1).all()
        del arrays, results, gathering
        await until(lambda: mapped_here() == before[0] and descriptors_here() <= before[1])
        await until(lambda: shmem() <= before[2] + 64 * MB)

    @pytest.mark.parametrize("rounds", [12, pytest.param(500, marks=pytest.mark.soak)])
    async def test_workers_killed_while_arrays_move_leave_nothing(self, rounds: int) -> None:
        async def kill(pool: Pool, gathering: Any, choose: random.Random) -> None:
            children = [child for child in _children() if _is_worker(child)]
            with contextlib.suppress(ProcessLookupError, IndexError):  # the last one has not been replaced yet
                os.kill(choose.choice(sorted(children)), signal.SIGKILL)

        await self.check(rounds, kill)

    @pytest.mark.parametrize("rounds", [12, pytest.param(500, marks=pytest.mark.soak)])
    async def test_gathers_cancelled_while_arrays_move_leave_nothing(self, rounds: int) -> None:
        async def cancel(pool: Pool, gathering: Any, choose: random.Random) -> None:
            gathering.cancel()

        await self.check(rounds, cancel)

    async def test_a_pool_closed_while_arrays_are_written_leaves_no_descriptor(self) -> None:
        before = descriptors_here()
        for delay in (0.0, 0.001, 0.003, 0.01, 0.03):
            async with Pool(1, max_nbytes=1000) as pool:
                tasks = [asyncio.ensure_future(pool.run(total, np.ones(1_000_000))) for _ in range(6)]
                await asyncio.sleep(delay)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        await until(lambda: descriptors_here() <= before)


class TestPrograms:
    def test_results_outlive_the_loop(self) -> None:
        before = mapped_here()

        async def main() -> list[Any]:
            async with Pool(1, max_nbytes=1000) as pool:
                return await pool.gather(delayed(full)(MB, i) for i in range(5))

        results = asyncio.run(main())
        for value, result in enumerate(results):
            assert (result == value).all()
            result[:] = 9
        del result, results
        gc.collect()
        deadline = time.monotonic() + 5
        while mapped_here() != before:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_a_killed_program_leaves_no_process_and_no_memory(self, tmp_path: Path) -> None:
        script = tmp_path / "program.py"
        script.write_text(
            textwrap.dedent(
                """
                import asyncio, os, numpy as np
                from aparallel import Pool, delayed

                def slow(array):
                    return array + 1

                async def main():
                    async with Pool(2) as pool:
                        shared = await pool.share(np.ones(10_000_000))
                        pids = set(await pool.gather(delayed(os.getpid)() for _ in range(20)))
                        print(os.getpid(), *pids, flush=True)
                        while True:
                            arrays = [np.ones(2_000_000) for _ in range(4)]
                            await pool.gather(delayed(slow)(array) for array in arrays)

                asyncio.run(main())
                """
            )
        )
        before = shmem()
        for delay in (0.0, 0.05, 0.2):
            program = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
            assert program.stdout is not None
            with program, program.stdout:
                pids = [int(pid) for pid in program.stdout.readline().split()]
                assert len(pids) >= 2
                time.sleep(delay)
                program.kill()
                program.wait()
                deadline = time.monotonic() + 10
                while any(_is_alive(pid) for pid in pids):
                    assert time.monotonic() < deadline, "processes remain"
                    time.sleep(0.01)
        deadline = time.monotonic() + 10
        while shmem() > before + 64 * MB:
            assert time.monotonic() < deadline, "memory remains"
            time.sleep(0.05)

    def test_a_result_that_outlives_the_module_that_mapped_it_ends_quietly(self) -> None:
        script = """
            import asyncio, os, sys
            import numpy as np
            from aparallel import Pool

            async def main():
                async with Pool(1) as pool:
                    result = await pool.run(np.ones, 1_000_000)
                # Modules that something refers to are emptied when the interpreter ends, the oldest last.
                os.kept = [result, os, sys.modules["aparallel._transfer.shared_memory"]]
                sys.kept = os.kept[1:]

            asyncio.run(main())
            print("done")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")

    def test_a_program_that_ends_with_results_alive_ends_quietly(self, tmp_path: Path) -> None:
        script = tmp_path / "program.py"
        script.write_text(
            textwrap.dedent(
                """
                import asyncio, numpy as np
                from aparallel import Pool, delayed

                def make(i):
                    import numpy as np
                    return np.full(1_000_000, i)

                async def main():
                    global results, shared, cycle
                    pool = Pool(2)
                    results = await pool.gather(delayed(make)(i) for i in range(4))
                    cycle = [results[0]]
                    cycle.append(cycle)
                    shared = await pool.share(np.ones(1_000_000), mode="r+")
                    shared.array[:] = 2
                    return results

                kept = asyncio.run(main())
                print(sum(float(result[0]) for result in kept))
                """
            )
        )
        done = subprocess.run([sys.executable, "-X", "dev", str(script)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "6.0\n")
        assert "Exception ignored" not in done.stderr
        assert "Traceback" not in done.stderr


def _children() -> set[int]:
    children = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/children") as file:
            children.update(map(int, file.read().split()))
    return children


def _is_worker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"aparallel._worker" in file.read()
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


# Shortage


def _no_memfd(*args: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@by_value
def _without_memfd() -> None:
    def refuse(*args: Any) -> int:
        raise OSError(errno.ENOMEM, "no memory, says the test")

    os.memfd_create = refuse


@by_value
def _without_any() -> None:
    def refuse(*args: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, "no room, says the test")

    os.memfd_create = os.pwrite = refuse


@by_value
def where(array: Any) -> str:
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, _, end = line.split()[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                return line.split(maxsplit=5)[-1].strip()
    raise AssertionError("it is mapped nowhere")


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


@on_one_loop
class TestShortage:
    @pytest.mark.parametrize("kind", ["refused", "missing", "full"])
    async def test_without_memory_arguments_go_through_a_file_without_a_name(
        self, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        async with Pool(1, max_nbytes=1000, temp_folder=tmp_path) as pool:
            await pool.run(worker_state)
            if kind == "missing":
                monkeypatch.delattr(os, "memfd_create")
            elif kind == "refused":
                monkeypatch.setattr(os, "memfd_create", _no_memfd)
            else:
                monkeypatch.setattr(Room, "grant", lambda room, size: False)
            array = np.arange(50_000.0)
            assert str(tmp_path) in await pool.run(where, array)
            assert os.listdir(tmp_path) == []
            assert await pool.gather([delayed(total)(array)] * 3) == [array.sum()] * 3
            async with pool.share(array, mode="r+") as shared:
                shared.array[:] = 1
                assert await pool.run(total, shared) == 50_000
            for value in range(5):
                assert await pool.run(total, np.full(50_000, value)) == 50_000 * value
        assert os.listdir(tmp_path) == []

    async def test_where_files_without_names_cannot_be_made_one_loses_its_name(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(os, "memfd_create", _no_memfd)
        monkeypatch.delattr(os, "O_TMPFILE")
        async with Pool(1, max_nbytes=1000, temp_folder=tmp_path) as pool:
            assert str(tmp_path) in await pool.run(where, np.zeros(50_000))
            assert os.listdir(tmp_path) == []

    async def test_without_memory_results_go_through_a_file_without_a_name(self, tmp_path: Path) -> None:
        async with Pool(1, max_nbytes=1000, temp_folder=tmp_path, initializer=_without_memfd) as pool:
            results = [await pool.run(full, MB, value) for value in range(3)]
            assert all(str(tmp_path) in where(result) for result in results)
            assert all((result == value).all() for value, result in enumerate(results))
            assert os.listdir(tmp_path) == []
            results[0][:] = 9

    async def test_without_any_room_for_arguments_the_call_fails_clearly_and_the_pool_lives(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: Any) -> int:
            raise OSError(errno.ENOSPC, "no room, says the test")

        async with Pool(1, max_nbytes=1000) as pool:
            with monkeypatch.context() as patch:
                patch.setattr(os, "memfd_create", refuse)
                patch.setattr(os, "pwrite", refuse)
                for _ in range(3):
                    with pytest.raises(SharedMemoryError, match=r"400,000 bytes.*says the test") as caught:
                        await pool.run(total, np.zeros(50_000))
                    assert caught.value.nbytes == 400_000
                with pytest.raises(SharedMemoryError):
                    await pool.gather([delayed(total)(np.zeros(50_000))])
                with pytest.raises(SharedMemoryError):
                    await pool.share(np.zeros(50_000))
                assert await pool.gather([delayed(total)(np.ones(50_000))], max_nbytes=None) == [50_000]
            assert await pool.run(total, np.ones(50_000)) == 50_000

    async def test_without_any_room_for_a_result_its_call_fails_clearly_and_the_pool_lives(self) -> None:
        async with Pool(1, max_nbytes=1000, initializer=_without_any) as pool:
            pid = await pool.run(os.getpid)
            for _ in range(3):
                with pytest.raises(SharedMemoryError, match=r"1,048,576 bytes.*says the test"):
                    await pool.run(full, MB, 1.0)
            assert await pool.run(os.getpid) == pid
            assert (await pool.gather([delayed(full)(MB, 2.0)], max_nbytes=None))[0][-1] == 2.0

    async def test_without_descriptors_here_arguments_go_through_the_socket_and_results_fail_clearly(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with Pool(1, max_nbytes=1000) as pool:
            assert await pool.run(total, np.ones(1000)) == 1000
            warm = await pool.run(full, 80_000, 1.0)
            assert warm.sum() == 10_000
            taken = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_here() + 5, hard))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                for value in range(3):
                    assert await pool.run(total, np.full(50_000, value)) == value * 50_000
                with pytest.raises(SharedMemoryError, match="descriptor"):
                    await pool.run(full, 4 * MB, 1.0)
                assert await pool.run(total, [np.ones(3)][0]) == 3
            finally:
                for fd in taken:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert (await pool.run(full, 4 * MB, 2.0) == 2).all()
            assert (await pool.run(same, np.full(50_000, 3)) == 3).all()

    async def test_without_descriptors_in_a_worker_results_go_through_the_socket_and_arguments_fail_clearly(
        self,
    ) -> None:
        def limit() -> None:
            import numpy as np  # noqa: F401

            used = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))

        async with Pool(1, max_nbytes=1000, initializer=by_value(limit)) as pool:
            pid = await pool.run(os.getpid)
            assert (await pool.run(full, MB, 1.0) == 1).all()
            try:
                assert await pool.run(total, np.ones(50_000)) == 50_000
            except SharedMemoryError as error:
                assert "descriptor" in str(error)  # noqa: PT017
            assert (await pool.run(full, MB, 2.0) == 2).all()
            assert await pool.run(os.getpid) == pid

    async def test_an_argument_that_found_no_descriptor_in_a_worker_arrives_once_there_is_one(self) -> None:
        def take_all() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            with contextlib.suppress(OSError):
                while True:
                    os.open(os.devnull, os.O_RDONLY)

        def give_back() -> None:
            for fd in range(3, 100):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/self/fd/{fd}") == os.devnull:
                        os.close(fd)

        array = np.ones(50_000)
        async with Pool(1, max_nbytes=1000) as pool, pool.share(array) as shared:
            assert await pool.run(total, np.ones(1000)) == 1000
            await pool.run(by_value(take_all))
            for argument in (array, shared):
                with pytest.raises(SharedMemoryError, match="descriptor"):
                    await pool.run(total, argument)
            await pool.run(by_value(give_back))
            for argument in (array, shared, array):
                assert await pool.run(total, argument) == 50_000

    async def test_a_limit_on_the_size_of_files_fails_the_call_clearly_and_the_pool_lives(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        async with Pool(1, max_nbytes=1000) as pool:
            await pool.run(worker_state)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            try:
                with pytest.raises(SharedMemoryError, match="400,000 bytes"):
                    await pool.run(total, np.zeros(50_000))
                assert await pool.run(total, np.ones(1000)) == 1000
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert await pool.run(total, np.ones(50_000)) == 50_000

    async def test_what_cannot_be_mapped_here_for_want_of_memory_is_not_shared_and_says_so(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        array = np.ones(40 * MB // 8)
        async with Pool(1) as pool:
            (await pool.share(np.ones(3))).close()  # its thread, which takes memory, is there
            resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + 16 * MB, hard))
            try:
                with pytest.raises(SharedMemoryError, match=r"could not be mapped.*Free memory"):
                    await pool.share(array)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            async with pool.share(array) as shared:
                assert await pool.run(total, shared) == len(array)

    async def test_a_limit_on_a_workers_memory_fails_the_call_clearly_and_the_worker_lives(self) -> None:
        def limit() -> None:
            import numpy as np  # noqa: F401

            used = _mapped_bytes()
            resource.setrlimit(resource.RLIMIT_AS, (used + 32 * (1 << 20), used + 32 * (1 << 20)))

        async with Pool(1, max_nbytes=1000, initializer=by_value(limit)) as pool:
            pid = await pool.run(os.getpid)
            for _ in range(2):
                with pytest.raises(SharedMemoryError, match="bytes"):
                    await pool.run(total, np.ones(10_000_000))
            assert await pool.run(total, np.ones(50_000)) == 50_000
            assert await pool.run(os.getpid) == pid


class TestRoom:
    """How much memory there is, over made-up proc and cgroup trees."""

    MOUNT = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    MOUNT_V1 = "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"

    @pytest.fixture
    def root(self, tmp_path: Path) -> Callable[..., str]:
        def make(**texts: str) -> str:
            files = {
                "meminfo": "/proc/meminfo",
                "mountinfo": "/proc/self/mountinfo",
                "cgroup": "/proc/self/cgroup",
                "max": "/sys/fs/cgroup/app/memory.max",
                "current": "/sys/fs/cgroup/app/memory.current",
                "stat": "/sys/fs/cgroup/app/memory.stat",
                "parent_max": "/sys/fs/cgroup/memory.max",
                "parent_current": "/sys/fs/cgroup/memory.current",
                "v1_max": "/sys/fs/cgroup/memory/app/memory.limit_in_bytes",
                "v1_current": "/sys/fs/cgroup/memory/app/memory.usage_in_bytes",
                "v1_stat": "/sys/fs/cgroup/memory/app/memory.stat",
            }
            for name, text in texts.items():
                file = tmp_path / files[name].lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            return str(tmp_path)

        return make

    def test_the_machines_available_memory(self, root: Callable[..., str]) -> None:
        assert Room(root(meminfo="MemTotal: 9 kB\nMemAvailable:   1000 kB\n")).available() == 1_024_000

    def test_a_containers_limit_less_what_it_uses_and_cannot_give_up(self, root: Callable[..., str]) -> None:
        made = root(
            meminfo="MemAvailable: 1000 kB\n",
            mountinfo=self.MOUNT,
            cgroup="0::/app\n",
            max="500000\n",
            current="300000\n",
            stat="anon 5\ninactive_file 100000\n",
        )
        assert Room(made).available() == 300_000

    @pytest.mark.parametrize(("limit", "left"), [("max\n", 1_024_000), ("", 1_024_000), ("100\n", 0)])
    def test_no_limit_and_one_that_is_exceeded(self, root: Callable[..., str], limit: str, left: int) -> None:
        texts = {"mountinfo": self.MOUNT, "cgroup": "0::/app\n", "max": limit, "current": "300\n"}
        assert Room(root(meminfo="MemAvailable: 1000 kB\n", **texts)).available() == left

    def test_a_parents_tighter_limit_binds(self, root: Callable[..., str]) -> None:
        texts = {"max": "900\n", "current": "100\n", "parent_max": "500\n", "parent_current": "200\n"}
        assert Room(root(mountinfo=self.MOUNT, cgroup="0::/app\n", **texts)).available() == 300

    def test_version_one(self, root: Callable[..., str]) -> None:
        texts = {"v1_max": "900\n", "v1_current": "500\n", "v1_stat": "cache 9\ntotal_inactive_file 100\n"}
        assert Room(root(mountinfo=self.MOUNT_V1, cgroup="4:memory:/app\n", **texts)).available() == 500

    def test_a_process_that_was_moved_to_another_cgroup_has_the_limit_there(self, root: Callable[..., str]) -> None:
        room = Room(root(mountinfo=self.MOUNT, cgroup="0::/before\n", meminfo="MemAvailable: 1000 kB\n"))
        assert room.available() == 1_024_000
        root(cgroup="0::/app\n", max="900\n", current="500\n")
        assert room.available() == 400

    def test_where_nothing_tells_nothing_is_refused(self, root: Callable[..., str]) -> None:
        room = Room(root())
        assert room.available() is None
        assert room.grant(1 << 60)

    def test_what_was_granted_counts_as_used_until_the_files_are_read_again(self, root: Callable[..., str]) -> None:
        now = 0.0
        room = Room(root(meminfo="MemAvailable: 1000 kB\n"), max_age=1.0, clock=lambda: now)
        assert not room.grant(900_000)  # a fifth is everybody else's
        assert room.grant(200_000)
        assert not room.grant(700_000)
        assert room.grant(500_000)
        now = 2.0
        root(meminfo="MemAvailable: 10 kB\n")
        assert not room.grant(200_000)

    @pytest.mark.parametrize("text", ["", "MemAvailable:", "MemAvailable: much kB", "MemAvailable: -5 kB", "\0"])
    def test_what_cannot_be_read_limits_nothing(self, text: str) -> None:
        assert parse_available(text) is None


# Lending and borrowing, without processes


def raw(value: int, size: int = 10_000) -> Raw:
    return Raw(memoryview(bytes([value]) * size))


def read(hold: Hold, offset: int, size: int) -> bytes:
    return bytes(hold.segment.parts.read()[offset : offset + size])


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    yield lender
    lender.close()


class TestLender:
    def test_sources_lie_one_after_the_other_aligned(self, lender: Lender) -> None:
        hold, offsets, _ = lender.write([raw(1, 100), raw(2, 5000), raw(3, 64)])
        assert offsets == [0, 128, 128 + 5056]
        assert [read(hold, offset, 64) for offset in offsets] == [bytes([value]) * 64 for value in (1, 2, 3)]

    def test_a_segment_is_used_again_once_nobody_holds_or_has_it(self, lender: Lender) -> None:
        hold, _, _ = lender.write([raw(1)])
        segment = hold.segment
        segment.lend(2)
        del hold
        assert lender.write([raw(2)])[0].segment is not segment
        segment.take_back(1, spoiled=False)
        assert lender.write([raw(3)])[0].segment is not segment
        segment.take_back(1, spoiled=False)
        again, offsets, _ = lender.write([raw(4)])
        assert read(again, offsets[0], 10_000) == bytes([4]) * 10_000
        assert again.segment is segment

    def test_a_segment_that_a_fork_may_read_is_never_used_again_but_closed(self, lender: Lender) -> None:
        hold, _, _ = lender.write([raw(1)])
        segment = hold.segment
        segment.lend(1)
        del hold
        segment.take_back(1, spoiled=True)
        other, _, _ = lender.write([raw(2)])
        assert other.segment is not segment
        assert lender.trim(0.0) == [segment]
        assert segment.parts.fds == (-1,)

    def test_a_segment_is_not_used_for_what_is_much_smaller_or_larger(self, lender: Lender) -> None:
        hold, _, _ = lender.write([raw(1, 100_000)])
        segment = hold.segment
        del hold
        for size in (1000, 20_000, 200_000):
            assert lender.write([raw(2, size)])[0].segment is not segment
        assert lender.write([raw(2, 99_000)])[0].segment is segment

    def test_a_recycled_segment_can_be_written_beyond_what_it_held(self, lender: Lender) -> None:
        hold, _, _ = lender.write([raw(1, 100_000)])
        segment = hold.segment
        del hold
        hold, offsets, _ = lender.write([raw(2, 50_000), raw(3, 53_000)])
        assert hold.segment is segment
        assert read(hold, offsets[1], 53_000) == bytes([3]) * 53_000

    def test_trim_closes_what_was_unused_since_then_and_nothing_else(self, lender: Lender) -> None:
        held, _, _ = lender.write([raw(1)])
        free, _, _ = lender.write([raw(2)])
        segment = free.segment
        del free
        assert lender.trim(segment.free_since - 1) == []
        assert lender.trim(segment.free_since) == [segment]
        assert list(lender.segments.values()) == [held.segment]
        assert read(held, 0, 10) == bytes([1]) * 10

    def test_after_a_failed_write_the_next_candidate_gets_everything(
        self, lender: Lender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = os.pwrite
        calls = []

        def fails_once(fd: int, data: Any, offset: int) -> int:
            calls.append(fd)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "full")
            return written(fd, data[:7], offset) if len(calls) == 1 else written(fd, data, offset)

        before = descriptors_here()
        monkeypatch.setattr(os, "pwrite", fails_once)
        hold, offsets, _ = lender.write([raw(1), raw(2)])
        assert calls[0] == calls[1]
        assert [read(hold, offset, 10_000)[::9999] for offset in offsets] == [b"\1\1", b"\2\2"]
        assert descriptors_here() == before + 1
        assert "(deleted)" in os.readlink(f"/proc/self/fd/{hold.segment.parts.fds[0]}")
        assert "memfd" not in os.readlink(f"/proc/self/fd/{hold.segment.parts.fds[0]}")

    def test_a_lack_of_descriptors_has_an_error_of_its_own(self, lender: Lender) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(NoDescriptorError, match="Too many open files"):
                lender.write([raw(1)])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_what_is_written_while_it_is_closed_leaves_no_descriptor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = descriptors_here()
        lender = Lender()
        written = os.pwrite

        def close_first(fd: int, data: Any, offset: int) -> int:
            lender.close()
            os.fstat(fd)  # still ours: it is nobody else's number yet
            return written(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", close_first)
        hold, _, _ = lender.write([raw(1)])
        monkeypatch.undo()
        del hold
        late, _, _ = lender.write([raw(2)])
        del late
        assert descriptors_here() == before


class TestBorrower:
    def test_a_loan_is_reported_when_nothing_refers_to_it(self) -> None:
        told: list[int] = []
        borrower = Borrower(lambda: told.append(1))
        fd = create_in_memory(4096)
        os.pwrite(fd, b"content", 0)
        borrower.introduce(7, [4096], [fd], keep=False)
        loan = borrower.borrow(7, 3)
        view = np.frombuffer(loan.view(0, 7, "r+"), np.uint8)
        part = view[2:4]
        del loan, view
        assert not borrower.released
        assert part.tobytes() == b"nt"
        del part
        assert list(borrower.released) == [(7, 3, False, False)]
        assert told == [1]
        borrower.close()

    def test_what_cannot_be_mapped_is_copied_and_counts_as_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(parts: Parts, mode: object) -> Mapping:
            raise SharedMemoryError("no more mappings, says the test", nbytes=parts.size)

        monkeypatch.setattr(borrowing, "mapped", refuse)
        borrower = Borrower()
        fd = create_in_memory(4096)
        os.pwrite(fd, b"content", 0)
        borrower.introduce(1, [4096], [fd], keep=False)
        array = np.frombuffer(borrower.borrow(1).view(3, 4, "r+"), np.uint8)
        assert list(borrower.released) == [(1, 1, False, True)]
        borrower.close()
        assert array.tobytes() == b"tent"
        array[0] = 0
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)

    def test_what_is_discarded_stays_mapped_while_it_is_referred_to(self) -> None:
        before = mapped_here()
        borrower = Borrower()
        fd = create_in_memory(4096)
        os.pwrite(fd, b"content", 0)
        borrower.introduce(1, [4096], [fd], keep=True)
        views = [bytes(borrower.borrow(1).view(0, 7, mode)) for mode in ("r", "c", "r+")]  # type: ignore[arg-type]
        kept = borrower.borrow(1).view(3, 4, "r")
        borrower.discard(1)
        assert views == [b"content"] * 3
        assert bytes(kept) == b"tent"
        assert len(borrower) == 0
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        del kept
        assert mapped_here() == before

    def test_a_fork_spoils_what_is_lent_at_that_time(self) -> None:
        borrower = Borrower()
        borrower.introduce(1, [4096], [create_in_memory(4096)], keep=False)
        loan = borrower.borrow(1)
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)
        del loan
        assert list(borrower.released) == [(1, 1, True, False)]
        borrower.close()

    def test_a_segment_whose_descriptor_was_lost_fails_its_users_clearly(self) -> None:
        for keep in (True, False):
            borrower = Borrower()
            borrower.introduce(1, [5000], [], keep=keep)
            with pytest.raises(SharedMemoryError, match=r"5,000 bytes.*descriptor"):
                borrower.borrow(1).view(0, 10, "r+")
            gc.collect()
            assert list(borrower.released) == [(1, 1, False, True)]
            borrower.close()


class TestPieces:
    def test_a_private_mapping_is_private_and_a_read_only_one_is_not_writable(self) -> None:
        fd = create_in_memory(4096)
        try:
            private, shared = Mapping(Parts([fd], [4096]), "c"), Mapping(Parts([fd], [4096]), "r+")
            read_only = Mapping(Parts([fd], [4096]), "r")
        finally:
            os.close(fd)
        mine = private.view(0, 4096, readonly=False)
        mine[:] = 5
        assert not shared.view(0, 4096, readonly=False).any()
        with pytest.raises(ValueError, match="read-only"):
            read_only.view(0, 4096, readonly=True)[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            read_only.view(0, 4096, readonly=True).flags.writeable = True

    def test_a_mapping_that_cannot_be_made_is_an_error(self) -> None:
        fd = create_in_memory(4096)
        try:
            with pytest.raises(OSError, match="could not be mapped"):
                Mapping(Parts([fd], [1 << 62]), "r")
        finally:
            os.close(fd)

    def test_a_file_in_a_folder_that_cannot_be_written_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            create_in_file(10, str(tmp_path / "missing"))

    def test_a_file_that_cannot_lose_its_name_is_closed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(path: str) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
        monkeypatch.setattr(os, "unlink", refuse)
        before = os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
        with pytest.raises(PermissionError):
            create_in_file(10, str(tmp_path))
        assert os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd") == before

    def test_what_the_disk_has_no_room_for_fails_before_the_disk_is_full(self, tmp_path: Path) -> None:
        disk = os.statvfs(tmp_path)
        with pytest.raises(OSError, match=str(tmp_path)) as caught:
            create_in_file(disk.f_bavail * disk.f_frsize + (1 << 30), str(tmp_path))
        assert caught.value.errno == errno.ENOSPC

    def test_the_temporary_folder_is_that_of_tempfile(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(tempfile, "tempdir", None)
        assert _temporary_folder() == tempfile.gettempdir()
        assert _temporary_folder() == tempfile.gettempdir()  # which tempfile remembers
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        assert _temporary_folder() == str(tmp_path) == tempfile.gettempdir()
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
        monkeypatch.delenv("TEMP", raising=False)
        monkeypatch.delenv("TMP", raising=False)
        assert _temporary_folder() == tempfile.gettempdir()

    def test_a_file_is_made_without_a_descriptor_to_spare(self, tmp_path: Path) -> None:
        """Nothing is imported, and no folder tried, when descriptors are what is short."""
        script = """
            import os, resource, sys
            from aparallel._transfer.lending import Lender, NoDescriptorError
            from aparallel._transfer.writing import Raw
            used = max(int(fd) for fd in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
            try:
                Lender().write([Raw(memoryview(bytes(1000)))])
            except NoDescriptorError:
                print("clear")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "clear\n", done.stderr

    def test_an_argument_memory_that_is_dropped_leaves_no_known_content(self) -> None:
        memory = ArgumentMemory(lambda: None)
        before = descriptors_here()
        array = np.ones(1000)
        parts, written = memory.place([memoryview(array).cast("B")], None, "r", None)
        assert written == 8000
        ((content, mode),) = parts
        assert mode == "r"
        assert read(content.hold, content.offset, 8000) == array.tobytes()
        again, written = memory.place([memoryview(array).cast("B")], None, "r", None)
        assert written == 0
        assert again[0][0] is content
        array[0] = 2
        changed, written = memory.place([memoryview(array).cast("B")], None, "r", None)
        assert written == 8000
        assert changed[0][0] is not content
        memory.close()
        assert descriptors_here() == before


# Long runs


@on_one_loop
@pytest.mark.parametrize("rounds", [200, pytest.param(8_000, marks=pytest.mark.soak)])
async def test_under_mixed_load_memory_stays_flat(rounds: int) -> None:
    def resident() -> int:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024

    choose = random.Random(1)
    samples: list[tuple[int, int, int]] = []
    async with Pool(2, max_nbytes=10_000) as pool:
        shared = await pool.share(np.ones(500_000))
        kept = np.zeros(300_000)
        for turn in range(rounds):
            value = choose.random()
            kept[choose.randrange(len(kept))] = value
            size = choose.choice([100, 2000, 50_000, 400_000])
            expected = float(kept.sum())
            results = await asyncio.gather(
                pool.run(same, np.full(size, value)),
                pool.run(total, kept),
                pool.gather(delayed(total)(shared) for _ in range(3)),
                pool.gather([delayed(full)(size * 8, value)] * 4),
            )
            assert (results[0] == value).all()
            assert results[1] == expected
            assert results[2] == [500_000.0] * 3
            assert all((result == value).all() for result in results[3])
            del results
            if turn >= rounds // 4:
                samples.append((resident(), descriptors_here(), mapped_here()))
        shared.close()
    # Maps are kept for half a second, for some fifty rounds. What grows steadily is, in the last third, well above all
    # of the first.
    third = len(samples) // 3
    assert third > 5
    for early, late in zip(zip(*samples[:third], strict=True), zip(*samples[-third:], strict=True), strict=True):
        assert min(late) <= max(early) * 1.2


def waited_for_a_core() -> float:
    """The seconds that this thread was ready to run and did not, as other threads and programs had the cores."""
    with open("/proc/thread-self/schedstat") as file:  # nanoseconds: run, waited (Documentation/scheduler/sched-stats)
        return int(file.read().split()[1]) / 1e9


@on_one_loop
@pytest.mark.parametrize(("rounds", "bound"), [(3, 0.005), pytest.param(40, 0.002, marks=pytest.mark.soak)])
async def test_the_loop_runs_on_while_large_arrays_move(rounds: int, bound: float) -> None:
    """Of what it waits, the part that is the library's doing: workers on every core make it wait for one of them."""
    array = np.ones(12_000_000)
    async with Pool(2) as pool:
        await pool.gather([delayed(same)(array[:200_000])] * 2)
        # A thread that another program keeps off the cores may have the GIL: three attempts.
        lags = [await lag_while_arrays_move(pool, array, rounds)]
        while lags[-1] >= bound and len(lags) < 3:
            lags.append(await lag_while_arrays_move(pool, array, rounds))
    assert min(lags) < bound


async def lag_while_arrays_move(pool: Pool, array: Any, rounds: int) -> float:
    """Seconds, beyond what it waited for a core: the 99th percentile of all moments."""
    held: list[float] = []

    async def watch() -> None:
        while True:
            waited, due = waited_for_a_core(), time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late = time.perf_counter() - due
            held.append(late - (waited_for_a_core() - waited))

    watching = asyncio.ensure_future(watch())
    for value in range(rounds):
        array[0] = value
        results = await pool.gather([delayed(same)(array)] * 2)
        assert [result[0] for result in results] == [value, value]
        del results
    watching.cancel()
    # Each hold counts once for every tick that it swallowed.
    moments = sorted(late - tick * 0.001 for late in held for tick in range(1 + int(late / 0.001)))
    return moments[int(len(moments) * 0.99)]
