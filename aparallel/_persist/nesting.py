"""How deep things lie within each other in a pickle, where CPython and NumPy call themselves in C for each level.

They do not look how much stack is left, and when there is none the process dies. With 8 MB of it,

- at some 130,000 levels of tuples that are hashed, as a dictionary's key or in a set (:class:`Levels`). A list, a
  dictionary or a set within the tuple cannot be hashed, and a frozenset knows its hash, so levels are counted anew in
  them. To compare and to free such a tuple is safe: the one counts its levels itself, the other is done in turns.
- at some 4,000 arrays of objects that hold each other, when the outermost is freed, 60,000 of ``defaultdict`` and
  140,000 of ``deque`` (:class:`Chains`). All else that plain data has is freed in turns.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from aparallel._persist.standins import Global, Made, Opaque

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_LEVELS = 20_000
"""Levels of tuples that a file may have. Picklers call themselves for each, too, and end after some thousand."""
MOST_STACKED = 1 << 26
"""Values on the stack, half a gigabyte of references: lists grow by thousands, but all items of a tuple stand there."""
TOO_DEEP = f"tuples nested more than {MOST_LEVELS:,} levels deep, which may crash Python"


class TooDeep(Exception):
    """There are more levels than :data:`MOST_LEVELS`."""


class Levels:
    """Counts by the opcodes alone, for pickles whose opcodes :mod:`aparallel._persist.tokens` knows.

    The state is the unpickler's stack, marks and memo, with levels in place of objects: 0 for what is no tuple. What is
    called gives one level more than its arguments have, as nobody knows what it makes of them.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}  # of what has levels
        self._memoized = 0
        self._deepest = 0

    def follow(self, opcodes: list[bytes]) -> None:
        """Go on by these opcodes, with their arguments if those are numbers of the memo.

        Raises:
            TooDeep: there are too many levels.
            IndexError: one takes what is not there.
        """
        stack, push, memo, kinds = self._stack, self._stack.append, self._memo, _KINDS
        memoized = self._memoized
        for opcode in opcodes:
            kind = kinds.get(opcode)
            if kind is _PUSH:
                push(0)
            elif kind is _MEMOIZE:
                if stack[-1]:
                    memo[memoized] = stack[-1]
                memoized += 1
            elif kind is _SMALL_TUPLE:
                count = opcode[0] - 0x84
                inside = stack[-count:]
                del stack[-count:]
                if any(inside):
                    self._push_levels(1 + max(inside))
                else:
                    push(1)
            elif kind is None:
                self._get_or_put(opcode[0], int.from_bytes(opcode[1:], "little"))
            elif kind is _MARK:
                self._marks.append(len(stack))
            elif kind is _TO_MARK:
                self._take_marked(opcode)
            else:
                self._rare(opcode)
        self._memoized = memoized

    def push(self) -> None:
        """Take note of a value without levels."""
        self._stack.append(0)

    def put(self, index: int) -> None:
        """Take note of what an opcode of its own puts into the memo."""
        self._get_or_put(0x72, index)

    @property
    def size(self) -> int:
        """How many values, or so many marks, are on the stack."""
        return max(len(self._stack), len(self._marks))

    def _push_levels(self, levels: int) -> None:
        if levels > self._deepest:
            self._deepest = levels
            if levels > MOST_LEVELS:
                raise TooDeep
        self._stack.append(levels)

    def _get_or_put(self, opcode: int, index: int) -> None:
        if opcode in _GETS:
            self._stack.append(self._memo.get(index, 0))
        elif self._stack[-1]:
            self._memo[index] = self._stack[-1]
        else:
            self._memo.pop(index, None)

    def _take_marked(self, opcode: bytes) -> None:
        stack = self._stack
        start = self._marks.pop()
        inside = stack[start:]
        del stack[start:]
        if opcode == b"t" or opcode in _CALLS_OF_MARKED:
            self._push_levels(1 + max(inside, default=0))
        elif opcode == b"\x91":  # FROZENSET
            stack.append(0)

    def _rare(self, opcode: bytes) -> None:
        stack = self._stack
        if opcode == b"0":  # POP
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                stack.pop()
            return
        if opcode in _CALLS:
            args = stack.pop()
            stack.pop()
            self._push_levels(1 + args)
        elif opcode == b"\x92":  # NEWOBJ_EX, with whatever is in the dictionary
            del stack[-3:]
            self._push_levels(1 + self._deepest)
        else:
            del stack[len(stack) - _TAKEN[opcode] :]
            if opcode == b"\x93":
                stack.append(0)


# What an opcode does: push a value, remember the topmost one, make a tuple of up to three, set a mark, take all from
# the last mark on, or something else. Those of no kind have a number of the memo, and get what is there or put it.
_PUSH, _MEMOIZE, _SMALL_TUPLE, _MARK, _TO_MARK, _RARE = range(6)
_GETS = frozenset(b"hj")
_CALLS = frozenset([b"R", b"\x81"])  # REDUCE NEWOBJ
_CALLS_OF_MARKED = frozenset([b"o", b"i"])  # OBJ INST
# APPEND SETITEM BUILD STACK_GLOBAL READONLY_BUFFER, and how many values each takes.
_TAKEN = {b"a": 1, b"s": 2, b"b": 1, b"\x93": 2, b"\x98": 0}
_KINDS = {
    bytes([opcode]): kind
    for opcodes, kind in (
        (b"N\x88\x89)}]\x8fKMJG\x8cCXB\x8a\x8bc\x97", _PUSH),
        (b"\x94", _MEMOIZE),
        (b"\x85\x86\x87", _SMALL_TUPLE),
        (b"(", _MARK),
        (b"tue\x90\x911oi", _TO_MARK),
        (b"0R\x81\x92asb\x93\x98", _RARE),
    )
    for opcode in opcodes
}


def levels_of(value: Any) -> int:
    """The levels of what :mod:`aparallel._persist.walk` keeps of a value."""
    return getattr(value, "levels", 1 if type(value) is tuple and value else 0)


@functools.cache
def opaque_tuple(levels: int) -> Opaque:
    """What stands for a tuple of which only the levels matter."""
    return Opaque("tuple", min(levels, MOST_LEVELS))


STATED_ARRAYS = frozenset(
    Global(module, name)
    for module, name in (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.ma.core", "_mareconstruct"),
    )
)
"""What makes arrays that are given a state, as NumPy pickles them; those of objects hold them in it."""
FRAIL = frozenset({*STATED_ARRAYS, Global("collections", "defaultdict"), Global("collections", "deque")})
"""What makes things that must not hold each other in long chains."""
TOO_LONG = "arrays of objects, or collections, that hold each other in a chain so long that it may crash Python"
# How many levels of others take as much stack as one array.
_OF_ARRAY = 16


def frail_among(items: Iterable[Any]) -> list[Made]:
    return [item for item in items if type(item) is Made and item.of in FRAIL]


class Chains:
    """How long the chains of what is frail may be.

    What a thing holds is complete when the thing is given it, and so has a known length, but in cycles. A *late* one
    is given something when another holds it already: that one is longer than was thought. So no chain is longer than
    all late ones together, and before, between and after them each time as much as was ever seen.
    """

    def __init__(self) -> None:
        self._late = 0
        self._longest = 0

    @property
    def may_crash(self) -> bool:
        return (self._late + 1) * (self._longest + _OF_ARRAY) > MOST_LEVELS

    def hold(self, holder: Made, held: list[Made]) -> None:
        """Take note that *holder* is given *held*, which are frail."""
        for made in held:
            made.is_held = True
            holder.chain = max(holder.chain, made.chain + (_OF_ARRAY if made.of in STATED_ARRAYS else 1))
        self._longest = max(self._longest, holder.chain)
        self._late += holder.is_held and bool(held)

    def hold_unseen(self) -> None:
        """Take note of something that holds nobody knows what."""
        self._late += 1
