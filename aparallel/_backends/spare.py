"""The spare: a bare interpreter that stands by, so that who replaces a killed worker need not wait for one to start."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._backends.child import Child

# It starts when the first workers have had time to start: it must not compete with them.
_DELAY_SECONDS = 0.1


class Spare:
    """At most one child that stands by. It is started late, on a timer, and replaced when it is taken.

    Args:
        new_child: starts one.
        is_needed: whether one is of use: there are workers, and the pool is open.
    """

    def __init__(self, new_child: Callable[[], Child], is_needed: Callable[[], bool]) -> None:
        self._new_child = new_child
        self._is_needed = is_needed
        self._child: Child | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Every one that was not taken and is alive, standing by or on its way out, with what is done when it is gone.
        self._alive: dict[Child, asyncio.Future[None]] = {}

    def take(self) -> Child | None:
        """Return the one that stands by, if there is one. Its exit is the caller's to watch for from now on."""
        child, self._child = self._child, None
        if child is not None:
            del self._alive[child]
        return child

    def start_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start one in a moment, counted from now also if it was to start before."""
        self._stop_timer()
        self._timer = loop.call_later(_DELAY_SECONDS, self.start, loop)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start one now, if it is needed and none stands by."""
        self._stop_timer()
        if self._child is not None or not self._is_needed():
            return
        with contextlib.suppress(OSError, RuntimeError):  # the spare can wait; a worker would report it
            child = self._new_child()
            child.watch(loop, lambda: self._on_exit(child))
            self._alive[child] = loop.create_future()
            self._child = child

    def drop(self) -> None:
        """Let go of the one that stands by, and start none."""
        self._stop_timer()
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    async def wait_until_gone(self) -> None:
        """Wait until all that were dropped have ended."""
        if self._alive:
            await asyncio.wait(list(self._alive.values()))

    def give_up(self) -> list[Child]:
        """Return all that are alive, for the caller to end: there is no loop any more."""
        children = list(self._alive)
        self._alive.clear()
        self._child = None
        return children

    def _on_exit(self, child: Child) -> None:
        if self._child is child:
            self._child = None
        child.reap()
        gone = self._alive.pop(child, None)
        if gone is not None and not gone.done():
            gone.set_result(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
