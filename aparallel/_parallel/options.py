"""The options of a gather or stream: checked once, with defaults that follow the task."""

from __future__ import annotations

import contextlib
import enum
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from aparallel._ground.cpus import cpu_count, effective_n_jobs
from aparallel._parallel.parsing import PARSERS, DrawLimit, kind_of
from aparallel.abc import Backend, Sharing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._ground.bars import ProgressOption
    from aparallel._ground.sharing import MmapMode
    from aparallel.abc import OnCancel


class Unset(enum.Enum):
    """What stands for an option that nobody has set, where None means something: the pool's own holds."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "<the pool's>"


# Looked up once: in Python 3.11 each look at a member of an enum takes 0.3 µs.
UNSET: Final = Unset.UNSET


class HasBackend(Protocol):
    """What may be given as ``pool=``, as far as it matters here."""

    @property
    def backend_name(self) -> str: ...


_NO_LIMIT = DrawLimit()


class Options(NamedTuple):
    """All options of one gather or stream, parsed, with their defaults."""

    n_jobs: int | None = None
    backend: str | Backend | None = None
    prefer: str | None = None
    require: str | None = None
    batch_size: int | None = None
    pre_dispatch: DrawLimit = _NO_LIMIT
    timeout: float | None = None
    verbose: int = 0
    pool: HasBackend | None = None
    retries: int = 0
    on_cancel: OnCancel | None = None
    progress: ProgressOption = False
    inner_max_num_threads: int | None = None
    max_nbytes: int | Unset | None = UNSET
    mmap_mode: MmapMode | Unset = UNSET
    temp_folder: str | Unset | None = UNSET

    def sharing(self, pools: Sharing) -> Sharing:
        """How large buffers travel: as these options say, else as those of the pool."""
        asked = {name: value for name in Sharing._fields if (value := getattr(self, name)) is not UNSET}
        return pools._replace(**asked) if asked else pools

    def workers(self, cpus: int | None = None) -> int:
        """How many workers ``n_jobs`` asks for."""
        return effective_n_jobs(-1 if self.n_jobs is None else self.n_jobs, cpus or cpu_count())


_NAMES = frozenset(Options._fields)

# Given to a gather by mistake, in our words or in joblib's: the error says where it belongs.
_OF_STREAMS = frozenset({"ordered", "return_as"})

# What a pool was made with. A surrounding parallel_config() that says otherwise is not heard where pool= is given.
_OF_POOLS = frozenset({"backend", "inner_max_num_threads"})

# What configured() has set in this context, parsed: for a task and the tasks that it starts, nobody else.
_configured: ContextVar[dict[str, Any]] = ContextVar("aparallel_config", default={})  # noqa: B039 (never changed)


@contextlib.contextmanager
def configured(given: dict[str, Any]) -> Iterator[None]:
    """Make *given* the defaults of this context for a block. Raises what :func:`resolve` raises."""
    told, beside, _ = _told_and_resolved(given)
    token = _configured.set(beside | told)
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
    return _told_and_resolved(given)[-1]


def _told_and_resolved(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Options]:
    """Return what was given, parsed, what is configured and stands beside it, and the options that they make."""
    for name in given:
        if name not in _NAMES:
            raise _no_such_option(name)
    if given.get("pool") is not None and given.get("backend") is not None:
        raise ValueError("backend= and pool= contradict each other: a pool has its backend already. Leave one out.")
    if given.get("prefer") == "processes" and given.get("require") == "sharedmem":  # as in joblib
        raise ValueError("prefer='processes' and require='sharedmem' contradict each other. Leave one out.")
    all_configured = _configured.get()
    outweighed: frozenset[str] = frozenset()
    if given.get("pool") is not None:  # what it was made with stands
        outweighed = _OF_POOLS
    elif given.get("backend") is not None:
        outweighed = frozenset({"pool"})
    elif given.get("require") is not None:
        processes = kind_of(all_configured.get("backend") or "process") == "process"
        outweighed = frozenset({"pool", "backend"} if processes else {"pool"})  # as in joblib
    told = _parsed(given)
    configured = {name: value for name, value in all_configured.items() if name not in outweighed}
    options = Options(**configured | told)
    _check_together(options)
    _check_inner_threads_reach(Options(**told))
    return told, configured, options


def _no_such_option(name: str) -> TypeError:
    import difflib

    if name in _OF_STREAMS:
        return TypeError(f"There is no option {name!r} here. For results as they come, use stream_parallel.")
    close = difflib.get_close_matches(name, _NAMES, 1)
    hint = f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(sorted(_NAMES))}."
    return TypeError(f"There is no option {name!r}.{hint}")


def _parsed(options: dict[str, Any]) -> dict[str, Any]:
    return {name: PARSERS[name](value) if name in PARSERS else value for name, value in options.items()}


def _check_together(options: Options) -> None:
    options.pre_dispatch.of(options.workers(cpus=1))
    if options.require == "sharedmem":
        # What is no pool is refused where it is to be used.
        kind = choose_kind(options) if options.pool is None else getattr(options.pool, "backend_name", None)
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


def choose_kind(options: Options) -> str:
    """Decide which kind of workers a gather without a pool asks for."""
    if options.backend is not None:
        return kind_of(options.backend)
    return "thread" if options.require == "sharedmem" or options.prefer == "threads" else "process"
