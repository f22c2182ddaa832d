"""NumPy arrays in pickles: how the large ones leave the stream, and how they are built again around shared memory.

NumPy's own way lets only those leave it that lie in one piece, are of its own type and have a dtype that the buffer
protocol knows.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from itertools import takewhile
from pickle import PickleBuffer, loads
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from aparallel._ground.sharing import Shared
from aparallel._transfer.out_of_band import Marker, Reference
from aparallel._transfer.shared_memory import Window
from aparallel._transfer.writing import Raw
from aparallel.errors import SharingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aparallel._transfer.out_of_band import OutOfBand
    from aparallel._transfer.shared_memory import Mode

    Array = np.ndarray[Any, Any]
    Reducer = Callable[[Any], Any]

# Elements that are gathered into contiguous memory at a time.
_CHUNK = 128 * 1024


class Strided(Marker):
    """An array that does not lie in one piece, to be written in C order."""

    def __init__(self, array: Array) -> None:
        super().__init__()
        self.array = array

    @property
    def nbytes(self) -> int:
        size: int = self.array.nbytes
        return size

    def blocks(self) -> Iterator[Strided]:
        yield self

    def pieces(self) -> Iterator[memoryview]:
        size = max(1, min(_CHUNK, (1 << 20) // self.array.itemsize))
        nditer: Any = np.nditer
        pieces = nditer(self.array, ["external_loop", "buffered"], ["readonly", "contig"], order="C", buffersize=size)
        for piece in pieces:
            yield memoryview(piece.view(np.uint8))

    def copy_to(self, target: Array) -> None:
        np.copyto(target.view(self.array.dtype).reshape(self.array.shape), self.array)


class Flat(Marker, Raw):
    """An array in one piece whose copy is to be writable: of a read-only buffer, pickle would say that it is one."""

    def __init__(self, array: Array) -> None:
        Marker.__init__(self)
        Raw.__init__(self, memoryview(cast(Any, array)))


def reducers(buffers: OutOfBand) -> dict[type, Reducer]:
    """Return how each type of array is reduced. Subclasses that pickle in their own way keep it."""
    rules = _Rules(buffers)
    table: dict[type, Reducer] = {np.ndarray: rules.plain, np.memmap: rules.memmap, Shared: rules.shared}
    for kind in _subclasses(np.ndarray):
        if kind is np.memmap:
            continue
        if kind is _masked_array():
            table[kind] = rules.masked
        elif not any("__reduce__" in base.__dict__ or "__reduce_ex__" in base.__dict__ for base in _below(kind)):
            table[kind] = rules.subclass
    return table


def _subclasses(kind: type) -> Iterator[type]:
    children: list[type] = kind.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _below(kind: type) -> Iterator[type]:
    """Give *kind* and its bases as far as numpy's array."""
    return takewhile(lambda base: base is not np.ndarray, kind.__mro__)


def _masked_array() -> Any:
    return getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)


class _Rules:
    """How arrays become what pickle stores: a function and its arguments."""

    def __init__(self, buffers: OutOfBand) -> None:
        self._buffers = buffers

    def plain(self, array: Array) -> Any:
        if array.dtype.hasobject:
            return array.__reduce_ex__(5)
        if self._buffers.mode is not None and array.base is not None:
            reduced = self._by_reference(array)
            if reduced is not None:
                return reduced
        if array.nbytes <= self._buffers.limit:
            return self._small(array)
        if self._buffers.mode == "r+":
            raise SharingError(
                "mmap_mode='r+' shares memory both ways, and an ordinary array cannot be shared so. Pass an "
                "np.memmap, or the array of an `await pool.share(a, mode='r+')`; or use mmap_mode='c'."
            )
        for order, flag in (("C", array.flags.c_contiguous), ("F", array.flags.f_contiguous)):
            if flag:
                raw = array.reshape(-1, order=order).view(np.uint8)  # type: ignore[call-overload]
                source = raw if raw.flags.writeable or not self._is_to_be_private else Flat(raw)
                return rebuild, (PickleBuffer(source), array.dtype, array.shape, order)
        return rebuild, (PickleBuffer(Strided(array)), array.dtype, array.shape, "C")

    @property
    def _is_to_be_private(self) -> bool:
        """Whether arrays are to be writable where they arrive, even those that nobody may write to here."""
        return self._buffers.mode in (None, "c")

    def _small(self, array: Array) -> Any:
        """Reduce an array that stays in the stream."""
        # NumPy pickles what is not contiguous without its byte order, and what is read-only as read-only.
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            array = array.copy(order="C")
        elif self._is_to_be_private and not array.flags.writeable:
            array = array.copy(order="K")
        if array.dtype.kind in "mM" and not array.dtype.isnative:  # no buffers to NumPy, so pickled in its older way
            return rebuild_times, (array.view(f"{array.dtype.byteorder}i8"), array.dtype)
        return array.__reduce_ex__(5)

    def subclass(self, array: Array) -> Any:
        if array.dtype.hasobject:
            return array.__reduce_ex__(5)
        attributes = {
            name: value
            for name, value in getattr(array, "__dict__", {}).items()
            if not isinstance(value, mmap.mmap)  # of np.memmap
        }
        return rebuild_as, (type(array), array.view(np.ndarray), attributes)

    def memmap(self, array: Array) -> Any:
        reduced = self._by_reference(array) if self._buffers.mode is not None else None
        if reduced is not None:
            return reduced
        # Not backed by its file (copied on write, or the file is gone), or a result: data.
        return self.plain(array.view(np.ndarray))

    def masked(self, array: Any) -> Any:
        if array.dtype.hasobject:
            return array.__reduce_ex__(5)
        mask = None if array._mask is np.ma.nomask else array._mask.view(np.ndarray)
        return rebuild_masked, (array._data, mask, array._fill_value, array._hardmask)

    def _by_reference(self, array: Array) -> Any:
        """Reduce an array that lies in memory, or in a file, that workers can map themselves; None if it does not."""
        owner = owner_of(array)
        root = owner.base
        if isinstance(root, Window):
            content = root.keep
            return self._shared(array, content) if getattr(content, "is_shared", False) else None
        backing = memmap_in(array)
        if backing is None or backing.filename is None or backing.mode == "c":
            return None
        self._buffers.check_thread()
        return self._in_file(array, backing)

    def _shared(self, array: Array, content: Any) -> Any:
        content.check_open()
        marker = Reference(content, self._mode_of_share(content.mode))
        start = array.__array_interface__["data"][0] - content.address
        return rebuild_strided, (PickleBuffer(marker), array.dtype, array.shape, array.strides, start)

    def shared(self, shared: Any) -> Any:
        """Reduce a Shared object: it becomes what was shared, built around memory that workers map already."""
        shared.check_open()
        mode = self._mode_of_share(shared.mode)
        data, *parts = shared.travel
        return rebuild_shared, (
            PickleBuffer(Reference(data, "r")),
            [PickleBuffer(Reference(part, mode)) for part in parts],
        )

    def _mode_of_share(self, shared: Mode) -> Mode:
        asked = self._buffers.mode
        if asked == "r+" and shared != "r+":
            raise SharingError("mmap_mode='r+' meets what was shared read-only: share(a, mode='r+') is needed.")
        return "c" if asked == "c" else shared

    def _in_file(self, array: Array, backing: Any) -> Any:
        mode = self._buffers.mode
        first, last = byte_bounds(array)
        mapped = np.frombuffer(backing._mmap, np.uint8).__array_interface__["data"][0]
        identity = _identity_of(mapped, backing.filename)
        if identity is None:
            return None
        if mode == "r+" and backing.mode == "r":
            raise SharingError(
                f"mmap_mode='r+' meets an np.memmap of {str(backing.filename)!r} that was opened with mode='r'. "
                f"Open it with mode='r+', or use mmap_mode='r' or 'c'."
            )
        offset = backing.offset - backing.offset % mmap.ALLOCATIONGRANULARITY + first - mapped
        start = array.__array_interface__["data"][0] - first
        place = str(backing.filename), identity, mode, offset, last - first
        return open_in_file, (place, array.dtype, array.shape, array.strides, start, type(array) is np.memmap)


def owner_of(array: Array) -> Array:
    """Return the array at the bottom of a chain of views: the one that has the memory, or got it from elsewhere."""
    while True:
        base = array.base
        if isinstance(base, memoryview):
            base = base.obj
        if not isinstance(base, np.ndarray):
            return array
        array = base


def memmap_in(array: Array) -> Any:
    """The np.memmap that *array* is a view of, if it is one."""
    current: Any = array
    found = None
    while isinstance(current, np.ndarray):
        if isinstance(current, np.memmap) and getattr(current, "_mmap", None) is not None:
            found = current
        current = current.base
    return found if found is not None and isinstance(current, mmap.mmap) else None


def byte_bounds(array: Array) -> tuple[int, int]:
    """Return the addresses of the first byte of *array* and behind the last."""
    first = last = array.__array_interface__["data"][0]
    if array.size == 0:
        return first, last
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            first += (length - 1) * stride
        else:
            last += (length - 1) * stride
    return first, last + array.itemsize


def _identity_of(address: int, filename: Any) -> tuple[int, int] | None:
    """Return device and inode of *filename* if that is still the file mapped at *address*, else None."""
    try:
        with open(filename, "rb") as file:
            status = os.fstat(file.fileno())
            probe = mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ)
    except (OSError, ValueError):  # gone, or empty by now
        return None
    # Two mappings are compared, not a mapping with the status: on btrfs and overlayfs these tell different devices.
    mapped, named = _files_at(address, np.frombuffer(probe, np.uint8).__array_interface__["data"][0])
    return (status.st_dev, status.st_ino) if mapped == named else None


def _files_at(*addresses: int) -> list[tuple[str, str] | None]:
    """Return device and inode, as text, of what is mapped at *addresses*; all None where there is no /proc."""
    found: list[tuple[str, str] | None] = [None for _ in addresses]
    with contextlib.suppress(FileNotFoundError), open("/proc/self/maps", errors="surrogateescape") as maps:
        for line in maps:
            # start-end permissions offset major:minor inode path (proc(5))
            span, _, _, device, inode, *_ = line.split(maxsplit=5)
            start, _, end = span.partition("-")
            for position, address in enumerate(addresses):
                if int(start, 16) <= address < int(end, 16):
                    found[position] = device, inode
    return found


# The other side


def rebuild(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Array:
    flat: Array = np.frombuffer(buffer, np.uint8).view(dtype)
    return flat.reshape(shape, order=order)


def rebuild_times(numbers: Array, dtype: Any) -> Array:
    return numbers.view(dtype)


def rebuild_as(kind: type, array: Array, attributes: dict[str, Any]) -> Any:
    built: Any = array.view(kind)
    if attributes:
        built.__dict__.update(attributes)
    return built


def rebuild_masked(data: Array, mask: Array | None, fill_value: Any, hard: bool) -> Any:
    masked: Any = np.ma.MaskedArray(data, np.ma.nomask if mask is None else mask, hard_mask=hard)
    masked._fill_value = fill_value
    return masked


def rebuild_strided(buffer: Any, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...], start: int) -> Array:
    return np.ndarray(shape, dtype, np.frombuffer(buffer, np.uint8), start, strides)


def rebuild_shared(data: Any, buffers: list[Any]) -> Any:
    return loads(data, buffers=buffers)


def open_in_file(
    place: tuple[str, tuple[int, int], Any, int, int],
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    start: int,
    as_memmap: bool,
) -> Any:
    """Map a file here as it is mapped on the other side. *place*: name, (device, inode), mode, offset, bytes."""
    filename, identity, mode, offset, size = place
    with open(filename, "rb" if mode in ("r", "c") else "r+b") as file:
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) != identity:
            raise FileNotFoundError(
                f"{filename!r} was replaced while a call that maps it was on its way. "
                f"Keep the file until the calls are done."
            )
        whole = np.memmap(file, np.uint8, mode, offset, (size,))
    if not as_memmap:
        return np.ndarray(shape, dtype, whole, start, strides)
    array = np.ndarray.__new__(np.memmap, shape, dtype, whole, start, strides)
    array.__array_finalize__(whole)
    return array
