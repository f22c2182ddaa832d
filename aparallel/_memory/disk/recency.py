"""When entries were last used: noted at once, written down a moment later, behind everybody's back."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from aparallel._ground.forks import renew_after_fork
from aparallel._memory.behind import behind

if TYPE_CHECKING:
    from aparallel._ground.store import Place
    from aparallel._memory.disk.directory import Directory

_DELAY = 0.25  # seconds


class Recency:
    """Keeps the access times of a directory's entries, whatever the file system's mount options are."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Leave to the parent what it has to write down."""
        # Guarded by the mutex: which entries were used, and when, since the last flush.
        self._mutex = threading.Lock()
        self._touched: dict[Place, float] = {}

    def touch(self, place: Place) -> None:
        """Note that an entry was used. It costs nothing now; the disk learns of it within about a second."""
        with self._mutex:
            is_first = not self._touched
            self._touched[place] = time.time()
        if is_first:
            behind.call_later(_DELAY, self.flush)

    def flush(self) -> None:
        """Write down what was used since the last time."""
        with self._mutex:
            touched, self._touched = self._touched, {}
        for place, used in touched.items():
            path = self._directory.entry_path(place)
            with contextlib.suppress(OSError):
                os.utime(path, ns=(int(used * 1e9), os.stat(path).st_mtime_ns))
