"""Waiting that cancellation does not cut short, be it native or by one of anyio's scopes.

Without anyio imported, nobody has a scope. To import it takes tens of milliseconds, and most programs never do.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from aparallel._ground.threads import start_apart

if TYPE_CHECKING:
    from collections.abc import Iterable

_ANYIO = "anyio._backends._asyncio"

# Only a cache: once it is imported, it stays.
_has_anyio = False


def has_anyio() -> bool:
    """Whether anyio is imported, and to its end: to import what another thread is importing waits for that thread."""
    global _has_anyio
    if not _has_anyio:
        spec = getattr(sys.modules.get(_ANYIO), "__spec__", None)
        _has_anyio = spec is not None and not getattr(spec, "_initializing", False)
    return _has_anyio


async def import_anyio() -> None:
    """Import it in a thread: here it would hold the loop for 70 ms."""
    if not has_anyio():
        await start_apart(importlib.import_module, _ANYIO)


def shielded() -> contextlib.AbstractContextManager[object]:
    """Keep the cancellation of any scope around it out of a block. A native ``task.cancel()`` comes through."""
    if not has_anyio():
        return contextlib.nullcontext()
    import anyio

    return anyio.CancelScope(shield=True)


async def outlast(futures: Iterable[asyncio.Future[Any]], hearing: asyncio.Future[Any] | None = None) -> None:
    """Wait until all *futures* are done, whoever cancels this task meanwhile, then pass the cancellation on.

    *hearing*, one of them, is cancelled whenever this task is: it runs what may take as long as it likes.

    An anyio scope that is cancelled cancels again at every step, so it is shielded off; a native
    ``task.cancel()`` comes through a shield, and comes once.
    """
    waiting = [future for future in futures if not future.done()]
    if not waiting:  # perhaps no loop runs any more
        return
    cancelled: asyncio.CancelledError | None = None
    with shielded():
        while waiting:
            try:
                await asyncio.wait(waiting)
            except asyncio.CancelledError as error:
                cancelled = error
                if hearing is not None:
                    hearing.cancel()
            waiting = [future for future in waiting if not future.done()]
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # its traceback has this frame
