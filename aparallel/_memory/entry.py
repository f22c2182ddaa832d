"""What is stored of one call: a head, metadata and a body, under one seal.

::

     0   8  magic: 89 "APM" 0D 0A 1A 0A
     8   2  version: 1
    10   1  the body: 1 a pickle of the value, 2 a pickle of an exception, 3 the last 64 bytes of the container before
            it, which has the value
    11   1  1 if the seal is signed, else 0
    12   4  size of the metadata, in bytes
    16   8  size of the body, in bytes
    24   8  when the value was computed: seconds since 1970, a double
    32  32  seal: BLAKE3 over the entry's key and all of this but these 32 bytes; keyed, if signed
    64   …  metadata, JSON in UTF-8; then the body

Integers are unsigned and little-endian. The seal holds for one key: an entry that is moved to another is damaged.

A value that is large, or whose arrays are to be mapped, comes first, as the container that ``dump`` writes: so its
buffers are aligned. What is above follows it, with the container's last bytes as its body: they hold its size, and
its signature if it has one, so no container passes for another. And at the very end::

     0   8  size of the container, in bytes
     8   8  magic: 89 "APMEND" 0A
"""

from __future__ import annotations

import json
import os
import struct
from enum import IntEnum
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blake3 import blake3

from aparallel._memory.digest import digest, keyed_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from io import FileIO

_MAGIC: Final = b"\x89APM\r\n\x1a\n"
_END_MAGIC: Final = b"\x89APMEND\n"
_END = struct.Struct("<Q8s")
TAIL_SIZE: Final = 64
"""Bytes of a container that its entry repeats."""
_HEAD = struct.Struct("<8sHBBIQd")
_SEAL_SIZE = 32
_START = _HEAD.size + _SEAL_SIZE


class Damaged(Exception):
    """The content is not what was written for this key."""


class NotOurs(Exception):
    """The content is signed where we have no key, or the other way round, or of a later version."""


class WrongSignature(NotOurs):
    """The content was not signed with our key, or has changed since."""


class Body(IntEnum):
    """What an entry holds."""

    VALUE = 1
    ERROR = 2
    CONTAINER = 3
    """The value is in the container before it."""


_BODIES: Final = {int(body): body for body in Body}


class Entry(NamedTuple):
    """What is stored of one call.

    Attributes:
        created: when it was computed, in seconds since 1970.
        metadata: JSON.
    """

    body_kind: Body
    created: float
    metadata: bytes
    body: bytes

    def meta(self) -> dict[str, Any]:
        """Read the metadata."""
        found: dict[str, Any] = json.loads(self.metadata)
        return found


def metadata_of(parts: Mapping[str, Any]) -> bytes:
    return json.dumps(parts, separators=(",", ":")).encode()


def secret_of(signing_key: bytes) -> bytes:
    """Derive the 32 bytes that entries are signed with."""
    secret: bytes = blake3(signing_key, derive_key_context="aparallel 2026 memory entry seal").digest()
    return secret


def pack(key: bytes, entry: Entry, secret: bytes | None) -> bytes:
    """Return the entry of *key* as bytes."""
    is_signed = secret is not None
    head = _HEAD.pack(_MAGIC, 1, entry.body_kind, is_signed, len(entry.metadata), len(entry.body), entry.created)
    return b"".join((head, _seal(key, secret, head, entry.metadata, entry.body), entry.metadata, entry.body))


def unpack(key: bytes, data: bytes, secret: bytes | None) -> Entry:
    """Return the entry of *key* that :func:`pack` made *data* of.

    Raises:
        Damaged, NotOurs: it is not used.
    """
    if len(data) < _START:
        raise Damaged("it is too short")
    magic, version, kind, is_signed, meta_size, body_size, created = _HEAD.unpack_from(data)
    if magic == _MAGIC and version > 1:
        raise NotOurs("it was written by a later version of aparallel")
    if magic != _MAGIC or version != 1 or kind not in _BODIES:
        raise Damaged("it is no entry of this version")
    if len(data) != _START + meta_size + body_size:
        raise Damaged("its size is wrong")
    if bool(is_signed) != (secret is not None):
        raise NotOurs("it is not signed" if secret is not None else "it is signed, and there is no signing_key")
    view = memoryview(data)
    if not compare_digest(_seal(key, secret, view[: _HEAD.size], view[_START:]), data[_HEAD.size : _START]):
        raise WrongSignature("its signature is not ours") if secret is not None else Damaged("its checksum is wrong")
    middle = _START + meta_size
    return Entry(_BODIES[kind], created, data[_START:middle], data[middle:])


def ending(container_size: int) -> bytes:
    """Return what stands at the very end, after a container and its entry."""
    return _END.pack(container_size, _END_MAGIC)


def split(content: bytes | FileIO) -> tuple[bytes, bytes, int]:
    """Part what was stored: the entry, the last bytes of the container before it, and the container's size, or 0.

    Raises:
        Damaged: it is none of ours.
    """
    whole_size, read = _reader_of(content)
    if read(len(_MAGIC), 0) == _MAGIC:
        return read(whole_size, 0), b"", 0
    if whole_size < _END.size:
        raise Damaged("it is too short")
    size, magic = _END.unpack(read(_END.size, whole_size - _END.size))
    if magic != _END_MAGIC or size > whole_size - _END.size:
        raise Damaged("it is no entry of this version")
    tail = read(min(TAIL_SIZE, size), max(0, size - TAIL_SIZE))
    return read(whole_size - _END.size - size, size), tail, size


def _reader_of(content: bytes | FileIO) -> tuple[int, Callable[[int, int], bytes]]:
    """Return the size of *content*, and a function that reads so many bytes of it from an offset on."""
    if isinstance(content, bytes):
        return len(content), lambda size, offset: content[offset : offset + size]
    fd = content.fileno()
    return os.fstat(fd).st_size, lambda size, offset: os.pread(fd, size, offset)


def _seal(key: bytes, secret: bytes | None, *parts: Any) -> bytes:
    if secret is not None:
        return keyed_digest(secret, key, *parts)
    return digest(b"".join((key, *parts)))  # small enough to be joined, which is quicker than to feed
