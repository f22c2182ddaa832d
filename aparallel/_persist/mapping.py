"""Maps plain containers: of a file of any size no more is read than its pickle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from xxhash import xxh3_64

from aparallel._persist.container import (
    INDEX,
    LINE,
    PICKLE,
    RECORD_FIXED,
    SIGNED_OF_TRAILER,
    Flag,
    Header,
    Record,
    Trailer,
    aligned,
    pack_header,
    unpack_header,
    unpack_index,
    unpack_trailer,
)
from aparallel._persist.reader import Content, Records, check_signed
from aparallel.errors import CorruptFileError, TruncatedFileError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aparallel._persist.options import LoadOptions
    from aparallel._persist.sources import FileSource

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


def map_container(source: FileSource, file: Any, options: LoadOptions) -> Content:
    """Map a plain container and read no more of it than its pickle, and its buffers if they are to be verified.

    Args:
        source: the container.
        file: the regular file that it is, open for reading, and for writing if it is mapped so.

    Raises:
        CorruptFileError: what was read of it is damaged, or its signature is not that of the key.
        UnsupportedFormatError: it is not for this version, or is compressed.
    """
    return _Mapping(source, file, options).read()


class _Mapping(Records):
    """One container.

    What is read of it is not read through the map: to have each page mapped takes longer than to copy it, and whoever
    cuts the file meanwhile would kill us.
    """

    _source: FileSource

    def __init__(self, source: FileSource, file: Any, options: LoadOptions) -> None:
        super().__init__(source, options.signing_key)
        self._file = file
        self._options = options

    def read(self) -> Content:
        source, options = self._source, self._options
        header = unpack_header(bytes(source.read_up_to(LINE)))
        self._check(header)
        # What comes last is read first, and kept for the signature: that is over what is used. At a second reading,
        # whoever may write the file could give us something else.
        last = source.signature = _Kept()
        trailer, index = self._read_end(last)
        source.signature = self.signature
        memory: Any = mapped_file(self._file, options.mmap_mode)
        verify = options.verify and Flag.CHANGED_IN_PLACE not in header.flags
        content = Content(header)
        try:
            for offset, record in unpack_index(index, trailer.index_offset):
                if record.kind == PICKLE:
                    head = self._read_head(record, offset)
                    content.add(self.plain(record, head, offset))
                else:
                    if verify or self.signature is not None:
                        self._read_buffers(record, offset, verify=verify)
                    content.buffers += _mapped_buffers(memory, offset + record.head_size, record.lengths)
            if self.signature is not None:
                self.signature.update(b"".join(last))
            self.check_signature(trailer)
        except BaseException:
            content.close()
            raise
        if options.mmap_mode == "r+" and content.buffers:
            # Not before: who is refused the object has changed nothing, and the file keeps checksums and signature.
            content.before_taken = lambda: _mark_changed(source.fd, header)
        return content

    def _check(self, header: Header) -> None:
        check_signed(header, self._options.signing_key)
        check_mappable(header.codec)
        if self._source.size < 2 * LINE:
            raise TruncatedFileError("its end is missing: the writer was interrupted, or the file was cut")
        if self.signature is not None and self._options.mmap_mode == "r+":
            raise ValueError(
                "mmap_mode='r+' would break the signature. Use 'r' or 'c', or load it without signing_key."
            )

    def _read_end(self, kept: _Kept) -> tuple[Trailer, bytes]:
        """Return the trailer and the index; *kept* has what is signed of them, in their order."""
        end = self._source.size - LINE
        self._source.move_to(end)
        line = bytes(self._source.read(LINE))
        trailer = unpack_trailer(line, end)
        kept.clear()
        self._source.move_to(trailer.index_offset)
        record, head = self.head(bytes(self._source.read(LINE)), trailer.index_offset)
        if record.kind != INDEX or trailer.index_offset + record.plain_size != end:
            raise CorruptFileError("its trailer does not belong to it")
        index = bytes(self.plain(record, head, trailer.index_offset))
        kept.append(line[:SIGNED_OF_TRAILER])
        return trailer, index

    def _read_head(self, record: Record, offset: int) -> bytes:
        self._source.move_to(offset)
        found, head = self.head(bytes(self._source.read(LINE)), offset)
        if found != record:
            raise CorruptFileError(f"its index does not describe the record at byte {offset}")
        return head

    def _read_buffers(self, record: Record, offset: int, *, verify: bool) -> None:
        """Read what is mapped: for the signature, and to verify it."""
        head = self._read_head(record, offset)
        check = xxh3_64(head[RECORD_FIXED:], offset)
        memory = memoryview(bytearray(min(_SLICE, record.size)))
        for start in range(0, record.size, _SLICE):
            part = memory[: record.size - start]
            self._source.read_into(part)
            if verify:
                check.update(part)
        self.check_tail(record, head, offset, check, trusted=not verify)


class _Kept(list[Any]):
    """What was read, for a signature that is over something else first."""

    def update(self, data: Any) -> None:
        self.append(data)


def _mapped_buffers(memory: Any, start: int, lengths: Sequence[int]) -> Iterator[Any]:
    for length in lengths:
        part = memory[start : start + length]
        if length:  # of no bytes, it is no memmap
            part.offset = start
        yield part
        start = aligned(start + length)


def _mark_changed(fd: int, header: Header) -> None:
    """Say in a file that its buffers may differ from their checksums from now on."""
    if Flag.CHANGED_IN_PLACE not in header.flags:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, pack_header(header._replace(flags=header.flags | Flag.CHANGED_IN_PLACE)))
