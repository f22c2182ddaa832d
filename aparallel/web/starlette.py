"""For Starlette, and FastAPI: responses that stream, and answers to a pool's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket, WebSocketState

from aparallel.errors import CallTimeoutError, PoolSaturatedError
from aparallel.web._errors import ANSWERED, problem_of
from aparallel.web._events import server_sent_events
from aparallel.web._streaming import ndjson, respond

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from aparallel.web._encoding import Dumps
    from aparallel.web._streaming import Chunks, Results


__all__ = ["ChunksResponse", "NDJSONResponse", "ServerSentEventsResponse", "exception_handlers"]


class ChunksResponse(StreamingResponse):
    """A response whose body is *chunks*, of :func:`ndjson` or :func:`server_sent_events`.

    The results begin before the status is sent, so that a saturated pool is a 503. A client that leaves
    closes them at once, and *background* does not run then.
    """

    def __init__(
        self,
        chunks: Chunks,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        super().__init__(chunks, status_code, {**chunks.headers, **(headers or {})}, chunks.media_type, background)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await respond(self._chunks, super().__call__, scope, receive, send)


class NDJSONResponse(ChunksResponse):
    """Results as lines of JSON, as they come: see :func:`aparallel.web.ndjson` and :class:`ChunksResponse`."""

    def __init__(
        self,
        results: Results,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        *,
        dumps: Dumps | None = None,
    ) -> None:
        super().__init__(ndjson(results, dumps=dumps), status_code, headers, background)


class ServerSentEventsResponse(ChunksResponse):
    """Results as events, as they come: see :func:`aparallel.web.server_sent_events` and :class:`ChunksResponse`."""

    def __init__(
        self,
        results: Results,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        *,
        ping: float | str | None = 15.0,
        retry: int | None = None,
        dumps: Dumps | None = None,
    ) -> None:
        chunks = server_sent_events(results, ping=ping, retry=retry, dumps=dumps)
        super().__init__(chunks, status_code, headers, background)


async def _answer(connection: Request | WebSocket, error: Exception) -> Response | None:
    """Answer *connection*, whose handler failed with *error* of a pool: an exception handler of Starlette's.

    Raises:
        Exception: *error*, if it is none of those that have an answer.
    """
    problem = problem_of(error)
    if problem is None:
        raise error
    if isinstance(connection, WebSocket):
        if connection.application_state is not WebSocketState.DISCONNECTED:
            await connection.close(_close_code(error))
        return None
    return Response(problem.body(), problem.status, problem.headers)


#: The answers to a pool's errors: ``Starlette(exception_handlers=exception_handlers)``.
exception_handlers: dict[Any, Any] = dict.fromkeys(ANSWERED, _answer)


def _close_code(error: Exception) -> int:
    """Return the code of RFC 6455's registry for *error*."""
    if isinstance(error, ExceptionGroup):
        return _close_code(error.exceptions[0])
    if isinstance(error, PoolSaturatedError):
        return 1013  # try again later
    return 1011 if isinstance(error, CallTimeoutError) else 1012  # internal error, service restart
