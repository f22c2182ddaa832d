"""How many cores this process may use, and how many workers ``n_jobs`` means on them.

Three things bound the cores: the affinity mask, the CPU quota of this process's cgroup and of every
cgroup above it, and the user, who overrides both with ``APARALLEL_CPU_COUNT``. Sources of the formats: the
kernel's ``admin-guide/cgroup-v2.rst`` and ``scheduler/sched-bwc.rst``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from aparallel._ground.cgroups import Cgroups
from aparallel._ground.units import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT_VARIABLE = "APARALLEL_CPU_COUNT"


def cpu_count() -> int:
    """Return how many cores this process may keep busy, at least 1.

    The smaller of the affinity mask's cores and the cgroup quota (versions 1 and 2), rounded up: a
    quota of 1.5 cores is 2. ``APARALLEL_CPU_COUNT``, unless empty, is used instead of both. Affinity
    and environment are read each time, the quota at most once a second.

    Raises:
        ValueError: ``APARALLEL_CPU_COUNT`` is not a positive integer.
    """
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override:
        return parse_override(override)
    quota = _quota.cpus()
    cores = _schedulable_cores()
    return cores if quota is None else min(cores, quota)


def effective_n_jobs(n_jobs: int, cpus: int) -> int:
    """Return how many workers *n_jobs* means on *cpus* cores, at least 1.

    A positive number is itself, even above *cpus*; ``-1`` is every core, ``-2`` all but one.

    Raises:
        ValueError: *n_jobs* is 0.
        TypeError: *n_jobs* is no integer; a bool or a float is none, a NumPy integer is one.
    """
    count = whole_number(n_jobs)
    if count is None:
        raise TypeError(f"n_jobs must be an integer, got {n_jobs!r} ({type(n_jobs).__name__}).")
    if count == 0:
        raise ValueError("n_jobs=0 means no worker at all. Use 1 or more, -1 for all cores or -2 for all but one.")
    return count if count > 0 else max(cpus + 1 + count, 1)


def parse_override(text: str) -> int:
    """Return the number of cores that the user asks for in ``APARALLEL_CPU_COUNT``."""
    digits = text.strip()
    # Nine digits: more cores than any machine has, and never past int()'s own limit on digits.
    count = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 9 else 0
    if count < 1:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}={text!r} is not a positive integer. "
            f"Set it to the number of cores to use, or unset it."
        )
    return count


def _schedulable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS and Windows have no affinity mask; a sandbox may refuse the call
        return os.cpu_count() or 1


class CgroupQuota:
    """The CPU quota that binds this process, as a number of cores.

    *root* and *clock* (seconds) are for tests. Files that are missing or not understood limit nothing.

    The mutable state is ``_known``, the last answer and when it was read. It is replaced whole, so
    threads at worst read the files twice. Invariant: an answer is never older than *max_age* seconds,
    so a quota that changes while we run, or a move to another cgroup, counts soon after.
    """

    def __init__(self, root: str = "/", *, max_age: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._cgroups = Cgroups("cpu", root)
        self._max_age = max_age
        self._clock = clock
        self._known: tuple[float, int | None] | None = None

    def cpus(self) -> int | None:
        """Return the cores that the tightest quota allows, at least 1, or None if nothing limits them."""
        now = self._clock()
        if self._known is None or now - self._known[0] >= self._max_age:
            self._known = (now, self._read())
        return self._known[1]

    def _read(self) -> int | None:
        quotas = [self._quota_in(version, folder) for version, folder in self._cgroups.folders()]
        return min((quota for quota in quotas if quota is not None), default=None)

    def _quota_in(self, version: int, folder: str) -> int | None:
        text = self._cgroups.text
        if version == 2:
            return parse_cpu_max(text(f"{folder}/cpu.max"))
        return parse_cfs_quota(text(f"{folder}/cpu.cfs_quota_us"), text(f"{folder}/cpu.cfs_period_us"))


_quota = CgroupQuota()


def parse_cpu_max(text: str) -> int | None:
    """Return the cores that a version 2 ``cpu.max`` allows, or None: ``max 100000`` or ``150000 100000``, in µs."""
    quota, _, period = text.strip().partition(" ")
    return _whole_cores(quota, period)


def parse_cfs_quota(quota: str, period: str) -> int | None:
    """Return the cores that version 1's quota and period allow, in µs, or None: a quota of ``-1`` is no limit."""
    return _whole_cores(quota.strip(), period.strip())


def _whole_cores(quota: str, period: str) -> int | None:
    if not (quota.isdecimal() and period.isdecimal() and int(period) > 0):
        return None
    return max(-(-int(quota) // int(period)), 1)
