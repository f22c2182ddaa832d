"""Pickling for both ends: by reference where the other side can import, by value where it cannot.

The C pickler goes first; cloudpickle, which is ten times slower, only where that one fails or would
be wrong. It would be wrong for what ``__main__`` defines: in a worker, ``__main__`` is another module.
"""

from __future__ import annotations

import sys
from _pickle import PickleBuffer, Pickler, dumps
from copyreg import dispatch_table
from types import FunctionType

from aparallel._transfer.out_of_band import TooLarge

TYPE_CHECKING = False  # as in aparallel/__init__.py

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from aparallel._transfer.out_of_band import OutOfBand, Source

    # A pickle that is in no need of being one piece.
    Pieces: TypeAlias = list[bytes | memoryview]
    # The same, and the buffers that left it, in the order in which it needs them.
    Parted: TypeAlias = tuple[Pieces, list[Source]]

PROTOCOL = 5

# Writing less than this takes no time that anyone waits for. Picklers write frames of at least 64 KB, and a rest.
_SLICE = 16 * 1024

# To copy this much takes 0.1 ms.
_COPIED_AT_ONCE = 256 * 1024

# Text, bytes and buffers from this size on are no part of a frame (_pickle.c: FRAME_SIZE_TARGET): picklers write them
# as they are. Frames begin so, the first one behind the protocol.
_UNFRAMED = 64 * 1024
_FRAME = 0x95
_FIRST_FRAME = b"\x80\x05\x95"
MAIN = b"__main__"
_BY_VALUE = "aparallel._transfer.by_value"


class NotLoaded(TooLarge):
    """It has to travel by value, and to import what that takes would hold the loop for 5 ms."""


def pickle(obj: object) -> bytes:
    """Pickle *obj* for the other side, whatever its size."""
    if not is_by_value_registered():
        try:
            data = dumps(obj, PROTOCOL)
        except Exception:  # lambdas, closures, classes of __main__ seen from a worker
            return pickle_by_value(obj)
        if MAIN not in data:
            return data
    return pickle_by_value(obj)


def load_by_value() -> None:
    """Import what pickling by value takes, here and now."""
    import aparallel._transfer.by_value  # noqa: F401


def pickle_by_value(obj: object) -> bytes:
    from aparallel._transfer.by_value import dumps_by_value

    return dumps_by_value(obj)


def is_plain_array(value: Any, largest: int) -> bool:
    """Whether it is a number or an array of NumPy's, of at most *largest* bytes, that NumPy pickles as it should.

    Its dtype is one of those that names nobody's class: records may be of one that ``__main__`` defines.
    """
    np: Any = sys.modules.get("numpy")
    if np is None:
        return False
    is_array = type(value) is np.ndarray
    if not is_array and not isinstance(value, np.generic):
        return False
    dtype = value.dtype
    if dtype.isbuiltin != 1 or dtype.hasobject:  # nor is one built in that has another byte order
        return False
    return not is_array or (value.nbytes <= largest and value.flags.writeable and value.flags.forc)


def pickle_plain(obj: object, size: int) -> Pieces:
    """Pickle text, bytes, or what :func:`is_plain_array` is true of, of about *size* bytes.

    Some of the pieces may be of *obj*, and change as it does.
    """
    if size <= _SLICE:
        return [dumps(obj, PROTOCOL)]
    sink = _Plain()
    Pickler(sink, PROTOCOL).dump(obj)
    return sink.pieces


def pickle_in_pieces(obj: object, buffers: OutOfBand | None = None) -> Parted:
    """Pickle *obj* without what *buffers* takes. Some of the pieces are of *obj*, and change as it does."""
    return _pickle_through(obj, _Borrowing(), buffers)


def pickle_within(obj: object, limit: int, large: int, buffers: OutOfBand | None = None) -> Parted:
    """Pickle *obj*, giving up after about *limit* bytes: what may run on the event loop.

    Args:
        large: how many bytes more there may be of what is only copied: large text, bytes and buffers.

    Raises:
        TooLarge: the pickle is larger, or *buffers* meets a large one; use :func:`pickle_in_slices` in a thread.
        NotLoaded: the same helps, once in a process, and lets workers start meanwhile; or call :func:`load_by_value`.
    """
    return _pickle_through(obj, _Bounded(limit, large), buffers)


def pickle_in_slices(obj: object, pause: Callable[[], object], buffers: OutOfBand | None = None) -> Parted:
    """Pickle *obj* in this thread, calling *pause* after each frame so that other threads can run."""
    return _pickle_through(obj, _Pausing(pause), buffers)


def _pickle_through(obj: object, sink: _Sink, buffers: OutOfBand | None) -> Parted:
    try:
        reducers = array_reducers(buffers)
        if not _pickle_by_name(obj, sink, buffers, reducers):
            if isinstance(sink, _Bounded) and not hasattr(sys.modules.get(_BY_VALUE), "ByValuePickler"):
                raise NotLoaded
            from aparallel._transfer.by_value import ByValuePickler

            sink.clear()
            if buffers is not None:
                buffers.sources.clear()
            by_value = ByValuePickler(sink, PROTOCOL, buffer_callback=buffers)
            by_value.array_reducers = reducers
            by_value.dump(obj)
        return sink.pieces, [] if buffers is None else buffers.sources
    finally:
        if buffers is not None:
            buffers.sources = []  # it is in a cycle with the reducers: arrays would wait for the garbage collector


def _pickle_by_name(
    obj: object, sink: _Sink, buffers: OutOfBand | None, reducers: dict[type, Callable[[Any], Any]]
) -> bool:
    """Pickle *obj* with C code alone; return whether that could be done, and names nothing of ``__main__``."""
    is_nameless = type(obj) is FunctionType and "<" in obj.__qualname__  # a lambda, or one of a function's own
    if is_nameless or is_by_value_registered():
        return False
    try:
        pickler = Pickler(sink, PROTOCOL, buffer_callback=buffers)
        if reducers:
            pickler.dispatch_table = {**dispatch_table, **reducers}
        pickler.dump(obj)
    except TooLarge:
        raise
    except Exception as error:  # as in pickle(): by value, or that raises
        if _is_final(error):
            raise
        return False
    return not sink.names_main


def _is_final(error: Exception) -> bool:
    """Whether pickling by value would end the same way."""
    from aparallel.errors import SharingError  # a worker starts without

    return isinstance(error, SharingError)


def array_reducers(buffers: OutOfBand | None) -> dict[type, Callable[[Any], Any]]:
    """How *buffers* wants arrays reduced. Found out anew when there are new types of them."""
    if buffers is None or "numpy" not in sys.modules:
        return {}
    # The types themselves are compared: their number stays the same when one goes and another one comes.
    if not buffers.reducers or [kind.__subclasses__() for kind in buffers.reducers] != buffers.kinds:
        from aparallel._transfer.arrays import reducers

        buffers.reducers = reducers(buffers)
        buffers.kinds = [kind.__subclasses__() for kind in buffers.reducers]
    return buffers.reducers


class _Sink:
    """A file as picklers want it: collects what they write.

    Attributes:
        copies: whether large buffers of the object are copied: what is collected is not read at once.
        names_main: whether ``__main__`` is mentioned where names are.
    """

    copies = True

    def __init__(self) -> None:
        self.pieces: Pieces = []
        self.names_main = False

    def write(self, data: Any) -> int:
        # A large buffer that stays in the stream comes as it is, and has no length.
        is_buffer = type(data) is PickleBuffer
        piece = data.raw() if is_buffer else data
        size = len(piece)
        is_frame = _is_frame(piece, size)
        self.count(size, is_frame)
        if is_frame:
            self.names_main = self.names_main or MAIN in piece
        self.pieces.append(bytes(piece) if self.copies or not is_buffer else piece)
        return size

    def count(self, size: int, is_frame: bool) -> None:
        """Take note of what is about to be kept."""

    def clear(self) -> None:
        self.pieces = []
        self.names_main = False


def _is_frame(piece: Any, size: int) -> bool:
    """Whether *piece* holds opcodes, as far as it can be told."""
    return size < _UNFRAMED or (type(piece) is bytes and (piece[0] == _FRAME or piece[:3] == _FIRST_FRAME))


class _Borrowing(_Sink):
    copies = False


class _Plain:
    """For what names nothing. To look for a name in 60 KB takes 18 µs, and to pickle them 1."""

    def __init__(self) -> None:
        self.pieces: Pieces = []

    def write(self, data: Any) -> int:
        piece = data.raw() if type(data) is PickleBuffer else bytes(data)
        self.pieces.append(piece)
        return len(piece)


class _Bounded(_Sink):
    def __init__(self, limit: int, large: int) -> None:
        super().__init__()
        self._limit = self._room = limit
        self._limit_of_large = self._room_for_large = large

    def count(self, size: int, is_frame: bool) -> None:
        if is_frame:
            self._room -= size
        else:
            self._room_for_large -= size
        if self._room < 0 or self._room_for_large < 0:
            raise TooLarge

    def clear(self) -> None:
        super().clear()
        self._room, self._room_for_large = self._limit, self._limit_of_large


class _Pausing(_Sink):
    def __init__(self, pause: Callable[[], object]) -> None:
        super().__init__()
        self.pause = pause

    def write(self, data: Any) -> int:
        if type(data) is PickleBuffer:
            return self._copy(data.raw())
        size = super().write(data)
        if size > _SLICE:
            self.pause()
        return size

    def _copy(self, buffer: memoryview) -> int:
        size = len(buffer)
        for start in range(0, size, _COPIED_AT_ONCE):
            self.pieces.append(bytes(buffer[start : start + _COPIED_AT_ONCE]))
            self.pause()
        return size


def is_by_value_registered() -> bool:
    """Whether the user asked cloudpickle to send some modules by value."""
    # While another thread imports it, it is there and has nothing in it.
    registered = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    return registered is not None and bool(registered())
