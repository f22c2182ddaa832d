"""Hashing any value with stable content: its canonical encoding, and the public ``hash``.

A value is taken apart into a tag and children (:func:`take_apart`), its children are encoded, and
:func:`combine` puts their encodings together. What has cycles, or is nested too deep for recursion,
goes through :mod:`aparallel._memory.cycles`, which gives the same encodings where there is no cycle.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from aparallel._ground.hop import in_thread, pause
from aparallel._memory.apart import LONG_LEAF, take_apart
from aparallel._memory.digest import digest
from aparallel._memory.encoding import ATOMS, Parts, combine, join
from aparallel.errors import UnstableValueError

if TYPE_CHECKING:
    from collections.abc import Callable


# What each encoding means may only change together with this: it makes all keys new.
_VERSION = b"aparallel 1\n"

# What may be encoded on the event loop, in values and hundreds of bytes: at most about 0.1 ms.
LOOP_BUDGET: Final = 400

_PAUSE_EVERY = 256  # values with parts, about half a millisecond


class TooLarge(Exception):
    """The value is more than may be encoded on the event loop."""


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


def value_digest(value: object, budget: int | None = None) -> bytes:
    """Return the 32 bytes that stand for *value*: equal for equal type and content, recursively.

    It may take long; it lets other threads run. *budget* is :func:`encode`'s.

    Raises:
        UnstableValueError: something in it has no content that stays the same.
    """
    return digest(_VERSION + encode(value, budget))


def encode(value: object, budget: int | None = None) -> bytes:
    """Return the canonical encoding of *value*, at most ``INLINE`` bytes.

    *budget* is how many values and how many hundreds of bytes may be encoded; None for no limit.

    Raises:
        TooLarge: the budget is spent.
        UnstableValueError: something in it has no content that stays the same.
    """
    try:
        return _Encoder(budget).encode(value)
    except (_CycleFound, RecursionError):
        if budget is not None:
            raise TooLarge from None
    from aparallel._memory.cycles import encode_graph

    return encode_graph(value, apart)


def apart(value: Any) -> Parts | bytes:
    """Take a value apart, whatever that costs."""
    return take_apart(value, _spend_nothing, encode)


def _spend_nothing(amount: int) -> None:
    pass


class _CycleFound(Exception):
    pass


def _no_atom(kind: type, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Look up what encodes *kind* as ``ATOMS.get`` does, but find nothing."""
    return encode


def _references_to(value: object) -> int:
    return sys.getrefcount(value)


def _references_from_a_list() -> int:
    return max([_references_to(part) for part in [object()]])


# What getrefcount says, in _Encoder.encode, of a value that nothing but one list or tuple holds. It is measured, as it
# depends on how an interpreter passes arguments: Python 3.14 counts 2 less than 3.11.
_ALONE = _references_from_a_list()


class _Encoder:
    """Encodes by recursion. Each value that others share is encoded once."""

    def __init__(self, budget: int | None) -> None:
        self._limit = sys.maxsize if budget is None else budget
        self._pausing = budget is None
        # How a value of a type is encoded. With a budget everything goes through self.encode, which looks at sizes.
        self._encoder_of = ATOMS.get if budget is None else _no_atom
        self._done = 0
        # By id: those under way, and those known. The latter keeps them alive, so that no id is used twice.
        self._open: set[int] = set()
        self._known: dict[int, tuple[bytes, object]] = {}

    def encode(self, value: Any) -> bytes:
        kind = type(value)
        atom = ATOMS.get(kind)
        if atom is not None:
            if (kind is str or kind is bytes) and len(value) > LONG_LEAF:
                self._spend(len(value) >> 7)
            return atom(value)
        known = self._known.get(id(value))
        if known is not None:
            return known[0]
        if id(value) in self._open:
            raise _CycleFound
        self._open.add(id(value))
        try:
            encoding = self._encode_compound(value, kind)
        except UnstableValueError as error:
            error.found_in(kind)
            raise
        self._open.discard(id(value))
        if sys.getrefcount(value) > _ALONE:
            self._known[id(value)] = (encoding, value)
        return encoding

    def _encode_compound(self, value: Any, kind: type) -> bytes:
        own, encoder_of = self.encode, self._encoder_of
        if kind is tuple or kind is list:
            self._spend(len(value))
            return join(b"(" if kind is tuple else b"[", [encoder_of(type(part), own)(part) for part in value])
        if kind is dict:
            self._spend(2 * len(value))
            pairs = [encoder_of(type(key), own)(key) + encoder_of(type(part), own)(part) for key, part in value.items()]
            pairs.sort()
            return join(b"{", pairs)
        parts = take_apart(value, self._spend, encode)
        if isinstance(parts, bytes):
            return parts
        self._spend(4 + len(parts.children))
        return combine(parts.tag, [own(child) for child in parts.children], parts.kind)

    def _spend(self, amount: int) -> None:
        before = self._done
        self._done = before + amount + 1
        if self._done > self._limit:
            raise TooLarge
        if self._pausing and before // _PAUSE_EVERY != self._done // _PAUSE_EVERY:
            pause()
