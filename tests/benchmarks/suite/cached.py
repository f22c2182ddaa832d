"""The functions that caches remember. Each notes that it ran, in the file that the environment names."""

from __future__ import annotations

import os
import time
from typing import Any

RUNS = "SUITE_RUNS"


def note_run() -> None:
    if path := os.environ.get(RUNS):
        with open(path, "ab") as file:
            file.write(b".")


def runs() -> int:
    """How many times a function ran, in all processes."""
    return os.path.getsize(os.environ[RUNS])


def small(number: int) -> dict[str, int]:
    """A small argument and a small result that somebody could change."""
    note_run()
    return {"number": number}


def slow(number: int) -> dict[str, int]:
    note_run()
    time.sleep(0.05)
    return {"number": number}


async def small_coroutine(number: int) -> dict[str, int]:
    note_run()
    return {"number": number}


def total(array: Any) -> float:
    note_run()
    return float(array[:10].sum())


def ones(count: int) -> Any:
    import numpy as np

    note_run()
    return np.ones(count)
