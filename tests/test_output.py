"""What workers print is the user's to see: at once, in whole lines, on the user's own descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

HEAD = """
import asyncio, ctypes, os, sys, time
from aparallel import Pool, delayed, errors, gather_parallel
"""


def run_script(tmp_path: Path, body: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    script = tmp_path / "script.py"
    script.write_text(HEAD + textwrap.dedent(body))
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([sys.executable, str(script)], timeout=30, **{**settings, **options})


def gather_one(tmp_path: Path, function: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a script that gathers one call of the function ``f`` that *function* defines."""
    body = textwrap.dedent(function) + "\nasyncio.run(gather_parallel(delayed(f)()))\n"
    return run_script(tmp_path, body, **options)


WRITERS = {
    "print": "print('to stdout'); print('to stderr', file=sys.stderr)",
    "write": "sys.stdout.write('to stdout\\n'); sys.stderr.write('to stderr\\n')",
    "flush": "print('to stdout', flush=True); print('to stderr', flush=True, file=sys.stderr)",
    "buffer": "sys.stdout.buffer.write(b'to stdout\\n'); sys.stderr.buffer.write(b'to stderr\\n')",
    "original": "print('to stdout', file=sys.__stdout__); print('to stderr', file=sys.__stderr__)",
    "os.write": "os.write(1, b'to stdout\\n'); os.write(2, b'to stderr\\n')",
    "fileno": "os.write(sys.stdout.fileno(), b'to stdout\\n'); os.write(sys.stderr.fileno(), b'to stderr\\n')",
    "parts": "print('to', 'stdout'); print('to', end=' ', file=sys.stderr); print('stderr', file=sys.stderr)",
    "subprocess": "os.system('echo to stdout; echo to stderr >&2')",
    "c": "libc = ctypes.CDLL(None); libc.printf(b'to stdout\\n'); libc.fflush(None); os.write(2, b'to stderr\\n')",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_worker_writes_is_on_the_users_descriptors(tmp_path: Path, writer: str) -> None:
    run = gather_one(tmp_path, f"def f():\n    {WRITERS[writer]}")
    assert (run.returncode, run.stdout, run.stderr) == (0, b"to stdout\n", b"to stderr\n")


def test_an_unfinished_line_is_written_when_its_call_ends(tmp_path: Path) -> None:
    body = """
    def f():
        print("no newline", end="")

    async def main():
        async with Pool(1) as pool:
            await pool.run(f)
            os.write(1, b"|after the call|")

    asyncio.run(main())
    """
    assert run_script(tmp_path, body).stdout == b"no newline|after the call|"


def test_output_of_a_failing_call_is_not_lost(tmp_path: Path) -> None:
    body = """
    def f():
        print("before the error", end="")
        raise ValueError

    asyncio.run(gather_parallel([delayed(f)()], return_exceptions=True))
    """
    assert run_script(tmp_path, body).stdout == b"before the error"


def test_lines_written_before_a_crash_are_not_lost(tmp_path: Path) -> None:
    body = """
    def f():
        print("last words")
        os._exit(3)

    asyncio.run(gather_parallel([delayed(f)()], return_exceptions=True))
    """
    assert run_script(tmp_path, body).stdout == b"last words\n"


def test_output_appears_while_the_call_still_runs(tmp_path: Path) -> None:
    body = f"""
    def f():
        print("running")
        print("part", end="", flush=True)
        while not os.path.exists({str(tmp_path / "gate")!r}):
            time.sleep(0.002)

    asyncio.run(gather_parallel(delayed(f)()))
    """
    script = tmp_path / "script.py"
    script.write_text(HEAD + textwrap.dedent(body))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.read(len(b"running\npart")) == b"running\npart"
        (tmp_path / "gate").touch()
        assert process.wait(20) == 0


def test_lines_of_two_workers_are_never_mixed(tmp_path: Path) -> None:
    body = """
    def f(worker):
        for number in range(400):
            print(worker * 40, number, worker * (number * 7 % 2000), sep="-")

    asyncio.run(gather_parallel((delayed(f)(letter) for letter in "abcd"), n_jobs=2, batch_size=1))
    """
    run = run_script(tmp_path, body)
    lines = run.stdout.decode().splitlines()
    expected = [f"{c * 40}-{n}-{c * (n * 7 % 2000)}" for c in "abcd" for n in range(400)]
    assert sorted(lines) == sorted(expected)


def test_lines_of_two_threads_of_a_call_are_never_mixed_nor_lost(tmp_path: Path) -> None:
    body = """
    from concurrent.futures import ThreadPoolExecutor

    def f():
        sys.setswitchinterval(1e-6)

        def write(letter):
            for number in range(3000):
                print(letter, number)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write, "abcd"))

    asyncio.run(gather_parallel(delayed(f)()))
    """
    run = run_script(tmp_path, body)
    assert sorted(run.stdout.decode().splitlines()) == sorted(f"{c} {n}" for c in "abcd" for n in range(3000))


def test_an_unfinished_line_of_another_thread_is_written_when_the_call_ends(tmp_path: Path) -> None:
    body = """
    import threading

    def f():
        thread = threading.Thread(target=sys.stdout.write, args=("from a thread",))
        thread.start()
        thread.join()

    asyncio.run(gather_parallel(delayed(f)()))
    """
    assert run_script(tmp_path, body).stdout == b"from a thread"


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole(tmp_path: Path) -> None:
    run = gather_one(tmp_path, "def f():\n    print('x' * 1_000_000)")
    assert run.stdout == b"x" * 1_000_000 + b"\n"


def test_megabytes_written_to_both_descriptors_arrive(tmp_path: Path) -> None:
    run = gather_one(
        tmp_path,
        "def f():\n    for fd in (1, 2):\n        os.write(fd, b'z' * 50_000) if 0 else "
        "[os.write(fd, b'y' * 4095 + b'\\n') for _ in range(500)]",
    )
    assert run.stdout == run.stderr == (b"y" * 4095 + b"\n") * 500


def test_text_is_encoded_as_the_user_set_it(tmp_path: Path) -> None:
    run = gather_one(tmp_path, "def f():\n    print('\\u00e4')", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert run.stdout == b"\xe4\n"


def test_the_streams_have_their_names(tmp_path: Path) -> None:
    run = gather_one(tmp_path, "def f():\n    print(sys.stdout.name, sys.stderr.name, sys.__stdout__.buffer.name)")
    assert run.stdout == b"<stdout> <stderr> <stdout>\n"


def test_stdin_is_empty(tmp_path: Path) -> None:
    function = "def f():\n    print(repr(sys.stdin.read()), repr(os.read(0, 10)))"
    run = gather_one(tmp_path, function, stdin=None, input=b"the user's")
    assert run.stdout == b"'' b''\n"


@pytest.mark.parametrize("closed", [(1,), (2,), (0,), (1, 2), (0, 1, 2)])
def test_closed_standard_descriptors_do_no_harm(tmp_path: Path, closed: tuple[int, ...]) -> None:
    marker = tmp_path / "done"
    body = f"""
    def f(x):
        print("text")
        print("text", file=sys.stderr)
        return 2 * x

    result = asyncio.run(gather_parallel((delayed(f)(x) for x in range(50)), n_jobs=2))
    assert result == [2 * x for x in range(50)]
    open({str(marker)!r}, "w").close()
    """
    redirections = " ".join(f"{fd}>&-" for fd in closed)
    script = tmp_path / "script.py"
    script.write_text(HEAD + textwrap.dedent(body))
    subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" {redirections}', sys.executable, str(script)],
        timeout=30,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    assert marker.exists()


def test_descriptor_1_closed_by_the_program_does_no_harm(tmp_path: Path) -> None:
    body = """
    def f(x):
        print("text")
        return 2 * x

    async def main():
        await asyncio.sleep(0)
        os.close(1)  # as a daemon does
        result = await gather_parallel((delayed(f)(x) for x in range(50)), n_jobs=2)
        assert result == [2 * x for x in range(50)]
        os.write(2, b"done")

    sys.stdout = None
    asyncio.run(asyncio.wait_for(main(), 10))
    """
    assert run_script(tmp_path, body).stderr.endswith(b"done")


CLOSED_PIPE = """
def f():
    {statement}

async def main():
    async with Pool(1) as pool:
        (outcome,) = await pool.gather([delayed(f)()], return_exceptions=True)
        os.write(2, type(outcome).__name__.encode() + b" ")
        os.write(2, str(await pool.run(abs, -3)).encode() + b" " + str(pool.statistics().broken).encode())

asyncio.run(main())
"""


def test_writing_to_a_closed_pipe_is_that_calls_error_and_does_not_hang(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = run_script(tmp_path, CLOSED_PIPE.format(statement="print('text')"), stdout=writer)
    finally:
        os.close(writer)
    assert run.stderr == b"BrokenPipeError 3 0"


def test_an_unfinished_line_to_a_closed_pipe_does_not_cost_the_worker(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = run_script(tmp_path, CLOSED_PIPE.format(statement="print('text', end='')"), stdout=writer)
    finally:
        os.close(writer)
    assert run.stderr.endswith(b" 3 0")
    assert b"BrokenWorkerError" not in run.stderr


def test_an_unfinished_line_to_a_full_disk_does_not_cost_the_worker(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        run = run_script(tmp_path, CLOSED_PIPE.format(statement="print('text', end='')"), stdout=full)
    assert run.stderr.endswith(b" 3 0")
    assert b"BrokenWorkerError" not in run.stderr


def test_warnings_of_a_worker_are_shown(tmp_path: Path) -> None:
    run = gather_one(tmp_path, "def f():\n    import warnings\n    warnings.warn('look here', stacklevel=1)")
    assert b"look here" in run.stderr
