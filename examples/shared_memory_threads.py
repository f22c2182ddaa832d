"""``require="sharedmem"``: calls run on threads and write their results into one list and one array.

Nothing synchronises these writes. That is safe here because each call writes a cell that is its own. Two calls that
change the same cell (``total += mean``) can lose updates: return the value instead, or guard the cell with a lock.
"""

import asyncio

import numpy as np
import numpy.typing as npt

from aparallel import delayed, gather_parallel


def write_mean(rows: npt.NDArray[np.float64], means: npt.NDArray[np.float64], done: list[bool], row: int) -> None:
    means[row] = rows[row].mean()  # numpy lets go of the GIL while it sums
    done[row] = True


async def main() -> None:
    rows = np.arange(12_000_000, dtype=np.float64).reshape(12, -1)
    means = np.zeros(len(rows))
    done = [False] * len(rows)
    calls = (delayed(write_mean)(rows, means, done, row) for row in range(len(rows)))
    await gather_parallel(calls, n_jobs=2, require="sharedmem")

    assert all(done)
    assert np.array_equal(means, rows.mean(axis=1))
    print(f"{len(rows)} row means, written by two threads into one array: {means[0]:,.1f} ... {means[-1]:,.1f}")

    try:
        await gather_parallel([delayed(write_mean)(rows, means, done, 0)], backend="process", require="sharedmem")
    except ValueError as error:
        print(f"ValueError: {error}")


asyncio.run(main())
