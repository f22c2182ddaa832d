"""An object into a pickle and buffers: what the C pickler writes is taken in slices, so that the loop keeps running.

This module loads NumPy and cloudpickle: it is imported in a thread, with the first dump.
"""

from __future__ import annotations

import copyreg
import importlib
import math
import pickle
import types
from _pickle import Pickler
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np

from aparallel._ground.hop import Pauses, pause
from aparallel._persist.arrays import array, masked_array, subclass_array
from aparallel._persist.container import ALIGNMENT
from aparallel._persist.trees import shared_leaves

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aparallel._ground.stoppable import Stop
    from aparallel._persist.writer import ContainerWriter

# Where record arrays say that their class is. NumPy makes some without it, and cloudpickle writes the class itself, by
# value, where its module is not loaded: another one, then, for whoever loads it.
importlib.import_module(np.recarray.__module__)

PROTOCOL = 5
_PROTO = pickle.PROTO + bytes([PROTOCOL])

# A piece of the pickle is written when it has this size, when plain. When compressed, it is large enough for all
# threads.
_PIECE = 256 << 10
_COMPRESSED_PIECE = 8 << 20

# Buffers smaller than this share records, so that 10,000 small arrays are not 10,000 records. A shared record is put
# together and read in one step each, so in a plain file it is no larger than a piece of the pickle.
_SMALL = 64 << 10
_SHARED_SIZE = 1 << 20
_SHARED_COUNT = 4096

# A buffer for the pickler to pass on: what it stands for is written in its place. One will do, as the pickler remembers
# none that it has passed on. Not of bytes: arrays are writeable again when loaded.
_STAND_IN = pickle.PickleBuffer(bytearray())

# A frame of a long pickle has 64 KB. After a shorter one nobody has to be let in: a pause takes 50 µs.
_PAUSE_FROM = 16 << 10
# An array that is not contiguous is made so in slices of this size.
_SLICE = 1 << 20


def write_object(obj: object, writer: ContainerWriter, stop: Stop, *, compressed: bool) -> None:
    """Pickle *obj* into *writer*'s records.

    Raises:
        Stopped: *stop* was set.
        OSError: the container cannot be written.
        Exception: whatever pickling raises.
    """
    records = _Records(writer, stop, _COMPRESSED_PIECE if compressed else _PIECE)
    shared = shared_leaves(obj, stop)
    if shared is None:
        _Pickler(records).dump(obj)
    else:
        _dump_tree(obj, shared, records)
    records.finish()


def _dump_tree(obj: object, shared: list[str | bytes], records: _Records) -> None:
    """Pickle an object of plain data in which nothing but *shared* may occur twice."""
    file = _Joining(records)
    pickler = Pickler(file, PROTOCOL)
    # These the pickler remembers, and nothing from then on.
    pickler.dump(shared)
    file.begin_next()
    pickler.fast = True
    pickler.dump(obj)
    file.finish()


class _Joining:
    """A file for two pickles of one pickler that makes one of them, which gives the second object."""

    def __init__(self, records: _Records) -> None:
        self._records = records
        self._last = b""
        self._is_begun = True

    def write(self, data: bytes) -> int:
        self._pass_on()
        self._last = data if self._is_begun else data[len(_PROTO) :]
        self._is_begun = True
        return len(data)

    def begin_next(self) -> None:
        """Drop the object that the pickle has given, and have another one follow, without a beginning of its own."""
        self._last = self._last.removesuffix(pickle.STOP) + pickle.POP
        self._is_begun = False

    def finish(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        if self._last:
            self._records.write(self._last)


class _Records:
    """Where the pickler writes, as a file and as the taker of buffers: puts pieces and buffers into records."""

    def __init__(self, writer: ContainerWriter, stop: Stop, piece: int) -> None:
        self._writer = writer
        self._stop = stop
        self._piece = piece
        self._large = max(piece, _SLICE)
        self._shared_size = min(piece, _SHARED_SIZE)
        self._pieces: list[bytes] = []
        self._size = 0
        self._buffers: list[bytes] = []
        self._buffers_size = 0
        # The largest number of bytes that items of all of these are multiples of, and so lie at multiples of.
        self._itemsize = ALIGNMENT
        self._pauses = Pauses()
        # The array that the next buffer stands for. Invariant: set from when an array is reduced to the callback for
        # its buffer, which is the first thing that the pickler does with what the reduction returned.
        self.next_array: Any = None

    def write(self, data: Any) -> int:
        """Take a frame of 64 KB, or something larger that stands outside of frames."""
        self._stop.check()
        size = len(data)
        if size >= _PAUSE_FROM:
            pause()
        if size >= _PIECE:
            self._write_pieces()
            view = memoryview(data)
            self._write_buffers()
            for start in range(0, size, self._large):
                self._stop.check()
                self._writer.write_pickle([view[start : start + self._large]])
        else:
            self._pieces.append(data)
            self._size += size
            if self._size >= self._piece:
                self._write_pieces()
        return size

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out of band (False), or leave it to the pickler (True)."""
        found, self.next_array = self.next_array, None
        if found is not None:
            if found.nbytes < _SMALL:
                self._take_small(found.tobytes(), found.itemsize)
            else:
                self._take_large(_array_parts(found), found.nbytes, found.itemsize)
            return False
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < _SMALL:
            self._take_small(bytes(raw), 1)
        else:
            self._take_large([raw], raw.nbytes, 1)
        return False

    def _take_large(self, parts: Iterable[memoryview], size: int, itemsize: int) -> None:
        self._write_buffers()
        self._writer.write_buffer(size, parts, itemsize)

    def finish(self) -> None:
        self._write_pieces()
        self._write_buffers()

    def _take_small(self, data: bytes, itemsize: int) -> None:
        self._buffers.append(data)
        self._buffers_size += len(data)
        self._itemsize = math.gcd(self._itemsize, itemsize)
        # A small array takes some 5 µs of Python code, and only 40 bytes of a frame.
        self._pauses.when_due()
        if self._buffers_size >= self._shared_size or len(self._buffers) >= _SHARED_COUNT:
            self._write_buffers()

    def _write_buffers(self) -> None:
        if self._buffers:
            self._stop.check()
            self._writer.write_buffers(self._buffers, self._itemsize)
            self._buffers, self._buffers_size, self._itemsize = [], 0, ALIGNMENT

    def _write_pieces(self) -> None:
        if self._pieces:
            # Buffers come before the piece of the pickle that takes them.
            self._write_buffers()
            pieces, self._pieces, self._size = self._pieces, [], 0
            self._writer.write_pickle(pieces)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, with arrays out of band. It is the C pickler but for what cannot be imported."""

    def __init__(self, records: _Records) -> None:
        # Nothing that the pickler holds may hold the pickler: in a cycle, its memo would be freed by the garbage
        # collector, which goes through millions of entries several times, and whenever it likes.
        super().__init__(records, PROTOCOL, buffer_callback=records.take)
        self._records = records

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is np.ndarray or kind is np.memmap:
            if _is_raw(obj.dtype):
                return array, self._reduced(obj)
        elif issubclass(kind, np.ndarray) and _is_raw(obj.dtype):
            if _is_plain_subclass(kind):
                return subclass_array, (*self._reduced(obj), kind)
            if kind is np.ma.MaskedArray:
                mask = None if obj._mask is np.ma.nomask else obj._mask
                return masked_array, (obj._data, mask, obj.fill_value)
        elif kind is type and obj.__module__ == "types" and getattr(types, obj.__name__, None) is obj:
            # SimpleNamespace. cloudpickle has a function of its own that finds it, which says nothing to who trusts.
            return NotImplemented
        return super().reducer_override(obj)

    def _reduced(self, obj: np.ndarray[Any, Any]) -> tuple[Any, np.dtype[Any], tuple[int, ...], str]:
        order = "F" if obj.flags.f_contiguous and not obj.flags.c_contiguous else "C"
        plain = obj if type(obj) is np.ndarray else obj.view(np.ndarray)
        self._records.next_array = plain.T if order == "F" else plain
        return _STAND_IN, obj.dtype, obj.shape, order


def _is_raw(dtype: np.dtype[Any]) -> bool:
    """Whether items of *dtype* are nothing but their bytes."""
    return dtype.kind in "biufcmMSUV" and not dtype.hasobject and dtype.itemsize > 0


def _is_plain_subclass(kind: Any) -> bool:
    """Whether nothing of *kind*, and nobody for it, says how it is pickled."""
    return (
        kind.__reduce__ is np.ndarray.__reduce__
        and kind.__reduce_ex__ is np.ndarray.__reduce_ex__
        and kind.__setstate__ is np.ndarray.__setstate__
        and kind not in copyreg.dispatch_table
    )


def _array_parts(found: Any) -> Iterator[memoryview]:
    """The bytes of an array in C order: as they lie there, or else without a copy of more than a slice."""
    if found.flags.c_contiguous:
        # Not every dtype has a buffer format (dates have none), so they are seen as bytes.
        yield memoryview(found.reshape(-1).view(np.uint8))
    elif found.nbytes <= _SLICE or found.ndim == 0:
        yield _bytes_of(found)
    else:
        rows = _SLICE // (found.nbytes // len(found))
        if rows == 0:
            for row in found:
                yield from _array_parts(row)
        else:
            for start in range(0, len(found), rows):
                yield _bytes_of(found[start : start + rows])


def _bytes_of(part: Any) -> memoryview:
    flat: Any = np.ascontiguousarray(part).reshape(-1)
    return memoryview(flat.view(np.uint8))
