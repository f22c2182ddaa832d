"""Steps over a pickle's opcodes at the speed of C, and says how close a look it needs before it may be loaded.

A regular expression steps over opcodes with their arguments, tens of kilobytes at a time. It knows nothing of stack
and memo. What it proves is which opcodes there are, and that the C unpickler will meet no others:

- Those that build numbers, text, bytes, tuples, lists, dictionaries and sets. None of them imports, calls or sets a
  state; nothing that they make is callable; and adding items to any of it changes that alone. So a pickle that has only
  these is plain data, whatever it says (:attr:`Look.NONE`).
- Those that import, call, set states or take buffers. The C unpickler goes through such a pickle with stand-ins for
  all that is imported (:attr:`Look.DRY_RUN`, :mod:`aparallel._persist.dry_run`).
- Any other pickle is left to the walk, which knows them all (:attr:`Look.WALK`, :mod:`aparallel._persist.walk`):
  copyreg's extensions, persistent IDs and DUP; a memo that is numbered higher than it has entries, for which the
  unpickler would take memory, or in two ways; what protocol 2 and later do not write; what is damaged.

The unpickler reads a frame at once and drops what is left of it when an opcode goes beyond. Here a frame must end where
an opcode does, so that both see the same opcodes.

Tuples that lie too deep within each other would crash the unpickler (:mod:`aparallel._persist.nesting`). A pickle of
few tuples has none. One of many is stepped over again, without those that hold nothing but numbers and texts; and once
more if many are left, and their levels are counted.
"""

from __future__ import annotations

import enum
import functools
import re
from typing import TYPE_CHECKING, Any

from aparallel._persist.nesting import MOST_LEVELS, MOST_STACKED, Levels, TooDeep
from aparallel._persist.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.stoppable import Stop


class Look(enum.Enum):
    """What shows that a pickle may be loaded."""

    NONE = "it is plain data"
    DRY_RUN = "it imports names"
    WALK = "it is not as picklers write it"


def needed_look(reader: Callable[[], Any], stop: Stop) -> Look:
    """Step over a pickle, from PROTO to STOP.

    Args:
        reader: gives a file with the pickle, from its beginning each time. It has a ``skip`` if it need not be read.

    Raises:
        TruncatedFileError: it ends within a long argument.
    """
    for flat in (False, True):
        try:
            return _Steps(_window(reader(), stop), None, flat=flat).run()
        except _ManyTuples:
            continue
    try:
        return _Steps(_window(reader(), stop), Levels()).run()
    except (TooDeep, IndexError):  # of the latter the walk says what it is
        return Look.WALK


def _window(file: Any, stop: Stop) -> Window:
    return Window(file.read, stop, getattr(file, "skip", None))


# Without an argument: EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET; SETITEM SETITEMS APPEND APPENDS ADDITEMS; FROZENSET;
# POP POP_MARK; MARK.
_BARE = rb"}\])\x8fsuae\x90\x9101"
_MARK = rb"("
# TUPLE TUPLE1 TUPLE2 TUPLE3.
_TUPLES = rb"t\x85\x86\x87"
# BINGET LONG_BINGET.
_GETS = rb"h.|j...."
# NONE NEWTRUE NEWFALSE; BININT1 BININT2 BININT BINFLOAT; and how these and texts begin.
_NUMBERS = rb"[N\x88\x89]|K.|M..|J....|G.{8}"
_BEGINS = rb"N\x88\x89KMJG\x8cC\x8aXB\x8b"
# REDUCE BUILD NEWOBJ STACK_GLOBAL NEXT_BUFFER READONLY_BUFFER; and NEWOBJ_EX OBJ, which need no tuple.
_CALLING = rb"Rb\x81\x93\x97\x98"
_NESTING = rb"\x92o"
# GLOBAL; INST.
_NAMING = rb"c[^\n]{1,512}\n[^\n]{1,512}\n"
_INST = rb"i[^\n]{1,512}\n[^\n]{1,512}\n"
_MEMOIZE = rb"\x94"
_BINPUT = rb"q."

_FRAME, _STOP, _LONG_BINPUT = 0x95, 0x2E, 0x72
# The width of the length that comes before the argument of: BINUNICODE BINBYTES LONG4 BINUNICODE8 BINBYTES8 BYTEARRAY8.
_LONG = {0x58: 4, 0x42: 4, 0x8B: 4, 0x8D: 8, 0x8E: 8, 0x96: 8}
_CALLS = frozenset(b"Rb\x81\x92\x93o\x97\x98ci")
# Each makes one level, or two with the call of what it makes.
_NESTS = frozenset(b"t\x85\x86\x87\x92oi")
_INST_OPCODE = 0x69
# So much is stepped over between two pauses; it takes below a millisecond.
_SLICE = 64 << 10
# So many bytes, in two slices at most, and so many tuples after them have no more levels than may be.
_FREE = 8_000
_FEW = 2_000
assert 2 * _FREE + 2 * _FEW <= MOST_LEVELS
# No opcode that the expression knows is longer, with its argument.
_LONGEST = 1200


def _counted(opcode: bytes, zeros: int = 0) -> bytes:
    """Opcodes with an argument that begins with its length: up to 255, and so many zeros after it."""
    lengths = (re.escape(bytes([length])) + rb"\x00" * zeros + b".{%d}" % length for length in range(256))
    return opcode + b"(?:" + b"|".join(lengths) + b")"


@functools.cache
def _step(*, numbered: bool, calling: bool, nesting: bool, flat: bool = False) -> bytes:
    """An expression for one opcode.

    Args:
        numbered: the memo is filled by number, as before protocol 4.
        calling: opcodes that import and call, too.
        nesting: those that make a level of tuples or of calls, too.
        flat: tuples of nothing but numbers and texts, too. It takes a fifth longer.
    """
    bare = _BARE + (b"" if numbered else _MEMOIZE) + (_CALLING if calling else b"") + (_TUPLES if nesting else b"")
    if calling and nesting:
        bare += _NESTING
    # And SHORT_BINUNICODE; SHORT_BINBYTES LONG1; BINUNICODE BINBYTES LONG4, short ones.
    values = [_NUMBERS, _counted(rb"\x8c"), _counted(rb"[C\x8a]"), _counted(rb"[XB\x8b]", 3)]
    if flat:
        tokens = [b"[" + bare + b"]", _GETS, *_flat(values, b"(?:q.)?" if numbered else b"\x94?")]
    else:
        tokens = [b"[" + bare + _MARK + b"]", _GETS, *values]
    if numbered:
        tokens.insert(1, _BINPUT)
    if calling:
        tokens += [_NAMING, _INST] if nesting else [_NAMING]
    return b"(?:" + b"|".join(tokens) + b")"


def _flat(values: list[bytes], memoized: bytes) -> list[bytes]:
    """Expressions for values that hold nothing, and for tuples of no others, which have one level, however many."""
    value = b"(?=[" + _BEGINS + b"])(?:" + b"|".join(values) + b")" + memoized
    # Of one value, of up to two, of up to three; whatever is before them stays on the stack.
    one, two, three = (b"[" + opcodes + b"]" + memoized for opcodes in (rb"\x85", rb"\x85\x86", rb"\x85\x86\x87"))
    longer = b"(?:" + value + b")*+(?:" + three + b")?"
    # Of any number: from a mark on.
    return [
        value + b"(?:" + one + b"|" + value + b"(?:" + two + b"|" + value + longer + b")?)?",
        rb"\((?:(?:" + value + b")*+t" + memoized + b")?",
    ]


@functools.cache
def _steps(*, numbered: bool, calling: bool, nesting: bool, flat: bool) -> re.Pattern[bytes]:
    """As many opcodes as there are."""
    # Possessive: no token begins as another does, so what was stepped over need not be gone through again.
    return re.compile(_step(numbered=numbered, calling=calling, nesting=nesting, flat=flat) + b"*+", re.DOTALL)


@functools.cache
def _each(*, numbered: bool) -> re.Pattern[bytes]:
    """Each opcode for :class:`Levels`, of whose arguments it wants the numbers of the memo."""
    puts = b"|q." if numbered else b""
    return re.compile(
        b"(?=(h.|j.{4}" + puts + b"|.))" + _step(numbered=numbered, calling=True, nesting=True), re.DOTALL
    )


class _ManyTuples(Exception):
    """There are so many that their levels must be counted."""


class _Steps:
    """The steps over one pickle.

    Invariant: ``_frame_end``, where the frame ends that we are in, is 0 or not before where the window stands.

    Args:
        levels: to be told of all opcodes, or None to raise _ManyTuples where there may be too many levels.
        flat: do not count tuples that hold nothing but numbers and texts.
    """

    def __init__(self, window: Window, levels: Levels | None, *, flat: bool = False) -> None:
        self._window = window
        self._levels = levels
        self._flat = flat
        self._is_all_here = False
        self._tuples = 0
        self._look = Look.NONE
        self._numbered = False
        self._frame_end = 0

    def run(self) -> Look:
        window = self._window
        proto, version = window.take(2)
        if proto != 0x80 or not 2 <= version <= 5:
            return Look.WALK
        self._numbered = version < 4
        while True:
            self._step_on()
            if window.at >= len(window.data):
                return Look.WALK
            opcode = window.data[window.at]
            if opcode == _STOP:
                return self._look if self._frame_end in (0, window.position + 1) else Look.WALK
            if opcode in _CALLS and self._look is Look.NONE:
                self._look = Look.DRY_RUN
            elif not self._step(opcode):
                return Look.WALK

    def _step_on(self) -> None:
        """Go as far as the expression does."""
        window, levels = self._window, self._levels
        while True:
            if len(window.data) - window.at < _LONGEST and not self._is_all_here:
                self._is_all_here = not window.more(window.at, _SLICE)
            is_free = levels is None and window.position < _FREE
            nesting = is_free or levels is not None
            pattern = _steps(
                numbered=self._numbered,
                calling=self._look is Look.DRY_RUN,
                nesting=nesting,
                flat=self._flat and not nesting,
            )
            limit = min(window.at + (_FREE if is_free else _SLICE), len(window.data))
            if self._frame_end:
                limit = min(limit, self._frame_end - window.start)
            found = pattern.match(window.data, window.at, limit)
            if found is None or found.end() == window.at:
                return
            if levels is not None:
                levels.follow(_each(numbered=self._numbered).findall(window.data, window.at, found.end()))
                if levels.size > MOST_STACKED:
                    raise TooDeep
            window.at = found.end()
            if window.position == self._frame_end:
                self._frame_end = 0

    def _step(self, opcode: int) -> bool:
        """Step over one that the expression does not know, if that may be."""
        window = self._window
        start = window.position
        window.at += 1
        if opcode == _FRAME and not self._frame_end:
            self._frame_end = window.position + 8 + int.from_bytes(window.take(8), "little")
        elif opcode in _LONG:
            window.skip(int.from_bytes(window.take(_LONG[opcode]), "little"))
            if self._levels is not None:
                self._levels.push()
        elif opcode == _LONG_BINPUT and self._numbered:
            # The unpickler's memo is a table as long as its highest number.
            index = int.from_bytes(window.take(4), "little")
            if index > start:
                return False
            if self._levels is not None:
                self._levels.put(index)
        elif opcode in _NESTS and self._levels is None and (opcode not in _CALLS or self._look is Look.DRY_RUN):
            self._tuples += 1
            if self._tuples > _FEW or opcode == _INST_OPCODE:
                raise _ManyTuples
        else:
            return False
        if self._frame_end and opcode != _FRAME:
            if window.position > self._frame_end:
                return False
            if window.position == self._frame_end:
                self._frame_end = 0
        return True
