"""How many calls travel together, and how far ahead they are drawn: pure decisions from measured time."""

from __future__ import annotations

import sys
from math import ceil
from typing import Any

# A message carries calls for about this long: enough that its cost, some 100 µs, does not matter,
# and short enough that workers, gathers and results take turns quickly.
MESSAGE_SECONDS = 0.002
MESSAGE_CALLS = 1024

# It carries no more than this, unless one call does: large arguments go through memory of some megabytes, which is to
# have room for the next message, too.
MESSAGE_BYTES = 1024 * 1024

# Calls are not spread over workers in parts shorter than this: the message would cost as much.
PART_SECONDS = 0.0005

# A worker gets its next message while it still has less than this to do.
PREFETCH_SECONDS = 0.002

AHEAD_SECONDS = 0.05
AHEAD_BYTES = 256 * 1024 * 1024
# Of arguments that are pickled into messages. Each is a copy, and to free 256 MB of them at once holds the loop for 5
# to 16 ms.
COPIED_AHEAD_BYTES = 32 * 1024 * 1024
_AHEAD_CALLS = 20_000

# Results of a stream that nobody has read are as many as a client that does not read can make a server keep.
UNREAD_BYTES = 32 * 1024 * 1024

# What most of the shortest calls give.
_NUMBERS = frozenset({int, float, bool, type(None)})
# So many containers in one another are looked into.
_DEEPEST = 4


def calls_per_message(seconds: float | None, budget: float, share: int, batch_size: int | None) -> int:
    """How many calls of one function to add to a message that has *budget* seconds left; 0 for none.

    *seconds* is the time of one such call, None if unknown: then it travels alone, so that nothing waits
    behind it. *share* is a fair part of what waits, so that the last calls spread over all workers.
    """
    if batch_size is not None:
        return batch_size
    if seconds is None:
        return 1 if budget >= MESSAGE_SECONDS else 0
    count = int(min(budget / seconds, MESSAGE_CALLS)) if seconds > 0 else MESSAGE_CALLS
    if count < 1:
        return 1 if budget >= MESSAGE_SECONDS else 0
    return min(count, max(share, int(PART_SECONDS / seconds) if seconds > 0 else MESSAGE_CALLS))


def calls_within(size: int, call_bytes: float) -> int:
    """How many calls of *call_bytes* each to add to a message that has *size* bytes of room left; 0 for none."""
    return int(size / call_bytes) if call_bytes else MESSAGE_CALLS


def fair_share(waiting: int, workers: int) -> int:
    """A part of *waiting* calls that leaves as much again for every worker: the parts shrink towards the end."""
    return max(1, ceil(waiting / (2 * workers)))


def calls_ahead(
    pre_dispatch: int | None,
    seconds: float | None,
    call_bytes: float,
    workers: int,
    batch_size: int = 1,
    large_bytes: int = 0,
    result_bytes: float = 0.0,
) -> int:
    """How many calls may be drawn and not finished (in a stream: not consumed).

    *pre_dispatch*, if given, is that number. Else: what *workers* finish in 50 ms, at least two batches each,
    and at most 256 MB of arguments in shared memory, of which *large_bytes* are there, 32 MB of others, which come to
    *call_bytes* a call, and 32 MB of results that wait to be consumed, where one has *result_bytes*.
    """
    if pre_dispatch is not None:
        return pre_dispatch
    if large_bytes >= AHEAD_BYTES:
        return workers
    ahead = workers * 2 * batch_size
    if seconds is not None:
        ahead = max(ahead, int(min(workers * AHEAD_SECONDS / seconds, _AHEAD_CALLS)) if seconds > 0 else _AHEAD_CALLS)
    if call_bytes > 0:
        ahead = min(ahead, max(workers, int(COPIED_AHEAD_BYTES / call_bytes)))
    if result_bytes > 0:
        ahead = min(ahead, max(workers, int(UNREAD_BYTES / result_bytes)))
    return ahead


def rough_bytes(value: Any, depth: int = 0) -> int:
    """Return about how many bytes of text, binary data or arrays are in *value*, as far as that is quickly told.

    One item of a container stands for all of them, and no code of the value's own runs.
    """
    kind = type(value)
    if kind in _NUMBERS:
        return 0
    if kind in (bytes, str, bytearray):
        return len(value)
    if kind is memoryview:
        return int(value.nbytes)
    if kind in (list, tuple, dict) and value and depth < _DEEPEST:
        try:
            one, of_item = (next(iter(value.values())), 64) if kind is dict else (value[0], 8)
        except (IndexError, RuntimeError, StopIteration):  # another thread has just changed it
            return 0
        return len(value) * (of_item + rough_bytes(one, depth + 1))
    # While another thread imports NumPy, it is there and has nothing in it.
    ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
    return int(value.nbytes) if ndarray is not None and isinstance(value, ndarray) else 0
