"""What lies in segments for calls: bytes that do not change, and arrays that the user shared. Not loaded in a child."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import xxhash

from aparallel._transfer import writing
from aparallel._transfer.shared_memory import mapped
from aparallel.errors import SharingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._transfer.segments import Hold, Segment
    from aparallel._transfer.shared_memory import Mode


class Digest:
    """The hash of bytes (xxh3, 128 bits): that of the hashes of their blocks, which can be fed in any order."""

    __slots__ = ("_blocks", "_fed")

    def __init__(self) -> None:
        self._blocks: dict[int, Any] = {}
        # How many bytes of the stream have come, if it is one.
        self._fed = 0

    def block(self, number: int) -> Any:
        hasher = self._blocks[number] = xxhash.xxh3_128()
        return hasher

    def stream(self) -> Digest:
        self._blocks.clear()
        self._fed = 0
        return self

    def update(self, data: bytes | memoryview) -> None:
        while data:
            number, inside = divmod(self._fed, writing.BLOCK)
            hasher = self._blocks[number] if inside else self.block(number)
            head = data[: writing.BLOCK - inside]
            hasher.update(head)  # without the GIL; xxh3_128_digest() lets go of it only from xxhash 4.0 on
            self._fed += len(head)
            data = data[len(head) :]

    def digest(self) -> bytes:
        blocks = (self._blocks[number].digest() for number in range(len(self._blocks)))
        return xxhash.xxh3_128(b"".join(blocks)).digest()


def digest_of(pieces: Iterable[bytes | memoryview]) -> bytes:
    """Return the hash of the bytes that *pieces* are together."""
    whole = Digest()
    for piece in pieces:
        whole.update(piece)
    return whole.digest()


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
            mapping = self.segment.mapping or mapped(self.segment.parts, "r")
            self._digest = digest_of([memoryview(mapping.view(self.offset, self.nbytes, readonly=True))])
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
        mapping = mapped(self.segment.parts, "r+" if self.mode == "r+" else "r")
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
