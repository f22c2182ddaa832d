"""The rosters: who takes part. A contender is added by a module here and a line below.

Modules of contenders are imported only in the process in which the contender takes its turn, so none pays for the
imports of another, and a peer that is not installed costs nothing but a line in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata, util
from typing import Generic, TypeVar, cast

from suite.cache_contender import CacheContender
from suite.contender import Contender
from suite.file_contender import FileContender
from suite.web_contender import WebContender

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Entry(Generic[C]):
    """One line of a roster: the name in the tables, the module and class here, and the package that it needs."""

    name: str
    module: str
    class_name: str
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        return self.package is None or util.find_spec(self.package) is not None

    @property
    def version(self) -> str | None:
        """The version of the package; None for the standard library and what is not installed."""
        if self.package is None or not self.is_installed:
            return None
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return "unknown"

    def create(self) -> C:
        """Import the module and create a contender. Imports the package that is measured."""
        contender_class = getattr(import_module(f"{__name__}.{self.module}"), self.class_name)
        return cast(C, contender_class())


# aparallel first: when the time of a run is up, those further down are left out.
PARALLEL: tuple[Entry[Contender], ...] = (
    Entry("aparallel", "aparallel_pool", "AparallelPool", "aparallel"),
    Entry("joblib", "joblib_parallel", "JoblibParallel", "joblib"),
    Entry("run_in_executor", "executors", "RunInExecutor"),
    Entry("anyio.to_process", "anyio_to_process", "AnyioToProcess", "anyio"),
    Entry("loky", "loky_executor", "Loky", "loky"),
    Entry("executor.map", "executors", "ExecutorMap"),
    Entry("mpire", "mpire_pool", "MpirePool", "mpire"),
    Entry("aiomultiprocess", "aiomultiprocess_pool", "AiomultiprocessPool", "aiomultiprocess"),
    Entry("ray", "ray_tasks", "RayTasks", "ray"),
)

FILES: tuple[Entry[FileContender], ...] = (
    Entry("aparallel", "files", "AparallelFile", "aparallel"),
    Entry("aparallel numeric", "files", "AparallelNumeric", "numcodecs"),
    Entry("aparallel zstd", "files", "AparallelZstd", "zstandard"),
    Entry("aparallel lz4", "files", "AparallelLz4", "lz4"),
    Entry("aparallel zlib-3", "files", "AparallelZlib", "aparallel"),
    Entry("joblib", "files", "JoblibFile", "joblib"),
    Entry("joblib lz4", "files", "JoblibLz4", "joblib"),
    Entry("joblib zlib-3", "files", "JoblibZlib", "joblib"),
    Entry("pickle", "files", "Pickle"),
    Entry("np.save", "files", "NumpyFile", "numpy"),
    Entry("safetensors", "files", "Safetensors", "safetensors"),
)

CACHES: tuple[Entry[CacheContender], ...] = (
    Entry("aparallel", "caches", "AparallelMemory", "aparallel"),
    Entry("joblib", "caches", "JoblibMemory", "joblib"),
    Entry("joblib in a thread", "caches", "JoblibInThread", "joblib"),
    Entry("joblib coroutine", "caches", "JoblibCoroutine", "joblib"),
    Entry("diskcache", "caches", "DiskCache", "diskcache"),
    Entry("cashews", "caches", "Cashews", "cashews"),
)

WEB: tuple[Entry[WebContender], ...] = (
    Entry("aparallel", "web", "Aparallel", "aparallel"),
    Entry("aparallel nice=0", "web", "AparallelNotNice", "aparallel"),
    Entry("blocking", "web", "Blocking", "starlette"),
    Entry("thread pool", "web", "ThreadPool", "starlette"),
    Entry("run_in_executor", "web", "RunInExecutor", "starlette"),
    Entry("anyio.to_process", "web", "AnyioToProcess", "anyio"),
)
