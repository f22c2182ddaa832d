"""How much memory is taken at its highest: by this process, or on the whole machine."""

from __future__ import annotations

import gc
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): reset the peak resident set size to the current value


class PeakMemory:
    """The growth of this process's resident memory since the creation of this object.

    The kernel keeps the high-water mark, so no peak is missed and nothing is disturbed by looking. Where the mark
    cannot be reset (not Linux, or not allowed), it starts from the peak of all that was before.
    """

    def __init__(self) -> None:
        gc.collect()
        with suppress(OSError):
            _CLEAR_REFS.write_text(_RESET_PEAK)
        self._before = _peak_bytes()

    @property
    def growth(self) -> float:
        """MB (10^6 bytes)."""
        return (_peak_bytes() - self._before) / 1e6


class SystemMemory:
    """The growth of the memory in use on this machine: what processes hold, and what lies in shared memory.

    Counted as a whole because shared memory belongs to nobody in particular, and looked at every few milliseconds by a
    thread, so what else runs meanwhile is counted too. Only Linux tells; elsewhere it is 0.
    """

    period = 0.005

    def __enter__(self) -> Self:
        gc.collect()
        self._before = self._peak = _used_bytes()
        self._shared_before = self._shared_peak = _shared_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """MB (10^6 bytes), at its highest so far."""
        return max(self._peak - self._before, 0) / 1e6

    @property
    def shared_growth(self) -> float:
        """The same of shared memory alone."""
        return max(self._shared_peak - self._shared_before, 0) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(self.period):
            self._peak = max(self._peak, _used_bytes())
            self._shared_peak = max(self._shared_peak, _shared_bytes())


def _used_bytes() -> int:
    """Bytes of anonymous and of shared memory in use."""
    return _bytes_of("AnonPages", "Shmem")


def _shared_bytes() -> int:
    return _bytes_of("Shmem")


def _bytes_of(*names: str) -> int:
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    fields = {line.partition(":")[0]: line.split()[1] for line in meminfo.splitlines()}
    return 1024 * sum(int(fields[name]) for name in names)


def _peak_bytes() -> int:
    try:
        status = _STATUS.read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    kibibytes = status.partition("VmHWM:")[2].split(maxsplit=1)[0]
    return int(kibibytes) * 1024
