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


async def hold(folder: Path) -> str:
    """Run until the test lets it go on. A coroutine, because a call on the loop itself must not hold that."""
    with contextlib.suppress(FileNotFoundError):  # the test is over
        (folder / "started").touch()
        while folder.exists() and not (folder / "let-go").exists():  # noqa: ASYNC110, ASYNC240  # from another process
            await asyncio.sleep(0.001)
        (folder / "ended").touch()
    return "held"
