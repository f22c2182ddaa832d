"""Whether memory was written since a moment, as the kernel tells it: without reading it, so at once.

Linux 6.7 and later can protect pages against writing so that the first write to each takes the protection off by
itself, and say of a range whether all of it is still protected: userfaultfd with ``UFFD_FEATURE_WP_ASYNC``, and the
ioctl ``PAGEMAP_SCAN``. Their formats are those of ``linux/userfaultfd.h`` and ``linux/fs.h``; what they do is told in
Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst of the kernel. Writes of the kernel for this process, such
as ``read()`` into the memory, are seen as those of the program are.

That first write costs a page fault, some 0.8 µs a page: to write all of a watched 200 MB takes 40 ms instead of 7.

Not seen is what a device writes into pages that it was given before they were protected, so nothing is watched in a
process that gave any to one for long. What remains are single transfers that were under way.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import struct
import sys
import threading
from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING

from aparallel._ground.room import parse_field

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = mmap.PAGESIZE

# The number of the system call is told by no library, and an architecture's own.
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1  # what everybody may have: faults inside the kernel are not to wait for us, and these never do
_UFFD_API = 0xAA
_WP_ASYNC = 1 << 15
_REGISTER_MODE_WP = 2
_WRITEPROTECT_MODE_WP = 1

# What is protected at a time: half a millisecond, in small pages.
_PIECE = 64 * 1024 * 1024

_SCAN_CHECK_WPASYNC = 2
_IS_WRITTEN, _IS_PRESENT = 2, 8


def _request(direction: int, kind: int, number: int, size: int) -> int:
    """Return the number of an ioctl as ``asm-generic/ioctl.h`` makes it. *direction*: 2 reads, 3 both."""
    return direction << 30 | size << 16 | kind << 8 | number


_UFFDIO_API = _request(3, 0xAA, 0x3F, 24)
_UFFDIO_REGISTER = _request(3, 0xAA, 0x00, 32)
_UFFDIO_UNREGISTER = _request(2, 0xAA, 0x01, 16)
_UFFDIO_WRITEPROTECT = _request(3, 0xAA, 0x06, 24)
_PAGEMAP_SCAN = _request(3, ord("f"), 16, 96)


class _Kernel:
    """The descriptors through which the kernel is asked.

    Raises:
        OSError: the kernel has no such thing, or it is not allowed.
    """

    __slots__ = ("_ioctl", "_pagemap", "_userfaultfd")

    def __init__(self) -> None:
        self._pagemap = -1
        self._userfaultfd = _userfaultfd()
        from fcntl import ioctl  # not everywhere

        self._ioctl = ioctl
        try:
            ioctl(self._userfaultfd, _UFFDIO_API, struct.pack("3Q", _UFFD_API, _WP_ASYNC, 0))
            self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        fds = self._userfaultfd, self._pagemap
        self._userfaultfd = self._pagemap = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def protect(self, start: int, end: int) -> None:
        """Have writes to these pages told from now on. What other pages of them are told is not touched."""
        self._ioctl(self._userfaultfd, _UFFDIO_REGISTER, struct.pack("4Q", start, end - start, _REGISTER_MODE_WP, 0))
        try:
            # All of them, not those alone that are not: what memory that was moved kept of an earlier protection is
            # none (Linux before 6.13).
            for address, size in _pieces(start, end):
                protection = struct.pack("3Q", address, size, _WRITEPROTECT_MODE_WP)
                self._ioctl(self._userfaultfd, _UFFDIO_WRITEPROTECT, protection)
        except OSError:
            self.release(start, end)
            raise

    def release(self, start: int, end: int) -> None:
        """Take the protection off. The pages may be gone already, and the memory may be somebody else's by now."""
        for piece in _pieces(start, end):
            with contextlib.suppress(OSError, ValueError):
                self._ioctl(self._userfaultfd, _UFFDIO_UNREGISTER, struct.pack("2Q", *piece))

    def is_protected(self, start: int, end: int) -> bool:
        """Whether these pages are all there and none was written since they were protected.

        Pages that were dropped are not there, nor those that are swapped out: they are not told apart. Nor are they if
        they are other memory by now, of which the kernel refuses to tell.
        """
        region = (ctypes.c_uint64 * 3)()
        # Any page that is written, or is not (inverted) present, and the first of them is enough.
        scan = struct.pack(
            *("12Q", 96, _SCAN_CHECK_WPASYNC, start, end, 0, ctypes.addressof(region), 1, 1),
            *(_IS_PRESENT, 0, _IS_WRITTEN | _IS_PRESENT, _IS_WRITTEN | _IS_PRESENT),
        )
        with contextlib.suppress(OSError, ValueError):
            found: int = self._ioctl(self._pagemap, _PAGEMAP_SCAN, bytearray(scan))
            return found == 0
        return False

    def _check(self) -> None:
        """Try it once: an emulation of Linux might take all requests and do nothing."""
        with mmap.mmap(-1, _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[0] = 1
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            self.protect(start, start + _PAGE)
            was_protected = self.is_protected(start, start + _PAGE)
            memory[0] = 2
            is_protected = self.is_protected(start, start + _PAGE)
            self.release(start, start + _PAGE)
        if is_protected or not was_protected:
            raise OSError(errno.ENOSYS, "writes to protected pages are not told")


def _userfaultfd() -> int:
    number = _USERFAULTFD.get(platform.machine())
    if sys.platform != "linux" or number is None or sys.maxsize < 1 << 32:
        raise OSError(errno.ENOSYS, "this system has no userfaultfd that is known here")
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(ctypes.c_long(number), ctypes.c_long(_USER_MODE_ONLY | os.O_CLOEXEC))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "there is no userfaultfd")
    return fd


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield addresses and sizes: while the kernel is at one, no other thread of this process can map any memory."""
    for address in range(start, end, _PIECE):
        yield address, min(_PIECE, end - address)


class _Span:
    """Pages from *start* to *end* (addresses) that a watch is told of.

    Attributes:
        stands: nobody protected any of them anew since.
    """

    __slots__ = ("end", "kernel", "stands", "start")

    def __init__(self, kernel: _Kernel, start: int, end: int) -> None:
        self.kernel = kernel
        self.start = start
        self.end = end
        self.stands = True


# The spans of the watches that stand, and the descriptors while there are any. Invariant: all pages of a span have been
# protected since its watch began, and a page that is protected anew, after which nobody knows that it was written, is
# in no span that stands. Changed only by who holds the lock; a finaliser must not wait for that, so the spans that end
# are put down for whoever holds it.
_spans: set[_Span] = set()
_ended: deque[_Span] = deque()
_kernel: _Kernel | None = None
_lock = threading.Lock()
_is_impossible = False


class Watch:
    """Tells whether memory was written since this was made by :func:`watch`. Stopped when it is dropped.

    Who has it keeps the memory. It may be asked in any thread.

    Attributes:
        first, last: what the parts of the memory held, when this began, that are less than a page at either end. They
            are compared, for their pages are others' memory, too.
    """

    __slots__ = ("_address", "_end", "_span", "first", "last")

    def __init__(self, span: _Span, address: int, size: int) -> None:
        self._span = span
        self._address = address
        self._end = address + size
        # After the pages were protected: what is read from now on is what is compared.
        self.first, self.last = self._edges()

    def is_untouched(self) -> bool:
        """Whether nothing was written, for certain."""
        span = self._span
        is_protected = span.kernel.is_protected(span.start, span.end)
        # Only now: whoever protects pages anew has said so before.
        return is_protected and span.stands and self._edges() == (self.first, self.last)

    def stop(self) -> None:
        """Say no more, and let writes cost nothing again."""
        if self._span.stands:
            self._span.stands = False
            _ended.append(self._span)
            _release_ended()

    __del__ = stop

    def _edges(self) -> tuple[bytes, bytes]:
        span = self._span
        return (
            ctypes.string_at(self._address, span.start - self._address),
            ctypes.string_at(span.end, self._end - span.end),
        )


def watch(address: int, size: int) -> Watch | None:
    """Begin to watch that memory; return None where that is not possible.

    Only memory of this process alone is watched, for what others write to shared memory is not told. The whole pages
    inside it are, and the rest is compared. It takes some 0.1 ms a gigabyte in huge pages and 7 in small ones, and
    the time to read ``/proc/self/maps``, up to some milliseconds in a process with thousands of mappings.
    """
    start, end = -(-address // _PAGE) * _PAGE, (address + size) // _PAGE * _PAGE
    if _is_impossible or start >= end or not _may_be_watched(start, end):
        return None
    try:
        with _lock:
            try:
                span = _protected(start, end)
            finally:
                _close_if_unused()
    except OSError:
        return None
    finally:
        _release_ended()
    return Watch(span, address, size)


def _protected(start: int, end: int) -> _Span:
    kernel = _kernel or _opened()
    overlapping = [span for span in _spans if span.start < end and start < span.end]
    # Where a watch began before and nothing was written since, another can begin beside it: no mark is taken off.
    is_there = any(span.stands and span.start <= start and end <= span.end for span in overlapping)
    if not (is_there and kernel.is_protected(start, end)):
        for span in overlapping:
            span.stands = False
        _spans.difference_update(overlapping)
        for span in overlapping:
            _release(span)
        kernel.protect(start, end)
    span = _Span(kernel, start, end)
    _spans.add(span)
    return span


def _opened() -> _Kernel:
    global _is_impossible, _kernel
    try:
        _kernel = _Kernel()
    except OSError as error:
        # There may be descriptors, or memory, later.
        _is_impossible = error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        raise
    return _kernel


def _close_if_unused() -> None:
    global _kernel
    if _kernel is not None and not _spans:
        _kernel.close()
        _kernel = None


def _release_ended() -> None:
    # Who cannot have the lock leaves it to who has it, who comes here after letting go of it.
    while _ended and _lock.acquire(blocking=False):
        try:
            while _ended:
                span = _ended.popleft()
                if span in _spans:
                    _spans.discard(span)
                    _release(span)
            _close_if_unused()
        finally:
            _lock.release()


def _release(span: _Span) -> None:
    """Take the protection off what is in no other span."""
    start = span.start
    for other in sorted(_spans, key=lambda other: other.start):
        if other.start < span.end and start < other.end:
            if start < other.start:
                span.kernel.release(start, other.start)
            start = other.end
    if start < span.end:
        span.kernel.release(start, span.end)


def _may_be_watched(start: int, end: int) -> bool:
    """Whether the kernel may be asked, and all of this memory is writable, this process's alone, and no device's."""
    try:
        with open("/proc/self/maps", "rb") as file:
            maps = file.read()
        with open("/proc/thread-self/status", encoding="utf-8", errors="replace") as file:
            status = file.read()
    except OSError:
        return False
    # A filter of system calls may end the process for one that it does not expect, and few expect userfaultfd.
    if parse_field(status, "Seccomp:"):
        return False
    # VmPin counts what drivers say that they hold; those of some devices say nothing, but programs map the device.
    pinned = parse_field(status, "VmPin:")
    return not pinned and not _has_device(maps) and _is_anonymous(maps, start, end)


def _has_device(maps: bytes) -> bool:
    named = maps.count(b" /dev/")
    return named > sum(map(maps.count, (b" /dev/shm/", b" /dev/zero", b" /dev/hugepages/")))


def _is_anonymous(maps: bytes, start: int, end: int) -> bool:
    lines = maps.splitlines()
    first = bisect_right(lines, start, key=lambda line: int(line[: line.index(b"-")], 16)) - 1
    for line in lines[max(first, 0) :]:
        # start-end permissions offset device inode path (proc(5))
        span, permissions, _, _, inode, *_ = line.split(maxsplit=5)
        here, there = (int(address, 16) for address in span.split(b"-"))
        if not (here <= start < there and permissions == b"rw-p" and inode == b"0"):
            return False
        if there >= end:
            return True
        start = there
    return False


def _forget() -> None:
    """A forked child has other memory than what is told, and not the thread that may have held the lock."""
    global _lock
    _lock = threading.Lock()
    for span in _spans:
        span.stands = False
    _spans.clear()
    _ended.clear()
    _close_if_unused()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
