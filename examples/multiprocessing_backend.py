"""joblib's backend names work: "multiprocessing" and "loky" mean process workers, "threading" means threads."""

import asyncio
import os

from aparallel import delayed, gather_parallel


def count_primes(start: int, stop: int) -> tuple[int, int]:
    """How many primes are in [start, stop), and the process that counted them."""
    primes = sum(all(number % d for d in range(2, int(number**0.5) + 1)) for number in range(max(start, 2), stop))
    return primes, os.getpid()


async def main() -> None:
    calls = [delayed(count_primes)(start, start + 10_000) for start in range(0, 100_000, 10_000)]
    for backend in ("multiprocessing", "threading"):
        counted = await gather_parallel(calls, n_jobs=2, backend=backend)
        primes = sum(count for count, _ in counted)
        where = "this process" if {process for _, process in counted} == {os.getpid()} else "other processes"
        print(f"{backend:>15}: {primes:,} primes below 100,000, counted in {where}")


asyncio.run(main())
