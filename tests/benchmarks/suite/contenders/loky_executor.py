"""loky's reusable executor: mapped in chunks where the calls are known, awaited where they are not."""

from __future__ import annotations

from concurrent.futures import Executor

from loky import get_reusable_executor

from suite.contenders.executors import ExecutorContender


class Loky(ExecutorContender):
    cold_script = """
from loky import get_reusable_executor

def double(number):
    return 2 * number

if __name__ == "__main__":
    print(list(get_reusable_executor(2).map(double, range(2))), flush=True)
"""

    map = ExecutorContender.map_in_chunks
    stream = ExecutorContender.stream_in_chunks

    def create(self) -> Executor:
        executor: Executor = get_reusable_executor(self.n_jobs)
        return executor
