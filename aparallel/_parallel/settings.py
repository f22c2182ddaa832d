"""What a pool is made with: each setting checked, and never dropped without a word."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel._backends.inline import InlineBackend
from aparallel._backends.process import ProcessBackend
from aparallel._ground.cpus import cpu_count, effective_n_jobs
from aparallel._ground.nesting import nesting_level
from aparallel._ground.units import whole_number
from aparallel._parallel.parsing import KINDS, PARSERS, kind_of, parse_most, parse_on_cancel, parse_time_limit
from aparallel.abc import Backend, Sharing

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.sharing import MmapMode
    from aparallel.abc import OnCancel

_LOWEST_PRIORITY = 19

# Beside workers of its own priority that take all cores, a Linux scheduler lets the loop wait for the rest of their
# slice: p99 of the loop's lag 3.4 ms on two cores. With 10 it was 0.9, and with 19 no better.
_NICE = 10


class _Reach(NamedTuple):
    """Which workers a setting is for.

    Attributes:
        kinds: kinds of ours that keep it.
        told: whether a Backend that somebody made is told of it by each pool.
        idle: what workers in this process have of it anyway: no lower priority, no buffers in shared memory.
    """

    kinds: tuple[str, ...] = KINDS
    told: bool = False
    idle: object = None


# Settings of the workers; all others are the pool's own, whatever its workers are. Threads and the loop see all of the
# caller's context, so they keep context_vars= without being told.
_REACH = {
    "initializer": _Reach(),
    "initargs": _Reach(),
    "context_vars": _Reach(),
    "inner_max_num_threads": _Reach(("process",)),
    "executable": _Reach(("process",)),
    "nice": _Reach(("process",), idle=0),
    "logs": _Reach(("process",)),
    "max_nbytes": _Reach(("process",), told=True, idle=None),
    "mmap_mode": _Reach(("process",), told=True),
    "temp_folder": _Reach(("process",), told=True),
}


class Settings(NamedTuple):  # not a dataclass, which takes a script's start ten times as long to make
    """The settings of one pool, as :class:`aparallel.Pool` explains them."""

    n_jobs: int = -1
    backend: str | Backend = "process"
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    idle_timeout: float | None = 300.0
    max_calls_per_worker: int | None = None
    max_queued: int | None = None
    queue_timeout: float | None = None
    inner_max_num_threads: int | None = None
    on_cancel: OnCancel | None = None
    context_vars: Sequence[ContextVar[Any]] = ()
    executable: str | os.PathLike[str] | None = None
    nice: int | None = None
    max_nbytes: int | str | None = "1M"
    mmap_mode: MmapMode = "r"
    temp_folder: str | os.PathLike[str] | None = None
    logs: bool = True

    def checked(self) -> Settings:
        """Return them with what each value means in its place, such as an int for NumPy's.

        Raises:
            TypeError, ValueError: a bad one, or one that such workers cannot keep.
        """
        effective_n_jobs(self.n_jobs, 1)
        parse_on_cancel(self.on_cancel)
        checked = self._replace(
            inner_max_num_threads=parse_most("inner_max_num_threads", self.inner_max_num_threads, 1),
            max_calls_per_worker=parse_most("max_calls_per_worker", self.max_calls_per_worker, 1),
            max_queued=parse_most("max_queued", self.max_queued, 0),
            queue_timeout=parse_time_limit("queue_timeout", self.queue_timeout),
            idle_timeout=parse_time_limit("idle_timeout", self.idle_timeout, zero=False),
            nice=_parse_nice(self.nice),
            initargs=_checked_initargs(self.initargs),
            context_vars=_checked_variables(self.context_vars),
        )
        if self.initializer is not None and not callable(self.initializer):
            raise TypeError(f"initializer={self.initializer!r} is not a function.")
        checked._check_reach(kind_of(self.backend))
        return checked

    def _check_reach(self, kind: str) -> None:
        """Refuse what workers of this *kind* would not be told.

        It is the kind that was asked for: inside a worker, where threads stand in for processes, what only processes
        can keep is let go.
        """
        for name, value in self._asdict().items():
            reach = _REACH.get(name)
            if reach is None or value == self._field_defaults[name] or (kind != "process" and value == reach.idle):
                continue
            given = f"{name}={value!r}" if isinstance(value, str | int) else f"{name}="
            if not isinstance(self.backend, Backend):
                if kind not in reach.kinds:
                    raise ValueError(
                        f"{given} is for process workers; {kind} workers are in this very process and cannot keep it. "
                        f"Use backend='process', or leave {name}= out."
                    )
            elif not reach.told or (kind in KINDS and kind not in reach.kinds):
                raise ValueError(
                    f"{given} does not reach the workers of {self.backend!r}, which was made without it. "
                    f"Give it to that backend where it is made, if it takes it; else leave {name}= out, or name "
                    f"a kind of workers such as backend='process'."
                )

    @property
    def stands_in(self) -> bool:
        """Whether threads, or the loop, take the place of processes: inside a worker."""
        return not isinstance(self.backend, Backend) and kind_of(self.backend) == "process" != self._kind()

    def _kind(self) -> str:
        """The kind of its workers here. Inside a worker threads stand in for processes, deeper in the loop for both."""
        kind, level = kind_of(self.backend), nesting_level()
        if level >= 1 and kind == "process":
            kind = "thread"
        return "inline" if level >= 2 and kind == "thread" else kind

    def workers(self) -> int:
        """The most workers that the pool may have."""
        return effective_n_jobs(self.n_jobs, cpu_count())

    def sharing(self) -> Sharing:
        """How large buffers travel."""
        return Sharing(*(PARSERS[name](getattr(self, name)) for name in Sharing._fields))

    def make_backend(self, workers: int) -> Backend:
        """Return what starts the workers, of which there will be so many: here, in this process or worker."""
        if isinstance(self.backend, Backend):
            return self.backend
        kind = self._kind()
        if kind == "thread":
            from aparallel._backends.thread import ThreadBackend

            return ThreadBackend(initializer=self.initializer, initargs=self.initargs)
        if kind == "inline":
            return InlineBackend(initializer=self.initializer, initargs=self.initargs)
        backend = ProcessBackend(
            executable=self.executable,
            initializer=self.initializer,
            initargs=self.initargs,
            context_vars=self.context_vars,
            logs=self.logs,
            nice=_NICE if self.nice is None else self.nice,
        )
        limit_inner_threads(backend, self.inner_max_num_threads, workers)
        return backend


def limit_inner_threads(backend: Backend, asked: int | None, workers: int) -> bool:
    """Set how many threads libraries may use in each of so many workers; return whether the present ones differ."""
    return backend.limit_threads(asked or max(cpu_count() // workers, 1), asked is not None)


def _checked_initargs(initargs: object) -> tuple[Any, ...]:
    """Return the arguments of an initializer as a tuple."""
    if isinstance(initargs, str | bytes) or not isinstance(initargs, Iterable):
        raise TypeError(f"initargs={initargs!r} is not a tuple of arguments. Write initargs=(value,).")
    return tuple(initargs)


def _checked_variables(variables: object) -> tuple[ContextVar[Any], ...]:
    """Return context variables as a tuple."""
    if not isinstance(variables, Sequence) or not all(isinstance(variable, ContextVar) for variable in variables):
        raise TypeError(f"context_vars={variables!r} is not a sequence of ContextVars.")
    return tuple(variables)


def _parse_nice(nice: int | None) -> int | None:
    if nice is None:
        return None
    steps = whole_number(nice)
    if steps is None or not 0 <= steps <= _LOWEST_PRIORITY:
        raise ValueError(
            f"nice={nice!r} is not a whole number from 0, for this program's own priority, to {_LOWEST_PRIORITY}, "
            f"or None for the usual {_NICE}."
        )
    return steps
