"""The container: what is where in a file. Nothing here reads or writes one.

A file is a header, records and a trailer, each beginning at a multiple of 64 bytes; gaps are zeros. All integers are
unsigned and little-endian. A checksum is XXH3 of 64 bits; where a *seed* is named, it is the file offset at which the
header, record or chunk begins, so that what was moved does not pass for what belongs there.

Header, 64 bytes::

    0   8  magic: 89 41 50 4C 0D 0A 1A 0A
    8   2  version: 1
   10   2  flags: 1 compressed, 2 signed, 4 buffers changed in place (see below)
   12   4  0
   16  16  codec: its name in ASCII, zeros after it; all zeros in a plain file
   32  24  0
   56   8  checksum of the 56 bytes before it. Every version has magic, version and checksum at these places

Record::

    0   4  kind: "PKL " a piece of the pickle, "BUF " buffers, "IDX " the index, which is the last record
    4   4  count: number of buffers, 0 but for BUF
    8   8  size: of the payload, in bytes, uncompressed
   16   8  checksum of the 16 bytes before it, seeded
   24  8n  length of each of the n buffers, in bytes; then zeros up to a multiple of 64: the payload begins there
        …  plain: the payload, then its checksum (8 bytes, seeded) over all from byte 24 on; then zeros
        …  compressed: chunks, then zeros

The payload of PKL is a piece of a pickle of protocol 5; all pieces in order are the pickle. The payload of BUF is the
buffers that the pickle's NEXT_BUFFER opcodes take, in order, each beginning at a multiple of 64 bytes within it. (So a
buffer of a plain file can be mapped where it lies.) A buffer never comes later in the file than the piece of the
pickle that takes it. The payload of IDX repeats, in order, the bytes of every record from its kind to the end of its
lengths, without the zeros: who reads it knows where everything lies in a plain file. IDX is never compressed.

Chunk, in the records of a compressed file::

    0   4  size of the chunk, uncompressed: at most 4 MiB
    4   4  size of what is stored
    8   8  checksum of what is stored; its seed is the checksum of the 8 bytes before it, seeded
   16   …  what is stored: a whole stream of the codec

The chunks of a record together are its payload. After the last one stands an end: a chunk header of sizes 0 and 0,
whose checksum has, in place of what is stored, all from the record's byte 24 to its first chunk.

Trailer, 64 bytes, the last ones of the file::

    0   8  magic: 89 41 50 4C 45 4E 44 0A
    8   8  offset of IDX
   16   8  size of the whole file
   24  32  HMAC-SHA256 with the secret key over the whole file up to here; zeros in a file without signature
   56   8  checksum of the 56 bytes before it, seeded

Who maps a file for writing sets flag 4 first, for from then on the checksums of BUF records do not hold; they are then
not verified. A reader refuses a version that it does not know, flags that it does not know, and gaps that are not zero.

Limits: 2^20 buffers in a record; 16 MiB in a PKL record; 5 MiB stored of a chunk; sizes of 63 bits elsewhere.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from xxhash import xxh3_64_intdigest as checksum

from aparallel.errors import (
    ChecksumError,
    CorruptFileError,
    EmptyFileError,
    NewerVersionError,
    TruncatedFileError,
    UnsupportedFormatError,
)

MAGIC = b"\x89APL\r\n\x1a\n"
END_MAGIC = b"\x89APLEND\n"
VERSION = 1
ALIGNMENT = 64

PICKLE, BUFFERS, INDEX = b"PKL ", b"BUF ", b"IDX "

MAX_COUNT = 1 << 20
MAX_SIZE = (1 << 63) - 1
MAX_PICKLE_RECORD = 16 << 20
MAX_CHUNK = 4 << 20
# Nothing that a codec makes of a chunk is much larger than the chunk.
MAX_STORED = MAX_CHUNK + MAX_CHUNK // 4

_HEADER = struct.Struct("<8sHHI16s24sQ")
_RECORD = struct.Struct("<4sIQQ")
_CHUNK = struct.Struct("<IIQ")
_TRAILER = struct.Struct("<8sQQ32sQ")
LINE = 64
"""Bytes of the header, of the trailer, and the fewest that a record's head has."""
RECORD_FIXED = _RECORD.size
CHUNK_HEADER = _CHUNK.size
CHECKSUM_SIZE = 8
SIGNED_OF_TRAILER = 24
"""So many bytes of the trailer are signed, with all that is before it."""
_ZEROS = bytes(ALIGNMENT)


class Flag(enum.IntFlag):
    COMPRESSED = 1
    SIGNED = 2
    CHANGED_IN_PLACE = 4


# A number: of an IntFlag, ~ gives only flags that there are.
_ALL_FLAGS = int(Flag.COMPRESSED | Flag.SIGNED | Flag.CHANGED_IN_PLACE)


class Header(NamedTuple):
    flags: Flag = Flag(0)
    codec: str = ""


class Record(NamedTuple):
    """The head of a record."""

    kind: bytes
    size: int
    lengths: tuple[int, ...] = ()

    @property
    def head_size(self) -> int:
        """Bytes from the record's beginning to its payload or first chunk."""
        return aligned(RECORD_FIXED + 8 * len(self.lengths))

    @property
    def plain_size(self) -> int:
        """Bytes from the record's beginning to the next one's, in a plain file."""
        return aligned(self.head_size + self.size + CHECKSUM_SIZE)


class Trailer(NamedTuple):
    index_offset: int
    file_size: int
    signature: bytes = bytes(32)


def aligned(position: int) -> int:
    """The next multiple of the alignment, or *position* itself."""
    return (position + ALIGNMENT - 1) & -ALIGNMENT


def padding(position: int) -> bytes:
    """The zeros from *position* to the next multiple of the alignment."""
    return _ZEROS[: -position % ALIGNMENT]


def buffers_size(lengths: tuple[int, ...]) -> int:
    """The size of a payload that holds buffers of these lengths."""
    return sum(map(aligned, lengths[:-1])) + lengths[-1] if lengths else 0


def pack_header(header: Header) -> bytes:
    fields = _HEADER.pack(MAGIC, VERSION, header.flags, 0, header.codec.encode("ascii").ljust(16, b"\0"), bytes(24), 0)[
        :-8
    ]
    return fields + checksum(fields).to_bytes(8, "little")


def unpack_header(data: bytes) -> Header:
    """Read the first line of a file.

    Raises:
        UnsupportedFormatError: it is no container, or one of a newer version.
        CorruptFileError: it is damaged, cut short or empty.
    """
    if not data:
        raise EmptyFileError("it is empty: nothing was ever written to it, or a crash left it so")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise UnsupportedFormatError("it does not begin as a file of aparallel does")
    if len(data) < LINE:
        raise TruncatedFileError(f"it ends within its header, after {len(data)} bytes")
    _, version, flags, zero, codec, zeros, stored = _HEADER.unpack(data)
    if checksum(data[:-8]) != stored:
        raise ChecksumError("the checksum of its header does not match")
    if version > VERSION:
        raise NewerVersionError(
            f"it has version {version} of the format, and this aparallel reads up to {VERSION}. Update aparallel"
        )
    if version == 0 or flags & ~_ALL_FLAGS or zero or any(zeros):
        raise UnsupportedFormatError(f"its header has fields that version {VERSION} does not know")
    try:
        name = codec.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise UnsupportedFormatError("the name of its codec is no ASCII") from None
    if bool(name) != bool(flags & Flag.COMPRESSED):
        raise CorruptFileError("its header names a codec and says that it is plain, or the other way round")
    return Header(Flag(flags), name)


def pack_record(record: Record, offset: int) -> bytes:
    """The head of a record without the zeros after it."""
    fixed = _RECORD.pack(record.kind, len(record.lengths), record.size, 0)[:-8]
    lengths = b"" if not record.lengths else struct.pack(f"<{len(record.lengths)}Q", *record.lengths)
    return fixed + checksum(fixed, offset).to_bytes(8, "little") + lengths


def unpack_record_line(line: bytes, offset: int) -> tuple[bytes, int, int]:
    """Read the fixed part of a record's head: kind, count and size. Whatever follows is not looked at.

    Raises:
        CorruptFileError: it is damaged, or none of ours.
    """
    kind, count, size, stored = _RECORD.unpack_from(line)
    if checksum(line[: RECORD_FIXED - 8], offset) != stored:
        raise ChecksumError(f"the checksum of the record at byte {offset} does not match")
    if (
        (kind not in (PICKLE, BUFFERS, INDEX))
        or (kind == BUFFERS) != bool(count)
        or count > MAX_COUNT
        or size > MAX_SIZE
        or (kind == PICKLE and size > MAX_PICKLE_RECORD)
    ):
        raise CorruptFileError(f"the record at byte {offset} is none that this version of the format has")
    return kind, count, size


def unpack_record(head: bytes, offset: int) -> Record:
    """Read a record's head, with at least all its lengths.

    Raises:
        CorruptFileError: it is damaged, or none of ours.
    """
    kind, count, size = unpack_record_line(head, offset)
    if not count:
        return Record(kind, size)
    lengths = struct.unpack_from(f"<{count}Q", head, RECORD_FIXED)
    if buffers_size(lengths) != size:
        raise ChecksumError(f"the lengths of the buffers at byte {offset} do not add up to the record's size")
    return Record(kind, size, lengths)


def pack_chunk(size: int, stored: bytes | memoryview, offset: int, covered: bytes = b"") -> bytes:
    """The header of a chunk; *covered* is what the end of a record covers besides."""
    sizes = _CHUNK.pack(size, len(stored), 0)[:8]
    return sizes + chunk_checksum(sizes, covered or stored, offset).to_bytes(8, "little")


def chunk_checksum(sizes: bytes, stored: bytes | memoryview, offset: int) -> int:
    return checksum(stored, checksum(sizes, offset))


def fewest_stored(size: int) -> int:
    """The fewest bytes that the chunks of a payload of *size* bytes take, whatever the codec."""
    return -(-size // MAX_CHUNK) * (CHUNK_HEADER + 1) + CHUNK_HEADER


def unpack_chunk(header: bytes, offset: int) -> tuple[int, int, int]:
    """Read a chunk's header: its size, the stored size, and the checksum, which is for the caller to compare.

    Raises:
        CorruptFileError: the sizes cannot be.
    """
    size, stored, check = _CHUNK.unpack(header)
    if size > MAX_CHUNK or stored > MAX_STORED or bool(size) != bool(stored):
        raise ChecksumError(f"the chunk at byte {offset} has sizes that cannot be")
    return size, stored, check


def pack_trailer(trailer: Trailer) -> bytes:
    fields = _TRAILER.pack(END_MAGIC, trailer.index_offset, trailer.file_size, trailer.signature, 0)[:-8]
    return fields + checksum(fields, trailer.file_size - LINE).to_bytes(8, "little")


def unpack_trailer(line: bytes, offset: int) -> Trailer:
    """Read the last line of a file, which begins at *offset*.

    Raises:
        CorruptFileError: it is damaged, or does not belong there.
    """
    magic, index_offset, file_size, signature, stored = _TRAILER.unpack(line)
    # All else being right, it is the magic that has changed.
    if magic != END_MAGIC and checksum(END_MAGIC + line[len(END_MAGIC) : -8], offset) != stored:
        raise TruncatedFileError("its end is missing: the writer was interrupted, or the file was cut")
    if checksum(line[:-8], offset) != stored:
        raise ChecksumError("the checksum of its trailer does not match")
    if file_size != offset + LINE or index_offset + LINE > offset:
        raise CorruptFileError("its trailer belongs to a file of another size")
    return Trailer(index_offset, file_size, signature)


def unpack_index(payload: bytes, end: int) -> list[tuple[int, Record]]:
    """Return each record of a plain file with the offset at which it begins.

    *end* is the offset of the index itself, where the last one must end.

    Raises:
        CorruptFileError: the index does not fit the file.
    """
    found = []
    offset, position = LINE, 0
    while position < len(payload):
        if len(payload) - position < RECORD_FIXED:
            raise CorruptFileError("its index ends within an entry")
        _, count, _ = unpack_record_line(payload[position : position + RECORD_FIXED], offset)
        entry = RECORD_FIXED + 8 * count
        if len(payload) - position < entry:
            raise CorruptFileError("its index ends within an entry")
        record = unpack_record(payload[position : position + entry], offset)
        found.append((offset, record))
        offset += record.plain_size
        position += entry
        if offset > end:
            break
    if offset != end:
        raise CorruptFileError("its index does not describe the file")
    return found
