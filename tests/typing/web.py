"""What type checkers see of aparallel.web, together with each framework's own types."""

from typing import Any, assert_type

from aiohttp import web
from fastapi import APIRouter, FastAPI
from litestar import Litestar, get
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware

from aparallel import Pool, delayed
from aparallel.web import (
    CancelOnDisconnect,
    Chunks,
    Event,
    PoolErrors,
    PoolMiddleware,
    add_error_handlers,
    get_pool,
    lifespan,
    ndjson,
    server_sent_events,
)
from aparallel.web import aiohttp as for_aiohttp
from aparallel.web import fastapi as for_fastapi
from aparallel.web import litestar as for_litestar


async def by_fastapi(pool: for_fastapi.PoolDep) -> int:
    assert_type(pool, Pool)
    return await pool.run(len, "x")


async def by_litestar(pool: for_litestar.PoolDep) -> int:
    assert_type(pool, Pool)
    return await pool.run(len, "x")


async def by_aiohttp(request: web.Request) -> web.StreamResponse:
    assert_type(for_aiohttp.get_pool(request), Pool)
    assert_type(request.app[for_aiohttp.POOL], Pool)
    return await for_aiohttp.stream_chunks(request, ndjson(get_pool().stream([delayed(len)("x")])))


def apps() -> None:
    fastapi = FastAPI(lifespan=lifespan(n_jobs=2, max_queued=10))
    fastapi.add_middleware(CancelOnDisconnect, include=lambda scope: scope["path"] == "/")
    fastapi.include_router(APIRouter(route_class=for_fastapi.CancellableRoute))
    add_error_handlers(fastapi)
    starlette = Starlette(middleware=[Middleware(CancelOnDisconnect)], lifespan=lifespan())
    Litestar(
        [get("/", middleware=[CancelOnDisconnect])(by_litestar)],
        plugins=[for_litestar.PoolPlugin(n_jobs=2)],
        middleware=[CancelOnDisconnect, DefineMiddleware(PoolErrors)],
    )
    Litestar(lifespan=[lifespan()], exception_handlers=for_litestar.exception_handlers)
    app = web.Application(middlewares=[for_aiohttp.error_middleware])
    app.cleanup_ctx.append(for_aiohttp.pool_ctx(n_jobs=2))
    PoolMiddleware(PoolErrors(CancelOnDisconnect(starlette)), n_jobs=2)
    PoolMiddleware(fastapi, job=2)  # type: ignore[call-arg]
    lifespan(n_jobs="two")  # type: ignore[arg-type]


async def bodies(results: Any) -> None:
    assert_type(ndjson(results), Chunks)
    assert_type(server_sent_events(results, ping="15s"), Chunks)
    async for chunk in ndjson(results):
        assert_type(chunk, bytes)
    assert_type(Event({"a": 1}, id="1").encode(), bytes)
    ndjson([1, 2])  # type: ignore[arg-type]
