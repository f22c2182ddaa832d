"""Parallel calls, persistence and memoization for asyncio: CPU-bound work without blocking the loop.

::

    results = await gather_parallel(delayed(f)(x) for x in xs)  # on all cores, in order

    async with stream_parallel(delayed(f)(x) for x in xs) as results:  # as they come
        async for result in results: ...

    async with Pool(n_jobs=4) as pool:  # workers that are reused
        result = await pool.run(f, x, timeout=2.0)

    await dump(obj, "file.apl")  # without holding the loop
    obj = await load("file.apl", mmap_mode="r")

    memory = Memory("folder", max_bytes="10GB")  # results that are remembered
    @memory.cache
    def features(x): ...

``aparallel.errors`` has the errors, ``aparallel.web`` what servers need, ``aparallel.abc`` and ``aparallel.testing``
what backends, stores and compressors are made of and tested with.

For those who read the code: the names are loaded on first use, so that a worker process, which imports this package
too, starts with nothing but the standard library. Imports run from left to right, and a test holds that::

    web -> _parallel -> _backends -> _transfer -> _wire    a call, from a request down to what is sent to a worker
                         _worker  -> _transfer -> _wire    the worker's end
    web -> _memory -> _persist                             results that are remembered, and files
    all -> _ground, abc, errors                            what every part stands on, the seams, the errors

Each of these says in its docstring what its modules are for. ``testing``, ``_backend_suite`` (the tests that a backend
has to pass) and ``_cli`` (the command line) may use all of them.
"""

from __future__ import annotations

# Not from typing: a worker would pay 3 ms at its start for that import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from aparallel import abc, errors
    from aparallel._ground.call import Call, delayed
    from aparallel._ground.cpus import cpu_count
    from aparallel._ground.sharing import Shared
    from aparallel._memory.function import MemorizedFunction
    from aparallel._memory.hashing import hash  # noqa: A004  # joblib's name
    from aparallel._memory.memory import Memory
    from aparallel._memory.results import (
        Explanation,
        FunctionStatistics,
        MemorizedResult,
        MemoryStatistics,
        StoredCall,
        expires_after,
    )
    from aparallel._parallel.config import GatherOptions, parallel_config
    from aparallel._parallel.gather import gather_parallel, stream_parallel
    from aparallel._parallel.pool import LimitedPool, Pool
    from aparallel._parallel.statistics import LimitStatistics, PoolStatistics
    from aparallel._parallel.stream import ResultStream
    from aparallel._parallel.typed import BackendName, PoolSettings
    from aparallel._persist.dump import dump, dump_chunks, dumps
    from aparallel._persist.inspection import FileInfo, inspect
    from aparallel._persist.load import load, loads

__all__ = [
    "BackendName",
    "Call",
    "Explanation",
    "FileInfo",
    "FunctionStatistics",
    "GatherOptions",
    "LimitStatistics",
    "LimitedPool",
    "MemorizedFunction",
    "MemorizedResult",
    "Memory",
    "MemoryStatistics",
    "Pool",
    "PoolSettings",
    "PoolStatistics",
    "ResultStream",
    "Shared",
    "StoredCall",
    "abc",
    "cpu_count",
    "delayed",
    "dump",
    "dump_chunks",
    "dumps",
    "errors",
    "expires_after",
    "gather_parallel",
    "hash",
    "inspect",
    "load",
    "loads",
    "parallel_config",
    "stream_parallel",
]

__version__ = "0.1.0"

_HOMES = {
    "BackendName": "aparallel._parallel.typed",
    "Call": "aparallel._ground.call",
    "Explanation": "aparallel._memory.results",
    "FileInfo": "aparallel._persist.inspection",
    "FunctionStatistics": "aparallel._memory.results",
    "GatherOptions": "aparallel._parallel.config",
    "LimitStatistics": "aparallel._parallel.statistics",
    "LimitedPool": "aparallel._parallel.pool",
    "MemorizedFunction": "aparallel._memory.function",
    "MemorizedResult": "aparallel._memory.results",
    "Memory": "aparallel._memory.memory",
    "MemoryStatistics": "aparallel._memory.results",
    "Pool": "aparallel._parallel.pool",
    "PoolSettings": "aparallel._parallel.typed",
    "PoolStatistics": "aparallel._parallel.statistics",
    "ResultStream": "aparallel._parallel.stream",
    "Shared": "aparallel._ground.sharing",
    "StoredCall": "aparallel._memory.results",
    "cpu_count": "aparallel._ground.cpus",
    "delayed": "aparallel._ground.call",
    "dump": "aparallel._persist.dump",
    "dump_chunks": "aparallel._persist.dump",
    "dumps": "aparallel._persist.dump",
    "expires_after": "aparallel._memory.results",
    "gather_parallel": "aparallel._parallel.gather",
    "hash": "aparallel._memory.hashing",
    "inspect": "aparallel._persist.inspection",
    "load": "aparallel._persist.load",
    "loads": "aparallel._persist.load",
    "parallel_config": "aparallel._parallel.config",
    "stream_parallel": "aparallel._parallel.gather",
}
_MODULES = frozenset({"abc", "errors", "testing"})


if not TYPE_CHECKING:  # to a checker, a module with this has any name

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"aparallel.{name}")
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'aparallel' has no attribute {name!r}")
        try:
            value = getattr(import_module(home), name)
        except AttributeError as error:  # `from aparallel import` would say that there is no such name
            raise ImportError(f"aparallel.{name} could not be loaded. Is a dependency too old? {error}") from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
