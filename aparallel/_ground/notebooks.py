"""A notebook's loop kept awake, so that an interrupt ends the cell that waits."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How long an interrupt of a notebook's cell may take to be seen.
_PULSE_SECONDS = 0.2


def in_notebook() -> bool:
    """Whether this process is a kernel of Jupyter."""
    return "ipykernel" in sys.modules


class Pulse:
    """Wakes the loop as long as *running* says that calls run.

    ipykernel's handler of SIGINT asks the loop to end the cell, but does not wake it. A cell that waits for one long
    call would be stopped when that has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Callable[[], int]) -> None:
        self._loop = loop
        self._running = running
        self._timer: asyncio.TimerHandle | None = None

    def plan(self) -> None:
        """Calls were given to workers."""
        if self._timer is None:
            self._timer = self._loop.call_later(_PULSE_SECONDS, self._beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = None
        if self._running():
            self.plan()


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """Keep the running loop awake in a notebook while something is awaited that runs in a thread."""
    if not in_notebook():
        yield
        return
    pulse = Pulse(asyncio.get_running_loop(), lambda: 1)
    pulse.plan()
    try:
        yield
    finally:
        pulse.stop()
