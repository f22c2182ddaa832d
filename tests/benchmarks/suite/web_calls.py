"""What the heavy endpoints of every server compute. Standard library only: every worker imports this module."""

from __future__ import annotations

import ctypes

# The "minimal standard" generator of Park and Miller (1988): plain arithmetic that holds the GIL, and whose last
# number anyone can check without having taken the steps.
_FACTOR, _MODULUS = 48_271, 2**31 - 1


def work(steps: int) -> int:
    """Take *steps* steps: always the same work, however long it takes on a busy machine."""
    state = 1
    for _ in range(steps):
        state = state * _FACTOR % _MODULUS
    return state


def expected(steps: int) -> int:
    """What :func:`work` returns."""
    return pow(_FACTOR, steps, _MODULUS)


def crash(address: int) -> int:
    """Read memory that is not there: a bug in native code, as the process sees it."""
    return len(ctypes.string_at(address))
