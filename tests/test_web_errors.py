"""What a client is told when the pool could not serve it, in each framework."""

import json
import math
from typing import Any

import pytest
from web_support import Connection, http_scope

from aparallel.errors import BrokenWorkerError, CallTimeoutError, ClosedPoolError, PoolSaturatedError
from aparallel.web import PoolErrors, add_error_handlers, problem_of


def saturated(retry_after: float | None = None) -> PoolSaturatedError:
    return PoolSaturatedError("calls of render(secret) are waiting already", retry_after=retry_after)


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("unhandled errors in a TaskGroup", errors)


CASES = [
    pytest.param(saturated(), 503, "1", id="saturated"),
    pytest.param(saturated(3.2), 503, "4", id="saturated, with an estimate"),
    pytest.param(ClosedPoolError("the pool is closed: secret"), 503, "1", id="closed"),
    pytest.param(CallTimeoutError("render(secret) took too long", call="render(secret)"), 504, None, id="timeout"),
    pytest.param(group(CallTimeoutError("secret")), 504, None, id="of a task group"),
    pytest.param(group(CallTimeoutError("secret"), group(saturated(3.2))), 503, "4", id="of task groups"),
]

MIXED = group(saturated(), ValueError("the handler's own"))


@pytest.mark.parametrize(("error", "status", "retry_after"), CASES)
def test_a_problem_tells_the_status_and_nothing_of_the_call(
    error: Exception, status: int, retry_after: str | None
) -> None:
    problem = problem_of(error)
    assert problem is not None
    assert problem.headers.get("retry-after") == retry_after
    assert problem.headers["content-type"] == "application/problem+json"
    assert b"secret" not in problem.body()
    told = json.loads(problem.body())
    assert told == {"type": "about:blank", "title": problem.title, "status": status, "detail": problem.detail}


@pytest.mark.parametrize(
    ("estimate", "seconds"), [(None, 1), (0, 1), (0.01, 1), (1.0, 1), (1.01, 2), (math.inf, 1), (math.nan, 1)]
)
def test_retry_after_is_a_whole_number_of_seconds_of_at_least_one(estimate: float | None, seconds: int) -> None:
    problem = problem_of(saturated(estimate))
    assert problem is not None
    assert problem.retry_after == seconds


@pytest.mark.parametrize(
    "error", [BrokenWorkerError("crashed"), TimeoutError(), ValueError("bad"), RuntimeError(), MIXED, group(MIXED)]
)
def test_other_errors_are_the_frameworks_own_business(error: Exception) -> None:
    assert problem_of(error) is None


def check(status: int, headers: Any, body: bytes, expected: int, retry_after: str | None) -> None:
    assert status == expected
    assert headers.get("retry-after") == retry_after
    assert headers["content-type"].startswith("application/problem+json")
    assert json.loads(body)["status"] == expected


@pytest.mark.parametrize(("error", "status", "retry_after"), CASES)
async def test_bare_asgi(error: Exception, status: int, retry_after: str | None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    connection = Connection()
    await PoolErrors(app)(http_scope(), connection.receive, connection.send)
    start, last = connection.sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert int(headers["content-length"]) == len(last["body"])
    check(start["status"], headers, last["body"], status, retry_after)


@pytest.mark.parametrize(("kind", "begun"), [("http", True), ("websocket", False), ("lifespan", False)])
async def test_bare_asgi_passes_on_an_error_that_it_cannot_answer(kind: str, begun: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise saturated()

    connection = Connection()
    with pytest.raises(PoolSaturatedError):
        await PoolErrors(app)({**http_scope(), "type": kind}, connection.receive, connection.send)
    assert len(connection.sent) == begun


@pytest.mark.parametrize(("error", "status", "retry_after"), CASES)
@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
def test_fastapi_and_starlette(framework: str, error: Exception, status: int, retry_after: str | None) -> None:
    testclient = pytest.importorskip("starlette.testclient")

    async def handler(request: Any) -> None:
        raise error

    if framework == "fastapi":
        app = pytest.importorskip("fastapi").FastAPI()
    else:
        from starlette.applications import Starlette

        app = Starlette()
    app.add_route("/", handler)
    add_error_handlers(app)
    answer = testclient.TestClient(app).get("/")
    check(answer.status_code, answer.headers, answer.content, status, retry_after)


def test_starlette_takes_the_handlers_as_an_argument_too() -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from starlette.applications import Starlette

    from aparallel.web.starlette import exception_handlers

    async def handler(request: Any) -> None:
        raise saturated()

    app = Starlette(exception_handlers=exception_handlers)
    app.add_route("/", handler)
    answer = testclient.TestClient(app).get("/")
    check(answer.status_code, answer.headers, answer.content, 503, "1")


@pytest.mark.parametrize(
    ("error", "code"),
    [(saturated(), 1013), (CallTimeoutError(""), 1011), (ClosedPoolError(""), 1012), (group(saturated()), 1013)],
)
def test_a_websocket_is_closed_with_the_code_that_says_why(error: Exception, code: int) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocketDisconnect

    async def handler(websocket: Any) -> None:
        await websocket.accept()
        raise error

    app = Starlette(routes=[WebSocketRoute("/", handler)])
    add_error_handlers(app)
    with testclient.TestClient(app).websocket_connect("/") as websocket:
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert closed.value.code == code


def test_handlers_of_ones_own_that_come_later_win() -> None:
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    app = fastapi.FastAPI()

    @app.get("/")
    async def handler() -> None:
        raise saturated()

    add_error_handlers(app)

    @app.exception_handler(PoolSaturatedError)
    async def own(request: fastapi.Request, error: Exception) -> Any:
        return fastapi.Response("mine", 529)

    answer = testclient.TestClient(app).get("/")
    assert (answer.status_code, answer.text) == (529, "mine")


@pytest.mark.parametrize(("error", "status", "retry_after"), CASES)
def test_litestar(error: Exception, status: int, retry_after: str | None) -> None:
    litestar = pytest.importorskip("litestar")
    from litestar.testing import TestClient

    from aparallel.web.litestar import exception_handlers

    @litestar.get("/")
    async def handler() -> str:
        raise error

    with TestClient(litestar.Litestar([handler], exception_handlers=exception_handlers)) as client:
        answer = client.get("/")
    check(answer.status_code, answer.headers, answer.content, status, retry_after)


@pytest.mark.parametrize(("error", "status", "retry_after"), CASES)
async def test_aiohttp(error: Exception, status: int, retry_after: str | None) -> None:
    web = pytest.importorskip("aiohttp.web")
    from aiohttp.test_utils import TestClient, TestServer

    from aparallel.web.aiohttp import error_middleware

    async def handler(request: Any) -> Any:
        raise error

    app = web.Application(middlewares=[error_middleware])
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/")
        check(answer.status, answer.headers, await answer.read(), status, retry_after)


def answer_group(request: Any, error: Exception) -> Any:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(type(error).__name__, 418)


async def answer_group_later(request: Any, error: Exception) -> Any:
    return answer_group(request, error)


@pytest.mark.parametrize("own", [answer_group, answer_group_later])
def test_an_apps_own_handler_of_groups_goes_on_to_answer_what_is_not_the_pools(own: Any) -> None:
    applications = pytest.importorskip("starlette.applications")
    from starlette.routing import Route
    from starlette.testclient import TestClient

    async def fail_mixed(request: Any) -> Any:
        raise MIXED

    async def fail_saturated(request: Any) -> Any:
        raise group(PoolSaturatedError("full"))

    routes = [Route("/mixed", fail_mixed), Route("/saturated", fail_saturated)]
    app = applications.Starlette(routes=routes, exception_handlers={ExceptionGroup: own})
    add_error_handlers(app)
    add_error_handlers(app)  # twice is once
    with TestClient(app) as client:
        assert [client.get(path).status_code for path in ("/mixed", "/saturated")] == [418, 503]


async def test_a_group_with_other_errors_passes_bare_asgi() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise MIXED

    connection = Connection()
    with pytest.raises(ExceptionGroup) as raised:
        await PoolErrors(app)(http_scope(), connection.receive, connection.send)
    assert raised.value is MIXED


@pytest.mark.parametrize("own", [False, True])
def test_a_group_with_other_errors_is_starlettes_own_business(own: bool) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse

    async def handler(request: Any) -> None:
        raise MIXED

    async def answer_all(request: Any, error: Exception) -> Any:
        return PlainTextResponse("mine", 500)

    app = Starlette(exception_handlers={Exception: answer_all} if own else None)
    app.add_route("/", handler)
    add_error_handlers(app)
    answer = testclient.TestClient(app, raise_server_exceptions=False).get("/")
    assert (answer.status_code, answer.text) == (500, "mine" if own else "Internal Server Error")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("own", [None, Exception, 500])
def test_a_group_with_other_errors_is_litestars_own_business(own: Any, debug: bool) -> None:
    litestar = pytest.importorskip("litestar")
    from litestar.testing import TestClient

    from aparallel.web.litestar import exception_handlers

    def answer_all(request: Any, error: Exception) -> Any:
        return litestar.Response("mine", status_code=500, media_type="text/plain")

    @litestar.get("/")
    async def handler() -> str:
        raise group(saturated(), ValueError("the handler's own"))  # the traceback, which debug mode shows, is new

    theirs = {} if own is None else {own: answer_all}

    def ask(handlers: dict[Any, Any]) -> tuple[int, str]:
        app = litestar.Litestar([handler], exception_handlers=handlers, debug=debug, logging_config=None)
        with TestClient(app, raise_server_exceptions=False) as client:
            answer = client.get("/")
        return answer.status_code, answer.text

    assert ask({**exception_handlers, **theirs}) == ask(theirs)


async def test_a_group_with_other_errors_is_aiohttps_own_business(caplog: pytest.LogCaptureFixture) -> None:
    web = pytest.importorskip("aiohttp.web")
    from aiohttp.test_utils import TestClient, TestServer

    from aparallel.web.aiohttp import error_middleware

    async def handler(request: Any) -> Any:
        raise MIXED

    app = web.Application(middlewares=[error_middleware])
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/")).status == 500
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [MIXED]
