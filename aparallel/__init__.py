"""Parallel calls for asyncio: CPU-bound work on processes or threads, without blocking the loop.

The names are loaded on first use, so that a worker process, which imports this package
too, starts with nothing but the standard library.
"""

from __future__ import annotations

# Not from typing: a worker would pay 3 ms at its start for that import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from aparallel import abc, errors
    from aparallel._ground.call import Call, delayed
    from aparallel._ground.cpus import cpu_count
    from aparallel._ground.sharing import Shared
    from aparallel._parallel.gather import gather_parallel, stream_parallel
    from aparallel._parallel.options import parallel_config
    from aparallel._parallel.pool import Pool
    from aparallel._parallel.stream import ResultStream
    from aparallel._parallel.workforce import PoolStatistics

__all__ = [
    "Call",
    "Pool",
    "PoolStatistics",
    "ResultStream",
    "Shared",
    "abc",
    "cpu_count",
    "delayed",
    "errors",
    "gather_parallel",
    "parallel_config",
    "stream_parallel",
]

__version__ = "0.1.0"

_HOMES = {
    "Call": "aparallel._ground.call",
    "Pool": "aparallel._parallel.pool",
    "PoolStatistics": "aparallel._parallel.workforce",
    "ResultStream": "aparallel._parallel.stream",
    "Shared": "aparallel._ground.sharing",
    "cpu_count": "aparallel._ground.cpus",
    "delayed": "aparallel._ground.call",
    "gather_parallel": "aparallel._parallel.gather",
    "parallel_config": "aparallel._parallel.options",
    "stream_parallel": "aparallel._parallel.gather",
}
_MODULES = frozenset({"abc", "errors", "testing"})


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"aparallel.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'aparallel' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
