"""What a forked child cannot use as it is, and makes anew or lets go of.

It has none of the threads, one of which may have held a lock at the fork, and the descriptors are another's.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Something that a child cannot use as it is."""

    def after_fork(self) -> None:
        """Make it usable in the child, or let go of it."""


_all: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_after_fork(thing: Forked) -> None:
    """Call ``thing.after_fork()`` in every child that is forked while it lives."""
    _all.add(thing)


def _in_child() -> None:
    for thing in list(_all):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
