"""How much memory this process takes at its highest. Children are not counted."""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

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


def _peak_bytes() -> int:
    try:
        status = _STATUS.read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    kibibytes = status.partition("VmHWM:")[2].split(maxsplit=1)[0]
    return int(kibibytes) * 1024
