"""Memory that two processes map and that has no name anywhere, so that nothing remains whoever is killed.

A piece of it is a descriptor: a memfd, or, where there is none or memory is short, a file in a temporary
folder that lost its name when it was made. It is written through the descriptor while it is new: pages that do
not exist yet cost half as much in ``pwrite`` as in page faults, and a lack of memory is an error there, not
a SIGBUS. It is mapped by C's own ``mmap``: up to Python 3.12 the one of the standard library keeps a
duplicate of the descriptor, so that a thousand live arrays would meet a common limit.
"""

from __future__ import annotations

import _thread
import functools
import os
import sys
from collections import deque
from contextlib import suppress
from time import monotonic

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Literal

    # "r": read-only; "c": private, copied on write; "r+": shared both ways.
    Mode = Literal["r", "c", "r+"]

ALIGNMENT = 64

# Freeing pages takes about 0.2 ms a megabyte. What is beyond this much in so short a time is done in a thread.
_LONG_BYTES = 4 * 1024 * 1024
_FREEING_SECONDS = 0.01

# Page tables are changed for so many bytes at a time.
_PIECE = 2 * 1024 * 1024

# From <sys/mman.h>; the same on Linux and macOS.
_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE = 1, 2
_POPULATE_WRITE = 23  # Linux 5.14


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def create(size: int) -> int:
    """Return a descriptor of *size* bytes that have no name: of memory, or where that cannot be had, of a file.

    Raises:
        OSError: neither can be made.
    """
    try:
        return create_in_memory(size)
    except OSError:
        return create_in_file(size, None)


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
            import errno

            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    name = os.path.join(folder, f"aparallel-{os.urandom(16).hex()}")
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(name)
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
        import errno

        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)


def _sized(fd: int, size: int, folder: str | None = None) -> int:
    try:
        if folder is not None:
            _check_room(fd, size, folder)
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Mapping:
    """A descriptor's first *size* bytes in this process's memory, until the object goes. The descriptor may be closed.

    Attributes:
        alive: where those of this process lie. A system gives it some 65,000 mappings, for all that it does.

    Raises:
        OSError: no memory, or no more mappings.
    """

    __slots__ = ("__weakref__", "address", "size")

    alive: ClassVar[dict[int, None]] = {}

    def __init__(self, fd: int, size: int, mode: Mode, populate: bool = False) -> None:
        import ctypes

        protection = _PROT_READ if mode == "r" else _PROT_READ | _PROT_WRITE
        flags = _MAP_PRIVATE if mode == "c" else _MAP_SHARED
        self.size = 0
        address = _libc().mmap(None, size, protection, flags, fd, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, f"{size:,} bytes of shared memory could not be mapped: {os.strerror(code)}")
        self.address: int = address
        self.size = size
        self.alive[address] = None
        if populate and sys.platform == "linux":
            _in_pieces(_libc().madvise, address, size, _POPULATE_WRITE)

    def __del__(self) -> None:
        if self.size and _libc is not None:  # else the interpreter is ending, and with it all memory
            self.alive.pop(self.address, None)
            in_background(self.size, _in_pieces, _libc().munmap, self.address, self.size)

    def view(self, offset: int, size: int, *, readonly: bool, keep: object = None) -> Any:
        """Return an array of *size* unsigned bytes from *offset* on. It keeps the mapping, and *keep*, alive."""
        import numpy as np

        return np.asarray(Window(self, offset, size, readonly, keep))


def mapped(fd: int, size: int, mode: Mode) -> Mapping:
    """Return a mapping.

    Raises:
        SharedMemoryError: no memory, or no more mappings.
    """
    try:
        return Mapping(fd, size, mode)
    except OSError as error:
        from aparallel.errors import SharedMemoryError

        raise SharedMemoryError(f"{error.strerror}. Free memory or raise its limit.", nbytes=size) from error


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


def _free() -> None:
    global _is_freeing
    while True:
        while _waiting:
            try:
                fn, args = _waiting.popleft()
            except IndexError:  # another thread took it
                continue
            with suppress(OSError):
                fn(*args)
            del fn, args
        _is_freeing = False
        if not _waiting:  # nothing came between the look and the word
            return
        _is_freeing = True


def _forget_thread() -> None:
    """The thread did not come along into a forked copy."""
    global _is_freeing
    _is_freeing = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_thread)
