"""Memory that two processes map and that has no name anywhere, so that nothing remains whoever is killed.

A piece of it is a descriptor: a memfd, or, where there is none or memory is short, a file in a temporary
folder that lost its name when it was made. It is written through the descriptor while it is new: pages that do
not exist yet cost half as much in ``pwrite`` as in page faults, and a lack of memory is an error there, not
a SIGBUS. What threads are to write at the same time is several descriptors, mapped one behind the other, because the
kernel has one writer at a time in each. It is mapped by C's own ``mmap``: up to Python 3.12 the one of the standard
library keeps a duplicate of the descriptor, so that a thousand live arrays would meet a common limit.
"""

from __future__ import annotations

import _thread
import errno
import functools
import os
import sys
from collections import deque
from contextlib import suppress
from mmap import PAGESIZE
from time import monotonic, sleep

if sys.platform != "win32":
    import resource  # here, for its file takes a descriptor

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, ClassVar, Literal

    # "r": read-only; "c": private, copied on write; "r+": shared both ways.
    Mode = Literal["r", "c", "r+"]

ALIGNMENT = 64

# Freeing pages takes about 0.2 ms a megabyte. What is beyond this much in so short a time is done in a thread.
_LONG_BYTES = 4 * 1024 * 1024
_FREEING_SECONDS = 0.01

# Page tables are changed for so many bytes at a time.
_PIECE = 2 * 1024 * 1024

# Two segments, as long as they are mapped.
_SPARE_DESCRIPTORS = 4

# From <sys/mman.h>; the same on Linux and macOS.
_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = 1, 2, 0x10
_POPULATE_WRITE = 23  # Linux 5.14

# All parts of a piece of memory but the last are multiples of this: no page, not even a huge one, belongs to two.
_PART_UNIT = 2 * 1024 * 1024


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def create_in_memory(size: int) -> int:
    """Return a descriptor of *size* bytes of anonymous memory, none of it used yet.

    Raises:
        OSError: there is none, or no descriptor.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no memfd_create")
    return _sized(os.memfd_create("aparallel", os.MFD_CLOEXEC), size)


def create_in_file(size: int, folder: str | None) -> int:
    """Return a descriptor of *size* bytes of a file without a name in *folder*, the system's temporary one by default.

    Raises:
        OSError: it cannot be made, or the folder has no room for it: a full disk would be everybody's trouble.
    """
    if folder is None:
        folder = _temporary_folder()
    if hasattr(os, "O_TMPFILE"):
        try:
            return _sized(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), size, folder)
        except (IsADirectoryError, NotImplementedError):  # an old kernel
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    name = os.path.join(folder, f"aparallel-{os.urandom(16).hex()}")
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(name)
    except BaseException:
        os.close(fd)
        raise
    return _sized(fd, size, folder)


def _temporary_folder() -> str:
    """Return the folder that ``tempfile.gettempdir()`` does, without the descriptors that this needs."""
    tempfile = sys.modules.get("tempfile")
    chosen: str | bytes | None = getattr(tempfile, "tempdir", None)
    if chosen is not None:
        return os.fsdecode(chosen)
    folders = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    for folder in (*folders, "/tmp", "/var/tmp", "/usr/tmp"):  # noqa: S108 (no name is used there)
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return os.path.abspath(folder)
    return os.getcwd()


def _check_room(fd: int, size: int, folder: str) -> None:
    disk = os.fstatvfs(fd)
    if disk.f_blocks and size > disk.f_bavail * disk.f_frsize:  # some file systems tell nothing
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)


def _check_descriptors(fd: int) -> None:
    """Leave some descriptors to what is sent to this process: it could not be taken in, and its call would fail.

    Raises:
        OSError: *fd*, which is the lowest that was free, is one of the last.
    """
    if sys.platform != "win32":
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit != resource.RLIM_INFINITY and fd >= limit - _SPARE_DESCRIPTORS:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _sized(fd: int, size: int, folder: str | None = None) -> int:
    try:
        _check_descriptors(fd)
        if folder is not None:
            _check_room(fd, size, folder)
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Parts:
    """The descriptors of one piece of memory, and how many bytes of it lie in each, one behind the other.

    They are its owner's to close. Nobody copies it.
    """

    __slots__ = ("fds", "size", "sizes")

    def __init__(self, fds: Sequence[int], sizes: Sequence[int]) -> None:
        self.fds = tuple(fds)
        self.sizes = tuple(sizes)
        self.size = sum(sizes)

    @classmethod
    def in_memory(cls, sizes: Sequence[int]) -> Parts:
        """Make anonymous memory; of one part, if there are not enough descriptors for all.

        Raises:
            OSError: there is none, or no descriptor.
        """
        fds: list[int] = []
        try:
            for size in sizes:
                fds.append(create_in_memory(size))  # noqa: PERF401 (those that were made are to be closed)
        except OSError:
            for fd in fds:
                os.close(fd)
            if not fds:
                raise
            return cls.in_memory([sum(sizes)])
        return cls(fds, sizes)

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Give each part: its descriptor, where it begins, and its size."""
        start = 0
        for fd, size in zip(self.fds, self.sizes, strict=True):
            yield fd, start, size
            start += size

    def write(self, data: memoryview, offset: int) -> None:
        """Write *data* at *offset*. Threads may do that at the same time.

        Raises:
            OSError: there is no room. It may have been written in part.
        """
        while data:
            for fd, start, size in self.spans():
                if offset < start + size:
                    written = os.pwrite(fd, data[: start + size - offset], offset - start)
                    break
            else:
                raise ValueError("more bytes than there is memory")
            offset += written
            data = data[written:]

    def read(self) -> bytearray:
        """Return a copy of all that is there.

        Raises:
            MemoryError: there is no room for it.
        """
        data = bytearray(self.size)
        for fd, start, size in self.spans():
            filled = 0
            while filled < size and (count := os.preadv(fd, [memoryview(data)[start + filled : start + size]], filled)):
                filled += count
        return data

    def give_up(self) -> tuple[int, ...]:
        """Return the descriptors, for the caller to close. They are none of this object's any more."""
        fds, self.fds = self.fds, (-1,) * len(self.sizes)
        return tuple(fd for fd in fds if fd >= 0)

    def close(self) -> None:
        for fd in self.give_up():
            os.close(fd)


def halves(size: int, used: int) -> list[int]:
    """Return the sizes of two parts of *size* bytes so that of the first *used* each has about half; or of one."""
    first = -(-used // (2 * _PART_UNIT)) * _PART_UNIT
    return [first, size - first] if first < size else [size]


class Mapping:
    """All parts of a piece of memory in this process's own, until the object goes. The descriptors may be closed.

    Attributes:
        alive: where those of this process lie, part by part. A system gives it some 65,000, for all that it does.

    Raises:
        OSError: no memory, or no more mappings.
    """

    __slots__ = ("__weakref__", "_starts", "address", "size")

    alive: ClassVar[dict[int, None]] = {}

    def __init__(self, parts: Parts, mode: Mode) -> None:
        self.size = 0
        protection = _PROT_READ if mode == "r" else _PROT_READ | _PROT_WRITE
        flags = _MAP_PRIVATE if mode == "c" else _MAP_SHARED
        # The first part as if it had all the bytes: so the others find their addresses free, and nobody else does.
        self.address = _map(None, parts.size, protection, flags, parts.fds[0])
        self.size = parts.size
        self._starts = []
        for fd, start, size in parts.spans():
            if start:
                _map(self.address + start, size, protection, flags | _MAP_FIXED, fd)
            self._starts.append(self.address + start)
            self.alive[self.address + start] = None

    def __del__(self) -> None:
        if self.size and _libc is not None:  # else the interpreter is ending, and with it all memory
            for start in self._starts:
                self.alive.pop(start, None)
            in_background(self.size, _in_pieces, _libc().munmap, self.address, self.size)

    def populate(self, offset: int, size: int) -> None:
        """Have the page tables ready for writing there. Page by page, as each is touched, that takes longer."""
        if sys.platform == "linux":
            begin = (self.address + offset) // PAGESIZE * PAGESIZE
            _in_pieces(_libc().madvise, begin, self.address + offset + size - begin, _POPULATE_WRITE)

    def view(self, offset: int, size: int, *, readonly: bool, keep: object = None) -> Any:
        """Return an array of *size* unsigned bytes from *offset* on. It keeps the mapping, and *keep*, alive."""
        import numpy as np

        return np.asarray(Window(self, offset, size, readonly, keep))


def _map(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    import ctypes

    found: int | None = _libc().mmap(address, size, protection, flags, fd, 0)
    if found is None or found == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"{size:,} bytes of shared memory could not be mapped: {os.strerror(code)}")
    return found


def mapped(parts: Parts, mode: Mode) -> Mapping:
    """Return a mapping.

    Raises:
        SharedMemoryError: no memory, or no more mappings.
    """
    try:
        return Mapping(parts, mode)
    except OSError as error:
        from aparallel.errors import SharedMemoryError

        raise SharedMemoryError(f"{error.strerror}. Free memory or raise its limit.", nbytes=parts.size) from error


class Window:
    """A part of a mapping, told to NumPy by its array interface: the base of all arrays that lie in it.

    Attributes:
        keep: what must live as long as those arrays.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_mapping", "keep")

    def __init__(self, mapping: Mapping, offset: int, size: int, readonly: bool, keep: object) -> None:
        self._mapping = mapping
        self.keep = keep
        self.__array_interface__ = {
            "data": (mapping.address + offset, readonly),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


def _in_pieces(fn: Callable[..., object], address: int, size: int, *more: object) -> None:
    """Call *fn* for a part of the memory at a time: while it runs, no other thread of this process can map any."""
    for start in range(0, size, _PIECE):
        fn(address + start, min(_PIECE, size - start), *more)


@functools.cache
def _libc() -> Any:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.restype = pointer
    libc.mmap.argtypes = (pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
    libc.munmap.argtypes = (pointer, size)
    libc.madvise.argtypes = (pointer, size, ctypes.c_int)
    return libc


# What is to be freed in the background, and whether a thread is at it. At worst two are.
_waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
_is_freeing = False
# The bytes that were freed by the caller lately, and since when (seconds).
_freed_here = 0
_freed_since = 0.0


def in_background(size: int, fn: Callable[..., object], *args: object) -> None:
    """Call *fn*, which frees *size* bytes: in a thread if that takes long, for the loop's may be the one we are in.

    It may be called from anywhere, a finaliser included, so the thread is a bare one: a ``threading.Thread``
    takes locks, which this very thread may hold.
    """
    global _is_freeing, _freed_here, _freed_since
    now = monotonic()
    if now - _freed_since > _FREEING_SECONDS:
        _freed_here, _freed_since = 0, now
    _freed_here += size
    if _freed_here <= _LONG_BYTES:
        fn(*args)
        return
    _waiting.append((fn, args))
    if not _is_freeing:
        _is_freeing = True
        try:
            _thread.start_new_thread(_free, ())
        except RuntimeError:  # no more threads, or the interpreter is ending
            _free()


def wait_until_freed() -> None:
    """Return when all is freed that :func:`in_background` was given, by whoever frees it."""
    _free_waiting()
    while _is_freeing:
        sleep(0.001)


def _free() -> None:
    global _is_freeing
    while True:
        _free_waiting()
        _is_freeing = False
        if not _waiting:  # nothing came between the look and the word
            return
        _is_freeing = True


def _free_waiting() -> None:
    while _waiting:
        try:
            fn, args = _waiting.popleft()
        except IndexError:  # another thread took it
            continue
        with suppress(OSError):
            fn(*args)
        del fn, args


def _forget_thread() -> None:
    """The thread did not come along into a forked copy."""
    global _is_freeing
    _is_freeing = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_thread)
