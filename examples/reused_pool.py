"""Estimate pi until it is good enough: each round gathers on the same warm workers."""

import asyncio
import os
import random
from math import pi, sqrt

from aparallel import Pool, delayed

POINTS = 50_000


def points_inside(seed: int) -> tuple[int, int]:
    """How many of POINTS random points fall into the quarter circle, and the worker that counted."""
    uniform = random.Random(seed).random
    return sum(uniform() ** 2 + uniform() ** 2 < 1 for _ in range(POINTS)), os.getpid()


async def main() -> None:
    inside = points = rounds = 0
    workers: set[int] = set()
    estimate, error = 0.0, 1.0
    async with Pool(n_jobs=2) as pool:
        while error > 0.002:
            counted = await pool.gather(delayed(points_inside)(8 * rounds + i) for i in range(8))
            inside += sum(count for count, _ in counted)
            workers |= {worker for _, worker in counted}
            points += 8 * POINTS
            rounds += 1
            estimate = 4 * inside / points
            error = sqrt(estimate * (4 - estimate) / points)
            print(f"round {rounds}: {estimate:.4f} +- {error:.4f}")
        print(pool)

    assert abs(estimate - pi) < 5 * error
    assert len(workers) <= 2
    print(f"{rounds} rounds, {8 * rounds} calls, no more than 2 workers")


asyncio.run(main())
