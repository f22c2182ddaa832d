"""A call is run, and how it ended is a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aparallel._ground.exceptions import wrap_bare

if TYPE_CHECKING:
    import asyncio
    from contextvars import Context

    from aparallel._ground.call import Call


def run_call(call: Call[Any], context: Context | None = None) -> tuple[Any, bool]:
    """Run *call* as a worker does, in a thread without an event loop; return how it ended, and never raise.

    What an ``async def`` function returns is awaited, on a loop of its own.

    Args:
        context: it runs in a copy of this; None for the thread's own.

    Returns:
        The result and False, or the exception and True. One that would mean something else to whom it is raised
        again, such as SystemExit or CancelledError, is the cause of a RemoteCallError.
    """
    try:
        value = call() if context is None else (context := context.copy()).run(call)
        if hasattr(type(value), "__await__"):
            value = _await(value, context)
    except BaseException as error:  # SystemExit too: it is the call's outcome
        return wrap_bare(error), True
    return value, False


def _await(awaitable: Any, context: Context | None) -> Any:
    import asyncio

    with asyncio.Runner() as runner:
        return await_on(runner, awaitable, context)


def await_on(runner: asyncio.Runner, awaitable: Any, context: Context | None) -> Any:
    """Return what *awaitable* gives, or raise it.

    Its task has no error: in a cycle with the frames in its traceback, of which one of asyncio's has the task, that
    would wait for the garbage collector, with all that its callers have.
    """
    from asyncio import CancelledError

    ended: list[tuple[Any, BaseException | None]] = []

    async def wait() -> None:
        try:
            ended.append((await awaitable, None))
        except CancelledError:  # perhaps by the runner: that turns it into Ctrl-C's KeyboardInterrupt
            raise
        except BaseException as error:
            ended.append((None, error))

    runner.run(wait(), context=context)
    value, error = ended.pop()
    try:
        if error is not None:
            raise error
        return value
    finally:
        del error
