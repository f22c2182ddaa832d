"""Files of joblib (0.10 and later) and of pickle itself, read without joblib.

A file of joblib is a pickle, whole or compressed as a whole. Where an array belongs, the pickle has a
``NumpyArrayWrapper`` that says its dtype, shape and order; its bytes stand in the file right after the opcode that
completes the wrapper, from joblib 1.2 on after one byte that says how many more there are to align them. Arrays of
objects stand there as a pickle of their own. Source: the files themselves, as joblib's releases write them, and the
format's description in ``joblib/numpy_pickle.py``.

joblib reads them with the unpickler written in Python, which it can change. Here the C unpickler reads them: when a
wrapper gets its state, the array is read, and the unpickler's next opcodes are some that nobody wrote: drop the
wrapper, take the array.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import math
import struct
import weakref
import zlib
from _pickle import Unpickler, UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._ground.hop import Pauses
from aparallel._persist.arrays import array
from aparallel._persist.compressors import LZMA_MEMORY, lz4_frame
from aparallel._persist.dtypes import is_shape
from aparallel._persist.filling import Filling
from aparallel._persist.recognizing import XZ, check_decompressed, too_old
from aparallel._persist.sources import Source, StreamSource
from aparallel._persist.standins import WRAPPERS, Global
from aparallel.errors import CorruptFileError, TruncatedFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.stoppable import Stop
    from aparallel._persist.trust import Trust

# What stands for an array in files of joblib 0.9 and earlier.
_WRAPPERS_BEFORE_0_10 = frozenset({"NDArrayWrapper", "ZNDArrayWrapper"})
# What NumPy up to 1.15 called numpy.memmap; NumPy 2 has no such module.
_MEMMAP_BEFORE_1_16 = ("numpy.core.memmap", "memmap")


def decompressed(source: Source, codec: str, stop: Stop) -> Source:
    """The pickle that *source* holds, compressed.

    Raises:
        ModuleNotFoundError: the codec is not installed.
        UnsupportedFormatError: it holds something else.
        CorruptFileError: it is damaged, or nothing is in it.
    """
    file = io.BufferedReader(_Raw(source), 1 << 18)
    opened: Any
    if codec == "zlib":
        opened = io.BufferedReader(_Decompressing(file, zlib.decompressobj), 1 << 18)
    elif codec == "gzip":
        opened = gzip.GzipFile(fileobj=file)
    elif codec == "bz2":
        opened = bz2.BZ2File(file)
    elif codec in ("lzma", "xz"):
        # Not LZMAFile, which takes as much memory as a file says that it needs.
        new = functools.partial(lzma.LZMADecompressor, memlimit=LZMA_MEMORY)
        opened = io.BufferedReader(_Decompressing(file, new), 1 << 18)
    else:
        opened = lz4_frame().LZ4FrameFile(file)

    def read(size: int) -> bytes:
        try:
            data: bytes = opened.read(size)
        except EOFError:
            raise TruncatedFileError(f"its {codec} data ends before it is complete") from None
        except (OSError, zlib.error, lzma.LZMAError, RuntimeError) as error:
            raise CorruptFileError(f"its {codec} data is damaged: {error}") from error
        return data

    content = StreamSource(read, stop, exact=False)
    check_decompressed(content, codec)
    return content


class _Raw(io.RawIOBase):
    """A source as a file, for the decompressors of the standard library."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self._source.read_some(len(target))
        target[: len(data)] = data
        return len(data)


class _Decompressing(io.RawIOBase):
    """A stream of zlib's, or streams of LZMA's, decompressed no further than is asked for."""

    def __init__(self, file: Any, new: Callable[[], Any]) -> None:
        self._file = file
        self._new = new
        self._decompressor = new()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = b""
        while not data and (compressed := self._more()) is not None:
            data = self._decompressor.decompress(compressed, len(target))
        target[: len(data)] = data
        return len(data)

    def _more(self) -> bytes | None:
        """What to go on with, which may be nothing new; None at the end."""
        decompressor = self._decompressor
        if decompressor.eof:
            rest: bytes = decompressor.unused_data or self._file.read(_COMPRESSED_AT_ONCE)
            if not rest.startswith(XZ):
                return None
            self._decompressor = self._new()
            return rest
        # zlib gives back what it had no room for; LZMA keeps it.
        left: bytes = getattr(decompressor, "unconsumed_tail", b"")
        if left or not getattr(decompressor, "needs_input", True):
            return left
        if compressed := self._file.read(_COMPRESSED_AT_ONCE):
            found: bytes = compressed
            return found
        raise EOFError


_COMPRESSED_AT_ONCE = 1 << 16


def load_pickle(source: Source, stop: Stop, trust: Trust | None, mapped: Any = None, *, threads: int = 1) -> Any:
    """Unpickle a file of joblib's or pickle's from where *source* stands.

    Args:
        trust: None to trust everything; else what has been walked already.
        mapped: the whole file as a ``numpy.memmap`` of bytes, if arrays are to be mapped.
        threads: that read at a time.

    Raises:
        CorruptFileError: it is no pickle, or one that ends too early.
    """

    def unpickle(reader: PickleReader) -> Any:
        return _Unpickler(reader, trust).load()

    reader = PickleReader(source, stop, mapped, threads, unpickle)
    try:
        found = unpickle(reader)
        reader.finish()
        return found
    except EOFError:
        raise TruncatedFileError("its pickle ends before it is complete") from None
    except UnpicklingError as error:
        kind = TruncatedFileError if "truncated" in str(error) else CorruptFileError
        raise kind(f"its pickle is damaged: {error}") from error
    except (UnicodeDecodeError, struct.error, IndexError, OverflowError) as error:
        raise CorruptFileError(f"its pickle is damaged: {error}") from error
    finally:
        reader.close()


class _Unpickler(Unpickler):
    def __init__(self, reader: PickleReader, trust: Trust | None) -> None:
        super().__init__(reader)  # text of Python 2 counts as ASCII then, as it does to joblib
        self._reader = reader
        self._trust = trust

    def find_class(self, module: str, name: str) -> Any:
        if Global(module, name) in WRAPPERS:
            return self._reader.wrapper
        if name in _WRAPPERS_BEFORE_0_10 and Global(module, "NumpyArrayWrapper") in WRAPPERS:
            raise too_old()  # where joblib is installed, there would be such wrappers in place of the arrays
        if self._trust is not None:
            return self._trust.resolve(module, name)
        if (module, name) == _MEMMAP_BEFORE_1_16:
            module = "numpy"
        return super().find_class(module, name)

    def persistent_load(self, number: Any) -> Any:
        return self._reader.taken(number)


class PickleReader:
    """A file for the C unpickler, which reads exactly what it needs and never ahead; this may do it.

    Args:
        mapped: the whole file as a ``numpy.memmap`` of bytes, if arrays are to be mapped.
        threads: that read at a time.
        unpickle: builds an array of objects from the pickle that it is, read here; None if nothing is to be built.

    Invariant: ``_injected`` is served before anything else, and holds the opcodes that take ``_array``.
    """

    def __init__(
        self,
        source: Source,
        stop: Stop,
        mapped: Any = None,
        threads: int = 1,
        unpickle: Callable[[PickleReader], Any] | None = None,
    ) -> None:
        self._source = source
        self._filling = Filling(source, threads)
        self._stop = stop
        self._mapped = mapped
        self._unpickle = unpickle
        self._ahead = _AHEAD if source.reads_ahead else 0
        self._pauses = Pauses()
        self._window = memoryview(b"")
        self._injected = b""
        self._array: Any = None
        self._taken = 0
        # A class lives until garbage is collected: it must not keep the file, or what is mapped of it, for as long.
        self.wrapper = _wrapper_class(weakref.proxy(self))

    def read(self, size: int) -> bytes:
        if self._injected:
            data, self._injected = self._injected[:size], self._injected[size:]
            return data
        if size > len(self._window):
            self._fill(size)
        data = bytes(self._window[:size])
        self._window = self._window[size:]
        return data

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        at_hand = min(len(view), len(self._window))
        view[:at_hand] = self._window[:at_hand]
        self._window = self._window[at_hand:]
        try:
            self._filling.fill(view[at_hand:])
        except TruncatedFileError:
            raise EOFError from None
        return len(view)

    def skip(self, size: int) -> None:
        """Go past *size* bytes, or to the end."""
        at_hand = min(size, len(self._window))
        self._window = self._window[at_hand:]
        self._source.skip(size - at_hand)

    def finish(self) -> None:
        """Give back what was read and not used."""
        self._source.give_back(len(self._window))

    def close(self) -> None:
        """End the threads."""
        self._filling.close()

    def readline(self) -> bytes:
        if self._injected:
            raise UnpicklingError("an opcode that was made here has no line")
        found = bytearray()
        while not found.endswith(b"\n"):
            if not len(self._window):
                self._fill(1)
            part = bytes(self._window[:_LINE_AT_ONCE])
            if not part:
                break
            part = part[: part.find(b"\n") + 1] or part
            found += part
            self._window = self._window[len(part) :]
        return bytes(found)

    def taken(self, number: Any) -> Any:
        """The array that was just read. Called by the opcodes that were injected for it, once."""
        if number != self._taken or self._array is None:
            raise UnpicklingError("an object is kept elsewhere (a persistent ID), which joblib does not do")
        found, self._array = self._array[0], None
        return found

    def _fill(self, size: int) -> None:
        self._stop.check()
        self._pauses.when_due()  # if we may not read ahead, this is done for each opcode
        more = self._source.read_some(max(size - len(self._window), self._ahead))
        parts = [bytes(self._window), more]
        missing = size - len(self._window) - len(more)
        while missing > 0 and len(more):
            more = self._source.read_some(max(missing, self._ahead))
            parts.append(more)
            missing -= len(more)
        self._window = memoryview(b"".join(parts))

    def on_wrapper(self, state: Any) -> None:
        if not isinstance(state, dict) or not isinstance(state.get("dtype"), np.dtype):
            raise UnpicklingError("an array of joblib's is not described as joblib does")
        self._array = (self._read_array(state),)
        self._taken += 1
        # POP, BININT number, BINPERSID
        self._injected = b"0J" + struct.pack("<i", self._taken & 0x7FFFFFFF) + b"Q"

    def _read_array(self, state: dict[str, Any]) -> Any:
        dtype, shape = state["dtype"], state.get("shape")
        kind = state.get("subclass", np.ndarray)
        if not (is_shape(shape) and isinstance(kind, type) and issubclass(kind, np.ndarray)):
            raise UnpicklingError("an array of joblib's is not described as joblib does")
        shape = tuple(shape)  # type: ignore[arg-type]
        if dtype.hasobject:
            assert self._unpickle is not None
            found = self._unpickle(self)
        else:
            if state.get("numpy_array_alignment_bytes") is not None:
                self.read(self.read(1)[0])
            size = math.prod(shape) * dtype.itemsize
            order = "F" if state.get("order") == "F" else "C"
            memory = self._memory(size) if self._mapped is None else self._map(size)
            found = array(memory, dtype, shape, order)
        return found if kind in (np.ndarray, np.memmap) else found.view(kind)

    def _memory(self, size: int) -> Any:
        """Read the bytes of an array."""
        at_hand, self._window = self._window[:size], self._window[size:]
        try:
            self._source.demand(size - len(at_hand))
            return self._filling.array(size, first=at_hand)
        except TruncatedFileError:
            raise TruncatedFileError("it ends within an array") from None

    def _map(self, size: int) -> Any:
        start = self._source.position - len(self._window)
        part = self._mapped[start : start + size]
        if part.nbytes != size:
            raise TruncatedFileError("it ends within an array")
        if size:  # of no bytes, it is no memmap
            part.offset = start
        self.skip(size)
        return part


def _wrapper_class(reader: PickleReader) -> type:
    class ArrayWrapper:
        """What joblib's wrapper is called here; it gives way to its array."""

        def __setstate__(self, state: Any) -> None:
            reader.on_wrapper(state)

    return ArrayWrapper


_AHEAD = 64 << 10
_LINE_AT_ONCE = 256
