"""What is said of calls that found no room, waited too long or were not finished, and of workers that did not start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aparallel._ground.exceptions import in_short, text_of
from aparallel._parallel.queues import Queue
from aparallel.errors import (
    AparallelError,
    BrokenWorkerError,
    CallTimeoutError,
    InitializerError,
    PoolSaturatedError,
)

if TYPE_CHECKING:
    from aparallel._parallel.queues import Quota
    from aparallel.abc import Backend, Batch, Exit

_SIGKILL: Final = 9  # Windows has no such name


def call_name(batch: Batch, index: int) -> str:
    """Return how people know the call *index* of the owner of *batch*: a single call by its function alone."""
    name = batch.function.name
    return f"call {index} ({name})" if isinstance(batch.owner, Queue) else f"the call {name}"


def name_the_call(error: BaseException, batch: Batch, index: int) -> None:
    """Say in an error of ours which call it is about: where it was made, nobody knew."""
    if not isinstance(error, AparallelError):
        return
    name, text = call_name(batch, index), text_of(error)
    if getattr(error, "call", None) == "":
        error.call = name  # type: ignore[attr-defined]
    if text.startswith("A call "):
        error.args = (f"{_capitalized(name)} {text.removeprefix('A call ')}",)


def _capitalized(name: str) -> str:
    return name[0].upper() + name[1:]


def ran_too_long(call: str, timeout: float, end: str) -> CallTimeoutError:
    """Build the error for a call that overran its timeout; *end* says what became of it."""
    text = f"{_capitalized(call)} ran longer than timeout={timeout:g} seconds{end}."
    return CallTimeoutError(text, call=call, timeout=timeout)


def worker_died(call: str, exit: Exit, retries: int) -> BrokenWorkerError:
    """Build the error for a call that may have started and whose worker is gone, as often as it may be tried."""
    tried = (
        f"It was run {retries + 1} times (retries={retries})." if retries else "To run such calls again, give retries=."
    )
    return BrokenWorkerError(
        f"The worker that ran {call} died: {exit}. The pool has replaced it; other calls are not affected.\n"
        f"{_trace_of(exit)} {tried}",
        call=call,
        exitcode=exit.exitcode,
        signal=exit.signal,
    )


def _trace_of(exit: Exit) -> str:
    """Say where to look for the cause of a worker's death."""
    if exit.signal == _SIGKILL:
        return "Perhaps memory ran out: the kernel's log says so, and a container has a limit of its own."
    return "What a crash leaves of a traceback is on stderr."


def never_begun(call: str, times: int, exit: Exit) -> BrokenWorkerError:
    """Build the error for a call that so many workers in a row were sent and did not live to begin."""
    return BrokenWorkerError(
        f"{times} workers in a row died before they could begin {call}: {exit}. What they left is on stderr.\n"
        f"Perhaps memory or file descriptors end when they take in its arguments.",
        call=call,
        exitcode=exit.exitcode,
        signal=exit.signal,
    )


def initializer_failed(cause: BaseException) -> InitializerError:
    """Build the error for the calls that wait, from what the initializer raised in a worker."""
    error = InitializerError(
        f"The pool's initializer failed in a worker: {in_short(cause)}\n"
        f"No call runs before it has succeeded; the next one tries it again. The cause has its traceback."
    )
    error.__cause__ = cause
    return error


def starts_failed(times: int, exit: Exit, backend: Backend) -> BrokenWorkerError:
    """Build the error for the calls that wait when so many workers in a row died at their start."""
    return BrokenWorkerError(
        f"{times} workers in a row died before they could run a call ({exit}). "
        f"What they printed is on stderr. Check that {backend.describe()} starts, "
        f"and that the pool's initializer, if it has one, does not end it.",
        exitcode=exit.exitcode,
        signal=exit.signal,
    )


def queue_is_full(waiting: int, limit: int, quota: Quota | None, retry_after: float | None) -> PoolSaturatedError:
    """Build the error for a call that finds no place in a queue: its key's, or, without a *quota*, the pool's."""
    text = f"{waiting} calls{_with_key(quota)} wait for a worker already (max_queued={limit})."
    return _saturated(text, quota, retry_after, max_queued=limit)


def waited_too_long(
    seconds: float, waiting: int, workers: int, starting: int, quota: Quota | None, retry_after: float | None
) -> PoolSaturatedError:
    """Build the error for a call that was withdrawn because no worker has started it in time.

    Of *workers*, the most that may have it, so many of the pool's are *starting*.
    """
    when = f"within queue_timeout={seconds:g} seconds" if seconds else "at once (queue_timeout=0)"
    text = (
        f"No worker could start the call{_with_key(quota)} {when}, so it was withdrawn and will not run "
        f"(others waiting: {waiting}, workers: {workers}{f', still starting: {starting}' if starting else ''})."
    )
    return _saturated(text, quota, retry_after, queue_timeout=seconds)


def _with_key(quota: Quota | None) -> str:
    return "" if quota is None else f" with key {quota.name}"


def _saturated(text: str, quota: Quota | None, retry_after: float | None, **limit: Any) -> PoolSaturatedError:
    again = "later" if not retry_after else f"in about {retry_after:.2g} seconds"
    key = None if quota is None else quota.name
    return PoolSaturatedError(f"{text} Try again {again}, or shed load.", key=key, retry_after=retry_after, **limit)
