"""What a user waits for before anything happens: a new script, and a first pool in a program that runs."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from statistics import median

from suite.calls import increment
from suite.contender import Contender
from suite.lag import LagMeter
from suite.work import Figure, Measurement, ParallelWork, Setting, Unit, WrongResult, timed


class ColdStart(ParallelWork):
    """Always two calls on two workers, so that figures of different machines can be compared."""

    name = "cold_start"
    title = "a whole script, cold, two workers"
    figures = (Figure("first result", Unit.SECONDS), Figure("exit", Unit.SECONDS))

    most_repetitions = 5

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        with tempfile.TemporaryDirectory() as directory:
            script = Path(directory) / "script.py"
            script.write_text(contender.cold_script)
            await self.run_script(script)  # fills the page cache and __pycache__
            runs = [await self.run_script(script)]
            while len(runs) < self.most_repetitions and sum(whole for _, whole in runs) < setting.scale.slice:
                runs.append(await self.run_script(script))
        return Measurement(
            {"first result": median(first for first, _ in runs), "exit": median(whole for _, whole in runs)}
        )

    async def run_script(self, script: Path) -> tuple[float, float]:
        """Seconds from the start of the interpreter to the line with the results, and to the end of the process."""
        errors = script.with_suffix(".stderr")
        with errors.open("wb") as stderr:
            started = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(script), stdin=DEVNULL, stdout=PIPE, stderr=stderr, env=_environment()
            )
            assert process.stdout is not None
            first_line = await process.stdout.readline()
            first_result = time.perf_counter() - started
            await process.wait()
            whole = time.perf_counter() - started
        if first_line.strip() != b"[0, 2]" or process.returncode != 0:
            raise WrongResult(f"printed {first_line!r}, ended with {process.returncode}: {errors.read_text()}")
        return first_result, whole


def _environment() -> dict[str, str]:
    """Ours, but with ``__pycache__``: packages that pip installed come compiled, a checkout does not."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class PoolStart(ParallelWork):
    """Here a loop runs meanwhile, and its lag tells whether starting and stopping workers holds it."""

    name = "pool_start"
    title = "a pool in a running program: start to first results"
    figures = (Figure("first results", Unit.SECONDS),)

    async def measure(self, contender: Contender, setting: Setting) -> Measurement:
        async with LagMeter() as meter:
            seconds, _ = await timed(self.start(contender, setting.n_jobs))
            await contender.stop()
        return Measurement({"first results": seconds}, meter.lag)

    async def start(self, contender: Contender, n_jobs: int) -> None:
        await contender.start(n_jobs)
        results = await contender.map(increment, range(n_jobs))
        if results != list(range(1, n_jobs + 1)):
            raise WrongResult(f"the first calls gave {results!r}")
