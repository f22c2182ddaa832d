"""aparallel behind a web server: a pool that lives with the app, and requests that stop their work.

Names are loaded on first use, and no framework is imported but by the module that is named after it:
``aparallel.web.starlette``, ``.fastapi``, ``.litestar`` and ``.aiohttp``. They share::

    _serving, _asgi, _finding         a pool that lives with the app, and is found
    _disconnect, _ahead, _protocol    a client that leaves
    _errors, _handlers                what a client is told of calls that could not be served
    _streaming, _events, _encoding    results as a body, as they come
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aparallel.web._asgi import PoolMiddleware
    from aparallel.web._disconnect import CancelOnDisconnect
    from aparallel.web._errors import PoolErrors, Problem, problem_of
    from aparallel.web._events import Event, server_sent_events
    from aparallel.web._finding import get_pool
    from aparallel.web._handlers import add_error_handlers
    from aparallel.web._serving import Lifespan, PoolSettings, lifespan
    from aparallel.web._streaming import Chunks, ndjson

__all__ = [
    "CancelOnDisconnect",
    "Chunks",
    "Event",
    "Lifespan",
    "PoolErrors",
    "PoolMiddleware",
    "PoolSettings",
    "Problem",
    "add_error_handlers",
    "get_pool",
    "lifespan",
    "ndjson",
    "problem_of",
    "server_sent_events",
]

_HOMES = {
    "CancelOnDisconnect": "aparallel.web._disconnect",
    "Chunks": "aparallel.web._streaming",
    "Event": "aparallel.web._events",
    "Lifespan": "aparallel.web._serving",
    "PoolErrors": "aparallel.web._errors",
    "PoolMiddleware": "aparallel.web._asgi",
    "PoolSettings": "aparallel.web._serving",
    "Problem": "aparallel.web._errors",
    "add_error_handlers": "aparallel.web._handlers",
    "get_pool": "aparallel.web._finding",
    "lifespan": "aparallel.web._serving",
    "ndjson": "aparallel.web._streaming",
    "problem_of": "aparallel.web._errors",
    "server_sent_events": "aparallel.web._events",
}


if not TYPE_CHECKING:  # to a checker, a module with this has any name

    def __getattr__(name: str) -> object:
        from importlib import import_module

        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'aparallel.web' has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
