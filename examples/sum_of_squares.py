"""Sum squares over chunks: workers print to your terminal, ``verbose=1`` reports progress on stderr."""

import asyncio
import os

from aparallel import delayed, gather_parallel


def sum_of_squares(start: int, stop: int) -> int:
    print(f"worker {os.getpid()} sums {start:>9,} to {stop:>9,}")
    return sum(number * number for number in range(start, stop))


async def main() -> None:
    numbers, chunk = 4_000_000, 500_000
    calls = (delayed(sum_of_squares)(start, start + chunk) for start in range(0, numbers, chunk))
    sums = await gather_parallel(calls, n_jobs=2, verbose=1)

    assert sum(sums) == (numbers - 1) * numbers * (2 * numbers - 1) // 6
    print(f"{len(sums)} chunks: {sum(sums):,}")


asyncio.run(main())
