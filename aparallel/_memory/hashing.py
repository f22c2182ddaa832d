"""The public ``hash``: content, by name."""

from __future__ import annotations

from typing import Final

from aparallel._ground.hop import in_thread
from aparallel._memory.canonical import TooLarge, value_digest

# What may be encoded on the event loop, in values and hundreds of bytes: at most about 0.1 ms.
LOOP_BUDGET: Final = 400


async def hash(obj: object, /) -> str:  # noqa: A001  # joblib's name
    """Return 64 hexadecimal digits that stand for *obj*: BLAKE3 of its type and content, all the way down.

    Equal content gives equal digits in every process, on every run and hash seed; different content, different
    ones. 1, 1.0 and True differ; so do 0.0 and -0.0, and a list and a tuple. The order of dicts and sets, and
    what is shared inside *obj*, do not matter. Arrays count by dtype, shape and contents (and by lying in Fortran
    order), pandas objects by labels and values, functions by name, code and what they close over, classes
    by name. An object of another class counts by what it would be pickled as, or by what its method
    ``__aparallel_key__`` returns. Cycles are fine.

    Small values are hashed at once, others off the event loop, big arrays with all cores. Cancellation: the thread
    ends its work, whose result is dropped.

    Raises:
        UnstableValueError: something in it has no content that stays the same, such as a lock or an open file.
    """
    try:
        return value_digest(obj, LOOP_BUDGET).hex()
    except TooLarge:
        return (await in_thread(value_digest, obj)).hex()
