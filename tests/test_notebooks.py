"""Interrupting a cell of a notebook that waits for a thread. ipykernel's handler of SIGINT does not wake the loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aparallel import Memory, load

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such signals and pipes"),
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"]),
]

LONG = 5.0
AT_MOST = 2.0


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))


async def is_stopped_by_an_interrupt(cell: asyncio.Future[Any]) -> bool:
    """Have a handler of a signal cancel *cell* as ipykernel's does, and say whether it was cancelled soon."""
    loop = asyncio.get_running_loop()
    before = signal.signal(signal.SIGALRM, lambda *_: loop.call_soon(cell.cancel))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        begin = time.monotonic()
        await asyncio.wait([cell])
    finally:
        signal.signal(signal.SIGALRM, before)
    return cell.cancelled() and time.monotonic() - begin < AT_MOST


def compute(wait: Callable[[], None]) -> None:
    wait()


async def test_interrupting_who_waits_for_a_remembered_function(tmp_path: Path) -> None:
    begun, done = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        loop.call_soon_threadsafe(begun.set)
        done.wait(LONG)

    cell = asyncio.ensure_future(Memory(tmp_path).cache(compute, ignore=["wait"])(wait))
    async with asyncio.timeout(LONG):
        await begun.wait()
    assert await is_stopped_by_an_interrupt(cell)
    done.set()


async def test_interrupting_a_load(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    fd = os.open(pipe, os.O_RDWR)
    try:
        closing = threading.Timer(LONG, os.write, (fd, b"no file of ours"))
        closing.start()
        assert await is_stopped_by_an_interrupt(asyncio.ensure_future(load(pipe)))
    finally:
        closing.cancel()
        os.close(fd)
