"""A pipe with a name: whoever waits for its other end can stop, and keeps nobody else waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aparallel import dump, inspect, load

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")

LARGE = np.arange(1_000_000)  # more than a pipe holds


@pytest.fixture
def pipe(tmp_path: pathlib.Path) -> Iterator[str]:
    """A pipe; nothing that was opened or started for it is left."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    yield path
    until = time.monotonic() + 10
    while threading.active_count() > threads or len(os.listdir("/dev/fd")) > descriptors:
        assert time.monotonic() < until
        time.sleep(0.001)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """Be both ends, and do nothing."""
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


async def stops(work: Awaitable[Any], is_under_way: Callable[[], bool]) -> None:
    """Cancel *work* once it waits."""
    task = asyncio.ensure_future(work)
    async with asyncio.timeout(10):
        while not is_under_way():  # noqa: ASYNC110 (nothing tells what the kernel does)
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def has_thread() -> bool:
    return any(thread.name == "aparallel-thread-apart" for thread in threading.enumerate())


@pytest.mark.parametrize("use", [load, inspect, lambda path: dump(LARGE, path)])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pipe is opened in the kernel")
async def test_who_waits_for_the_other_end_of_a_pipe_can_be_cancelled(
    use: Callable[[str], Awaitable[Any]], pipe: str
) -> None:
    await stops(use(pipe), has_thread)


@pytest.mark.parametrize("use", [load, inspect])
async def test_who_reads_a_pipe_that_stalls_can_be_cancelled(use: Callable[[str], Awaitable[Any]], pipe: str) -> None:
    with opened(pipe) as fd:
        os.write(fd, b"\x89APL")
        await stops(use(pipe), lambda: is_empty(fd))


def is_empty(fd: int) -> bool:
    import fcntl
    import struct
    import termios

    (size,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return bool(size == 0)


async def test_who_writes_to_a_pipe_that_stalls_can_be_cancelled(pipe: str) -> None:
    with opened(pipe) as fd:
        await stops(dump(LARGE, pipe), lambda: not is_empty(fd))


async def test_any_number_may_wait_for_others_that_come_later(tmp_path: pathlib.Path) -> None:
    pipes = [tmp_path / f"pipe {number}" for number in range(40)]  # more than there are threads for files
    for path in pipes:
        os.mkfifo(path)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        loads = [group.create_task(load(path)) for path in pipes]
        await asyncio.sleep(0)
        for number, path in enumerate(pipes):
            group.create_task(dump([number], path))
    assert [task.result() for task in loads] == [[number] for number in range(40)]


async def test_a_reader_that_leaves_is_an_error_of_who_writes(pipe: str) -> None:
    def leave() -> None:
        with open(pipe, "rb") as file:
            file.read(10)

    async with asyncio.timeout(10):
        left, done = await asyncio.gather(asyncio.to_thread(leave), dump(LARGE, pipe), return_exceptions=True)
    assert left is None
    assert isinstance(done, BrokenPipeError)
    assert done.filename == pipe


async def test_a_pipe_without_a_name_is_written_and_read_by_its_descriptors() -> None:
    reading, writing = os.pipe()

    async def write() -> None:
        try:
            await dump(LARGE, f"/dev/fd/{writing}")
        finally:
            os.close(writing)

    try:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(write())
            found = await load(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
    assert np.array_equal(found, LARGE)


async def test_what_cannot_be_opened_is_an_error_at_once(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock, contextlib.chdir(tmp_path):
        sock.bind("socket")
        async with asyncio.timeout(10):
            for use in (load, inspect, lambda path: dump(1, path)):
                with pytest.raises(OSError, match="socket") as caught:
                    await use("socket")
                assert caught.value.filename == "socket"
