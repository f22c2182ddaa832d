"""A pool lives as long as its app, whatever serves the app, and requests find it."""

import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from web_support import Connection, http_scope, settle, until

from aparallel import Pool
from aparallel.errors import BrokenWorkerError, ClosedPoolError, InitializerError, MissingPoolError
from aparallel.web import PoolMiddleware, PoolSettings, get_pool, lifespan


class App:
    """What a lifespan is called with; any object is an app to it."""


def is_closed(pool: Pool) -> bool:
    return "closed" in repr(pool)


async def test_all_workers_are_ready_before_the_app_is() -> None:
    async with lifespan(n_jobs=2)(App()) as state:
        assert state["aparallel_pool"].statistics().idle == 2


async def test_the_apps_own_lifespan_runs_inside_and_its_state_is_kept() -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def inner(app: App) -> AsyncIterator[dict[str, Any]]:
        pool = get_pool(app)
        events.append(f"start with {await pool.run(pow, 2, 3)}")
        yield {"database": "db"}
        events.append(f"end with {await pool.run(pow, 2, 4)}")

    async with lifespan(inner, n_jobs=1)(App()) as state:
        pool = state["aparallel_pool"]
        assert state == {"database": "db", "aparallel_pool": pool}
    assert events == ["start with 8", "end with 16"]
    assert is_closed(pool)


async def test_an_inner_lifespan_may_be_a_bare_async_generator_and_yield_nothing() -> None:
    async def inner(app: App) -> AsyncIterator[None]:
        yield

    async with lifespan(inner, n_jobs=1, backend="thread")(App()) as state:  # type: ignore[arg-type]
        assert list(state) == ["aparallel_pool"]


async def test_one_lifespan_may_be_entered_again_and_at_the_same_time() -> None:
    life, first, second = lifespan(n_jobs=1), App(), App()
    async with life(first), life(second):
        assert get_pool(first) is not get_pool(second)
        async with life(first):
            newest = get_pool(first)
        assert get_pool(first) is not newest
    for _ in range(2):
        async with life(first):
            assert await get_pool(first).run(os.getpid) != os.getpid()
    with pytest.raises(MissingPoolError):
        get_pool(first)


async def test_a_lifespan_may_end_in_another_task_than_it_began_in() -> None:
    manager = lifespan(n_jobs=1)(App())
    await asyncio.create_task(manager.__aenter__())
    await asyncio.create_task(manager.__aexit__(None, None, None))


def test_one_app_may_be_served_on_several_loops_at_once() -> None:
    life, app, found = lifespan(n_jobs=1, backend="thread"), App(), []
    both = threading.Barrier(2, timeout=20)

    async def serve() -> None:
        async with life(app):
            await asyncio.to_thread(both.wait)
            found.append((get_pool(app), get_pool()))
            await asyncio.to_thread(both.wait)

    threads = [threading.Thread(target=asyncio.run, args=(serve(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one, also_one), (other, also_other) = found
    assert one is also_one
    assert other is also_other
    assert one is not other


async def test_a_startup_that_fails_leaves_no_worker() -> None:
    @contextlib.asynccontextmanager
    async def inner(app: App) -> AsyncIterator[None]:
        pools.append(get_pool(app))
        raise OSError("no database")
        yield

    pools: list[Pool] = []
    with pytest.raises(OSError, match="no database"):
        async with lifespan(inner, n_jobs=1)(App()):
            raise AssertionError("began")
    assert is_closed(pools[0])


async def test_an_initializer_that_fails_fails_the_startup() -> None:
    with pytest.raises((InitializerError, BrokenWorkerError)):
        async with lifespan(n_jobs=1, initializer=time.strptime, initargs=("no", "date"))(App()):
            raise AssertionError("began")


async def test_what_runs_at_the_end_may_finish() -> None:
    async with lifespan(n_jobs=1)(App()) as state:
        pool = state["aparallel_pool"]
        running = asyncio.ensure_future(pool.run(time.sleep, 0.2))
        await until(lambda: pool.statistics().running)
    assert await running is None


async def test_what_does_not_end_in_time_is_killed_and_told_so() -> None:
    begun = time.monotonic()
    async with lifespan(n_jobs=1, shutdown_timeout="50ms")(App()) as state:
        pool = state["aparallel_pool"]
        running = asyncio.ensure_future(pool.run(time.sleep, 600))
        await until(lambda: pool.statistics().running)
    with pytest.raises((ClosedPoolError, asyncio.CancelledError)):
        await running
    assert is_closed(pool)
    assert time.monotonic() - begun < 30


async def test_no_call_is_admitted_while_the_last_ones_finish() -> None:
    async with lifespan(n_jobs=1)(App()) as state:
        pool = state["aparallel_pool"]
        running = asyncio.ensure_future(pool.run(time.sleep, 0.3))
        await until(lambda: pool.statistics().running)

        async def late() -> None:
            await until(lambda: "closing" in repr(pool))
            await pool.run(abs, -1)

        refused = asyncio.ensure_future(late())
    with pytest.raises(ClosedPoolError):
        await refused
    await running


async def test_a_server_that_is_cancelled_ends_the_pool_at_once() -> None:
    pools: list[Pool] = []

    async def serve() -> None:
        async with lifespan(n_jobs=1, shutdown_timeout=None)(App()) as state:
            pools.append(state["aparallel_pool"])
            calls.append(asyncio.ensure_future(pools[0].run(time.sleep, 600)))
            await asyncio.Event().wait()

    calls: list[asyncio.Future[None]] = []
    serving = asyncio.ensure_future(serve())
    await until(lambda: pools and pools[0].statistics().running)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert is_closed(pools[0])
    with pytest.raises(ClosedPoolError):
        await calls[0]


async def test_a_pool_of_somebody_else_is_used_and_left_open() -> None:
    async with Pool(n_jobs=1) as pool:
        async with lifespan(pool=pool)(App()):
            assert pool.statistics().idle == 1
        assert await pool.run(abs, -1) == 1


async def test_a_pool_may_be_made_by_a_function_each_time() -> None:
    made: list[Pool] = []

    def make() -> Pool:
        made.append(Pool(n_jobs=1, backend="thread"))
        return made[-1]

    life = lifespan(pool=make)
    for _ in range(2):
        async with life(App()) as state:
            assert state["aparallel_pool"] is made[-1]
    assert len(made) == 2
    assert all(map(is_closed, made))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pool": 3}, "neither a Pool nor a function"),
        ({"pool": Pool, "n_jobs": 2}, "n_jobs would be for no pool"),
        ({"inner": "app"}, "not a function of the app"),
        ({"inner": Pool(1)}, r"lifespan\(pool=\.\.\.\)"),
        ({"jobs": 3}, "unexpected keyword argument 'jobs'"),
        ({"shutdown_timeout": "soon"}, "'soon'"),
        ({"shutdown_timeout": -1}, "-1"),
    ],
)
def test_bad_arguments_are_refused_where_they_are_written(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        lifespan(**arguments)


def test_the_settings_are_the_arguments_of_a_pool() -> None:
    assert set(inspect.signature(Pool).parameters) == set(PoolSettings.__annotations__)


# Finding it


async def test_a_pool_is_found_by_scope_and_by_app_and_by_the_loop_alone() -> None:
    app = App()
    async with lifespan(n_jobs=1, backend="thread")(app) as state:
        pool = state["aparallel_pool"]
        assert get_pool({"type": "http", "state": dict(state)}) is pool
        assert get_pool({"type": "http", "app": app}) is pool
        assert get_pool({"type": "http", "app": App(), "litestar_app": app}) is pool
        assert get_pool(app) is pool
        assert get_pool() is pool


async def test_a_handler_in_a_thread_finds_the_pool() -> None:
    app = App()
    async with lifespan(n_jobs=1, backend="thread")(app) as state:
        for where in (None, app, {"type": "http", "state": dict(state)}, {"type": "http", "app": app}):
            assert await asyncio.to_thread(get_pool, where) is state["aparallel_pool"]


async def test_without_a_request_two_apps_are_one_too_many() -> None:
    life = lifespan(n_jobs=1, backend="thread")
    async with life(App()), life(App()):
        with pytest.raises(MissingPoolError, match=r"2 apps .* get_pool\(request\)"):
            get_pool()


@pytest.mark.parametrize("where", [None, App(), {"type": "http"}, {"type": "http", "state": {}, "app": App()}])
async def test_a_pool_that_is_not_there_says_how_to_have_one(where: Any) -> None:
    with pytest.raises(MissingPoolError, match="lifespan"):
        get_pool(where)


# Bare ASGI


class Server:
    """The server's side of the lifespan protocol."""

    def __init__(self, app: Any, scope: dict[str, Any]) -> None:
        self.connection = Connection({"type": "lifespan.startup"})
        self.serving = asyncio.create_task(app(scope, self.connection.receive, self.connection.send))

    async def told(self, count: int) -> list[str]:
        await until(lambda: len(self.connection.sent) >= count or self.serving.done())
        return [message["type"] for message in self.connection.sent]

    def stop(self) -> None:
        self.connection.come({"type": "lifespan.shutdown"})


@pytest.mark.parametrize("with_state", [True, False])
async def test_an_app_that_knows_no_lifespan_has_a_pool_by_middleware(with_state: bool) -> None:
    found: list[Pool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "no lifespan here"
        found.append(get_pool(scope))

    served = PoolMiddleware(app, n_jobs=1)
    scope: dict[str, Any] = {"type": "lifespan", **({"state": {}} if with_state else {})}
    server = Server(served, scope)
    assert await server.told(1) == ["lifespan.startup.complete"]
    request = http_scope()
    if with_state:
        request["state"] = dict(scope["state"])
    await served(request, server.connection.receive, server.connection.send)
    assert found[0].statistics().idle == 1
    server.stop()
    assert await server.told(2) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    await server.serving
    assert is_closed(found[0])


async def test_the_lifespan_of_an_app_inside_the_middleware_runs_between_the_pools_start_and_end() -> None:
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        events.append(f"start with {await get_pool(scope).run(pow, 2, 3)}")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        events.append(f"end with {await get_pool(scope).run(pow, 2, 4)}")
        await send({"type": "lifespan.shutdown.complete"})

    server = Server(PoolMiddleware(app, n_jobs=1), {"type": "lifespan", "state": {}})
    assert await server.told(1) == ["lifespan.startup.complete"]
    assert events == ["start with 8"]
    server.stop()
    assert await server.told(2) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert events == ["start with 8", "end with 16"]
    await server.serving


@pytest.mark.parametrize("raises", [True, False])
async def test_a_startup_that_fails_inside_the_middleware_is_told_once(raises: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        if raises:
            raise OSError("no database")

    server = Server(PoolMiddleware(app, n_jobs=1), {"type": "lifespan", "state": {}})
    await server.serving
    assert server.connection.sent == [{"type": "lifespan.startup.failed", "message": "no database"}]


async def test_a_pool_that_cannot_start_fails_the_startup() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("reached")

    middleware = PoolMiddleware(app, n_jobs=1, initializer=time.strptime, initargs=("no", "date"))
    server = Server(middleware, {"type": "lifespan", "state": {}})
    await server.serving
    (told,) = server.connection.sent
    assert told["type"] == "lifespan.startup.failed"
    assert "strptime" in told["message"] or "does not match" in told["message"]


async def test_a_shutdown_that_fails_inside_the_middleware_is_told_and_ends_the_pool() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pools.append(get_pool(scope))
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise OSError("disk full")

    pools: list[Pool] = []
    server = Server(PoolMiddleware(app, n_jobs=1), {"type": "lifespan", "state": {}})
    await server.told(1)
    server.stop()
    await server.serving
    assert (await server.told(2))[1] == "lifespan.shutdown.failed"
    assert is_closed(pools[0])


async def test_a_request_before_the_lifespan_runs_in_the_app_all_the_same() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(MissingPoolError):
            get_pool(scope)

    connection = Connection()
    await PoolMiddleware(app)(http_scope(), connection.receive, connection.send)


# Frameworks, by their own test clients


def test_fastapi_and_its_test_client() -> None:
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    from aparallel.web.fastapi import PoolDep

    @contextlib.asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, str]]:
        yield {"name": "ann"}

    app = fastapi.FastAPI(lifespan=lifespan(own, n_jobs=1))

    @app.get("/{x}")
    async def square(x: int, request: fastapi.Request, pool: PoolDep) -> Any:
        return [await pool.run(pow, x, 2), request.state.name]

    @app.websocket("/ws")
    async def socket(websocket: fastapi.WebSocket, pool: PoolDep) -> None:
        await websocket.accept()
        await websocket.send_json(await pool.run(pow, 2, 5))
        await websocket.close()

    for _ in range(2):
        with testclient.TestClient(app) as client:
            assert client.get("/7").json() == [49, "ann"]
            with client.websocket_connect("/ws") as websocket:
                assert websocket.receive_json() == 32
    # Without `with`, no lifespan runs.
    with pytest.raises(MissingPoolError, match=r"with TestClient\(app\)"):
        testclient.TestClient(app).get("/7")


def test_fastapis_dependency_overrides() -> None:
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    from aparallel.web.fastapi import PoolDep, provide_pool

    class Fake:
        async def run(self, fn: Any, *args: Any) -> Any:
            return "fake"

    app = fastapi.FastAPI()

    @app.get("/")
    async def handler(pool: PoolDep) -> Any:
        return await pool.run(abs, -1)

    app.dependency_overrides[provide_pool] = Fake
    assert testclient.TestClient(app).get("/").json() == "fake"


def test_a_pool_is_found_from_a_mounted_app_and_from_a_router() -> None:
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    starlette = pytest.importorskip("starlette.applications")
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from aparallel.web.fastapi import PoolDep

    async def inside(request: Any) -> Any:
        return JSONResponse(await get_pool(request).run(pow, 3, 2))

    app = fastapi.FastAPI(lifespan=lifespan(n_jobs=1))
    app.mount("/sub", starlette.Starlette(routes=[Route("/", inside)]))
    router = fastapi.APIRouter()

    @router.get("/router")
    async def handler(pool: PoolDep) -> int:
        return await pool.run(pow, 4, 2)

    app.include_router(router)
    with testclient.TestClient(app) as client:
        assert client.get("/sub/").json() == 9
        assert client.get("/router").json() == 16


async def test_httpx_runs_no_lifespan_and_the_error_says_so_and_how() -> None:
    httpx = pytest.importorskip("httpx")
    fastapi = pytest.importorskip("fastapi")
    from aparallel.web.fastapi import PoolDep

    app = fastapi.FastAPI(lifespan=lifespan(n_jobs=1))

    @app.get("/")
    async def handler(pool: PoolDep) -> int:
        return await pool.run(pow, 3, 2)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(MissingPoolError, match=r"app\.router\.lifespan_context\(app\)"):
            await client.get("/")
        async with app.router.lifespan_context(app):
            assert (await client.get("/")).json() == 9


def litestar_app(**settings: Any) -> Any:
    litestar = pytest.importorskip("litestar")
    from litestar.params import FromPath

    from aparallel.web.litestar import PoolDep, PoolPlugin

    events: list[str] = []

    @contextlib.asynccontextmanager
    async def own(app: Any) -> AsyncIterator[None]:
        events.append(f"start with {await get_pool(app).run(pow, 2, 3)}")
        yield
        events.append(f"end with {await get_pool(app).run(pow, 2, 4)}")

    @litestar.get("/{x:int}")
    async def square(x: FromPath[int], pool: PoolDep) -> int:
        return await pool.run(pow, x, 2)

    @litestar.get("/without/{x:int}")
    async def without(request: litestar.Request[Any, Any, Any], x: FromPath[int]) -> int:
        return await get_pool(request).run(pow, x, 2)

    @litestar.websocket("/ws")
    async def socket(socket: litestar.WebSocket[Any, Any, Any], pool: PoolDep) -> None:
        await socket.accept()
        await socket.send_json(await pool.run(pow, 2, 5))
        await socket.close()

    app = litestar.Litestar([square, without, socket], plugins=[PoolPlugin(**settings)], lifespan=[own])
    return app, events


def test_litestar_and_its_test_client() -> None:
    app, events = litestar_app(n_jobs=1)
    from litestar.testing import TestClient

    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/7").json() == 49
            assert client.get("/without/8").json() == 64
            with client.websocket_connect("/ws") as websocket:
                assert websocket.receive_json() == 32
    assert events == ["start with 8", "end with 16"] * 2


async def test_litestar_and_its_asynchronous_test_client() -> None:
    app, _ = litestar_app(n_jobs=1)
    from litestar.testing import AsyncTestClient

    async with AsyncTestClient(app) as client:
        assert (await client.get("/7")).json() == 49


@pytest.mark.parametrize("framework", ["fastapi", "starlette.background", "litestar.background_tasks"])
async def test_a_background_task_of_every_framework_runs_a_call(framework: str) -> None:
    module = pytest.importorskip(framework)
    async with Pool(1, "inline") as pool:
        if framework == "fastapi":
            tasks = module.BackgroundTasks()
            tasks.add_task(pool.run, abs, -1)
        else:
            tasks = module.BackgroundTask(pool.run, abs, -1)
        await tasks()
        assert pool.statistics().completed == 1


async def test_aiohttp_and_its_test_client() -> None:
    web = pytest.importorskip("aiohttp.web")
    from aiohttp.test_utils import TestClient, TestServer

    from aparallel.web.aiohttp import POOL, pool_ctx
    from aparallel.web.aiohttp import get_pool as pool_of

    async def square(request: Any) -> Any:
        pool = pool_of(request)
        assert get_pool() is get_pool(request) is get_pool(app) is pool
        return web.json_response(await pool.run(pow, int(request.match_info["x"]), 2))

    app, sub = web.Application(), web.Application()
    app.cleanup_ctx.append(pool_ctx(n_jobs=1))
    app.router.add_get("/{x}", square)
    sub.router.add_get("/{x}", square)
    app.add_subapp("/sub/", sub)
    async with TestClient(TestServer(app)) as client:
        assert await (await client.get("/7")).json() == 49
        assert await (await client.get("/sub/8")).json() == 64
        pool = app[POOL]
    assert is_closed(pool)


async def test_an_aiohttp_app_without_a_pool_says_how_to_have_one() -> None:
    web = pytest.importorskip("aiohttp.web")
    from aiohttp.test_utils import make_mocked_request

    from aparallel.web.aiohttp import get_pool as pool_of

    with pytest.raises(MissingPoolError, match=r"cleanup_ctx\.append\(pool_ctx\(\)\)"):
        pool_of(make_mocked_request("GET", "/", app=web.Application()))


async def test_a_request_of_an_aiohttp_sub_app_finds_the_pool_of_the_innermost_app_that_has_one() -> None:
    web = pytest.importorskip("aiohttp.web")
    from aiohttp.test_utils import TestClient, TestServer

    from aparallel.web.aiohttp import get_pool as pool_of
    from aparallel.web.aiohttp import pool_ctx

    async def jobs(request: Any) -> Any:
        assert pool_of(request) is get_pool(request)
        return web.json_response(get_pool(request).n_jobs)

    app, sub = web.Application(), web.Application()
    for part, n_jobs in ((app, 1), (sub, 2)):
        part.cleanup_ctx.append(pool_ctx(n_jobs=n_jobs, backend="thread"))
        part.router.add_get("/", jobs)
    app.add_subapp("/sub/", sub)
    async with TestClient(TestServer(app)) as client:
        assert await (await client.get("/")).json() == 1
        assert await (await client.get("/sub/")).json() == 2


@pytest.mark.parametrize("number", [1, 2])
async def test_a_loop_for_each_test_has_a_pool_for_each_test(number: int) -> None:
    app = _SHARED_APP
    async with _SHARED_LIFE(app):
        assert await get_pool(app).run(abs, -number) == number
    await settle()


_SHARED_APP, _SHARED_LIFE = App(), lifespan(n_jobs=1)


def test_trio_is_refused_with_a_clear_error() -> None:
    async def main() -> None:
        async with lifespan(n_jobs=1)(App()):
            raise AssertionError("began")

    with pytest.raises(RuntimeError, match="trio"):
        anyio.run(main, backend="trio")
