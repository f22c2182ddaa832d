"""What tests wait for. In this process: workers import none of it."""

from __future__ import annotations

import asyncio
from pathlib import Path


async def started(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110 (another process makes the file)
            await asyncio.sleep(0.001)
