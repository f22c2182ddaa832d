"""A module's variables, and functions that use them in workers. Importable by name, and light, as those of ``work``."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")
never_set_here: contextvars.ContextVar[str] = contextvars.ContextVar("never_set_here")
state: list[Any] = []


def read_request_id() -> str:
    return request_id.get()


async def read_request_id_later() -> str:
    import asyncio

    await asyncio.sleep(0)
    return request_id.get()


def look_then_set() -> str:
    seen = never_set_here.get("none")
    never_set_here.set("set by a call")
    return seen


def remember(*items: Any) -> None:
    state.append((threading.get_ident(), *items))


async def remember_later(*items: Any) -> None:
    import asyncio

    await asyncio.sleep(0)
    remember(*items)


def remembered() -> list[Any]:
    return [items for ident, *items in state if ident == threading.get_ident()]
