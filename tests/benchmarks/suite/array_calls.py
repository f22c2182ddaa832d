"""The functions of the works on arrays, which the workers of their contenders run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Every 32 KB: enough to see that the array is there and right, and little beside its transport.
STRIDE = 4096


def probe(task: tuple[Any, int]) -> float:
    """Look at an array here and there."""
    array, number = task
    return float(array[::STRIDE].sum()) + number


def fill(task: tuple[int, float]) -> Array:
    """Make an array of so many numbers, all of this value."""
    size, value = task
    return np.full(size, value)


def double(array: Array) -> Array:
    return array * 2.0


def expected(array: Array, number: int) -> float:
    return probe((array, number))
