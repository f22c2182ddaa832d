"""What the calls of the suite do. Workers elsewhere find these functions by their names, and load nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextvars import ContextVar
from pathlib import Path

colour: ContextVar[str] = ContextVar("aparallel_suite_colour", default="none")
marks: set[str] = set()


def double(x: int) -> int:
    return 2 * x


def fail(text: str) -> None:
    raise LookupError(text)


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x


def turned_round(data: bytes) -> bytes:
    return data[::-1]


def paint(other: str) -> str:
    before = colour.get()
    colour.set(other)
    return before


def mark() -> None:
    marks.add("prepared")


def has_mark() -> bool:
    return "prepared" in marks


def fail_to_prepare() -> None:
    raise LookupError("no licence")


def sleep_for_ever(folder: str) -> None:
    while Path(folder).exists():
        time.sleep(0.001)


async def hold(folder: str, name: str) -> str:
    """Run until the test lets it go on. A coroutine, because a call on the loop itself must not hold that."""
    _touch(folder, f"{name}.started")
    while not _may_go_on(folder, name):  # noqa: ASYNC110  # no event of ours reaches another process
        await asyncio.sleep(0.001)
    _touch(folder, f"{name}.ended")
    return name


def _touch(folder: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # the test is over
        Path(folder, name).touch()


def _may_go_on(folder: str, name: str) -> bool:
    return Path(folder, f"{name}.let-go").exists() or not Path(folder).exists()
