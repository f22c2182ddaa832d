"""For FastAPI and Starlette: the answers to a pool's errors as exception handlers of the app."""

from __future__ import annotations

from typing import Any


def add_error_handlers(app: Any) -> None:
    """Have a FastAPI or Starlette app answer a saturated or closed pool with 503, and a call's timeout with 504.

    The answers are those of :func:`aparallel.web.problem_of`. A websocket is closed with the code that the registry
    of RFC 6455 has for it: 1013 (try again later), 1011 (internal error), or 1012 (service restart).

    Call it before you add handlers of your own for the same errors: the last one counts.

    Raises:
        ImportError: Starlette is not installed.
    """
    from aparallel.web.starlette import exception_handlers

    for kind, answer in exception_handlers.items():
        app.add_exception_handler(kind, answer)
