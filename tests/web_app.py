"""The app that the tests hand to real servers, in folders of its own: it must stand alone."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from aparallel import Memory
from aparallel.web import CancelOnDisconnect, PoolErrors, PoolMiddleware, get_pool

HERE = Path(__file__).parent
memory = Memory(HERE / "cache")


@memory.cache
def features(number: int) -> int:
    with (HERE / "computed.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.2)
    return number * 2


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def stream(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for i in range(20):
        await send({"type": "http.response.body", "body": b"%d\n" % i, "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def upload(receive: Any) -> int:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    return size


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError(f"nothing here speaks {scope['type']}")
    pool = get_pool(scope)
    _, path, *arguments = scope["path"].split("/")
    if path == "stream":
        await stream(send)
        return
    answer: Any
    if path == "pids":
        answer = [os.getpid(), await pool.run(os.getpid)]
    elif path == "nap":
        answer = await pool.run(nap, float(arguments[0]))
    elif path == "limited":
        answer = await pool.run(nap, 600, timeout=0.05)
    elif path == "features":
        answer = await features(int(arguments[0]))
    elif path == "upload":
        answer = await upload(receive)
    else:
        now = pool.statistics()
        answer = {"pid": os.getpid(), "idle": now.idle, "running": now.running, "broken": now.broken}
    body = json.dumps(answer).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


served = PoolMiddleware(PoolErrors(CancelOnDisconnect(app)), n_jobs=1, shutdown_timeout=5)
