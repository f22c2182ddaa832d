"""How calls are given to a pool one by one, and all together what a Pool and what stands for one have in common."""

from __future__ import annotations

from asyncio import get_running_loop
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, TypeVarTuple, cast, overload

from aparallel._ground.awaiting import show_as_coroutine_function
from aparallel._ground.call import Call, is_function, not_a_function
from aparallel._ground.loops import running_loop
from aparallel._parallel.futures import USUAL, AwaitedFuture, RunCoroutine, RunOptions
from aparallel._parallel.many_calls import ManyCalls
from aparallel._parallel.options import UNSET, Unset
from aparallel._parallel.singles import Encode

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from aparallel._parallel.runner import Runner
    from aparallel._parallel.singles import Singles
    from aparallel.abc import OnCancel


# Of what most calls are; neither is a call already nor delayed(f).
_FUNCTIONS = frozenset({FunctionType, BuiltinFunctionType, MethodType})

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Calls(ManyCalls):
    """Gives calls to the workers of a pool: what a Pool and what stands for one have in common."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pool stays in its process; inside a call, use gather_parallel")

    @property
    def backend_name(self) -> str:
        """The kind of workers: ``"process"``, ``"thread"``, ``"inline"``, or a Backend's own name."""
        return self._runner.engine.backend.name

    @overload
    def run(
        self,
        fn: Callable[[*Ts], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Unset | None = UNSET,
        retries: int = 0,
    ) -> Coroutine[object, None, T]: ...
    @overload
    def run(
        self,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Unset | None = UNSET,
        retries: int = 0,
    ) -> Coroutine[object, None, T]: ...
    def run(
        self,
        fn: Callable[..., Any],
        /,
        *args: object,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Unset | None = UNSET,
        retries: int = 0,
    ) -> Coroutine[Any, Any, Any]:
        """Run one call on a worker and return its result.

        *fn* is a function for *args*, or a ``Call`` (``delayed(fn)(1, key=2)``). Calls made at the same
        moment share messages to the workers; each keeps its own outcome.

        What it returns is a coroutine: nothing begins before it is awaited, or given to a task, a task group or
        ``asyncio.gather``. Where asyncio would make a task of a coroutine, as ``gather``, ``wait_for``, ``shield`` and
        ``ensure_future`` do, it is a future by itself, which saves half the time of a small call. Awaited again, it
        gives its result again.

        *timeout* is in seconds of execution: waiting for a worker does not count, nor does what a worker imports to
        have the function. *queue_timeout* is how long the call may wait until a worker starts it, in seconds from
        when its arguments are pickled; the pool's own by default, None for ever. Then it is withdrawn: a call that
        raises PoolSaturatedError has not run and never will. One that was sent to a worker is taken back first,
        which takes a few milliseconds; if the worker starts it meanwhile, it runs. 0: only if a worker, or the room
        to start one, is free for it right now.

        *retries* is how often the call is run again if its worker dies: next, before those that wait. What it raises
        itself is never retried. *queue_timeout* is over once it was started, and *timeout* is for each attempt.

        Cancellation: a queued call never runs; a running one is treated as *on_cancel* says, the pool's own by
        default.

        Raises:
            Exception: what the call raised, with the worker's traceback as its last cause.
            BrokenWorkerError: its worker died, and so did those of its *retries*.
            CallTimeoutError: it ran longer than *timeout*.
            PoolSaturatedError: ``max_queued`` calls are waiting already, or it waited longer than *queue_timeout*.
            ClosedPoolError, WrongLoopError: this pool cannot be used, or not here.
            UnpicklableCallError, UnpicklableResultError: it cannot travel.
        """
        # What is usual is found out here: thousands are made at a time, and two calls of ours would be a tenth of each.
        call = Call(fn, *args) if type(fn) in _FUNCTIONS else _single_call(fn, args, "run")
        if timeout is None and on_cancel is None and queue_timeout is UNSET and retries == 0:
            options = USUAL
        else:
            options = RunOptions(timeout, on_cancel, queue_timeout, retries)
        singles = self._runner.singles
        try:
            coroutine: RunCoroutine[Any] = RunCoroutine(loop=get_running_loop())
        except RuntimeError:  # none runs here
            return _run_later(singles, (call, options))
        coroutine.beginner = singles
        coroutine.request = call, options
        coroutine.place = None
        coroutine.is_awaited = False
        return coroutine

    @overload
    def submit(
        self,
        fn: Callable[[*Ts], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Unset | None = UNSET,
        retries: int = 0,
    ) -> asyncio.Future[T]: ...
    @overload
    def submit(
        self,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Unset | None = UNSET,
        retries: int = 0,
    ) -> asyncio.Future[T]: ...
    def submit(
        self,
        fn: Callable[..., Any],
        /,
        *args: object,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Unset | None = UNSET,
        retries: int = 0,
    ) -> asyncio.Future[Any]:
        """Begin one call now and return the future of its result.

        Everything is as for ``run``, but that the call begins here, as with ``loop.run_in_executor``, and not when it
        is awaited or gathered.

        Arguments are taken as they are now, but for large ones of process workers (more than some 64 KB), which are
        pickled or copied in a thread: do not change these before the future is done.

        Cancellation of the future, or of whoever awaits it, cancels the call; a running one has been stopped, as
        *on_cancel* says, when the future is cancelled. Dropping the future cancels nothing.

        Raises:
            TypeError: *fn* is not callable.
            WrongLoopError: this is not the loop of the pool. All other errors are the future's.
        """
        request = _single_call(fn, args, "submit"), _run_options(timeout, on_cancel, queue_timeout, retries)
        return _begun(self._runner.singles, request, Encode.NOW)


show_as_coroutine_function(cast("FunctionType", Calls.run))


async def _run_later(singles: Singles, request: tuple[Call[Any], RunOptions]) -> Any:
    """Run a call that was made where no loop runs, on the loop that this is awaited on."""
    return await _begun(singles, request, Encode.SOON)


_run_later.__qualname__ = "Pool.run"  # in the warning that nobody awaited it


def _begun(singles: Singles, request: tuple[Call[Any], RunOptions], when: Encode) -> AwaitedFuture[Any]:
    future: AwaitedFuture[Any] = AwaitedFuture(loop=running_loop())
    future.request = request
    future.place = None
    future.is_awaited = False
    try:
        singles.begin(future, when)
        return future
    finally:
        del future  # an error that it holds refers to this frame


def _single_call(fn: Callable[..., Any], args: tuple[object, ...], method: str) -> Call[Any]:
    if type(fn) is not Call:
        if not is_function(fn):
            raise not_a_function(fn, f"{method}(f, x), or {method}(delayed(f)(x))")
        return Call(fn, *args)
    if args:
        raise TypeError(f"{method}() got a Call and further arguments. Give them to the call: delayed(fn)(...).")
    return fn


def _run_options(
    timeout: float | None, on_cancel: OnCancel | None, queue_timeout: float | Unset | None, retries: int
) -> RunOptions:
    if timeout is None and on_cancel is None and queue_timeout is UNSET and retries == 0:
        return USUAL
    return RunOptions(timeout, on_cancel, queue_timeout, retries)


def runner_of(pool: object) -> Runner:
    """Return what runs the calls of a pool.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(pool, Calls):
        raise TypeError(f"pool={pool!r} is neither a Pool nor what the limit() of one gave.")
    return pool._runner
