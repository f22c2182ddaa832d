"""anyio's cancel scopes, as far as anybody here can have one: without anyio imported, nobody can.

To import it takes tens of milliseconds, and most programs never do.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

from aparallel._ground.threads import start_apart

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
