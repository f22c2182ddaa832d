"""Maps plain containers: of a file of any size no more is read than its pickle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from xxhash import xxh3_64

from aparallel._persist.container import (
    BUFFERS,
    CHECKSUM_SIZE,
    INDEX,
    LINE,
    PICKLE,
    RECORD_FIXED,
    SIGNED_OF_TRAILER,
    Flag,
    Header,
    Record,
    aligned,
    pack_header,
    pack_record,
    unpack_header,
    unpack_index,
    unpack_record,
    unpack_trailer,
)
from aparallel._persist.reader import Content, check_signature, check_signed, new_signature
from aparallel._persist.sources import read_at
from aparallel.errors import ChecksumError, CorruptFileError, TruncatedFileError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aparallel._ground.stoppable import Stop
    from aparallel._persist.options import LoadOptions
    from aparallel._persist.sources import Digest

    Bytes = bytes | memoryview

_SLICE = 1 << 20


def mapped_file(file: Any, mode: Any) -> Any:
    """The whole of an open file as a ``numpy.memmap`` of bytes. The file stays where it stands."""
    fd = file.fileno()
    start = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        return np.memmap(file, np.uint8, mode)
    finally:
        os.lseek(fd, start, os.SEEK_SET)  # NumPy goes to the end, to see where that is


def check_mappable(codec: str) -> None:
    """Raise if what is compressed with *codec* cannot be mapped.

    Raises:
        UnsupportedFormatError: it is compressed.
    """
    if codec:
        raise UnsupportedFormatError(
            f"it is compressed with {codec}, and only what is not can be mapped. "
            f"Load it without mmap_mode, or dump it with compress=0"
        )


def map_container(file: Any, options: LoadOptions, stop: Stop, size: int) -> Content:
    """Map a plain container and read no more of it than its pickle, and its buffers if they are to be verified.

    Args:
        file: a regular file, open for reading, and for writing if it is mapped so.
        size: bytes of the file that are the container.

    Raises:
        CorruptFileError: what was read of it is damaged, or its signature is not that of the key.
        UnsupportedFormatError: it is not for this version, or is compressed.
    """
    fd = file.fileno()
    first_line = read_at(fd, LINE, 0)
    header = unpack_header(first_line)
    _check_container(header, options, size)
    last_line = read_at(fd, LINE, size - LINE)
    trailer = unpack_trailer(last_line, size - LINE)
    memory: Any = mapped_file(file, options.mmap_mode)
    last, index, index_parts = _read_record(fd, trailer.index_offset, stop)
    if last.kind != INDEX or trailer.index_offset + last.plain_size != size - LINE:
        raise CorruptFileError("its trailer does not belong to it")
    # Over what is used, as it is read: at a second reading, whoever may write the file could give us something else.
    signature = new_signature(options.signing_key)
    content = Content(header)
    try:
        _add(signature, [first_line])
        for offset, record in unpack_index(index, trailer.index_offset):
            if record.kind == PICKLE:
                found, payload, parts = _read_record(fd, offset, stop)
                if found != record:
                    raise CorruptFileError(f"its index does not describe the record at byte {offset}")
                content.add(payload)
            else:
                if options.verify and Flag.CHANGED_IN_PLACE not in header.flags:
                    _verify_buffers(fd, offset, record, stop)
                content.buffers += _mapped_buffers(memory, offset + record.head_size, record.lengths)
                parts = _parts(fd, offset, offset + record.plain_size, stop)
            _add(signature, parts)
        _add(signature, [*index_parts, last_line[:SIGNED_OF_TRAILER]])
        check_signature(signature, trailer)
    except BaseException:
        content.close()
        raise
    if options.mmap_mode == "r+" and content.buffers:
        # Not before: who is refused the object has changed nothing, and the file keeps its checksums and its signature.
        content.before_taken = lambda: _mark_changed(fd, header)
    return content


def _check_container(header: Header, options: LoadOptions, size: int) -> None:
    check_signed(header, options.signing_key)
    check_mappable(header.codec)
    if size < 2 * LINE:
        raise TruncatedFileError("its end is missing: the writer was interrupted, or the file was cut")
    if options.signing_key is not None and options.mmap_mode == "r+":
        raise ValueError("mmap_mode='r+' would break the signature. Use 'r' or 'c', or load it without signing_key.")


def _read_record(fd: int, offset: int, stop: Stop) -> tuple[Record, bytes, Iterable[Bytes]]:
    """Read and verify a record without buffers; return it, its payload, and all of its bytes in parts.

    Not through the map, so that whoever cuts the file does not kill us.
    """
    stop.check()
    line = read_at(fd, LINE, offset)
    if len(line) < LINE:
        raise CorruptFileError("its trailer does not belong to it")
    record = unpack_record(line, offset)
    if record.kind == BUFFERS:
        raise CorruptFileError(f"its index does not describe the record at byte {offset}")
    # Before memory is taken for what a hostile file says.
    if record.plain_size > os.fstat(fd).st_size - offset:
        raise TruncatedFileError(f"it ends within the record at byte {offset}")
    payload = _read_range(fd, offset + LINE, record.size)
    end = LINE + record.size
    tail = read_at(fd, record.plain_size - end, offset + end)
    check = xxh3_64(line[RECORD_FIXED:], offset)
    _add(check, [payload])
    if len(payload) < record.size or tail != _expected_tail(record, check):
        raise ChecksumError(f"the checksum of the record at byte {offset} does not match")
    return record, payload, (line, payload, tail)


def _add(digest: Digest | None, parts: Iterable[Bytes]) -> None:
    """Have *digest*, if there is one, take all *parts*, which are not read otherwise."""
    if digest is not None:
        for part in parts:
            for start in range(0, len(part), _SLICE):
                digest.update(memoryview(part)[start : start + _SLICE])


def _expected_tail(record: Record, check: xxh3_64) -> bytes:
    """What stands between a record's payload and the next record."""
    size = record.plain_size - record.head_size - record.size
    return check.intdigest().to_bytes(CHECKSUM_SIZE, "little").ljust(size, b"\0")


def _read_range(fd: int, start: int, size: int) -> bytes:
    parts = []
    while size and (part := read_at(fd, min(size, _READ_AT_ONCE), start)):
        parts.append(part)
        start += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


_READ_AT_ONCE = 16 << 20


def _mapped_buffers(memory: Any, start: int, lengths: Sequence[int]) -> Iterator[Any]:
    for length in lengths:
        part = memory[start : start + length]
        if length:  # of no bytes, it is no memmap
            part.offset = start
        yield part
        start = aligned(start + length)


def _verify_buffers(fd: int, offset: int, record: Record, stop: Stop) -> None:
    end = offset + record.head_size + record.size
    check = xxh3_64(b"", offset)
    _add(check, _parts(fd, offset + RECORD_FIXED, end, stop))
    # The index has stood in for the fixed part of the head until here.
    fixed = read_at(fd, RECORD_FIXED, offset)
    tail = read_at(fd, offset + record.plain_size - end, end)
    if fixed != pack_record(record, offset)[:RECORD_FIXED] or tail != _expected_tail(record, check):
        raise ChecksumError(f"the checksum of the record at byte {offset} does not match")


def _parts(fd: int, start: int, end: int, stop: Stop) -> Iterator[memoryview]:
    """What lies from *start* to *end*, each part valid until the next.

    Read, not mapped: to have each page mapped takes longer than to copy it, and who cuts the file meanwhile would kill
    us.
    """
    memory = memoryview(bytearray(min(_SLICE, end - start)))
    while start < end:
        stop.check()
        part = memory[: end - start]
        if hasattr(os, "preadv"):
            part = part[: os.preadv(fd, [part], start)]
        else:
            part = memoryview(read_at(fd, len(part), start))
        if not part:
            raise TruncatedFileError(f"it ends after {start:,} bytes, within a record")
        yield part
        start += len(part)


def _mark_changed(fd: int, header: Header) -> None:
    """Say in a file that its buffers may differ from their checksums from now on."""
    if Flag.CHANGED_IN_PLACE not in header.flags:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, pack_header(header._replace(flags=header.flags | Flag.CHANGED_IN_PLACE)))
