"""A service that computes pictures, and keeps answering while it does: ``uvicorn app:app``.

Settings come from the environment: IMAGES_WORKERS, as many as there are cores by default; IMAGES_TIME_LIMIT, 10
seconds by default; and IMAGES_CACHE, a directory.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse
from filters import Look
from imaging import BadImageError, card, develop, get_ready, landscape

from aparallel import LimitedPool, Memory, delayed
from aparallel.web import CancelOnDisconnect
from aparallel.web.fastapi import NDJSONResponse, PoolDep, ServerSentEventsResponse, add_error_handlers, lifespan

PAGE = Path(__file__).with_name("page.html")
CACHE = os.environ.get("IMAGES_CACHE", Path(tempfile.gettempdir()) / "aparallel-example-images")

TIME_LIMIT = float(os.environ.get("IMAGES_TIME_LIMIT", "10"))
"""Seconds of work on one picture. Then it is stopped, and the answer is 504."""
MAX_UPLOAD = 20_000_000

Width = Annotated[int, Query(ge=16, le=2000, description="points")]
First = Annotated[int, Query(ge=0)]
Count = Annotated[int, Query(ge=1, le=1000)]

memory = Memory(CACHE, max_bytes="200MB", ttl="1d")
app = FastAPI(
    title="Landscapes",
    lifespan=lifespan(
        n_jobs=int(os.environ.get("IMAGES_WORKERS", "-1")),
        max_queued=32,  # pictures that wait; who comes after that is refused with 503
        nice=10,  # the server goes first when all cores are busy
        initializer=get_ready,
    ),
)
add_error_handlers(app)
# Who leaves stops the work that was for him.
app.add_middleware(CancelOnDisconnect)


def share(pool: PoolDep, x_tenant: Annotated[str, Header(max_length=64)] = "nobody") -> LimitedPool:
    """What a tenant may have of the pool: all workers but one, so that there is always one for somebody else."""
    return pool.limit(x_tenant, max(1, pool.n_jobs - 1), max_queued=24)


Share = Annotated[LimitedPool, Depends(share)]


# Results are remembered by what they are made of, for all processes of the service. Who computes them, and for how
# long he may, is no part of that.
@memory.cache(ignore=["pool", "timeout"])
async def drawn(seed: int, look: Look, width: int, pool: LimitedPool, timeout: float) -> bytes:
    return await pool.run(landscape, seed, look, width, timeout=timeout)


@memory.cache(ignore=["pool", "timeout"])
async def developed(data: bytes, look: Look, width: int, pool: LimitedPool, timeout: float) -> bytes:
    return await pool.run(develop, data, look, width, timeout=timeout)


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(PAGE)


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer at once, however busy the workers are."""
    return {"status": "ok"}


@app.get("/landscapes/{seed}")
async def get_landscape(seed: int, pool: Share, look: Look = "plain", width: Width = 800) -> Response:
    """Draw the landscape of a number."""
    return Response(await drawn(seed, look, width, pool, TIME_LIMIT), media_type="image/jpeg")


@app.post("/pictures")
async def post_picture(file: UploadFile, pool: Share, look: Look = "plain", width: Width = 800) -> Response:
    """Give a look to a picture of your own."""
    data = await file.read(MAX_UPLOAD + 1)
    if len(data) > MAX_UPLOAD:
        raise HTTPException(413, f"Pictures may have {MAX_UPLOAD:,} bytes.")
    return Response(await developed(data, look, width, pool, TIME_LIMIT), media_type="image/jpeg")


@app.get("/landscapes.ndjson")
async def many_lines(
    pool: Share, first: First = 0, count: Count = 24, look: Look = "plain", width: Width = 240
) -> NDJSONResponse:
    """Draw many, each a line of JSON as soon as it is ready."""
    calls = (delayed(card)(seed, look, width) for seed in range(first, first + count))
    return NDJSONResponse(pool.stream(calls, ordered=False))


@app.get("/landscapes.events")
async def many_events(
    pool: Share, first: First = 0, count: Count = 24, look: Look = "plain", width: Width = 240
) -> ServerSentEventsResponse:
    """Draw many, each a server-sent event, for a page."""
    calls = (delayed(card)(seed, look, width) for seed in range(first, first + count))
    return ServerSentEventsResponse(pool.stream(calls, ordered=False))


@app.get("/statistics")
async def statistics(pool: PoolDep) -> dict[str, int]:
    """Tell what this server process's workers do, and what it computed and remembered."""
    now, remembered = pool.statistics(), [drawn.statistics(), developed.statistics()]
    return {
        "server process": os.getpid(),
        "busy workers": now.busy,
        "idle workers": now.idle,
        "waiting": now.queued,
        "computed": sum(each.misses for each in remembered),
        "remembered": sum(each.hits for each in remembered),
    }


@app.exception_handler(BadImageError)
async def refuse(request: Request, error: BadImageError) -> JSONResponse:
    """A worker raised it, and it arrived here as it was."""
    return JSONResponse({"detail": str(error)}, status_code=422)
