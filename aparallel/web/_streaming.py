"""Results as the body of a response, as they come.

A body is drawn as fast as its client takes it: a chunk is made when the server asks for the next, a server asks
when its socket has room, and a stream of results draws its calls no further than it is read.
"""

from __future__ import annotations

import contextlib
import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from aparallel._parallel.stream import ResultStream
from aparallel.web._disconnect import CancelOnDisconnect
from aparallel.web._encoding import encode, encode_aside
from aparallel.web._errors import Problem, problem_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable

    from aparallel.web._encoding import Dumps
    from aparallel.web._protocol import ASGIApp, Receive, Scope, Send

Results: TypeAlias = "ResultStream[Any] | AsyncIterable[Any]"

_logger = logging.getLogger("aparallel.web")

# Caches must not keep a stream, and nginx must not collect it before it passes it on.
_HEADERS = MappingProxyType({"cache-control": "no-cache", "x-accel-buffering": "no"})


class Chunks:
    """The body of a streamed response: an async iterator of bytes that owns the results it is made of.

    The results begin with :meth:`begin`, or with the first chunk. They are closed, and calls that run
    for them cancelled, when the iteration ends, is cancelled, or with :meth:`aclose`. Dropped before it began,
    there is nothing to close.

    Attributes:
        media_type: for the header ``content-type``.
        headers: further headers that the response should have, in lower case.
    """

    def __init__(
        self, media_type: str, chunks: AsyncGenerator[bytes, None], failure: Callable[[Exception], bytes]
    ) -> None:
        self.media_type = media_type
        self.headers = _HEADERS
        # Its first item is empty, and given when the results have begun.
        self._chunks = chunks
        self._failure = failure
        self._begun = False

    async def begin(self) -> None:
        """Begin the results, before any byte of the response is sent. Idempotent.

        Raises:
            Exception: what the results raise at their beginning, such as PoolSaturatedError: while the status
                can still tell. From then on, errors are told in the body.
        """
        if not self._begun:
            self._begun = True
            await anext(self._chunks)

    async def aclose(self) -> None:
        """Close the results: calls that still run for them are cancelled. Idempotent."""
        self._begun = True
        await self._chunks.aclose()

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            try:
                await self.begin()
            except Exception as error:
                return self._failure(error)
        return await anext(self._chunks)


def ndjson(results: Results, *, dumps: Dumps | None = None) -> Chunks:
    r"""Return *results* as newline-delimited JSON: each on a line of its own.

    Args:
        results: a stream (``pool.stream(...)``, ``stream_parallel(...)``) that has not been entered, or any async
            iterable. ``bytes`` among them are JSON already.
        dumps: makes JSON of a result, on one line: ``orjson.dumps``. By default Python's own, for which see
            ``docs/reference.md``. It runs on the loop, for large results in a thread.

    A result that is an exception (``return_exceptions=True``) is the line ``{"call_error": ...}``. If the results
    themselves fail, the last line is ``{"stream_error": ...}``. Both hold a problem as of RFC 9457, and
    ``aparallel.web`` logs the failure. A body that lacks the end of its HTTP framing was cut.

    The media type is ``application/x-ndjson``; lines end with ``\n``, in UTF-8 (github.com/ndjson/ndjson-spec).
    """

    def failure(error: Exception) -> bytes:
        return encode({"stream_error": problem_in_body(error)}) + b"\n"

    async def line(result: object) -> bytes:
        if isinstance(result, BaseException):
            return encode({"call_error": problem_in_body(result)}) + b"\n"
        return await encode_aside(result, dumps) + b"\n"

    return Chunks("application/x-ndjson", _lines(results, line, failure), failure)


async def _lines(
    results: Results, line: Callable[[object], Awaitable[bytes]], failure: Callable[[Exception], bytes]
) -> AsyncGenerator[bytes, None]:
    async with opened(results) as items:
        yield b""
        try:
            async for item in items:
                chunk = await line(item)
                del item  # it may be large, and the client, or the next one, long in coming
                yield chunk
                del chunk
        except Exception as error:
            yield failure(error)


@contextlib.asynccontextmanager
async def opened(results: Results) -> AsyncIterator[AsyncIterator[Any]]:
    """Begin *results*; close them at the end."""
    if isinstance(results, ResultStream):
        async with results:
            yield results
        return
    if not hasattr(results, "__aiter__"):
        raise TypeError(
            f"{type(results).__qualname__} is not an async iterable. Stream the results of a pool: pool.stream(calls)."
        )
    items = aiter(results)
    try:
        yield items
    finally:
        close = getattr(items, "aclose", None)  # async generators have it, other iterators need not
        if close is not None:
            await close()


def problem_in_body(error: BaseException) -> dict[str, Any]:
    """Return what a client is told, within a body, of *error*; tell the log the rest."""
    problem = problem_of(error)
    if problem is None:
        problem = Problem(500, "The work for this result failed.")
        _logger.error("A result that was being streamed failed.", exc_info=error)
    else:
        _logger.warning("A result that was being streamed failed: %s", error)
    return problem.as_dict()


async def respond(chunks: Chunks, response: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Have *response*, which sends *chunks*, do so: begun before the status is sent, and closed whatever happens.

    A client that leaves cancels it, also where the app does not have :class:`CancelOnDisconnect`: many servers
    would tell it only with the next chunk, and that may take long to compute.

    Raises:
        Exception: what the results raise at their beginning.
    """

    async def begun(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD":  # there is nobody to compute them for
            await chunks.aclose()
        await chunks.begin()
        await response(scope, receive, send)

    try:
        await CancelOnDisconnect(begun)(scope, receive, send)
    finally:
        await chunks.aclose()
