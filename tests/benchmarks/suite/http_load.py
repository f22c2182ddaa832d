"""Requests from a client that is light enough not to disturb the server beside it: HTTP/1.1 GET on raw sockets."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

GONE = 0
"""The status of a request without an answer: the connection was refused or broke, or the client lost patience."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    status: int
    seconds: float
    """From when it was due to be sent until its last byte was there; for GONE, until that was clear."""
    body: bytes = b""


class Client:
    """Sends requests, each on a connection that is kept if another one comes. Closing it closes them all."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        # Idle connections; those under way are known to their requests alone. Newest first.
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def get(self, path: str, *, due: float | None = None, patience: float = 30.0) -> Answer:
        """Request *path* and wait at most *patience* seconds, then leave: the connection is closed.

        *due* is the ``time.perf_counter()`` at which it should have been sent: what the loop of the load is late by
        counts, too. Cancelling it leaves as well.
        """
        due = time.perf_counter() if due is None else due
        try:
            async with asyncio.timeout(patience):
                try:
                    return await self._get(path, due, self._idle_connection() or await self._connect())
                except ConnectionKept:
                    return await self._get(path, due, await self._connect())
        except (OSError, TimeoutError):
            return Answer(GONE, time.perf_counter() - due)

    async def _get(self, path: str, due: float, connection: _Connection) -> Answer:
        try:
            status, body = await connection.request(path)
        finally:
            if connection.is_idle:
                self._idle.append(connection)
            else:
                connection.close()
        return Answer(status, connection.answered - due, body)

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_idle:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, *self._address)
        return connection


class ConnectionKept(ConnectionResetError):
    """A connection that had been kept was closed before any of the answer had come.

    A server may close one at the very moment at which a request is sent on it. Browsers send it again (RFC 9112,
    section 9.3.1), and so does this client, once.
    """


class _Connection(asyncio.Protocol):
    """One request at a time. Answers say their length; nothing else is understood."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""
        self._is_last = False
        self._requests = 0
        self.answered = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether another request can be sent."""
        return not (self._is_last or self._transport.is_closing()) and (self._answer is None or self._has_answered)

    @property
    def _has_answered(self) -> bool:
        answer = self._answer
        return answer is not None and answer.done() and not answer.cancelled() and answer.exception() is None

    async def request(self, path: str) -> tuple[int, bytes]:
        self._requests += 1
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: load\r\n\r\n".encode())
        return await self._answer

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        first, *fields = head.lower().split(b"\r\n")
        length = next(int(field.partition(b":")[2]) for field in fields if field.startswith(b"content-length:"))
        if len(body) < length or self._answer is None or self._answer.done():
            return
        self.answered = time.perf_counter()
        self._buffer = b""
        self._is_last = b"connection: close" in fields
        self._answer.set_result((int(first.split()[1]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            error = ConnectionKept if self._requests > 1 and not self._buffer else ConnectionResetError
            self._answer.set_exception(error("the server closed the connection before it had answered"))


async def open_loop(client: Client, path: str, *, rate: float, seconds: float, patience: float) -> list[Answer]:
    """Send *rate* requests a second, whether the earlier ones are answered or not, as visitors do.

    Each is timed from when it was due. A server that is stuck for a second cannot hide it by not being asked meanwhile
    (coordinated omission).
    """
    started = time.perf_counter()
    tasks = []
    for number in range(max(1, round(rate * seconds))):
        due = started + number / rate
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.create_task(client.get(path, due=due, patience=patience)))
    return await asyncio.gather(*tasks)


async def closed_loop(client: Client, paths: Iterable[str], *, clients: int, answers: list[Answer]) -> None:
    """Request all *paths* through so many clients, each of which sends its next when it has an answer.

    Answers are added to *answers* as they come, so that nothing is lost when this is cancelled.
    """
    remaining = iter(paths)

    async def one() -> None:
        for path in remaining:
            answer = await client.get(path)
            answers.append(answer)
            if answer.status == GONE:
                await asyncio.sleep(0.01)  # who is refused a connection tries again, but not at once

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one())


@asynccontextmanager
async def kept_busy(client: Client, path: str, *, clients: int) -> AsyncIterator[list[Answer]]:
    """Keep so many requests for *path* under way, and give the list of answers, which grows."""
    answers: list[Answer] = []
    load = asyncio.create_task(closed_loop(client, itertools.repeat(path), clients=clients, answers=answers))
    try:
        yield answers
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)


def percentile(answers: Sequence[Answer], share: float) -> float:
    """The seconds that *share* of the answers did not take longer than. Not empty."""
    times = sorted(answer.seconds for answer in answers)
    return times[math.ceil(share * len(times)) - 1]
