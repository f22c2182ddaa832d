"""Objects into files and back, as a program does that has other things to do meanwhile."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from suite.contenders import FILES
from suite.file_contender import FileContender
from suite.lag import Lag, LagMeter
from suite.memory import PeakMemory
from suite.work import Figure, Measurement, Setting, Unit, Work, WrongResult, timed


class FileWork(Work[FileContender]):
    """Dump once and load once; a small object goes before, so that nobody's imports are timed.

    The lag is that of the one in which it was worse, percentile by percentile.
    """

    contenders = FILES
    figures = (
        Figure("dump", Unit.SECONDS),
        Figure("load", Unit.SECONDS),
        Figure("file", Unit.MEGABYTES),
        Figure("peak memory, dump", Unit.MEGABYTES),
        Figure("peak memory, load", Unit.MEGABYTES),
    )
    full: ClassVar[int]
    """How many items."""

    @abstractmethod
    def make(self, items: int) -> Any:
        """The object to be dumped, with so many items."""

    @abstractmethod
    def is_same(self, found: Any, expected: Any) -> bool:
        """Whether *found* is what was dumped. Spot checks are enough."""

    async def measure(self, contender: FileContender, setting: Setting) -> Measurement:
        with tempfile.TemporaryDirectory() as folder:
            small, path = os.path.join(folder, "small"), os.path.join(folder, "file")
            await contender.dump(self.make(10), small)
            await contender.load(small)
            obj = self.make(setting.scale.calls(self.full))
            memory = PeakMemory()  # collects garbage, which is not to be measured
            async with LagMeter() as dumping:
                dump_seconds, _ = await timed(contender.dump(obj, path))
            dump_growth = memory.growth
            memory = PeakMemory()
            async with LagMeter() as loading:
                load_seconds, found = await timed(contender.load(path))
            load_growth = memory.growth
            if not self.is_same(found, obj):
                raise WrongResult("what was loaded is not what was dumped")
            size = os.path.getsize(path) / 1e6
        values = (dump_seconds, load_seconds, size, dump_growth, load_growth)
        return Measurement(
            {figure.name: value for figure, value in zip(self.figures, values, strict=True)},
            _worse(dumping.lag, loading.lag),
        )


def _worse(one: Lag, other: Lag) -> Lag:
    return Lag(max(one.p50, other.p50), max(one.p99, other.p99), max(one.max, other.max))


class ArrayFile(FileWork):
    """A random walk in steps of hundredths: numbers as measured, which shrink to a third."""

    name = "array_file"
    title = "an array of 200 MB to a file and back"
    full = 25_000_000

    def make(self, items: int) -> Any:
        return np.cumsum(np.random.default_rng(0).integers(-50, 50, items)) / 100

    def is_same(self, found: Any, expected: Any) -> bool:
        return np.array_equal(found, expected)


class IntegersFile(FileWork):
    """Small integers in eight bytes each."""

    name = "integers_file"
    title = "an array of 100 MB of small integers to a file and back"
    full = 12_500_000

    def make(self, items: int) -> Any:
        return np.random.default_rng(0).integers(0, 1000, items)

    def is_same(self, found: Any, expected: Any) -> bool:
        return np.array_equal(found, expected)


class DictsFile(FileWork):
    name = "dicts_file"
    title = "600,000 small dicts to a file and back"
    full = 600_000

    def make(self, items: int) -> Any:
        return [{"id": number, "name": f"user{number}", "score": number / 2} for number in range(items)]

    def is_same(self, found: Any, expected: Any) -> bool:
        return found == expected


class SmallArraysFile(FileWork):
    name = "small_arrays_file"
    title = "10,000 small arrays to a file and back"
    full = 10_000

    def make(self, items: int) -> Any:
        return [np.arange(100.0) + number for number in range(items)]

    def is_same(self, found: Any, expected: Any) -> bool:
        return len(found) == len(expected) and all(map(np.array_equal, found, expected))


class ForestFile(FileWork):
    name = "forest_file"
    title = "a fitted random forest of 100 trees to a file and back"
    full = 100

    def make(self, items: int) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((2000, 10))
        return RandomForestClassifier(items, random_state=0).fit(inputs, inputs[:, 0] + rng.standard_normal(2000) > 0)

    def is_same(self, found: Any, expected: Any) -> bool:
        inputs = np.random.default_rng(1).standard_normal((100, 10))
        return np.array_equal(found.predict(inputs), expected.predict(inputs))


class FrameFile(FileWork):
    name = "frame_file"
    title = "a DataFrame of 1,000,000 rows to a file and back"
    full = 1_000_000

    def make(self, items: int) -> Any:
        import pandas as pd

        rng = np.random.default_rng(0)
        columns = {f"x{number}": rng.integers(0, 10_000, items) / 100 for number in range(8)}
        return pd.DataFrame({**columns, "kind": pd.Categorical(rng.choice(["a", "b", "c"], items))})

    def is_same(self, found: Any, expected: Any) -> bool:
        return bool(found.equals(expected))
