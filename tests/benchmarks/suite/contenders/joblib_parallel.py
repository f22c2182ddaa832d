"""joblib.Parallel with its default backend, in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence

from joblib import Parallel, delayed

from suite.contender import A, Contender, NotOffered, R


class JoblibParallel(Contender):
    cold_script = """
from joblib import Parallel, delayed

def double(number):
    return 2 * number

if __name__ == "__main__":
    print(Parallel(n_jobs=2)(delayed(double)(number) for number in range(2)), flush=True)
"""

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)
        # A Parallel that is kept open keeps its workers and the batch size that it has learned.
        self._opened: dict[str, Parallel] = {}

    async def stop(self) -> None:
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        for parallel in self._opened.values():
            parallel.__exit__(None, None, None)

    def _parallel(self, return_as: str) -> Parallel:
        if return_as not in self._opened:
            self._opened[return_as] = Parallel(n_jobs=self.n_jobs, return_as=return_as).__enter__()
        return self._opened[return_as]

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        return (await self.map(fn, [arg]))[0]

    async def separate(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        raise NotOffered("a Parallel runs one list of calls at a time")

    async def map(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        def work() -> list[R]:
            results: list[R] = self._parallel("list")(delayed(fn)(arg) for arg in args)
            return results

        return await asyncio.to_thread(work)

    async def map_list(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        def work() -> list[R]:
            results: list[R] = self._parallel("list")([delayed(fn)(arg) for arg in args])
            return results

        return await asyncio.to_thread(work)

    async def stream(self, fn: Callable[[A], R], args: Iterable[A], consume: Callable[[R], None]) -> None:
        await asyncio.to_thread(self._consume, "generator", fn, args, consume)

    async def as_completed(self, fn: Callable[[A], R], args: Sequence[A], consume: Callable[[R], None]) -> None:
        await asyncio.to_thread(self._consume, "generator_unordered", fn, args, consume)

    def _consume(self, return_as: str, fn: Callable[[A], R], args: Iterable[A], consume: Callable[[R], None]) -> None:
        results: Iterator[R] = self._parallel(return_as)(delayed(fn)(arg) for arg in args)
        for result in results:
            consume(result)
