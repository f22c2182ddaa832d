"""A client that leaves cancels its handler; nothing else does, and nothing is lost on the way."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from web_support import Connection, body, connected, fetch, http_scope, request, served, settle, until
from work import nap

from aparallel import Pool, delayed
from aparallel.web import CancelOnDisconnect, get_pool, lifespan

START = {"type": "http.response.start", "status": 200, "headers": []}
LAST = {"type": "http.response.body", "body": b"done", "more_body": False}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}


class Handler:
    """An app that stays where the test put it, and remembers what happened to it."""

    def __init__(self, *first: dict[str, Any]) -> None:
        self._first = first
        self.waits = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.events: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for message in self._first:
            await send(message)
        try:
            self.waits.set()
            await self.goes_on.wait()
            self.events.append("went on")
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.events.append("cleaned up")


def serve(app: Any, connection: Connection, scope: dict[str, Any] | None = None) -> asyncio.Task[None]:
    return asyncio.create_task(app(scope or http_scope(), connection.receive, connection.send))


async def test_a_client_that_leaves_cancels_its_handler_once_and_the_server_sees_no_error() -> None:
    handler, connection = Handler(), Connection(body())
    serving = serve(CancelOnDisconnect(handler), connection)
    await handler.waits.wait()
    connection.leave()
    await serving
    assert handler.events == ["cancelled", "cleaned up"]
    assert serving.cancelling() == 0
    # For middleware in front, which takes a request without an answer for a mistake.
    assert connection.status == 499


async def test_a_response_that_has_begun_is_not_ended_for_a_client_that_left() -> None:
    handler, connection = Handler(START, PART), Connection(body())
    serving = serve(CancelOnDisconnect(handler), connection)
    await handler.waits.wait()
    connection.leave()
    await serving
    assert handler.events == ["cancelled", "cleaned up"]
    assert connection.sent == [START, PART]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([START, PART, LAST], id="body"),
        pytest.param([START, {"type": "http.response.pathsend", "path": "/x"}], id="pathsend"),
        pytest.param([START, {"type": "http.response.zerocopysend", "file": 0}], id="zerocopysend"),
        pytest.param(
            [
                {**START, "trailers": True},
                LAST,
                {"type": "http.response.trailers", "headers": [], "more_trailers": False},
            ],
            id="trailers",
        ),
    ],
)
async def test_nothing_is_cancelled_after_the_last_part_of_the_response(messages: list[dict[str, Any]]) -> None:
    handler, connection = Handler(*messages), Connection(body())
    serving = serve(CancelOnDisconnect(handler), connection)
    await handler.waits.wait()
    connection.leave()
    await settle()
    handler.goes_on.set()
    await serving
    assert handler.events == ["went on", "cleaned up"]


async def test_a_body_before_its_trailers_is_not_the_last_part() -> None:
    handler, connection = Handler({**START, "trailers": True}, LAST), Connection(body())
    serving = serve(CancelOnDisconnect(handler), connection)
    await handler.waits.wait()
    connection.leave()
    await serving
    assert handler.events == ["cancelled", "cleaned up"]


async def test_a_client_that_leaves_while_the_last_part_is_sent_cancels_nothing() -> None:
    handler, connection = Handler(START, LAST), Connection(body())
    connection.has_room.clear()

    async def room_for_one() -> None:
        connection.has_room.set()
        await asyncio.sleep(0)
        connection.has_room.clear()

    serving = serve(CancelOnDisconnect(handler), connection)
    await settle()
    await room_for_one()
    await settle()
    assert connection.sent[-1] is LAST
    connection.leave()
    await settle()
    connection.has_room.set()
    handler.goes_on.set()
    await serving
    assert handler.events == ["went on", "cleaned up"]


@pytest.mark.parametrize("parts", [1, 2, 7])
async def test_a_body_arrives_whole_and_in_order_and_then_the_disconnect(parts: int) -> None:
    messages = [body(str(i).encode(), more=i < parts - 1) for i in range(parts)]
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(parts):
            got.append(await receive())
            await settle()
        await send(START)
        await send(LAST)
        got.append((await receive())["type"])
        got.append((await receive())["type"])

    connection = Connection(*messages)
    serving = serve(CancelOnDisconnect(app), connection)
    await until(lambda: connection.sent)
    connection.leave()
    await serving
    assert got == [*messages, "http.disconnect", "http.disconnect"]


@pytest.mark.parametrize(("parts", "whole"), [(1, True), (100, True), (100, False)])
async def test_a_client_that_leaves_is_seen_behind_a_body_that_nobody_reads(parts: int, whole: bool) -> None:
    connection = Connection(*[body(b"x" * 9_000, more=i < parts - 1 or not whole) for i in range(parts)])
    handler = Handler()
    serving = serve(CancelOnDisconnect(handler), connection)
    await handler.waits.wait()
    connection.leave()
    await serving
    assert handler.events == ["cancelled", "cleaned up"]


@pytest.mark.parametrize(("size", "held"), [(100_000, range(10, 12)), (1, range(1_000, 3_000))])
async def test_an_upload_is_held_back_when_a_megabyte_of_it_waits(size: int, held: range) -> None:
    connection = Connection(*[body(bytes(size), more=True) for _ in range(4_000)])
    takes = asyncio.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            await takes.acquire()
            await receive()

    serving = serve(CancelOnDisconnect(app), connection)
    await settle()
    reads = connection.reads
    assert reads in held
    for taken in range(10):
        await settle()
        assert connection.reads == reads + taken
        takes.release()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_receiver_that_repeats_itself_is_not_followed() -> None:
    reads = 0

    async def receive() -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return body(b"again")

    handler, connection = Handler(), Connection()
    serving = asyncio.create_task(CancelOnDisconnect(handler)(http_scope(), receive, connection.send))
    await handler.waits.wait()
    await settle()
    assert reads == 2
    handler.goes_on.set()
    await serving


async def test_a_client_that_waits_to_send_its_body_is_not_asked_for_it_before_the_app_asks() -> None:
    connection = Connection()
    reads, got = asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await reads.wait()
        got.append(await receive())
        await send(START)
        await send(LAST)

    scope = http_scope("/", (b"expect", b"100-Continue"), method="POST")
    serving = serve(CancelOnDisconnect(app), connection, scope)
    await settle()
    assert connection.reads == 0
    reads.set()
    await settle()
    assert connection.reads == 1
    connection.come(body(b"at last"))
    await serving
    assert got == [body(b"at last")]


async def test_asking_whether_the_client_left_takes_nothing_away() -> None:
    starlette = pytest.importorskip("starlette.requests")
    connection = Connection(body(b"1", more=True))
    answers = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked = starlette.Request(scope, receive)
        assert [chunk async for chunk in _first(asked.stream())] == [b"1"]
        answers.append(await asked.is_disconnected())  # nothing has come, and the wait for it is cancelled
        connection.come(body(b"2"))
        answers.append((await receive())["body"])
        await send(START)
        await send(LAST)
        answers.append(await asked.is_disconnected())
        connection.leave()
        await settle()
        answers.append(await asked.is_disconnected())

    await serve(CancelOnDisconnect(app), connection)
    assert answers == [False, b"2", False, True]


async def _first(chunks: Any) -> Any:
    yield await anext(chunks)


async def test_a_request_that_is_answered_at_once_costs_no_task() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(LAST)

    connection = Connection(body())
    await CancelOnDisconnect(app)(http_scope(), connection.receive, connection.send)
    await settle()
    assert connection.reads == 0
    assert connection.sent == [START, LAST]


@pytest.mark.parametrize("expects", [False, True])
async def test_a_task_that_outlives_its_request_is_told_that_the_client_is_gone(expects: bool) -> None:
    asks, told = asyncio.Event(), []

    async def ask_later(receive: Any) -> None:
        await asks.wait()
        told.append(await receive())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(ask_later(receive)))
        await send(LAST)

    tasks: list[asyncio.Task[None]] = []
    headers = [(b"expect", b"100-continue")] if expects else []
    connection = Connection()
    await CancelOnDisconnect(app)(http_scope("/", *headers), connection.receive, connection.send)
    asks.set()
    await asyncio.gather(*tasks)
    assert told == [{"type": "http.disconnect"}]
    assert connection.reads == 0


async def test_what_the_servers_receive_raises_is_raised_to_the_app() -> None:
    async def receive() -> dict[str, Any]:
        raise RuntimeError("the server is confused")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await settle()
        await receive()

    with pytest.raises(RuntimeError, match="confused"):
        await CancelOnDisconnect(app)(http_scope(), receive, Connection().send)


async def test_a_cancellation_by_somebody_else_is_passed_on() -> None:
    handler, connection = Handler(), Connection(body())
    serving = serve(CancelOnDisconnect(handler), connection)
    await handler.waits.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert connection.sent == []


async def test_a_cancellation_by_somebody_else_in_the_same_moment_is_passed_on() -> None:
    handler, connection = Handler(), Connection(body())
    serving = serve(CancelOnDisconnect(handler), connection)
    await handler.waits.wait()
    connection.leave()
    while not serving.cancelling():  # noqa: ASYNC110
        await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert serving.cancelling() == 1


async def test_a_client_that_leaves_while_somebody_else_cancels_does_not_disturb_the_clean_up() -> None:
    connection, waits, cleans = Connection(body()), asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            waits.set()
            await asyncio.Event().wait()
        finally:
            connection.leave()
            await settle()
            cleans.set()

    serving = serve(CancelOnDisconnect(app), connection)
    await waits.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert cleans.is_set()
    assert serving.cancelling() == 1


async def test_a_client_that_leaves_after_a_task_group_of_the_handler_failed_cancels_it() -> None:
    handler, connection = Handler(), Connection(body())

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("an expected failure")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        await handler(scope, receive, send)

    serving = serve(CancelOnDisconnect(app), connection)
    await handler.waits.wait()
    connection.leave()
    await serving
    assert handler.events == ["cancelled", "cleaned up"]
    assert connection.status == 499


async def test_a_receive_that_is_slow_to_end_has_ended_when_the_request_has() -> None:
    ending, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await may_end.wait()
            ended.set()
        raise AssertionError("reached")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await settle()
        await send(START)
        await send(LAST)

    serving = asyncio.create_task(CancelOnDisconnect(app)(http_scope(), receive, Connection().send))
    await ending.wait()
    serving.cancel()
    await settle()
    assert not serving.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert ended.is_set()


async def test_an_error_in_clean_up_reaches_the_server() -> None:
    waits = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            waits.set()
            await asyncio.Event().wait()
        finally:
            raise ValueError("from clean-up")

    connection = Connection(body())
    serving = serve(CancelOnDisconnect(app), connection)
    await waits.wait()
    connection.leave()
    with pytest.raises(ValueError, match="from clean-up"):
        await serving
    assert serving.cancelling() == 0


async def test_a_handler_that_will_not_be_cancelled_may_answer() -> None:
    waits = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            waits.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        await send(START)
        await send(LAST)

    connection = Connection(body())
    serving = serve(CancelOnDisconnect(app), connection)
    await waits.wait()
    connection.leave()
    await serving
    assert connection.sent == [START, LAST]
    assert serving.cancelling() == 0


async def test_a_server_that_takes_no_answer_for_a_client_that_left_is_not_an_error() -> None:
    handler, connection = Handler(), Connection(body())

    async def send(message: Any) -> None:
        raise OSError("the client has left")

    serving = asyncio.create_task(CancelOnDisconnect(handler)(http_scope(), connection.receive, send))
    await handler.waits.wait()
    connection.leave()
    await serving


async def test_a_beginning_that_middleware_holds_back_is_no_answer_to_the_front() -> None:
    handler, connection = Handler(START), Connection(body())

    async def holds_back(scope: Any, receive: Any, send: Any) -> None:
        held: list[dict[str, Any]] = []

        async def hold(message: dict[str, Any]) -> None:
            held.append(message)
            if message["type"] != "http.response.start":
                for each in held:
                    await send(each)
                held.clear()

        await CancelOnDisconnect(handler)(scope, receive, hold)

    serving = serve(CancelOnDisconnect(holds_back), connection)
    await handler.waits.wait()
    connection.leave()
    await serving
    assert handler.events == ["cancelled", "cleaned up"]
    assert [message.get("status") for message in connection.sent] == [499, None]


async def test_a_beginning_that_the_cancellation_cuts_short_is_no_answer_to_the_front() -> None:
    connection, waits, is_sending = Connection(body()), asyncio.Event(), True

    async def send(message: dict[str, Any]) -> None:
        nonlocal is_sending
        if is_sending:  # as Starlette's BaseHTTPMiddleware does, which takes a message when it gets to it
            waits.set()
            try:
                await asyncio.Event().wait()
            finally:
                is_sending = False
        await connection.send(message)

    app = CancelOnDisconnect(Handler(START))
    serving = asyncio.create_task(app(http_scope(), connection.receive, send))
    await waits.wait()
    connection.leave()
    await serving
    assert [message.get("status") for message in connection.sent] == [499, None]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_what_is_no_request_passes_through_untouched(kind: str) -> None:
    connection, seen = Connection(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((receive, send))

    await CancelOnDisconnect(app)({"type": kind}, connection.receive, connection.send)
    assert seen == [(connection.receive, connection.send)]


async def test_only_the_requests_that_are_included_are_watched() -> None:
    app = CancelOnDisconnect(handler := Handler(), include=lambda scope: scope["path"] == "/heavy")
    connection = Connection(body())
    serving = serve(app, connection, http_scope("/light"))
    await handler.waits.wait()
    connection.leave()
    await settle()
    assert connection.reads == 0
    handler.goes_on.set()
    await serving
    assert handler.events == ["went on", "cleaned up"]


def test_what_to_watch_is_said_by_a_function() -> None:
    with pytest.raises(TypeError, match="include='/heavy' is not a function"):
        CancelOnDisconnect(Handler(), include="/heavy")  # type: ignore[arg-type]


async def test_a_request_that_is_watched_twice_is_cancelled_once() -> None:
    handler, connection = Handler(), Connection(body())
    serving = serve(CancelOnDisconnect(CancelOnDisconnect(handler)), connection)
    await handler.waits.wait()
    connection.leave()
    await serving
    assert handler.events == ["cancelled", "cleaned up"]
    assert len(connection.sent) == 2


async def test_another_event_loop_than_asyncios_is_refused() -> None:
    refused: list[str] = []

    async def on_trio() -> None:
        try:
            await CancelOnDisconnect(Handler())(http_scope(), None, None)  # type: ignore[arg-type]
        except RuntimeError as error:
            refused.append(str(error))

    def run() -> None:
        anyio.run(on_trio, backend="trio")

    await asyncio.get_running_loop().run_in_executor(None, run)
    assert "trio" in refused[0]


# With Starlette's middleware, which has a task of its own between itself and what is inside.


def between(front: int, behind: int, endpoint: Callable[..., Any]) -> Any:
    """An app with so many of Starlette's BaseHTTPMiddleware around the one that is tested."""
    pytest.importorskip("starlette")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.routing import Route

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    base = Middleware(BaseHTTPMiddleware, dispatch=dispatch)
    return Starlette(
        routes=[Route("/", endpoint, methods=["GET", "POST"])],
        middleware=[*[base] * front, Middleware(CancelOnDisconnect), *[base] * behind],
    )


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize(("front", "behind"), [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1)])
async def test_starlettes_middleware_may_stand_in_front_and_behind(front: int, behind: int, outside: bool) -> None:
    events: list[str] = []
    waits = asyncio.Event()

    async def endpoint(request: Any) -> None:
        try:
            waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        finally:
            await settle()
            events.append("cleaned up")

    app = between(front, behind, endpoint)
    for served_before in range(2):
        connection = Connection(body())
        serving = serve(CancelOnDisconnect(app) if outside else app, connection)
        await waits.wait()
        connection.leave()
        await serving
        assert events == ["cancelled", "cleaned up"] * (served_before + 1)
        assert connection.status == 499
        waits.clear()


@pytest.mark.parametrize(("front", "behind"), [(0, 0), (1, 0), (0, 1)])
async def test_a_stream_may_await_in_its_clean_up(front: int, behind: int) -> None:
    responses = pytest.importorskip("starlette.responses")
    events: list[str] = []

    async def parts() -> Any:
        try:
            yield b"first"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        finally:
            await settle()
            events.append("cleaned up")

    async def endpoint(request: Any) -> Any:
        return responses.StreamingResponse(parts())

    connection, scope = Connection(body()), http_scope()
    serving = serve(between(front, behind, endpoint), connection, scope)
    await until(lambda: connection.body == b"first")
    await settle()
    connection.leave()
    await serving
    assert events == ["cancelled", "cleaned up"]
    assert scope["asgi"] == http_scope()["asgi"]


async def test_a_handler_that_has_given_all_of_its_answer_is_not_cancelled_while_middleware_sends_it() -> None:
    responses = pytest.importorskip("starlette.responses")
    from starlette.background import BackgroundTask

    ended = asyncio.Event()

    async def endpoint(request: Any) -> Any:
        async def background() -> None:
            await settle()
            ended.set()

        return responses.PlainTextResponse("answer", background=BackgroundTask(background))

    connection = Connection(body())
    connection.has_room.clear()
    serving = serve(between(0, 1, endpoint), connection)
    await until(lambda: connection.sent)
    await settle()
    connection.leave()
    await settle()
    connection.has_room.set()
    await serving
    assert ended.is_set()


@pytest.mark.parametrize(("front", "behind"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("read", ["body", "stream", "nothing"])
async def test_uploads_and_streams_pass_starlettes_middleware(front: int, behind: int, read: str) -> None:
    pytest.importorskip("starlette")
    from starlette.responses import StreamingResponse

    got: list[bytes] = []

    async def endpoint(request: Any) -> Any:
        if read == "body":
            got.append(await request.body())
        elif read == "stream":
            got.extend([chunk async for chunk in request.stream()])

        async def parts() -> Any:
            for i in range(5):
                yield str(i).encode()

        return StreamingResponse(parts())

    connection = Connection(*[body(bytes([65 + i]), more=i < 4) for i in range(5)])
    serving = serve(between(front, behind, endpoint), connection, http_scope(method="POST"))
    await until(lambda: connection.sent and not connection.sent[-1].get("more_body", True))
    connection.leave()
    await serving
    assert connection.body == b"01234"
    assert b"".join(got) == (b"" if read == "nothing" else b"ABCDE")


@pytest.mark.parametrize(("front", "behind"), [(0, 0), (1, 0), (0, 1)])
async def test_background_tasks_outlive_a_client_that_left_after_the_response(front: int, behind: int) -> None:
    pytest.importorskip("starlette")
    from starlette.background import BackgroundTask
    from starlette.responses import PlainTextResponse

    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def background() -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    async def endpoint(request: Any) -> Any:
        return PlainTextResponse("answer", background=BackgroundTask(background))

    connection = Connection(body())
    serving = serve(between(front, behind, endpoint), connection)
    await begun.wait()
    connection.leave()
    await settle()
    may_end.set()
    await serving
    assert ended.is_set()


# With a real server, a real client, and real work.


def fastapi_app(**settings: Any) -> Any:
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    from aparallel.web.fastapi import CancellableRoute, NDJSONResponse, PoolDep

    app = fastapi.FastAPI(lifespan=lifespan(**settings))
    app.state.events = []
    heavy = fastapi.APIRouter(route_class=CancellableRoute)

    @heavy.get("/nap/{seconds}")
    async def one(seconds: float, pool: PoolDep) -> float:
        return await pool.run(nap, seconds)

    @app.get("/unwatched/{seconds}")
    async def unwatched(seconds: float, pool: PoolDep) -> float:
        app.state.events.append("begun")
        await pool.run(nap, seconds)
        app.state.events.append("ended")
        return seconds

    @app.get("/naps/{seconds}")
    async def many(seconds: float, pool: PoolDep) -> Any:
        return NDJSONResponse(pool.stream(delayed(nap)(seconds) for _ in range(1000)))

    app.include_router(heavy)
    return app


def is_idle(pool: Pool) -> bool:
    now = pool.statistics()
    return now.idle == now.n_jobs and not (now.busy or now.queued or now.running or now.starting)


async def leave_after_asking(port: int, path: str, pool: Pool, concurrency: int, times: int) -> None:
    async def one() -> None:
        async with connected(port) as (_, writer):
            writer.write(request(path))
            await until(lambda: pool.statistics().running)

    for _ in range(times):
        await asyncio.gather(*[one() for _ in range(concurrency)])


async def test_within_200_ms_of_a_disconnect_the_worker_is_free_or_replaced(caplog: pytest.LogCaptureFixture) -> None:
    # uvicorn has two parsers of HTTP, which tell of a disconnect each in its own way: one for each loop.
    http = "httptools" if "uvloop" in type(asyncio.get_running_loop()).__module__ else "h11"
    pytest.importorskip(http)
    caplog.set_level(logging.WARNING)
    app = fastapi_app(n_jobs=1)
    seconds = []
    async with served(app, http=http) as port:
        pool = get_pool(app)
        for _ in range(5):
            async with connected(port) as (_, writer):
                writer.write(request("/nap/60"))
                await until(lambda: pool.statistics().running)
            left = time.monotonic()
            await until(lambda: is_idle(pool))
            seconds.append(time.monotonic() - left)
        assert await fetch(port, "/nap/0.0") == (200, b"0.0")
    # The machine of a test may be busy: one of five is enough to show what it takes.
    assert min(seconds) < 0.2
    assert caplog.records == []


@pytest.mark.parametrize(
    ("times", "path"),
    [
        (10, "/nap/60"),
        (2, "/naps/60"),
        pytest.param(200, "/nap/60", marks=pytest.mark.soak),
        pytest.param(50, "/naps/60", marks=pytest.mark.soak),
    ],
)
async def test_after_many_disconnects_the_pool_is_idle_and_serves(
    times: int, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    app = fastapi_app(n_jobs=2)
    async with served(app) as port:
        pool = get_pool(app)
        await leave_after_asking(port, path, pool, 5, times)
        await until(lambda: is_idle(pool))
        assert pool.statistics().broken == 0
        assert await fetch(port, "/nap/0.0") == (200, b"0.0")
    assert caplog.records == []


async def test_a_route_that_is_not_watched_goes_on_without_its_client() -> None:
    app = fastapi_app(n_jobs=1)
    async with served(app) as port:
        async with connected(port) as (_, writer):
            writer.write(request("/unwatched/0.1"))
            await until(lambda: app.state.events == ["begun"])
        await until(lambda: app.state.events == ["begun", "ended"])


async def test_a_litestar_handler_is_cancelled_by_the_middleware() -> None:
    litestar = pytest.importorskip("litestar")
    from aparallel.web.litestar import PoolDep, PoolPlugin

    events: list[str] = []

    @litestar.get("/", middleware=[CancelOnDisconnect])
    async def handler(pool: PoolDep) -> float:
        try:
            return await pool.run(nap, 600)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    app = litestar.Litestar([handler], plugins=[PoolPlugin(n_jobs=1)], openapi_config=None)
    async with served(app) as port:
        await leave_after_asking(port, "/", get_pool(), 1, 1)
        await until(lambda: events == ["cancelled"] and is_idle(get_pool()))


@pytest.mark.parametrize("cancellation", [True, False])
async def test_an_aiohttp_handler_is_cancelled_if_its_server_is_asked_to(cancellation: bool) -> None:
    web = pytest.importorskip("aiohttp.web")
    from aparallel.web.aiohttp import get_pool as pool_of
    from aparallel.web.aiohttp import pool_ctx

    events: list[str] = []

    async def handler(request: Any) -> Any:
        try:
            await pool_of(request).run(nap, 600 if cancellation else 0.2)
            events.append("ended")
            return web.Response()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    app = web.Application()
    app.router.add_get("/", handler)
    app.cleanup_ctx.append(pool_ctx(n_jobs=1))
    runner = web.AppRunner(app, handler_cancellation=cancellation)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        await leave_after_asking(port, "/", get_pool(), 1, 1)
        await until(lambda: events == ["cancelled" if cancellation else "ended"] and is_idle(get_pool()))
    finally:
        await runner.cleanup()


async def test_requests_on_one_connection_do_not_cancel_one_another() -> None:
    app = fastapi_app(n_jobs=1)
    async with served(app) as port:
        async with connected(port) as (reader, writer):
            writer.write(request("/nap/0.05") + request("/nap/0.04") + request("/nap/0.03", "connection: close"))
            answers = await reader.read()
    assert answers.count(b"200 OK") == 3
    assert [answers.count(text) for text in (b"0.05", b"0.04", b"0.03")] == [1, 1, 1]
