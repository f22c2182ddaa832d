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
"""

from __future__ import annotations

import enum
import functools
import re
from typing import TYPE_CHECKING

from aparallel._persist.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.stoppable import Stop


class Look(enum.Enum):
    """What shows that a pickle may be loaded."""

    NONE = "it is plain data"
    DRY_RUN = "it imports names"
    WALK = "it is not as picklers write it"


def needed_look(
    read: Callable[[int], bytes | memoryview], stop: Stop, skip: Callable[[int], object] | None = None
) -> Look:
    """Step over the pickle that *read* gives and *skip* goes past, from PROTO to STOP.

    Raises:
        TruncatedFileError: it ends within a long argument.
    """
    return _Steps(Window(read, stop, skip)).run()


# Without an argument: NONE NEWTRUE NEWFALSE MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET; SETITEM SETITEMS APPEND
# APPENDS ADDITEMS; TUPLE TUPLE1 TUPLE2 TUPLE3 FROZENSET; POP POP_MARK.
_BARE = rb"N\x88\x89(}\])\x8fsuae\x90t\x85\x86\x87\x9101"
# BINGET BININT1; BININT2; BININT LONG_BINGET; BINFLOAT.
_FIXED = rb"[hK].|M..|[Jj]....|G.{8}"
# REDUCE BUILD NEWOBJ NEWOBJ_EX STACK_GLOBAL OBJ NEXT_BUFFER READONLY_BUFFER.
_CALLING = rb"Rb\x81\x92\x93o\x97\x98"
# GLOBAL INST.
_NAMING = rb"[ci][^\n]{1,512}\n[^\n]{1,512}\n"
_MEMOIZE = rb"\x94"
_BINPUT = rb"q."

_FRAME, _STOP, _LONG_BINPUT = 0x95, 0x2E, 0x72
# The width of the length that comes before the argument of: BINUNICODE BINBYTES LONG4 BINUNICODE8 BINBYTES8 BYTEARRAY8.
_LONG = {0x58: 4, 0x42: 4, 0x8B: 4, 0x8D: 8, 0x8E: 8, 0x96: 8}
_CALLS = frozenset(b"Rb\x81\x92\x93o\x97\x98ci")
# So much is stepped over between two pauses; it takes below a millisecond.
_SLICE = 64 << 10
# No opcode that the expression knows is longer, with its argument.
_LONGEST = 1200


def _counted(opcode: bytes, zeros: int = 0) -> bytes:
    """Opcodes with an argument that begins with its length: up to 255, and so many zeros after it."""
    lengths = (re.escape(bytes([length])) + rb"\x00" * zeros + b".{%d}" % length for length in range(256))
    return opcode + b"(?:" + b"|".join(lengths) + b")"


@functools.cache
def _steps(*, numbered: bool, calling: bool) -> re.Pattern[bytes]:
    """As many opcodes as there are.

    Args:
        numbered: the memo is filled by number, as before protocol 4.
        calling: opcodes that import and call, too.
    """
    bare = _BARE + (b"" if numbered else _MEMOIZE) + (_CALLING if calling else b"")
    # SHORT_BINUNICODE; SHORT_BINBYTES LONG1; BINUNICODE BINBYTES LONG4, short ones.
    tokens = [b"[" + bare + b"]", _FIXED, _counted(rb"\x8c"), _counted(rb"[C\x8a]"), _counted(rb"[XB\x8b]", 3)]
    if numbered:
        tokens.insert(1, _BINPUT)
    if calling:
        tokens.append(_NAMING)
    # Possessive: no token begins as another does, so what was stepped over need not be gone through again.
    return re.compile(b"(?:" + b"|".join(tokens) + b")*+", re.DOTALL)


class _Steps:
    """The steps over one pickle.

    Invariant: ``_frame_end``, where the frame ends that we are in, is 0 or not before where the window stands.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._look = Look.NONE
        self._numbered = False
        self._frame_end = 0

    def run(self) -> Look:
        window = self._window
        proto, version = window.take(2)
        if proto != 0x80 or not 2 <= version <= 5:
            return Look.WALK
        self._numbered = version < 4
        pattern = _steps(numbered=self._numbered, calling=False)
        while True:
            self._step_with(pattern)
            if window.at >= len(window.data):
                return Look.WALK
            opcode = window.data[window.at]
            if opcode == _STOP:
                return self._look if self._frame_end in (0, window.position + 1) else Look.WALK
            if opcode in _CALLS and self._look is Look.NONE:
                self._look = Look.DRY_RUN
                pattern = _steps(numbered=self._numbered, calling=True)
            elif not self._step(opcode):
                return Look.WALK

    def _step_with(self, pattern: re.Pattern[bytes]) -> None:
        """Go as far as the expression does."""
        window = self._window
        while True:
            if len(window.data) - window.at < _LONGEST:
                window.more(window.at, _SLICE)
            limit = min(window.at + _SLICE, len(window.data))
            if self._frame_end:
                limit = min(limit, self._frame_end - window.start)
            found = pattern.match(window.data, window.at, limit)
            if found is None or found.end() == window.at:
                return
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
        elif opcode == _LONG_BINPUT and self._numbered:
            # The unpickler's memo is a table as long as its highest number.
            if int.from_bytes(window.take(4), "little") > start:
                return False
        else:
            return False
        if self._frame_end and opcode != _FRAME:
            if window.position > self._frame_end:
                return False
            if window.position == self._frame_end:
                self._frame_end = 0
        return True
