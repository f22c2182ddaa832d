"""The options of a gather or stream: checked once, with defaults that follow the task."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import inspect
import math
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from aparallel._ground.cpus import cpu_count, effective_n_jobs
from aparallel._ground.nesting import nesting_level
from aparallel._ground.sharing import MmapMode, check_mmap_mode
from aparallel._ground.units import parse_bytes
from aparallel._parallel.batching import BatchSize, PreDispatch, parse_batch_size, parse_pre_dispatch
from aparallel.abc import Backend, Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aparallel._parallel.calls import Calls
    from aparallel._parallel.limits import LimitedPool
    from aparallel._parallel.pool import Pool
    from aparallel.abc import OnCancel

BackendName = Literal["process", "thread", "inline", "loky", "multiprocessing", "threading", "sequential"]

_ALIASES = {"loky": "process", "multiprocessing": "process", "threading": "thread", "sequential": "inline"}
KINDS = ("process", "thread", "inline")
_ON_CANCEL = ("kill", "wait", "abandon")


class Unset(enum.Enum):
    """What stands for an option that nobody has set, where None means something."""

    UNSET = "unset"


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


class GatherOptions(PoolOptions, total=False):
    """What ``gather_parallel``, ``stream_parallel`` and ``parallel_config`` accept."""

    backend: BackendName | Backend
    pool: Pool | LimitedPool | None
    inner_max_num_threads: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """All options of one gather or stream, with their defaults."""

    n_jobs: int | None = None
    backend: str | Backend | None = None
    prefer: str | None = None
    require: str | None = None
    batch_size: BatchSize = "auto"
    pre_dispatch: PreDispatch = "auto"
    timeout: float | None = None
    verbose: int = 0
    pool: Calls | None = None
    retries: int = 0
    on_cancel: OnCancel | None = None
    progress: bool | Callable[[int, int | None], object] = False
    inner_max_num_threads: int | None = None
    max_nbytes: int | str | Literal[Unset.UNSET] | None = Unset.UNSET
    mmap_mode: MmapMode | Literal[Unset.UNSET] = Unset.UNSET
    temp_folder: str | os.PathLike[str] | Literal[Unset.UNSET] | None = Unset.UNSET

    def sharing(self, pools: Sharing) -> Sharing:
        """How large buffers travel: as these options say, else as those of the pool."""
        if self.max_nbytes is self.mmap_mode is self.temp_folder is Unset.UNSET:
            return pools
        return make_sharing(
            pools.max_nbytes if self.max_nbytes is Unset.UNSET else self.max_nbytes,
            pools.mmap_mode if self.mmap_mode is Unset.UNSET else self.mmap_mode,
            pools.temp_folder if self.temp_folder is Unset.UNSET else self.temp_folder,
        )

    def workers(self, cpus: int | None = None) -> int:
        """How many workers ``n_jobs`` asks for."""
        return effective_n_jobs(-1 if self.n_jobs is None else self.n_jobs, cpus or cpu_count())


_NAMES = frozenset(field.name for field in dataclasses.fields(Options))

# What is asked of a gather now and then, joblib's name for it included.
_OF_STREAMS = frozenset({"ordered", "return_as"})

# What a pool has settled already, whatever a surrounding block says.
_OF_POOLS = frozenset({"backend", "inner_max_num_threads"})

# What parallel_config has set in this context: a task and the tasks that it starts, nobody else.
_configured: ContextVar[dict[str, Any]] = ContextVar("aparallel_config", default={})  # noqa: B039 (never changed)


@contextlib.contextmanager
def parallel_config(**options: Unpack[GatherOptions]) -> Iterator[None]:
    """Set defaults for every gather and stream inside the block, and for no other task.

    Takes the options of :func:`aparallel.gather_parallel`. Blocks nest; an option given to a call wins.

    Raises:
        TypeError: an unknown option.
        ValueError: an option has a bad value.
    """
    resolve({**options})
    token = _configured.set({**_configured.get(), **options})
    try:
        yield
    finally:
        _configured.reset(token)


def resolve(given: dict[str, Any]) -> Options:
    """Return the options of one gather: those given, then the configured ones, then the defaults.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: a bad value, or two that contradict each other.
    """
    for name in given:
        if name not in _NAMES:
            import difflib

            close = difflib.get_close_matches(name, _NAMES, 1)
            if name in _OF_STREAMS:
                raise TypeError(f"There is no option {name!r} here. For results as they come, use stream_parallel.")
            hint = f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(sorted(_NAMES))}."
            raise TypeError(f"There is no option {name!r}.{hint}")
    if given.get("pool") is not None and given.get("backend") is not None:
        raise ValueError("backend= and pool= contradict each other: a pool has its backend already. Leave one out.")
    configured = _configured.get()
    outweighed: frozenset[str] = frozenset()
    if given.get("pool") is not None:
        outweighed = _OF_POOLS
    elif given.get("backend") is not None:
        outweighed = frozenset({"pool"})
    elif given.get("require") is not None:
        processes = kind_of(configured.get("backend") or "process") == "process"
        outweighed = frozenset({"pool", "backend"} if processes else {"pool"})  # as in joblib
    options = Options(**{name: value for name, value in configured.items() if name not in outweighed} | given)
    _check(options)
    _check_inner_threads_reach(Options(**given))
    return options


def _check(options: Options) -> None:
    workers = options.workers(cpus=1)
    if options.backend is not None:
        kind_of(options.backend)
    parse_batch_size(options.batch_size)
    parse_pre_dispatch(options.pre_dispatch, workers)
    check_timeout(options.timeout)
    check_on_cancel(options.on_cancel)
    if not isinstance(options.verbose, int):
        raise TypeError(f"verbose={options.verbose!r} is not an int; 0 is silent, 10 tells much.")
    check_retries(options.retries)
    if options.prefer not in (None, "processes", "threads"):
        raise ValueError(f"prefer={options.prefer!r} is not 'processes' or 'threads'.")
    if options.require not in (None, "sharedmem"):
        raise ValueError(f"require={options.require!r} is not 'sharedmem'.")
    if not isinstance(options.progress, bool) and not callable(options.progress):
        raise TypeError(f"progress={options.progress!r} is not True, False or a function of (done, total).")
    if inspect.iscoroutinefunction(options.progress):
        raise TypeError(f"progress={options.progress!r} is a coroutine function, and nobody would await it.")
    check_inner_threads(options.inner_max_num_threads)
    options.sharing(Sharing())
    if options.require == "sharedmem":
        kind = options.pool.backend_name if options.pool is not None else _given_kind(options)
        if kind == "process":
            raise ValueError(
                "require='sharedmem' needs workers that share this process's memory, and process workers do not. "
                "Leave the backend out, or use backend='thread'."
            )
    if options.pool is not None and options.inner_max_num_threads is not None:
        raise ValueError("inner_max_num_threads= belongs to the pool: give it to Pool(), not together with pool=.")


def _check_inner_threads_reach(given: Options) -> None:
    """Refuse threads in processes together with other workers; what a surrounding block says is let go."""
    kind = choose_kind(given)
    if given.inner_max_num_threads is not None and given.pool is None and kind != "process":
        raise ValueError(
            f"inner_max_num_threads={given.inner_max_num_threads} is for process workers, and this asks for "
            f"{kind} workers. Use backend='process', or leave inner_max_num_threads= out."
        )


def _given_kind(options: Options) -> str | None:
    return None if options.backend is None else kind_of(options.backend)


def kind_of(backend: str | Backend) -> str:
    """Return the kind that a backend's name or alias means; a Backend instance's own name.

    Raises:
        ValueError: no such backend.
    """
    if isinstance(backend, Backend):
        return backend.name
    kind = _ALIASES.get(backend, backend) if isinstance(backend, str) else None
    if kind not in KINDS:
        raise ValueError(
            f"backend={backend!r} is not one of {', '.join(map(repr, (*KINDS, *_ALIASES)))}, nor a Backend instance."
        )
    return kind


def choose_kind(options: Options) -> str:
    """Decide which kind of workers a gather without a pool asks for."""
    if options.backend is not None:
        return kind_of(options.backend)
    return "thread" if options.require == "sharedmem" or options.prefer == "threads" else "process"


def nested_kind(kind: str) -> str:
    """Return *kind*, or what stands for it inside a worker: threads first, the loop itself deeper in."""
    level = nesting_level()
    if level >= 1 and kind == "process":
        kind = "thread"
    if level >= 2 and kind == "thread":
        kind = "inline"
    return kind


def make_sharing(max_nbytes: int | str | None, mmap_mode: MmapMode, temp_folder: Any) -> Sharing:
    """Say how large buffers travel.

    Raises:
        ValueError: a bad size or mode, or a folder that is none.
        TypeError: a size or a folder of the wrong type.
    """
    check_mmap_mode(mmap_mode)
    if not isinstance(temp_folder, str | bytes | os.PathLike | None):
        raise TypeError(f"temp_folder={temp_folder!r} is not the path of a folder.")
    folder = None if temp_folder is None else os.path.abspath(os.fsdecode(temp_folder))
    if folder is not None and not os.path.isdir(folder):
        raise ValueError(f"temp_folder={folder!r} is not a folder. Create it, or leave the option out.")
    try:
        largest = None if max_nbytes is None else parse_bytes(max_nbytes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"max_nbytes={max_nbytes!r}: {error}") from None
    return Sharing(largest, mmap_mode, folder)


def check_timeout(seconds: float | None, name: str = "timeout") -> None:
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0):
        raise ValueError(f"{name}={seconds!r} is not a positive number of seconds, or None.")


def check_retries(retries: int) -> None:
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValueError(f"retries={retries!r} is not a number of further attempts, 0 or more.")


def parse_patience(name: str, seconds: float | None) -> float | None:
    """Return how long something may wait, in seconds; None for ever.

    Raises:
        ValueError: neither a number of seconds nor None.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise ValueError(f"{name}={seconds!r} is not a number of seconds, 0 or more, or None to wait for ever.")
    return None if seconds == math.inf else seconds


def check_on_cancel(on_cancel: str | None) -> None:
    if on_cancel is not None and on_cancel not in _ON_CANCEL:
        raise ValueError(f"on_cancel={on_cancel!r} is not 'kill', 'wait' or 'abandon'.")


def check_inner_threads(count: int | None) -> None:
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError(f"inner_max_num_threads={count!r} is not a positive number of threads.")


def check_count(name: str, value: int | None, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"{name}={value!r} is not a whole number of at least {least}, or None.")
