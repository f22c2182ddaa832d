"""What a client is told of calls that could not be served.

The body is a problem in JSON as of RFC 9457, for every framework the same. It says nothing of the call: a
function's name and arguments are the server's own business. What the log should know, the error says.
"""

from __future__ import annotations

import dataclasses
import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aparallel.errors import CallTimeoutError, ClosedPoolError, PoolSaturatedError
from aparallel.web._protocol import Ending

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aparallel.web._protocol import ASGIApp, Message, Receive, Scope, Send

# The errors that may have an answer of their own: problem_of says which do. All others are the framework's, with 500.
# A handler that makes its calls in a task group fails with an exception group.
ANSWERED = (PoolSaturatedError, CallTimeoutError, ClosedPoolError, ExceptionGroup)

_BUSY = "Too many requests are waiting already. Try again later."
_TOO_LONG = "The work for this request took too long and was stopped."
_CLOSING = "The server is shutting down. Try again later."


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """How a request failed, as RFC 9457 tells it.

    Attributes:
        status: the HTTP status.
        detail: a sentence for whoever reads the answer.
        retry_after: whole seconds until another try is worth it, at least 1, or None.
    """

    status: int
    detail: str
    retry_after: int | None = None

    @property
    def title(self) -> str:
        """The status in words, as section 4.2.1 wants it for a problem without a type of its own."""
        return HTTPStatus(self.status).phrase

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the answer, in lower case."""
        headers = {"content-type": "application/problem+json", "cache-control": "no-store"}
        return headers if self.retry_after is None else {**headers, "retry-after": str(self.retry_after)}

    def as_dict(self) -> dict[str, Any]:
        """Return the members of the problem object."""
        return {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}

    def body(self) -> bytes:
        """Return the body of the answer."""
        return json.dumps(self.as_dict()).encode()


def problem_of(error: BaseException) -> Problem | None:
    """Return what a client is told of *error*, or None if it is no concern of a pool.

    ==================  ======  ===========================================
    PoolSaturatedError  503     ``Retry-After`` from the error, or 1 second
    CallTimeoutError    504
    ClosedPoolError     503     ``Retry-After: 1``: the server is going
    ==================  ======  ===========================================

    A group of such errors and no others has the answer of the one that asks for the longest wait.
    """
    if isinstance(error, ExceptionGroup):
        return _problem_of_all(error.exceptions)
    if isinstance(error, PoolSaturatedError):
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, _BUSY, _whole_seconds(error.retry_after))
    if isinstance(error, CallTimeoutError):
        return Problem(HTTPStatus.GATEWAY_TIMEOUT, _TOO_LONG)
    if isinstance(error, ClosedPoolError):
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, _CLOSING, _whole_seconds(None))
    return None


def _problem_of_all(errors: Sequence[Exception]) -> Problem | None:
    problems = [problem for problem in map(problem_of, errors) if problem is not None]
    if len(problems) < len(errors):
        return None
    return max(problems, key=lambda problem: problem.retry_after or 0)


def _whole_seconds(estimate: float | None) -> int:
    if estimate is None or not math.isfinite(estimate):
        return 1
    return max(math.ceil(estimate), 1)


class PoolErrors:
    """ASGI middleware: answers a saturated or closed pool with 503, and a call that took too long with 504.

    ::

        app = PoolErrors(app)

    For apps without a framework. With one, use its own way, which keeps the framework's middleware in the picture:
    :func:`aparallel.web.add_error_handlers`, or what ``aparallel.web.litestar`` and ``aparallel.web.aiohttp`` have.
    An error after the response has begun is passed on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, and answer for it if it fails with an error that has an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ending = Ending()

        async def noted(message: Message) -> None:
            ending.note(message)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ANSWERED as error:
            problem = problem_of(error)
            if problem is None or ending.started:
                raise
            body = problem.body()
            headers = {**problem.headers, "content-length": str(len(body))}
            encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
            await send({"type": "http.response.body", "body": body, "more_body": False})
