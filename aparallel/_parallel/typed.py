"""The options by name, for type checkers and for who asks: a gather runs without."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from aparallel.abc import Backend

if TYPE_CHECKING:
    from aparallel._ground.sharing import MmapMode
    from aparallel.abc import OnCancel

BatchSize = Literal["auto"] | int
PreDispatch = Literal["auto", "all"] | int | str
BackendName = Literal["process", "thread", "inline", "loky", "multiprocessing", "threading", "sequential"]


class PoolOptions(TypedDict, total=False):
    """What ``Pool.gather``, ``Pool.stream`` and ``Pool.map`` accept."""

    n_jobs: int
    prefer: Literal["processes", "threads"] | None
    require: Literal["sharedmem"] | None
    batch_size: BatchSize
    pre_dispatch: PreDispatch
    timeout: float | None
    verbose: int
    retries: int
    on_cancel: OnCancel | None
    progress: bool | Callable[[int, int | None], object]
    max_nbytes: int | str | None
    mmap_mode: MmapMode
    temp_folder: str | os.PathLike[str] | None


class PoolSettings(TypedDict, total=False):
    """The arguments of :class:`aparallel.Pool`, which say what they mean."""

    n_jobs: int
    backend: BackendName | Backend
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    idle_timeout: float | None
    max_calls_per_worker: int | None
    max_queued: int | None
    queue_timeout: float | None
    inner_max_num_threads: int | None
    on_cancel: OnCancel | None
    context_vars: Sequence[ContextVar[Any]]
    executable: str | os.PathLike[str] | None
    nice: int | None
    max_nbytes: int | str | None
    mmap_mode: MmapMode
    temp_folder: str | os.PathLike[str] | None
    logs: bool
