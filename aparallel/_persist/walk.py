"""Walks a pickle without building anything: what it would import, call and change, and which arrays it has.

The unpickler is a machine with a stack and a memo. Here it runs on stand-ins: of what is pushed, only as much is kept
as is needed to tell names, calls and arrays, and anything else is :data:`~aparallel._persist.standins.OPAQUE`. Opcodes
and their arguments are those of the standard library's ``pickletools``. Memory is bounded by limits on the stack and on
what is kept in the memo (:mod:`aparallel._persist.kept`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aparallel._persist.kept import LINES, Memo, counted
from aparallel._persist.nesting import MOST_LEVELS, MOST_STACKED, TOO_DEEP, frail_among, levels_of, opaque_tuple
from aparallel._persist.standins import (
    BUFFER,
    BYTES,
    LONGEST_TEXT,
    MOST_ITEMS,
    OPAQUE,
    SET,
    TEXT,
    Global,
    Items,
    Listed,
    Made,
    Nested,
    Opaque,
)
from aparallel._persist.window import Window, cut
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from aparallel._ground.stoppable import Stop
    from aparallel._persist.standins import Watcher

# Opcodes that push a constant (of BINFLOAT, that it is no matter), and how many bytes of argument they have.
_CONSTANT: dict[int, tuple[Any, int]] = {
    ord("N"): (None, 0),
    0x88: (True, 0),
    0x89: (False, 0),
    ord("G"): (OPAQUE, 8),
}
# Opcodes whose argument is a number, of so many bytes; whether that is signed.
_NUMBER = {ord("K"): (1, False), ord("M"): (2, False), ord("J"): (4, True)}
# BINGET and LONG_BINGET, and how many bytes the number in the memo has.
_GET = {0x68: 1, 0x6A: 4}
# EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET
_EMPTY: dict[int, Callable[[], Any]] = {0x7D: Items, 0x5D: Listed, 0x29: tuple, 0x8F: lambda: SET}
# Opcodes whose argument is a length, of so many bytes, and so many bytes; and what they push.
_COUNTED: dict[int, tuple[int, Opaque]] = {
    0x8C: (1, TEXT),  # SHORT_BINUNICODE
    ord("X"): (4, TEXT),  # BINUNICODE
    0x8D: (8, TEXT),  # BINUNICODE8
    ord("C"): (1, BYTES),  # SHORT_BINBYTES
    ord("B"): (4, BYTES),  # BINBYTES
    0x8E: (8, BYTES),  # BINBYTES8
    0x96: (8, BYTES),  # BYTEARRAY8
    ord("U"): (1, TEXT),  # SHORT_BINSTRING: text of Python 2
    ord("T"): (4, TEXT),  # BINSTRING
    0x8A: (1, OPAQUE),  # LONG1
    0x8B: (4, OPAQUE),  # LONG4
}


def walk(
    read: Callable[[int], bytes | memoryview],
    watcher: Watcher,
    stop: Stop,
    skip: Callable[[int], object] | None = None,
) -> int:
    """Let *watcher* see what a pickle would do, and return how many bytes it has.

    Args:
        read: gives the next bytes.
        skip: goes past bytes, and past the end without a word; None if they must be read.

    Raises:
        CorruptFileError: it is no pickle, or one that no pickler makes.
    """
    window = Window(read, stop, skip)
    try:
        Walk(window, watcher).run()
    except (IndexError, KeyError):
        raise CorruptFileError("its pickle takes more than it has") from None
    except RecursionError:
        raise CorruptFileError(
            "its pickle has pickles within pickles, more of them than Python can go through"
        ) from None
    return window.position


class Walk:
    """One pickle, from PROTO to STOP.

    The state is the unpickler's: ``_stack``, ``_marks`` (heights of the stack) and ``_memo``.
    """

    def __init__(self, window: Window, watcher: Watcher) -> None:
        self._window = window
        self._watcher = watcher
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo = Memo()
        self._deepest = 0
        # Where the frame ends that the walk is in, or 0. The unpickler reads a frame at once, and drops what is left of
        # it when an opcode goes beyond; so frames must end where opcodes do, or the two would see different pickles.
        self._frame_end = 0

    def run(self) -> None:
        """Walk to the end.

        Raises:
            CorruptFileError: it is no pickle, or one that no pickler makes.
            IndexError, KeyError: it takes what is not there.
        """
        window, stack, memo = self._window, self._stack, self._memo
        data, at = window.data, window.at
        while True:
            if at + 16 > len(data):
                self._go_on(at)
                data, at = window.data, 0
            if self._frame_end:
                self._check_frame(window.start + at)
            op = data[at]
            at += 1
            if op in _COUNTED:
                width, kind = _COUNTED[op]
                size = int.from_bytes(data[at : at + width], "little")
                at += width
                if size <= LONGEST_TEXT and at + size <= len(data):
                    stack.append(counted(kind, data[at : at + size]))
                    at += size
                else:
                    window.at = at
                    self._push_far(kind, size)
                    data, at = window.data, window.at
            elif op == 0x94:  # MEMOIZE
                memo.add(stack[-1])
            elif op in _GET:
                stack.append(memo.kept.get(int.from_bytes(data[at : at + _GET[op]], "little"), OPAQUE))
                at += _GET[op]
            elif op in _NUMBER:
                width, signed = _NUMBER[op]
                stack.append(int.from_bytes(data[at : at + width], "little", signed=signed))
                at += width
            elif op in _CONSTANT:
                value, width = _CONSTANT[op]
                stack.append(value)
                at += width
            elif op == 0x28:  # MARK
                self._marks.append(len(stack))
            elif op in _EMPTY:
                stack.append(_EMPTY[op]())
            else:
                window.at = at
                if op == 0x2E:  # STOP
                    self._end()
                    return
                self._rare(op)
                data, at = window.data, window.at

    def _go_on(self, at: int) -> None:
        window = self._window
        window.more(at, 16)
        if not window.data:
            raise cut()
        if len(self._stack) > MOST_STACKED or len(self._marks) > MOST_STACKED:
            raise CorruptFileError("its pickle is nested deeper than any pickler makes one")

    def _check_frame(self, position: int) -> None:
        if position > self._frame_end:
            raise CorruptFileError("its pickle has a frame that ends within an opcode")
        if position == self._frame_end:
            self._frame_end = 0

    def _push_far(self, kind: Opaque, size: int) -> None:
        """Push an argument that goes beyond what is at hand, or is too long to be kept."""
        if size <= LONGEST_TEXT:
            self._stack.append(counted(kind, self._window.take(size)))
        else:
            self._window.skip(size)
            self._stack.append(kind)

    def _end(self) -> None:
        if self._frame_end not in (0, self._window.position):
            raise CorruptFileError("its pickle has a frame that goes on after its end")
        self._stack.pop()

    def _rare(self, op: int) -> None:
        found = _RARE.get(op)
        if found is None:
            raise CorruptFileError(f"its pickle has an opcode {op:#04x} that does not exist")
        found(self, op)

    def _take_marked(self, op: int) -> None:
        """Do what takes all from the last mark on."""
        stack = self._stack
        start = self._marks.pop()
        items = stack[start:]
        if op == 0x69:  # INST
            items.insert(0, self._global(self._name_of_line(), self._name_of_line()))
        del stack[start:]
        if not items and op in (0x75, 0x65, 0x90):
            _ = stack[-1]  # nothing is added, but there must be something to add it to
        elif op == 0x75:  # SETITEMS
            self._set_items(stack[-1], items)
        elif op == 0x65:  # APPENDS
            self._extend(stack[-1], items)
        elif op == 0x90:  # ADDITEMS
            if stack[-1] is not SET:
                self._fill(stack[-1], items)
        elif op == 0x74:  # TUPLE
            self._push_tuple(items)
        elif op == 0x6C:  # LIST
            stack.append(Listed(len(items), frail_among(items)))
        elif op == 0x64:  # DICT
            stack.append(Items())
            self._set_items(stack[-1], items)
        elif op == 0x91:  # FROZENSET
            stack.append(OPAQUE)
        elif op in (0x6F, 0x69):  # OBJ, INST
            of = items.pop(0)
            self._push_tuple(items)
            self._call(of, stack.pop())
        # 0x31, POP_MARK, has nothing left to do.

    def _begin_frame(self, op: int) -> None:
        if self._frame_end:
            raise CorruptFileError("its pickle has a frame within a frame")
        size = int.from_bytes(self._window.take(8), "little")
        self._frame_end = self._window.position + size

    def _short_tuple(self, op: int) -> None:
        stack = self._stack
        count = op - 0x84
        items = stack[-count:]
        if len(items) < count:
            raise IndexError
        del stack[-count:]
        self._push_tuple(items)

    def _push_tuple(self, items: list[Any]) -> None:
        levels = 1 + max(map(levels_of, items), default=-1)
        self._see_levels(levels)
        if levels > MOST_LEVELS:
            self._stack.append(OPAQUE)
        elif len(items) > MOST_ITEMS:
            self._stack.append(opaque_tuple(levels))
        elif levels <= 1:
            self._stack.append(tuple(items))
        else:
            found = Nested(items)
            found.levels = levels
            self._stack.append(found)

    def _see_levels(self, levels: int) -> None:
        """Take note of levels of tuples, or of calls, which may hash what they are given."""
        self._deepest = max(self._deepest, levels)
        if levels > MOST_LEVELS:
            self._watcher.on_odd(TOO_DEEP)

    def _append(self, op: int) -> None:
        item = self._stack.pop()
        self._extend(self._stack[-1], [item])

    def _set_item(self, op: int) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items(self._stack[-1], [key, value])

    def _name_from_stack(self, op: int) -> None:
        stack = self._stack
        name, module = stack.pop(), stack.pop()
        if isinstance(module, str) and isinstance(name, str):
            stack.append(self._global(module, name))
        else:
            self._watcher.on_odd("a name that is put together while loading")
            stack.append(OPAQUE)

    def _name(self, op: int) -> None:
        self._stack.append(self._global(self._name_of_line(), self._name_of_line()))

    def _call_with(self, op: int) -> None:
        stack = self._stack
        keywords = stack.pop() if op == 0x92 else None
        args, of = stack.pop(), stack.pop()
        # Whatever the dictionary has in it.
        self._call(of, opaque_tuple(self._deepest) if keywords else args)

    def _build(self, op: int) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Made):
            if target.built:
                # What was made of it meanwhile relies on its first one.
                self._watcher.on_odd("a second state for one object")
            target.built = True
        self._watcher.on_build(target, state)
        start = self._window.position
        if self._watcher.skip_array(target, state, self._window):
            if self._frame_end not in (0, start):
                raise CorruptFileError("its pickle has an array within a frame")
            self._frame_end = 0

    def _buffer(self, op: int) -> None:
        if op == 0x97:
            self._stack.append(BUFFER)
        elif self._stack[-1] is not BUFFER:
            self._watcher.on_odd("a read-only view of something else than a buffer")

    def _put(self, op: int) -> None:
        self._memo.put(self._index(op), self._stack[-1], most=self._window.position)

    def _get(self, op: int) -> None:
        self._stack.append(self._memo.kept.get(self._index(op), OPAQUE))

    def _push_line(self, op: int) -> None:
        line = self._window.line()
        try:
            self._stack.append(LINES[op](line))
        except ValueError:
            raise CorruptFileError("its pickle has a line that no pickler writes") from None

    def _push_odd(self, op: int) -> None:
        """Push what no pickler of Python objects on their own writes."""
        if op in (0x50, 0x51):  # PERSID and BINPERSID, which takes the ID from the stack
            what = "an object that is kept elsewhere (a persistent ID)"
            if op == 0x50:
                self._window.line()
            else:
                self._stack.pop()
        elif op == 0x32:  # DUP: with two ways to reach it, what was checked could still be changed
            what = "a second reference without the memo (DUP)"
        else:
            what = f"copyreg's extension {int.from_bytes(self._window.take(1 << (op - 0x82)), 'little')}"
        self._watcher.on_odd(what)
        self._stack.append(OPAQUE)

    def _pop(self, op: int) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _check_version(self, op: int) -> None:
        if self._window.take(1)[0] > 5:
            raise CorruptFileError("its pickle is of a protocol that does not exist")

    def _index(self, op: int) -> int:
        if op in (0x71, 0x72):
            return int.from_bytes(self._window.take(1 if op == 0x71 else 4), "little")
        line = self._window.line()
        if not line.isdigit() or len(line) > 10:
            raise CorruptFileError("its pickle numbers its memo with what is no number")
        return int(line)

    def _name_of_line(self) -> str:
        try:
            return self._window.line().decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFileError("its pickle has text that is none") from None

    def _global(self, module: str, name: str) -> Global:
        found = Global(module, name)
        self._memo.keep_texts_of(found)
        self._watcher.on_global(found)
        return found

    def _call(self, of: Any, args: Any) -> None:
        if (member := self._watcher.member(of, args)) is not None:
            self._stack.append(self._global(*member))
            return
        made = Made(of, args, 1 + levels_of(args))
        self._see_levels(made.levels)
        self._stack.append(made)
        self._watcher.on_call(made)

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, Items):
            self._fill(target, items)
        elif len(target) + len(items) // 2 > MOST_ITEMS:
            target[None] = OPAQUE
        else:
            for key, value in zip(items[::2], items[1::2], strict=False):
                target[key if isinstance(key, str) else None] = value

    def _extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is Listed:
            target.count += len(items)
            target.frail += frail_among(items)
        else:
            self._fill(target, items)

    def _fill(self, target: Any, items: list[Any]) -> None:
        self._watcher.on_fill(target, frail_among(items))


_RARE: dict[int, Callable[[Walk, int], None]] = {
    **dict.fromkeys(b"tldoieu1\x90\x91", Walk._take_marked),
    0x95: Walk._begin_frame,
    **dict.fromkeys(b"\x85\x86\x87", Walk._short_tuple),
    ord("a"): Walk._append,
    ord("s"): Walk._set_item,
    0x93: Walk._name_from_stack,
    ord("c"): Walk._name,
    **dict.fromkeys(b"R\x81\x92", Walk._call_with),
    ord("b"): Walk._build,
    **dict.fromkeys(b"\x97\x98", Walk._buffer),
    **dict.fromkeys(b"qrp", Walk._put),
    ord("g"): Walk._get,
    **dict.fromkeys(b"IFLSV", Walk._push_line),
    **dict.fromkeys(b"PQ2\x82\x83\x84", Walk._push_odd),
    ord("0"): Walk._pop,
    0x80: Walk._check_version,
}
