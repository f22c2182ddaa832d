"""What tests wait for, and what they keep from coming. In this process: workers import none of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path


async def started(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110 (another process makes the file)
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """What is let go of here goes by itself, or stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
