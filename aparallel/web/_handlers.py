"""For FastAPI and Starlette: the answers to a pool's errors as exception handlers of the app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aparallel._ground.awaiting import is_coroutine_function
from aparallel.web._errors import problem_of

if TYPE_CHECKING:
    from collections.abc import Callable


def add_error_handlers(app: Any) -> None:
    """Have a FastAPI or Starlette app answer a saturated or closed pool with 503, and a call's timeout with 504.

    The answers are those of :func:`aparallel.web.problem_of`. A websocket is closed with the code that the registry
    of RFC 6455 has for it: 1013 (try again later), 1011 (internal error), or 1012 (service restart).

    Call it before you add handlers of your own for the same errors: the last one counts. A handler for exception groups
    that the app has already goes on to answer those that are not made of a pool's errors alone.

    Raises:
        ImportError: Starlette is not installed.
    """
    from aparallel.web.starlette import exception_handlers

    answer_groups = app.exception_handlers.get(ExceptionGroup)
    for kind, answer in exception_handlers.items():
        app.add_exception_handler(kind, answer)
    if answer_groups is not None:
        app.add_exception_handler(ExceptionGroup, _first(exception_handlers[ExceptionGroup], answer_groups))


def _first(answer_ours: Callable[..., Any], answer_others: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler of groups that leaves to *answer_others* what is not made of a pool's errors alone."""
    from starlette.concurrency import run_in_threadpool

    async def answer(connection: Any, error: Exception) -> Any:
        if problem_of(error) is not None:
            return await answer_ours(connection, error)
        if is_coroutine_function(answer_others):
            return await answer_others(connection, error)
        return await run_in_threadpool(answer_others, connection, error)  # as Starlette does

    return answer
