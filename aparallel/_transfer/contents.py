"""What lies in segments for calls: bytes that do not change, and arrays that the user shared. Not loaded in a child."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import xxhash

from aparallel._transfer.shared_memory import mapped
from aparallel.errors import SharingError

if TYPE_CHECKING:
    from aparallel._transfer.lending import Hold, Segment
    from aparallel._transfer.shared_memory import Mode


def digest(data: Any) -> bytes:
    """Return the hash of bytes in one piece, whatever their size without the GIL."""
    hasher = xxhash.xxh3_128()  # xxh3_128_digest() lets go of the GIL only from xxhash 4.0 on
    hasher.update(data)
    return hasher.digest()


class Content:
    """Bytes in a segment, as they were when they were written. Nobody changes them.

    While it exists, its segment is not used for anything else.
    """

    __slots__ = ("_digest", "hold", "nbytes", "offset")

    is_shared = False

    def __init__(self, hold: Hold, offset: int, nbytes: int, digest: bytes | None = None) -> None:
        self.hold = hold
        self.offset = offset
        self.nbytes = nbytes
        self._digest = digest

    @property
    def segment(self) -> Segment:
        return self.hold.segment

    def digest(self) -> bytes:
        """Return its hash.

        Raises:
            SharedMemoryError: it has to be mapped for that, and cannot be.
        """
        if self._digest is None:
            mapping = self.segment.mapping or mapped(self.segment.fd, self.segment.size, "r")
            self._digest = digest(mapping.view(self.offset, self.nbytes, readonly=True))
        return self._digest


class SharedContent(Content):
    """The content of an array that the user shared, and has mapped.

    Attributes:
        mode: how workers map it.
        address: where it lies in this process.
        closed: workers get it no more.
    """

    __slots__ = ("__weakref__", "address", "closed", "mode")

    is_shared = True

    def __init__(self, content: Content, mode: Mode) -> None:
        super().__init__(content.hold, content.offset, content.nbytes)
        self.mode = mode
        self.address = 0
        self.closed = False

    def map(self) -> Any:
        """Map it here, as an array of bytes that keeps it.

        Raises:
            SharedMemoryError: it cannot be mapped.
        """
        mapping = mapped(self.segment.fd, self.segment.size, "r+" if self.mode == "r+" else "r")
        self.address = mapping.address + self.offset
        _mapped.add(self)
        return mapping.view(self.offset, self.nbytes, readonly=self.mode != "r+", keep=self)

    def check_open(self) -> None:
        if self.closed:
            raise SharingError(
                "The array of a closed Shared object was passed to a call. "
                "Close it when the calls are done, or pass a copy."
            )


# A forked copy of this process has them mapped, too, and nobody hears when it lets go of them.
_mapped: weakref.WeakSet[SharedContent] = weakref.WeakSet()


def _spoil() -> None:
    for content in list(_mapped):
        content.segment.spoiled = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_spoil)
