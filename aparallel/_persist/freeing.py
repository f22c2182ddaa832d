"""Lets a file system free the space of large files that were replaced when nobody waits for it any more."""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
from typing import TYPE_CHECKING

from aparallel._ground.cores import offer_core
from aparallel._ground.forks import renew_after_fork
from aparallel._ground.threads import afterwards, catch_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._ground.stoppable import Stop

# Less is freed in less than a millisecond.
_WORTH = 16 << 20
_LOOK_AT_STOP_EVERY = 0.02  # seconds
# Holds a file without opening it: nothing is asked of its permissions, and a server of files is told nothing. Linux.
_HOLD: int | None = getattr(os, "O_PATH", None)


class Freeing:
    """Has replaced files freed after the result has been told, one file at a time.

    What is renamed over is freed by who renames, which takes ext4 a third of the time of writing as much, and more
    where it has begun to write it out. While somebody holds it, the new file takes its place at once.

    Invariant: ``_busy`` is held from before ``_held`` is a descriptor until that has been closed.
    """

    def __init__(self) -> None:
        self._begin()
        renew_after_fork(self)

    def _begin(self) -> None:
        self._busy = _thread.allocate_lock()
        self._held: int | None = None

    def after_fork(self) -> None:
        """Hold nothing in the child, which has no thread that would let go."""
        held = self._held
        self._begin()
        if held is not None:
            os.close(held)

    def wait(self, stop: Stop) -> None:
        """Return when nothing is being freed: who writes next may need the space.

        Raises:
            Stopped: *stop* was set. A file of gigabytes takes seconds.
        """
        catch_up()  # it may be the file that this job has replaced before
        busy = self._busy
        while not busy.acquire(timeout=_LOOK_AT_STOP_EVERY):
            stop.check()
        busy.release()

    @contextlib.contextmanager
    def after(self, path: str, existing: os.stat_result | None) -> Iterator[None]:
        """Have what is at *path*, which the block replaces, freed after this thread's job, if it is large."""
        large = existing is not None and existing.st_blocks * 512 >= _WORTH
        if _HOLD is None or not large or not self._busy.acquire(blocking=False):
            yield
            return
        busy = self._busy
        try:
            # It may be gone meanwhile, or there is no descriptor left: then there is nothing to free later.
            with contextlib.suppress(OSError):
                self._held = os.open(path, _HOLD)
            yield
        finally:
            afterwards(functools.partial(self._let_go, busy))

    def _let_go(self, busy: _thread.LockType) -> None:
        if self._held is not None:
            offer_core()  # who was told may be waiting for it, and the file system keeps it until it is done
        # Not held any more when it is closed: by then the number may be another file's.
        held, self._held = self._held, None
        try:
            if held is not None:
                # Whoever closes all descriptors there are, as one who becomes a daemon, has closed it already.
                with contextlib.suppress(OSError):
                    os.close(held)
        finally:
            busy.release()
