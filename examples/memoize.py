"""Remember what is expensive: computed once, whoever asks, and read from disk ever after.

Run it twice: the second run computes nothing. Remove the directory, or run with --clear, to begin again.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from aparallel import Memory, Pool

memory = Memory(Path(tempfile.gettempdir()) / "aparallel-example-memoize", max_bytes="50MB", ttl="1d")


def collatz_record(limit: int) -> tuple[int, int]:
    """The start below *limit* with the longest way to 1, and how long that is."""
    steps = {1: 0}
    for start in range(2, limit):
        number, way = start, 0
        while number not in steps:
            number = 3 * number + 1 if number % 2 else number // 2
            way += 1
        steps[start] = steps[number] + way
    best = max(steps, key=steps.__getitem__)
    return best, steps[best]


async def main(limits: list[int], *, clear: bool) -> None:
    if clear:
        await memory.clear()
    async with Pool(n_jobs=2) as pool:
        record = memory.cache(collatz_record, pool=pool)
        print(f"{limits[0]:,}: {await record.explain(limits[0])}")
        found: list[tuple[int, int]] = []
        for turn in ("first", "second"):
            started = time.perf_counter()
            # Eight requests for two different results, at the same moment.
            found = await asyncio.gather(*(record(limit) for limit in limits * 4))
            print(f"{turn} time: {(time.perf_counter() - started) * 1e3:.1f} ms")
        for limit, (start, way) in zip(limits, found, strict=False):
            print(f"below {limit:,} the longest way to 1 has {way} steps, from {start:,}")
        statistics = record.statistics()
        print(f"{statistics.misses} computed, {statistics.hits} remembered, {statistics.shared} shared")
        print(f"{limits[0]:,}: {await record.explain(limits[0])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clear", action="store_true", help="forget everything first")
    options = parser.parse_args()
    asyncio.run(main([100_000, 200_000], clear=options.clear))
