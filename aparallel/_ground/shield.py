"""Waiting that cancellation does not cut short, for clean-up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aparallel._ground.scopes import shielded

if TYPE_CHECKING:
    from collections.abc import Iterable


async def outlast(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until all *futures* are done, whoever cancels this task meanwhile, then pass the cancellation on.

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
            waiting = [future for future in waiting if not future.done()]
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # its traceback has this frame
