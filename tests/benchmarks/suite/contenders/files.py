"""Ways to keep objects in files: aparallel, joblib, pickle, NumPy and safetensors, plain and compressed."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from suite.contender import NotOffered
from suite.file_contender import FileContender


class AparallelFile(FileContender):
    compress: ClassVar[Any] = 0

    async def dump(self, obj: Any, path: str) -> None:
        from aparallel import dump

        await dump(obj, path, compress=self.compress, durable=False)

    async def load(self, path: str) -> Any:
        from aparallel import load

        return await load(path)


class AparallelZlib(AparallelFile):
    compress = ("zlib", 3)


class AparallelLz4(AparallelFile):
    compress = "lz4"


class AparallelZstd(AparallelFile):
    compress = "zstd"


class AparallelNumeric(AparallelFile):
    compress = "numeric"


class JoblibFile(FileContender):
    compress: ClassVar[Any] = 0

    async def dump(self, obj: Any, path: str) -> None:
        import joblib

        await asyncio.to_thread(joblib.dump, obj, path, compress=self.compress)

    async def load(self, path: str) -> Any:
        import joblib

        return await asyncio.to_thread(joblib.load, path)


class JoblibZlib(JoblibFile):
    compress = ("zlib", 3)


class JoblibLz4(JoblibFile):
    compress = ("lz4", 1)


class Pickle(FileContender):
    """The C pickler alone, into an open file: the floor for objects."""

    async def dump(self, obj: Any, path: str) -> None:
        def work() -> None:
            with Path(path).open("wb") as file:
                pickle.dump(obj, file, protocol=5)

        await asyncio.to_thread(work)

    async def load(self, path: str) -> Any:
        def work() -> Any:
            with Path(path).open("rb") as file:
                return pickle.load(file)

        return await asyncio.to_thread(work)


class NumpyFile(FileContender):
    """np.save and np.load: the floor for arrays."""

    async def dump(self, obj: Any, path: str) -> None:
        if not isinstance(obj, np.ndarray):
            raise NotOffered("it keeps a single array")

        def work() -> None:
            with Path(path).open("wb") as file:
                np.save(file, obj)

        await asyncio.to_thread(work)

    async def load(self, path: str) -> Any:
        return await asyncio.to_thread(np.load, path)


class Safetensors(FileContender):
    async def dump(self, obj: Any, path: str) -> None:
        from safetensors.numpy import save_file

        if isinstance(obj, np.ndarray):
            tensors = {"0": obj}
        elif isinstance(obj, list) and all(isinstance(item, np.ndarray) for item in obj):
            tensors = {str(number): item for number, item in enumerate(obj)}
        else:
            raise NotOffered("it keeps arrays")
        self._single = isinstance(obj, np.ndarray)
        await asyncio.to_thread(save_file, tensors, path)

    async def load(self, path: str) -> Any:
        from safetensors.numpy import load_file

        tensors = await asyncio.to_thread(load_file, path)
        return tensors["0"] if self._single else [tensors[str(number)] for number in range(len(tensors))]
