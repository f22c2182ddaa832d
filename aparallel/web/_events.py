"""Results as server-sent events, as of the WHATWG's HTML standard, section 9.2."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from aparallel._ground.shield import outlast
from aparallel._ground.units import parse_seconds
from aparallel.web._encoding import encode, encode_aside
from aparallel.web._streaming import Chunks, opened, problem_in_body

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from aparallel.web._encoding import Dumps
    from aparallel.web._streaming import Results

# A line that begins with a colon is a comment, which clients drop.
_PING = b": ping\n\n"
_END = b"event: stream_end\ndata:\n\n"

# The only line breaks of an event stream. str.splitlines knows more.
_LINE_BREAK = re.compile(r"\r\n|\r|\n")

_NO_DATA: Any = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream.

    Args:
        data: what becomes JSON in the field ``data``.
        text: the field ``data`` as it is, instead; may have several lines.
        event: the event's type, for ``addEventListener``; ``message`` by default.
        id: what a client sends as ``Last-Event-ID`` when it connects again.
        retry: milliseconds until a client that lost the connection connects again.

    Raises:
        ValueError: data and text are both given; *event* or *id* has a line break, or *id* a NUL, which clients
            do not take; *retry* is negative or no whole number.
    """

    data: object = _NO_DATA
    _: dataclasses.KW_ONLY
    text: str | None = None
    event: str | None = None
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.data is not _NO_DATA:
            raise ValueError("An event has data, to become JSON, or text as it is; both were given.")
        for name, value, forbidden in (("event", self.event, "\r\n"), ("id", self.id, "\r\n\0")):
            if value is not None and any(sign in value for sign in forbidden):
                raise ValueError(f"{name}={value!r} has a line break or NUL in it, which would end the field.")
        if self.retry is not None and (
            isinstance(self.retry, bool) or not isinstance(self.retry, int) or self.retry < 0
        ):
            raise ValueError(f"retry={self.retry!r} is not a whole number of milliseconds of at least 0.")

    def encode(self, dumps: Dumps | None = None) -> bytes:
        """Return the event as it travels."""
        return self._framed(None if self.data is _NO_DATA else encode(self.data, dumps))

    async def encode_aside(self, dumps: Dumps | None = None) -> bytes:
        """Return what :meth:`encode` does, off the loop if the data is large."""
        return self._framed(None if self.data is _NO_DATA else await encode_aside(self.data, dumps))

    def _framed(self, data: bytes | None) -> bytes:
        fields = [] if self.id is None else [f"id: {self.id}"]
        if self.event is not None:
            fields.append(f"event: {self.event}")
        if self.retry is not None:
            fields.append(f"retry: {self.retry}")
        if self.text is not None:
            fields.extend(f"data: {line}" for line in _LINE_BREAK.split(self.text))
        lines = [field.encode("utf-8", "replace") for field in fields]
        if data is not None:
            lines.append(b"data: " + data)
        return b"\n".join([*lines, b"", b""])


def server_sent_events(
    results: Results,
    *,
    ping: float | str | None = 15.0,
    retry: int | None = None,
    dumps: Dumps | None = None,
) -> Chunks:
    """Return *results* as server-sent events: each the ``data`` of one, as JSON.

    Args:
        results: a stream that has not been entered, or any async iterable, as of :func:`ndjson`. An :class:`Event`
            among them is sent as it says.
        ping: seconds without an event after which a comment is sent, so that proxies keep the connection and a
            client that left is noticed; a number or text such as ``"15s"``; None for never.
        retry: milliseconds until a client that lost the connection connects again.
        dumps: as of :func:`ndjson`.

    The stream ends with the event ``stream_end``, or, if the results fail, with ``stream_error``, whose data
    is a problem as of RFC 9457; the failure is logged by ``aparallel.web``. A browser's EventSource should be
    closed on either: it connects again, and asks for all the work again, when a stream just ends. A result that
    is an exception (``return_exceptions=True``) is the event ``call_error``.

    The results are iterated in a task of their own, always the same. Nothing is drawn before it can be sent.

    Raises:
        ValueError: a bad *ping* or *retry*.
    """
    seconds = None if ping is None else parse_seconds(ping)
    if seconds == 0:
        raise ValueError("ping=0 would send nothing but pings. Give seconds, or None for no pings.")
    first = b"" if retry is None else Event(retry=retry).encode()

    def failure(error: Exception) -> bytes:
        return Event(problem_in_body(error), event="stream_error").encode()

    async def event(result: object) -> bytes:
        if isinstance(result, BaseException):
            return Event(problem_in_body(result), event="call_error").encode()
        return await (result if isinstance(result, Event) else Event(result)).encode_aside(dumps)

    return Chunks("text/event-stream", _events(results, seconds, first, event, failure), failure)


async def _events(
    results: Results,
    ping: float | None,
    first: bytes,
    event: Callable[[object], Awaitable[bytes]],
    failure: Callable[[Exception], bytes],
) -> AsyncGenerator[bytes, None]:
    async with _Drawer(results) as drawer:
        yield b""
        if first:
            yield first
        try:
            while True:
                try:
                    item = await drawer.next(ping)
                except TimeoutError:
                    yield _PING
                    continue
                except StopAsyncIteration:
                    break
                chunk = await event(item)
                del item  # as in ndjson
                yield chunk
                del chunk
        except Exception as error:
            yield failure(error)
        else:
            yield _END


class _Drawer:
    """Draws items in a task of its own, one each time it is asked, so that waiting for one can stop and go on.

    Cancelling the wait for an async generator's next item would end the generator, and a step in
    another task would be outside of the cancel scopes that it has entered.
    """

    def __init__(self, results: Results) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        # Set while an item is asked for and has not come, also over a wait that ran out of time. No other
        # is asked for before one that has come is taken: there is never more than one.
        self._asked = asyncio.Event()
        self._drawn: deque[Any] = deque()
        # Whoever waits for an item. It wakes up for one, for the end of the task, and when its time is over.
        self._waiter: asyncio.Future[None] | None = None
        self._task = self._loop.create_task(self._draw(results), name="aparallel-events")
        self._task.add_done_callback(self._wake)

    async def __aenter__(self) -> Self:
        """Wait until the results have begun; raise what they raise."""
        try:
            await asyncio.wait([self._begun, self._task], return_when=asyncio.FIRST_COMPLETED)
            if not self._begun.done():
                self._task.result()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the task, and the results with it."""
        self._task.cancel()
        await outlast([self._task])
        if not self._task.cancelled():
            self._task.exception()  # was raised where the items were asked for, or nobody asks any more
        del self._task  # an error that it has refers to us

    async def next(self, timeout: float | None) -> Any:
        """Return the next item; TimeoutError if there is none within *timeout* seconds, and ask again later."""
        if not (self._drawn or self._task.done()):
            self._asked.set()
            await self._news(timeout)
        if self._drawn:
            return self._drawn.pop()
        if not self._task.done():
            raise TimeoutError
        self._task.result()
        raise StopAsyncIteration

    async def _news(self, timeout: float | None) -> None:
        self._waiter = self._loop.create_future()
        timer = None if timeout is None else self._loop.call_later(timeout, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _draw(self, results: Results) -> None:
        async with opened(results) as items:
            self._begun.set_result(None)
            await self._asked.wait()
            async for item in items:
                self._asked.clear()
                self._drawn.append(item)
                del item
                self._wake()
                await self._asked.wait()
