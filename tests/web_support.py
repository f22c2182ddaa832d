"""Web servers and their clients for the tests: a double that the test drives, and real ones on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

DISCONNECT = {"type": "http.disconnect"}


def body(part: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": part, "more_body": more}


def http_scope(path: str = "/", *headers: tuple[bytes, bytes], method: str = "GET") -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


class Connection:
    """The server's end of one request. The test says what arrives, and sees what was asked for and sent."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._coming = deque(messages)
        self._came = asyncio.Event()
        self.reads = 0
        self.sent: list[dict[str, Any]] = []
        # Cleared, the socket has no room: sending waits.
        self.has_room = asyncio.Event()
        self.has_room.set()

    async def receive(self) -> dict[str, Any]:
        self.reads += 1
        while not self._coming:
            self._came.clear()
            await self._came.wait()
        if self._coming[0] is DISCONNECT:
            return DISCONNECT
        return self._coming.popleft()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        await self.has_room.wait()

    def come(self, *messages: dict[str, Any]) -> None:
        self._coming.extend(messages)
        self._came.set()

    def leave(self) -> None:
        self.come(DISCONNECT)

    @property
    def status(self) -> int | None:
        return next((m["status"] for m in self.sent if m["type"] == "http.response.start"), None)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent if m["type"] == "http.response.body")


async def settle() -> None:
    """Let all that is ready to run, run: nothing here depends on time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for what a real process or socket does, which nothing announces."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[int]:
    """A uvicorn server on this loop; gives its port."""
    uvicorn = pytest.importorskip("uvicorn")
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=10, **options)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or serving.done())
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode()


async def fetch(port: int, path: str) -> tuple[int, bytes]:
    """One request on a connection of its own; its status and what follows the headers."""
    async with connected(port) as (reader, writer):
        writer.write(request(path, "connection: close"))
        answer = await reader.read()
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest
