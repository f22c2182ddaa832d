"""Walks a pickle without building anything: what it would import, call and change, and which arrays it has.

The unpickler is a machine with a stack and a memo. Here it runs on stand-ins: of what is pushed, only as much is kept
as is needed to tell names, calls and arrays, and anything else is :data:`~aparallel._persist.standins.OPAQUE`. Opcodes
and their arguments are those of the standard library's ``pickletools``. Memory is bounded by limits on the stack and on
what is kept in the memo.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from aparallel._persist.standins import (
    BUFFER,
    BYTES,
    LONGEST_BYTES,
    LONGEST_TEXT,
    MOST_ITEMS,
    OPAQUE,
    SET,
    TEXT,
    Global,
    Items,
    Listed,
    Made,
    Opaque,
)
from aparallel._persist.window import cut
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from aparallel._persist.standins import Watcher
    from aparallel._persist.window import Window

# Half a gigabyte of references. Lists are appended to by thousands, but all items of a tuple are stacked.
_MOST_STACKED = 1 << 26
# So much is kept of the memo, and so many texts of it beside those that are names.
_MOST_REMEMBERED = 1 << 20
_MOST_TEXTS = 1 << 16

# Opcodes that push a value of no interest, and how many bytes of argument they have.
_FIXED = {ord("J"): 4, ord("K"): 1, ord("M"): 2, ord("G"): 8, ord("N"): 0, 0x88: 0, 0x89: 0}
# Opcodes whose argument is a length, of so many bytes, and so many bytes; and what they push.
_COUNTED: dict[int, tuple[int, Opaque]] = {
    0x8C: (1, TEXT),  # SHORT_BINUNICODE
    ord("X"): (4, TEXT),  # BINUNICODE
    0x8D: (8, TEXT),  # BINUNICODE8
    ord("C"): (1, BYTES),  # SHORT_BINBYTES
    ord("B"): (4, BYTES),  # BINBYTES
    0x8E: (8, BYTES),  # BINBYTES8
    0x96: (8, BYTES),  # BYTEARRAY8
    ord("U"): (1, BYTES),  # SHORT_BINSTRING: text of Python 2
    ord("T"): (4, BYTES),  # BINSTRING
    0x8A: (1, OPAQUE),  # LONG1
    0x8B: (4, OPAQUE),  # LONG4
}
_MARKED = frozenset(b"tldoieu1\x90\x91")  # opcodes that take all from the last mark on
_LINES = frozenset(b"IFLSVP")  # opcodes whose argument is a line; all push a value


class Walk:
    """One pickle, from PROTO to STOP.

    The state is the unpickler's: ``_stack``, ``_marks`` (heights of the stack) and ``_memo``, which holds only what is
    not opaque. ``_memoized`` counts what would be in the memo.
    """

    def __init__(self, window: Window, watcher: Watcher) -> None:
        self._window = window
        self._watcher = watcher
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._memoized = 0
        self._numbered = False
        self._texts = 0
        # The last texts that were put into the memo and are not kept: the module and name of what comes next, perhaps.
        self._recent: deque[tuple[int, str]] = deque(maxlen=4)

    def run(self) -> Any:
        """Walk to the end and return what stands for the object.

        Raises:
            CorruptFileError: it is no pickle, or one that no pickler makes.
        """
        try:
            return self._run()
        except (IndexError, KeyError):
            raise CorruptFileError("its pickle takes more than it has") from None

    def _run(self) -> Any:
        window, stack, marks, memo = self._window, self._stack, self._marks, self._memo
        data, at = window.data, window.at
        fixed, counted = _FIXED, _COUNTED
        # Where the frame ends that the walk is in, or 0. The unpickler reads a frame at once, and drops what is left of
        # it when an opcode goes beyond; so frames must end where opcodes do, or the two would see different pickles.
        frame_end = 0
        while True:
            if at + 16 > len(data):
                window.more(at, 16)
                data, at = window.data, 0
                if not data:
                    raise cut()
                if len(stack) > _MOST_STACKED or len(marks) > _MOST_STACKED:
                    raise CorruptFileError("its pickle is nested deeper than any pickler makes one")
            if frame_end:
                position = window.start + at
                if position > frame_end:
                    raise CorruptFileError("its pickle has a frame that ends within an opcode")
                if position == frame_end:
                    frame_end = 0
            op = data[at]
            at += 1
            if op in fixed:
                size = fixed[op]
                stack.append(OPAQUE if size != 1 and size != 2 and size != 4 else self._number(op, data, at))
                if op == 0x4E:
                    stack[-1] = None
                elif size == 0:
                    stack[-1] = op == 0x88
                at += size
            elif op == 0x94:  # MEMOIZE
                top = stack[-1]
                if type(top) in _KEPT:
                    self._remember(self._memoized, top)
                self._memoized += 1
                if self._numbered:
                    raise CorruptFileError("its pickle numbers its memo in two ways")
            elif op in counted:
                width, kind = counted[op]
                size = int.from_bytes(data[at : at + width], "little")
                at += width
                if size <= LONGEST_TEXT:
                    if at + size > len(data):
                        window.at = at
                        raw = window.take(size)
                        data, at = window.data, window.at
                    else:
                        raw = data[at : at + size]
                        at += size
                    stack.append(_value(kind, raw))
                else:
                    window.at = at
                    window.skip(size)
                    data, at = window.data, window.at
                    stack.append(kind)
            elif op == 0x68:  # BINGET
                stack.append(memo.get(data[at], OPAQUE))
                at += 1
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo.get(int.from_bytes(data[at : at + 4], "little"), OPAQUE))
                at += 4
            elif op == 0x28:  # MARK
                marks.append(len(stack))
            elif op == 0x7D:  # EMPTY_DICT
                stack.append(Items())
            elif op == 0x5D:  # EMPTY_LIST
                stack.append(Listed())
            elif op == 0x95:  # FRAME
                if frame_end:
                    raise CorruptFileError("its pickle has a frame within a frame")
                frame_end = window.start + at + 8 + int.from_bytes(data[at : at + 8], "little")
                at += 8
            elif op == 0x2E:  # STOP
                if frame_end and window.start + at != frame_end:
                    raise CorruptFileError("its pickle has a frame that goes on after its end")
                window.at = at
                return stack.pop()
            elif op in _MARKED:
                start = marks.pop()
                if op == 0x69:  # INST
                    window.at = at
                    module, name = self._line(), self._line()
                    data, at = window.data, window.at
                    items = [self._global(module, name), *stack[start:]]
                else:
                    items = stack[start:]
                del stack[start:]
                self._marked(op, items)
            else:
                window.at = at
                self._rare(op)
                data, at = window.data, window.at
                if window.jumped:
                    if frame_end not in (0, window.jumped):
                        raise CorruptFileError("its pickle has an array within a frame")
                    frame_end = window.jumped = 0

    @staticmethod
    def _number(op: int, data: bytes, at: int) -> int:
        if op == 0x4A:
            return int.from_bytes(data[at : at + 4], "little", signed=True)
        return int.from_bytes(data[at : at + (1 if op == 0x4B else 2)], "little")

    def _remember(self, index: int, value: Any) -> None:
        kind = type(value)
        if kind is str:
            # Most texts are data. Those that turn out to be names are kept when they do.
            if self._texts < _MOST_TEXTS:
                self._texts += 1
                self._memo[index] = value
            else:
                self._recent.append((index, value))
        elif kind is Global or (
            len(self._memo) < _MOST_REMEMBERED
            and (
                (kind is Made and value.known is not None)
                or (kind is tuple and len(value) <= _SHORT and all(type(item) in _SIMPLE for item in value))
                or (kind is bytes and len(value) <= _SHORT)
            )
        ):
            self._memo[index] = value

    def _marked(self, op: int, items: list[Any]) -> None:
        """Do what takes all from the last mark on."""
        stack = self._stack
        if not items and op in (0x75, 0x65, 0x90):
            _ = stack[-1]  # nothing is added, but there must be something to add it to
        elif op == 0x75:  # SETITEMS
            self._set_items(stack[-1], items)
        elif op == 0x65:  # APPENDS
            self._extend(stack[-1], len(items))
        elif op == 0x90:  # ADDITEMS
            if stack[-1] is not SET:
                self._fill(stack[-1])
        elif op == 0x74:  # TUPLE
            stack.append(tuple(items) if len(items) <= MOST_ITEMS else OPAQUE)
        elif op == 0x6C:  # LIST
            stack.append(Listed(len(items)))
        elif op == 0x64:  # DICT
            stack.append(Items())
            self._set_items(stack[-1], items)
        elif op == 0x91:  # FROZENSET
            stack.append(OPAQUE)
        elif op in (0x6F, 0x69):  # OBJ, INST
            self._call(items[0], tuple(items[1:]))
        # 0x31, POP_MARK, has nothing left to do.

    def _rare(self, op: int) -> None:
        stack, window = self._stack, self._window
        if op in (0x85, 0x86, 0x87):  # TUPLE1, TUPLE2, TUPLE3
            count = op - 0x84
            items = tuple(stack[-count:])
            if len(items) < count:
                raise IndexError
            del stack[-count:]
            stack.append(items)
        elif op == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif op == 0x8F:  # EMPTY_SET
            stack.append(SET)
        elif op == 0x61:  # APPEND
            stack.pop()
            self._extend(stack[-1], 1)
        elif op == 0x73:  # SETITEM
            value, key = stack.pop(), stack.pop()
            self._set_items(stack[-1], [key, value])
        elif op == 0x93:  # STACK_GLOBAL
            name, module = stack.pop(), stack.pop()
            if isinstance(module, str) and isinstance(name, str):
                stack.append(self._global(module, name))
            else:
                self._watcher.on_odd("a name that is put together while loading")
                stack.append(OPAQUE)
        elif op == 0x63:  # GLOBAL
            module, name = self._line(), self._line()
            stack.append(self._global(module, name))
        elif op in (0x52, 0x81):  # REDUCE, NEWOBJ
            args, of = stack.pop(), stack.pop()
            self._call(of, args)
        elif op == 0x92:  # NEWOBJ_EX
            keywords, args, of = stack.pop(), stack.pop(), stack.pop()
            if keywords:
                args = OPAQUE
            self._call(of, args)
        elif op == 0x62:  # BUILD
            state, target = stack.pop(), stack[-1]
            if isinstance(target, Made):
                if target.built:
                    # What was made of it meanwhile relies on its first one.
                    self._watcher.on_odd("a second state for one object")
                target.built = True
            self._watcher.on_build(target, state)
        elif op == 0x97:  # NEXT_BUFFER
            stack.append(BUFFER)
        elif op == 0x98:  # READONLY_BUFFER
            if stack[-1] is not BUFFER:
                self._watcher.on_odd("a read-only view of something else than a buffer")
        elif op in (0x71, 0x72, 0x70):  # BINPUT, LONG_BINPUT, PUT
            self._put(self._index(op))
        elif op == 0x67:  # GET
            stack.append(self._memo.get(self._index(op), OPAQUE))
        elif op in _LINES:
            text = self._line()
            # UNICODE has escapes; a name needs none.
            is_plain = op == 0x56 and len(text) <= LONGEST_TEXT and text.isascii() and "\\" not in text
            stack.append(text if is_plain else OPAQUE)
            if op == 0x50:  # PERSID
                self._watcher.on_odd("an object that is kept elsewhere (a persistent ID)")
        elif op == 0x51:  # BINPERSID
            stack[-1] = OPAQUE
            self._watcher.on_odd("an object that is kept elsewhere (a persistent ID)")
        elif op in (0x82, 0x83, 0x84):  # EXT1, EXT2, EXT4
            code = int.from_bytes(window.take(1 << (op - 0x82)), "little")
            self._watcher.on_odd(f"copyreg's extension {code}")
            stack.append(OPAQUE)
        elif op == 0x30:  # POP
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                stack.pop()
        elif op == 0x32:  # DUP
            # No pickler writes it. With two ways to reach it, what was checked could still be changed.
            self._watcher.on_odd("a second reference without the memo (DUP)")
            stack.append(OPAQUE)
        elif op == 0x80:  # PROTO
            if window.take(1)[0] > 5:
                raise CorruptFileError("its pickle is of a protocol that does not exist")
        else:
            raise CorruptFileError(f"its pickle has an opcode {op:#04x} that does not exist")

    def _index(self, op: int) -> int:
        if op in (0x71, 0x72):
            return int.from_bytes(self._window.take(1 if op == 0x71 else 4), "little")
        text = self._line()
        if not text.isdecimal() or len(text) > 10:
            raise CorruptFileError("its pickle numbers its memo with what is no number")
        return int(text)

    def _put(self, index: int) -> None:
        # The unpickler's memo is a table as long as its highest number.
        if index > self._window.position:
            raise CorruptFileError("its pickle numbers its memo higher than it has entries")
        if self._memoized and not self._numbered:
            raise CorruptFileError("its pickle numbers its memo in two ways")
        self._numbered = True
        self._memoized += 1
        self._memo.pop(index, None)
        self._remember(index, self._stack[-1])

    def _line(self) -> str:
        window = self._window
        end = window.data.find(b"\n", window.at)
        while end < 0:
            if len(window.data) - window.at > _LONGEST_LINE:
                raise CorruptFileError("its pickle has a line without end")
            before = len(window.data) - window.at
            if not window.more(window.at, before + 1):
                raise cut()
            end = window.data.find(b"\n")
        line = window.data[window.at : end]
        window.at = end + 1
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFileError("its pickle has text that is none") from None

    def _global(self, module: str, name: str) -> Global:
        found = Global(module, name)
        self._memo.update((index, text) for index, text in self._recent if text in found)
        self._watcher.on_global(found)
        return found

    def _call(self, of: Any, args: Any) -> None:
        made = Made(of, args)
        self._stack.append(made)
        self._watcher.on_call(made)

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, Items):
            self._fill(target)
        elif len(target) + len(items) // 2 > MOST_ITEMS:
            target[None] = OPAQUE
        else:
            for key, value in zip(items[::2], items[1::2], strict=False):
                target[key if isinstance(key, str) else None] = value

    def _extend(self, target: Any, count: int) -> None:
        if type(target) is Listed:
            target.count += count
        else:
            self._fill(target)

    def _fill(self, target: Any) -> None:
        self._watcher.on_fill(target)


_LONGEST_LINE = 1 << 20
# Small tuples (the shapes of arrays) are remembered if they hold only these.
_SHORT = 32
_KEPT = frozenset({str, Global, Made, tuple, bytes})
_SIMPLE = frozenset({int, str, bytes, bool, type(None), Global})


def _value(kind: Opaque, raw: bytes) -> Any:
    if kind is TEXT:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise CorruptFileError("its pickle has text that is none") from None
    if kind is BYTES:
        return raw if len(raw) <= LONGEST_BYTES else kind
    return int.from_bytes(raw, "little", signed=True) if len(raw) <= 16 else kind
