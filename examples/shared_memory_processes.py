"""Row means again, with processes: the rows are mapped by every worker, and all write into one shared array.

The rows are written to shared memory once, not once per call, and are read-only there. The means are shared both
ways. As with threads, nothing synchronises writes: that is safe because each call writes a cell that is its own.
"""

import asyncio

import numpy as np
import numpy.typing as npt

from aparallel import Pool, delayed


def write_mean(rows: npt.NDArray[np.float64], means: npt.NDArray[np.float64], row: int) -> None:
    means[row] = rows[row].mean()


def spoil(rows: npt.NDArray[np.float64]) -> None:
    rows[0] = 0.0


async def main() -> None:
    rows = np.arange(12_000_000, dtype=np.float64).reshape(12, -1)
    async with Pool(n_jobs=2) as pool:
        async with pool.share(np.zeros(len(rows)), mode="r+") as means:
            await pool.gather(delayed(write_mean)(rows, means.array, row) for row in range(len(rows)))
            assert np.array_equal(means.array, rows.mean(axis=1))
            print(f"{len(rows)} row means, written by two processes into one array: {means.array[0]:,.1f} ...")

        try:
            await pool.run(spoil, rows)
        except ValueError as error:
            print(f"ValueError: {error}")


asyncio.run(main())
