"""The standard library's ProcessPoolExecutor, awaited call by call or mapped in chunks."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor

from suite.contender import A, Contender, NotOffered, R

# For a stream, whose length nobody knows, someone has to guess a chunk size. This one favours throughput.
STREAM_CHUNK = 1_000


class ExecutorContender(Contender):
    """What all executors with the interface of concurrent.futures share."""

    executor: Executor

    @abstractmethod
    def create(self) -> Executor: ...

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)
        self.executor = self.create()

    async def stop(self) -> None:
        await asyncio.to_thread(self.executor.shutdown)

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        return await asyncio.get_running_loop().run_in_executor(self.executor, fn, arg)

    async def separate(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self.executor, fn, arg) for arg in args))

    async def map_in_chunks(self, fn: Callable[[A], R], args: Sequence[A]) -> list[R]:
        chunk = max(1, len(args) // (4 * self.n_jobs))  # multiprocessing.Pool.map's choice

        def work() -> list[R]:
            return list(self.executor.map(fn, args, chunksize=chunk))

        return await asyncio.to_thread(work)

    async def stream_in_chunks(self, fn: Callable[[A], R], args: Iterable[A], consume: Callable[[R], None]) -> None:
        def work() -> None:
            for result in self.executor.map(fn, args, chunksize=STREAM_CHUNK):
                consume(result)

        await asyncio.to_thread(work)


class RunInExecutor(ExecutorContender):
    """``loop.run_in_executor`` with a ProcessPoolExecutor, and asyncio.gather: what most async programs do today."""

    cold_script = """
import asyncio
from concurrent.futures import ProcessPoolExecutor

def double(number):
    return 2 * number

async def main():
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2) as executor:
        print(await asyncio.gather(*(loop.run_in_executor(executor, double, n) for n in range(2))), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""

    def create(self) -> Executor:
        return ProcessPoolExecutor(self.n_jobs)


class ExecutorMap(ExecutorContender):
    """``ProcessPoolExecutor.map`` in a thread, with a chunk size chosen by hand. Neither single calls nor mixtures."""

    cold_script = """
from concurrent.futures import ProcessPoolExecutor

def double(number):
    return 2 * number

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        print(list(executor.map(double, range(2))), flush=True)
"""

    map = ExecutorContender.map_in_chunks
    stream = ExecutorContender.stream_in_chunks

    def create(self) -> Executor:
        return ProcessPoolExecutor(self.n_jobs)

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        raise NotOffered("single calls are run_in_executor's")

    async def as_completed(self, fn: Callable[[A], R], args: Sequence[A], consume: Callable[[R], None]) -> None:
        raise NotOffered("results come in order only")
