"""What the tests of Memory share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Recorder:
    """Notes what is computed. It is the same to every key."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __aparallel_key__(self) -> str:
        return "recorder"

    def __call__(self, x: Any) -> Any:
        self.calls.append(x)
        return [x]


async def until(predicate: Callable[[], Any], *tasks: asyncio.Future[Any]) -> None:
    """Let others run until something holds; at most for ten seconds, and while no task has failed."""
    async with asyncio.timeout(10):
        while not predicate():
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.001)


def files_of(location: str) -> list[Path]:
    return sorted(path for path in Path(location, "entries").rglob("*") if path.is_file())


def temporary_files(location: str) -> list[Path]:
    return sorted(path for path in Path(location, "tmp").rglob("*") if path.is_file())
