"""Results as they come: whole lines and events, as fast as the client takes them, and never a cut that looks whole."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import gc
import json
import logging
import math
import threading
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_support import DISCONNECT, Connection, body, connected, fetch, http_scope, request, served, settle, until
from work import nap

from aparallel import Pool, delayed
from aparallel.errors import PoolSaturatedError
from aparallel.web import Chunks, Event, _encoding, add_error_handlers, get_pool, lifespan, ndjson, server_sent_events
from aparallel.web._encoding import encode

# Encoding


@dataclasses.dataclass
class Point:
    x: float
    y: float


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 2.5, None, True, "é"]}, {"a": [1, 2.5, None, True, "é"]}),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.array([], dtype=float), []),
        (np.array(["2020-02-02"], dtype="M8[D]"), ["2020-02-02"]),
        (np.datetime64("2020-02-02T03:04"), "2020-02-02T03:04"),
        ({"nested": [Point(1.0, np.float64(2.0))]}, {"nested": [{"x": 1.0, "y": 2.0}]}),
        (dt.datetime(2020, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2020-01-02T03:04:05+00:00"),
        (dt.date(2020, 1, 2), "2020-01-02"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ([math.nan, math.inf, -math.inf, 1.0], [None, None, None, 1.0]),
        (np.array([1.0, math.nan]), [1.0, None]),
        ({"deep": Point(math.nan, 1)}, {"deep": {"x": None, "y": 1}}),
        ("line\nbreaks\r and \u2028 and \ud800", "line\nbreaks\r and \u2028 and \ud800"),
        (b'{"made": "in the worker"}', {"made": "in the worker"}),
    ],
)
def test_results_become_json_on_one_line(value: Any, expected: Any) -> None:
    encoded = encode(value)
    assert b"\n" not in encoded
    assert b"\r" not in encoded
    assert json.loads(encoded.decode("utf-8")) == expected


def test_a_result_that_json_cannot_hold_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"No JSON can be made of a object.*JSON as bytes.*dumps="):
        encode(object())
    circle: list[Any] = [math.nan]
    circle.append(circle)
    with pytest.raises(ValueError, match="contains itself"):
        encode(circle)


@pytest.mark.parametrize("kind", [str, bytes])
def test_another_encoder_may_be_given_and_may_end_its_line(kind: type) -> None:
    def dumps(value: Any) -> Any:
        text = json.dumps(value) + "\n"
        return text if kind is str else text.encode()

    assert encode({"a": 1}, dumps) == b'{"a": 1}'


@pytest.mark.parametrize("breaks", [b'{\n"a": 1}', b"1\r2"])
def test_an_encoder_that_breaks_lines_is_refused(breaks: bytes) -> None:
    for give in (lambda: encode(breaks), lambda: encode(1, lambda _: breaks)):
        with pytest.raises(ValueError, match="several lines"):
            give()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=40,
)


@given(json_values)
def test_json_made_in_slices_is_the_same_json(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_encoding, "_SLICE", 3)
        assert _encoding._encode_in_slices(value) == encode(value)


@pytest.mark.parametrize(
    "value",
    [
        np.linspace(0, 1, 30_000),
        np.arange(30_000).reshape(10, 30, 100),
        [np.arange(5_000), {"a": np.full(5_000, math.nan), 3: "x" * 200_000}],
        {"points": [Point(1.0, 2.0)] * 3_000, "none": []},
        Point(np.zeros(3_000), 1),  # type: ignore[arg-type]
        [[1, 2, 3]] * 10_000,
    ],
)
async def test_large_results_are_encoded_in_slices_and_to_the_same(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    monkeypatch.setattr(_encoding, "pause", lambda: threads.add(threading.get_ident()))
    assert await _encoding.encode_aside(value) == encode(value)
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("value", [{"a": list(range(500))}, [[[[[[[{}]]]]]]], [], None])
async def test_small_results_are_encoded_at_once(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_encoding, "in_thread", None)
    assert await _encoding.encode_aside(value) == encode(value)


async def test_the_loop_lives_while_a_large_result_is_encoded() -> None:
    lags, done = [], asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - before)

    watching = asyncio.ensure_future(watch())
    begun = time.perf_counter()
    await _encoding.encode_aside(np.random.default_rng(0).random(1_000_000))
    took = time.perf_counter() - begun
    done.set()
    await watching
    assert len(lags) > 10
    assert sorted(lags)[len(lags) // 2] < took / 20


# Bodies


async def collect(chunks: Chunks) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def counting(up_to: int, error: Exception | None = None) -> AsyncIterator[int]:
    for i in range(up_to):
        yield i
    if error is not None:
        raise error


def lines_of(text: bytes) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def events_of(text: bytes) -> list[tuple[str, str, str]]:
    """Type, data and last event ID of each event: the parser of section 9.2.6 of the HTML standard."""
    found, data, kind, last_id = [], "", "", ""
    content = text.decode().replace("\r\n", "\n").replace("\r", "\n")
    for line in content.split("\n")[:-1]:
        if not line:
            if data:
                found.append((kind or "message", data.removesuffix("\n"), last_id))
            data = kind = ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_id = value
    return found


async def test_ndjson_is_one_line_for_each_result() -> None:
    chunks = ndjson(counting(3))
    assert chunks.media_type == "application/x-ndjson"
    assert await collect(chunks) == b"0\n1\n2\n"


async def test_events_are_one_for_each_result_and_an_end() -> None:
    chunks = server_sent_events(counting(2), retry=1500)
    assert chunks.media_type == "text/event-stream"
    assert await collect(chunks) == b"retry: 1500\n\ndata: 0\n\ndata: 1\n\nevent: stream_end\ndata:\n\n"


async def test_a_stream_of_a_pool_is_entered_and_left() -> None:
    async with Pool(n_jobs=1) as pool:
        assert lines_of(await collect(ndjson(pool.stream(delayed(pow)(x, 2) for x in range(4))))) == [0, 1, 4, 9]
        events = events_of(await collect(server_sent_events(pool.stream(delayed(pow)(x, 2) for x in range(4)))))
        assert [data for _, data, _ in events] == ["0", "1", "4", "9", ""]
        assert pool.statistics().running == pool.statistics().queued == 0


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
async def test_results_that_fail_say_so_at_the_end_and_tell_the_log_more(
    make: Callable[..., Chunks], caplog: pytest.LogCaptureFixture
) -> None:
    text = await collect(make(counting(2, ValueError("secret"))))
    assert b"secret" not in text
    if make is ndjson:
        *good, last = lines_of(text)
        problem = last["stream_error"]
    else:
        *events, (kind, data, _) = events_of(text)
        assert kind == "stream_error"
        good, problem = [json.loads(event[1]) for event in events], json.loads(data)
    assert good == [0, 1]
    assert (problem["status"], problem["title"]) == (500, "Internal Server Error")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("aparallel.web", logging.ERROR)
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "secret"


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
async def test_a_result_that_cannot_be_encoded_is_a_failure_in_the_body(make: Callable[..., Chunks]) -> None:
    async def results() -> AsyncIterator[Any]:
        yield 1
        yield object()
        yield 3

    text = await collect(make(results()))
    assert text.count(b"stream_error") == 1
    assert b"3" not in text.replace(b"rfc", b"")


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
async def test_a_result_that_is_an_exception_is_told_and_the_rest_comes(make: Callable[..., Chunks]) -> None:
    async def results() -> AsyncIterator[Any]:
        yield 1
        yield ValueError("secret")
        yield 3

    text = await collect(make(results()))
    if make is ndjson:
        first, failed, last = lines_of(text)
        assert list(failed) == ["call_error"]
        assert (first, last) == (1, 3)
    else:
        assert [kind for kind, _, _ in events_of(text)] == ["message", "call_error", "message", "stream_end"]
    assert b"secret" not in text


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
async def test_results_that_cannot_begin_raise_before_the_status_is_sent(make: Callable[..., Chunks]) -> None:
    async with Pool(n_jobs=1, max_queued=0) as pool:
        running = asyncio.ensure_future(pool.run(time.sleep, 0.3))
        await until(lambda: pool.statistics().running)
        chunks = make(pool.stream([delayed(abs)(-1)]))
        with pytest.raises(PoolSaturatedError):
            await chunks.begin()
        await chunks.aclose()
        # Whoever did not ask is told in the body.
        assert b'"stream_error"' in await collect(make(pool.stream([delayed(abs)(-1)]))) or make is server_sent_events
        await running


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
async def test_what_is_no_async_iterable_is_refused(make: Callable[..., Chunks]) -> None:
    with pytest.raises(TypeError, match=r"list is not an async iterable.*pool\.stream"):
        await make([1, 2]).begin()


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
async def test_a_body_that_is_dropped_before_it_began_begins_nothing(make: Callable[..., Chunks]) -> None:
    drawn = []

    async def results() -> AsyncIterator[int]:
        drawn.append(1)
        yield 1

    chunks = make(results())
    await chunks.aclose()
    assert [chunk async for chunk in chunks] == []
    del chunks
    assert drawn == []


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
@pytest.mark.parametrize("taken", [0, 1])
async def test_closing_a_body_cancels_the_calls_that_run_for_it(make: Callable[..., Chunks], taken: int) -> None:
    async with Pool(n_jobs=2) as pool:
        chunks = make(pool.stream(delayed(time.sleep)(600 * (i >= taken)) for i in range(100)))
        await chunks.begin()
        for _ in range(taken):
            await anext(chunks)
        await until(lambda: pool.statistics().running)
        await chunks.aclose()
        assert pool.statistics().running == pool.statistics().queued == 0


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
async def test_no_result_is_kept_beyond_its_chunk_nor_by_a_failure(
    make: Callable[..., Chunks], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Result(dict[str, int]):
        pass

    monkeypatch.setattr(logging.getLogger("aparallel.web"), "disabled", True)  # pytest keeps records, and so errors
    references: list[weakref.ref[Result]] = []
    go = asyncio.Event()

    async def results() -> AsyncIterator[Result]:
        result = Result()
        references.append(weakref.ref(result))
        yield result
        del result
        await go.wait()
        last = Result()
        references.append(weakref.ref(last))
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        chunks = make(results())
        while not await anext(chunks):
            pass
        waiting = asyncio.ensure_future(anext(chunks))
        await until(lambda: references[0]() is None)
        go.set()
        await waiting
        async for _ in chunks:
            pass
        await until(lambda: references[1]() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [ndjson, server_sent_events])
async def test_nothing_is_drawn_before_it_is_asked_for(make: Callable[..., Chunks]) -> None:
    drawn = 0

    async def results() -> AsyncIterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    chunks = make(results())
    await chunks.begin()
    for taken in range(5):
        await settle()
        assert drawn == taken
        await anext(chunks)
    await chunks.aclose()


# Server-sent events


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    kind=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1),
    id=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")),
)
def test_every_event_arrives_as_it_was_meant(text: str, kind: str, id: str) -> None:
    first, *more = events_of(Event(text=text, event=kind, id=id).encode() + Event(1).encode())
    # The three line breaks are one to the standard.
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert first == (kind, expected, id)
    assert [data for _, data, _ in more] == ["1"]


def test_a_field_of_an_event_begins_with_its_name() -> None:
    event = Event({"a": 1}, event="progress", id="7", retry=10)
    assert event.encode() == b'id: 7\nevent: progress\nretry: 10\ndata: {"a":1}\n\n'
    assert Event(None).encode() == b"data: null\n\n"
    assert Event(retry=5).encode() == b"retry: 5\n\n"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"event": "a\nb"}, "event="),
        ({"event": "a\rb"}, "event="),
        ({"id": "a\nb"}, "id="),
        ({"id": "a\0b"}, "id="),
        ({"retry": -1}, "retry=-1"),
        ({"retry": 1.5}, r"retry=1\.5"),
        ({"retry": True}, "retry=True"),
        ({"data": 1, "text": "1"}, "both"),
    ],
)
def test_an_event_that_could_not_arrive_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Event(**fields)


def test_bad_options_of_events_are_refused() -> None:
    for options in ({"ping": 0}, {"ping": -1}, {"ping": "often"}, {"retry": -1}):
        with pytest.raises(ValueError, match=r"0|-1|often"):
            server_sent_events(counting(1), **options)


async def test_pings_come_while_nothing_else_does_and_lose_nothing() -> None:
    may_go_on = asyncio.Event()

    async def results() -> AsyncIterator[int]:
        yield 1
        await may_go_on.wait()
        for i in range(2, 5):
            yield i

    chunks = server_sent_events(results(), ping=0.005)
    assert await anext(chunks) == b"data: 1\n\n"
    for _ in range(3):
        assert await anext(chunks) == b": ping\n\n"
    may_go_on.set()
    await settle()  # it comes while nobody waits for it
    rest = await collect(chunks)
    assert events_of(rest) == [("message", str(i), "") for i in range(2, 5)] + [("stream_end", "", "")]


async def test_without_pings_none_are_sent() -> None:
    async def results() -> AsyncIterator[int]:
        await asyncio.sleep(0.02)
        yield 1

    assert b"ping" not in await collect(server_sent_events(results(), ping=None))


async def test_events_are_drawn_in_one_task_from_beginning_to_end() -> None:
    tasks = []

    async def results() -> AsyncIterator[int]:
        async with asyncio.timeout(60):  # would not stand another task
            for i in range(3):
                tasks.append(asyncio.current_task())
                yield i
        tasks.append(asyncio.current_task())

    assert len(events_of(await collect(server_sent_events(results(), ping=0.001)))) == 4
    assert len(set(tasks)) == 1


@pytest.mark.parametrize("at", ["begin", "item", "ping"])
async def test_an_event_stream_that_is_cancelled_closes_its_results(at: str) -> None:
    closed = asyncio.Event()

    class Slow:
        def __aiter__(self) -> "Slow":
            return self

        async def __anext__(self) -> int:
            await asyncio.Event().wait()
            return 1

        async def aclose(self) -> None:
            await asyncio.sleep(0)
            closed.set()

    chunks = server_sent_events(Slow(), ping=0.001 if at == "ping" else None)
    if at != "begin":
        await chunks.begin()
    if at == "ping":
        assert await anext(chunks) == b": ping\n\n"
    waiting = asyncio.ensure_future(collect(chunks))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert closed.is_set()


# Through frameworks


def starlette_app(results: Callable[[Any], Any], **settings: Any) -> Any:
    pytest.importorskip("starlette")
    from starlette.applications import Starlette
    from starlette.routing import Route

    from aparallel.web.starlette import NDJSONResponse, ServerSentEventsResponse

    async def lines(request: Any) -> Any:
        return NDJSONResponse(results(request), headers={"x-own": "1"})

    async def events(request: Any) -> Any:
        return ServerSentEventsResponse(results(request), retry=10)

    app = Starlette(routes=[Route("/lines", lines), Route("/events", events)], lifespan=lifespan(**settings))
    add_error_handlers(app)
    return app


def litestar_app(results: Callable[[Any], Any], **settings: Any) -> Any:
    litestar = pytest.importorskip("litestar")
    from aparallel.web.litestar import NDJSON, PoolPlugin, ServerSentEvents

    @litestar.get("/lines")
    async def lines(request: litestar.Request[Any, Any, Any]) -> NDJSON:
        return NDJSON(results(request), headers={"x-own": "1"})

    @litestar.get("/events")
    async def events(request: litestar.Request[Any, Any, Any]) -> ServerSentEvents:
        return ServerSentEvents(results(request), retry=10)

    return litestar.Litestar([lines, events], plugins=[PoolPlugin(**settings)], openapi_config=None)


def aiohttp_app(results: Callable[[Any], Any], **settings: Any) -> Any:
    web = pytest.importorskip("aiohttp.web")
    from aparallel.web.aiohttp import error_middleware, pool_ctx, stream_chunks

    async def lines(request: Any) -> Any:
        return await stream_chunks(request, ndjson(results(request)), headers={"x-own": "1"})

    async def events(request: Any) -> Any:
        return await stream_chunks(request, server_sent_events(results(request), retry=10))

    app = web.Application(middlewares=[error_middleware])
    app.router.add_get("/lines", lines)
    app.router.add_get("/events", events)
    app.cleanup_ctx.append(pool_ctx(**settings))
    return app


@contextlib.asynccontextmanager
async def running(framework: str, results: Callable[[Any], Any], **settings: Any) -> AsyncIterator[int]:
    """A real server for an app of that framework, with its pool; gives the port."""
    if framework != "aiohttp":
        make = starlette_app if framework == "starlette" else litestar_app
        async with served(make(results, **settings)) as port:
            yield port
        return
    app = aiohttp_app(results, **settings)
    from aiohttp import web

    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


FRAMEWORKS = ["starlette", "litestar", "aiohttp"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_results_stream_through_each_framework(framework: str) -> None:
    async with running(framework, lambda _: get_pool().stream(delayed(pow)(x, 2) for x in range(3)), n_jobs=1) as port:
        for path, kind in (("/lines", b"application/x-ndjson"), ("/events", b"text/event-stream")):
            async with connected(port) as (reader, writer):
                writer.write(request(path, "connection: close"))
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                text = await reader.read()
            assert b" 200 " in head
            assert b"content-type: " + kind in head
            assert b"cache-control: no-cache" in head
            assert b"x-accel-buffering: no" in head
            assert b"content-length" not in head
            assert (b"x-own: 1" in head) == (path == "/lines")
            assert text.endswith(b"0\r\n\r\n")  # the end of a chunked body
            assert all(result in text for result in (b"0", b"1", b"4"))
            assert (b"retry: 10\n" in text and b"stream_end" in text) == (path == "/events")


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_saturated_pool_is_a_503_and_not_the_beginning_of_a_stream(framework: str) -> None:
    settings = {"n_jobs": 1, "max_queued": 0}
    async with running(framework, lambda _: get_pool().stream([delayed(abs)(-1)]), **settings) as port:
        pool = get_pool()
        busy = asyncio.ensure_future(pool.run(time.sleep, 600))
        await until(lambda: pool.statistics().running)
        for path in ("/lines", "/events"):
            status, text = await fetch(port, path)
            assert status == 503
            assert b'"status": 503' in text
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_client_that_does_not_read_holds_the_calls_back_and_one_that_leaves_ends_them(framework: str) -> None:
    drawn = 0
    closed = asyncio.Event()
    size = 100_000

    def calls() -> Iterator[Any]:
        nonlocal drawn
        for _ in range(100_000):
            drawn += 1
            yield delayed(str.zfill)("0", size)

    async def results() -> AsyncIterator[str]:
        try:
            async with get_pool().stream(calls()) as them:
                async for result in them:
                    yield result
        finally:
            closed.set()

    async with running(framework, lambda _: results(), n_jobs=1) as port:
        async with connected(port, limit=1024) as (reader, writer):
            writer.write(request("/lines"))
            await reader.readuntil(b"\r\n\r\n")
            before = -1
            while drawn != before:  # until nothing moves any more
                before = drawn
                await asyncio.sleep(0.3)
            stuck_at = drawn
            # What fits into the sockets' buffers, which the system sizes to some megabytes, and the 32 that wait to be
            # sent: little of 10 gigabytes.
            assert 0 < stuck_at < 60_000_000 / size
            async with asyncio.timeout(20):
                while drawn == stuck_at:  # as it reads, it goes on
                    await reader.readexactly(size // 2)
            assert not closed.is_set()
        await asyncio.wait_for(closed.wait(), 20)
        await until(lambda: not get_pool().statistics().running)


@pytest.mark.parametrize(
    ("framework", "path"),
    [("starlette", "/lines"), ("starlette", "/events"), ("litestar", "/lines"), ("aiohttp", "/events")],
)
async def test_a_client_that_leaves_while_a_result_is_computed_ends_the_calls(framework: str, path: str) -> None:
    stream = lambda _: get_pool().stream([delayed(nap)(0), delayed(nap)(600)])  # noqa: E731
    async with running(framework, stream, n_jobs=1) as port:
        pool = get_pool()
        async with connected(port) as (reader, writer):
            writer.write(request(path))
            await reader.readuntil(b"0\n")
            await until(lambda: pool.statistics().running and pool.statistics().completed == 1)
        await until(lambda: pool.statistics().idle == 1 and not pool.statistics().running)


@pytest.mark.parametrize("framework", ["starlette", "litestar"])
async def test_results_whose_client_leaves_may_await_in_their_clean_up(framework: str) -> None:
    cleaned_up = asyncio.Event()

    async def results(_: Any) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await settle()
            cleaned_up.set()

    async with running(framework, results, n_jobs=1) as port:
        async with connected(port) as (reader, writer):
            writer.write(request("/lines"))
            await reader.readuntil(b"1\n")
        await asyncio.wait_for(cleaned_up.wait(), 20)


async def test_a_response_that_is_stuck_in_sending_closes_its_results_when_the_client_leaves() -> None:
    pytest.importorskip("starlette")
    from aparallel.web.starlette import NDJSONResponse

    closed = asyncio.Event()

    async def results() -> AsyncIterator[int]:
        try:
            while True:
                connection.has_room.clear()
                yield 1
        finally:
            await asyncio.sleep(0)
            closed.set()

    connection = Connection(body())
    response = NDJSONResponse(results())
    answering = asyncio.create_task(response(http_scope(), connection.receive, connection.send))
    await settle()
    assert connection.body == b"1\n"
    connection.leave()
    await answering
    assert closed.is_set()


async def test_a_head_request_computes_nothing() -> None:
    pytest.importorskip("starlette")
    from aparallel.web.starlette import NDJSONResponse

    drawn = []

    async def results() -> AsyncIterator[int]:
        drawn.append(1)
        yield 1

    connection = Connection(body(), DISCONNECT)
    await NDJSONResponse(results())(http_scope(method="HEAD"), connection.receive, connection.send)
    assert connection.status in (200, 499)
    assert drawn == []


@pytest.mark.parametrize("framework", ["starlette", "aiohttp"])
async def test_a_head_request_to_a_real_server_is_answered_by_a_head_alone(framework: str) -> None:
    drawn = []

    async def results() -> AsyncIterator[int]:
        drawn.append(1)
        yield 1

    async with running(framework, lambda _: results(), n_jobs=1) as port, connected(port) as (reader, writer):
        writer.write(request("/lines").replace(b"GET", b"HEAD"))
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert drawn == []
        writer.write(request("/lines", "connection: close"))
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    assert drawn == [1]


async def test_a_failing_stream_tells_a_client_of_a_real_server(caplog: pytest.LogCaptureFixture) -> None:
    async with running("starlette", lambda _: counting(2, ValueError("secret")), n_jobs=1) as port:
        status, text = await fetch(port, "/lines")
    assert status == 200
    assert b"stream_error" in text
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == ["aparallel.web"]
