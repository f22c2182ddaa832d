"""Options and settings, one by one: what a value means, or the ValueError or TypeError that says why it is none."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel._ground.bars import checked_progress
from aparallel._ground.cpus import effective_n_jobs
from aparallel._ground.sharing import MmapMode, check_mmap_mode
from aparallel._ground.units import parse_bytes, whole_number
from aparallel._parallel.batching import MESSAGE_CALLS
from aparallel.abc import Backend

if TYPE_CHECKING:
    from aparallel._parallel.typed import BatchSize, PreDispatch
    from aparallel.abc import OnCancel

KINDS = ("process", "thread", "inline")
_ALIASES = {"loky": "process", "multiprocessing": "process", "threading": "thread", "sequential": "inline"}


def kind_of(backend: str | Backend) -> str:
    """Return the kind of workers that a backend's name or alias means; a Backend instance's own name.

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


def _parse_max_nbytes(max_nbytes: int | str | None) -> int | None:
    try:
        return None if max_nbytes is None else parse_bytes(max_nbytes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"max_nbytes={max_nbytes!r}: {error}") from None


def _parse_mmap_mode(mmap_mode: MmapMode) -> MmapMode:
    check_mmap_mode(mmap_mode, hint=" To send arrays without shared memory, use max_nbytes=None.")
    return mmap_mode


def _parse_temp_folder(temp_folder: Any) -> str | None:
    if temp_folder is None:
        return None
    if not isinstance(temp_folder, str | bytes | os.PathLike):
        raise TypeError(f"temp_folder={temp_folder!r} is not the path of a folder.")
    folder = os.path.abspath(os.fsdecode(temp_folder))
    if not os.path.isdir(folder):
        raise ValueError(f"temp_folder={folder!r} is not a folder. Create it, or leave the option out.")
    return folder


def _parse_backend(backend: str | Backend | None) -> str | Backend | None:
    return backend if backend is None or isinstance(backend, Backend) else kind_of(backend)


def _parse_n_jobs(n_jobs: int | None) -> int | None:
    if n_jobs is not None:
        effective_n_jobs(n_jobs, 1)
    return n_jobs


def _parse_verbose(verbose: int) -> int:
    lines = int(verbose) if isinstance(verbose, bool) else whole_number(verbose)
    if lines is None:
        raise TypeError(f"verbose={verbose!r} is not an int; 0 is silent, 10 tells much.")
    return lines


def parse_time_limit(name: str, seconds: float | None, *, zero: bool = True) -> float | None:
    """Return how long something may take, in seconds; None for ever. *zero*: it may be 0.

    Raises:
        ValueError: neither None nor such a number of seconds.
    """
    if seconds is None:
        return None
    number = _number(seconds)
    if number is None or not (number >= 0 if zero else number > 0):
        allowed = "a number of seconds, 0 or more," if zero else "a positive number of seconds"
        raise ValueError(f"{name}={seconds!r} is not {allowed} or None for ever.")
    return None if number == math.inf else number


def _number(value: object) -> float | None:
    """Return a number as it is, None for all else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    from numbers import Real  # NumPy's and fractions: rare

    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def _one_of(name: str, *choices: str) -> Callable[[Any], Any]:
    """Return the parser of an option that is one of *choices*, or None."""

    def parse(value: Any) -> Any:
        if value is not None and value not in choices:
            raise ValueError(f"{name}={value!r} is not {' or '.join(map(repr, choices))}.")
        return value

    return parse


parse_on_cancel: Callable[[OnCancel | None], OnCancel | None] = _one_of("on_cancel", "kill", "wait", "abandon")


def parse_count(name: str, value: int, least: int) -> int:
    """Return a whole number, which may be NumPy's.

    Raises:
        ValueError: it is none, or less than *least*.
    """
    count = whole_number(value)
    if count is None or count < least:
        raise ValueError(f"{name}={value!r} is not a whole number of at least {least}.")
    return count


def parse_most(name: str, value: int | None, least: int) -> int | None:
    """Do the same for a limit that there need not be: then it is None."""
    return None if value is None else parse_count(name, value, least)


class DrawLimit(NamedTuple):
    """How many calls may be drawn and not finished: a hard limit, or none.

    Attributes:
        calls: how many, in all; None for no hard limit, or for *expression*.
        expression: what it is of so many workers.
    """

    calls: int | None = None
    expression: str | None = None

    def of(self, n_jobs: int) -> int | None:
        """Return the limit for so many workers, in calls.

        Raises:
            ValueError: it is less than one call.
        """
        if self.expression is None:
            return self.calls
        from aparallel._parallel.expressions import evaluate

        try:
            limit = evaluate(self.expression, n_jobs)
        except ArithmeticError as error:
            raise ValueError(f"pre_dispatch={self.expression!r} with n_jobs={n_jobs} is no number: {error}.") from None
        if not 1 <= limit < math.inf:
            raise ValueError(
                f"pre_dispatch={self.expression!r} with n_jobs={n_jobs} is {limit:g} calls; at least one must be drawn "
                f"for any to run."
            )
        return int(limit)


def parse_pre_dispatch(value: PreDispatch) -> DrawLimit:
    """Return the limit that *value* means: none for ``"auto"``.

    Raises:
        ValueError: not ``"auto"``, ``"all"``, a positive int or an expression such as ``"2*n_jobs"``.
    """
    if isinstance(value, str):
        if value == "auto":
            return DrawLimit()
        if value == "all":
            return DrawLimit(1 << 62)
        if _is_arithmetic(value):
            return DrawLimit(expression=value)
    elif (calls := whole_number(value)) is not None and calls >= 1:
        return DrawLimit(calls)
    raise ValueError(
        f"pre_dispatch={value!r} is not 'auto', 'all', a number of calls from 1 on, or an expression like '2*n_jobs'."
    )


def _is_arithmetic(text: str) -> bool:
    from aparallel._parallel.expressions import evaluate

    try:
        with contextlib.suppress(ArithmeticError):  # with another number of workers it may have a value
            evaluate(text, 1)
    except SyntaxError:
        return False
    return True


def parse_batch_size(value: BatchSize) -> int | None:
    """Return the fixed number of calls per message, or None for ``"auto"``.

    Raises:
        ValueError: not ``"auto"`` and not a positive int.
    """
    if isinstance(value, str) and value == "auto":
        return None
    calls = whole_number(value)
    if calls is None or calls < 1:
        raise ValueError(f"batch_size={value!r} is not 'auto' or a positive number of calls.")
    return min(calls, MESSAGE_CALLS)


# How each option of a gather is parsed; one that is not here is taken as it is. Settings of pools have some of them.
PARSERS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "n_jobs": _parse_n_jobs,
        "backend": _parse_backend,
        "prefer": _one_of("prefer", "processes", "threads"),
        "require": _one_of("require", "sharedmem"),
        "batch_size": parse_batch_size,
        "pre_dispatch": parse_pre_dispatch,
        "timeout": lambda seconds: parse_time_limit("timeout", seconds, zero=False),
        "verbose": _parse_verbose,
        "retries": lambda count: parse_count("retries", count, 0),
        "on_cancel": parse_on_cancel,
        "progress": checked_progress,
        "inner_max_num_threads": lambda count: parse_most("inner_max_num_threads", count, 1),
        "max_nbytes": _parse_max_nbytes,
        "mmap_mode": _parse_mmap_mode,
        "temp_folder": _parse_temp_folder,
    }
)
