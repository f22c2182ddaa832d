"""Reads containers: verifies everything, then hands out the pickle and its buffers."""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from xxhash import xxh3_64

from aparallel._ground.hop import pause, pausing
from aparallel._persist.compressors import decompressor
from aparallel._persist.container import (
    CHECKSUM_SIZE,
    CHUNK_HEADER,
    END_MAGIC,
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
    chunk_checksum,
    fewest_stored,
    pack_record,
    unpack_chunk,
    unpack_header,
    unpack_record,
    unpack_record_line,
    unpack_trailer,
)
from aparallel._persist.filling import Filling
from aparallel.errors import ChecksumError, CorruptFileError, SignatureError, TruncatedFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aparallel._persist.options import LoadOptions
    from aparallel._persist.sources import Source
    from aparallel.abc import Compressor

# A slice is read and, while it is in the cache, summed.
_SLICE = 1 << 20
# Pieces of the pickle that are kept in memory; what is more waits in an unnamed file, where one can be had.
_KEPT = 24 << 20


class Content:
    """A container that was read and verified: all pieces of its pickle, and its buffers. To be closed.

    Attributes:
        before_taken: called before the first buffer is given to the object that is built.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self.buffers: list[Any] = []
        self.before_taken: Callable[[], None] | None = None
        self.buffers_size = 0
        self.pickle_size = 0
        self._kept: list[bytes | memoryview] = []
        self._spool: Any = None
        self._spooled = 0
        self._kept_after: list[bytes | memoryview] = []

    def add(self, piece: bytes | memoryview) -> None:
        self.pickle_size += len(piece)
        if self.pickle_size <= _KEPT:
            self._kept.append(piece)
        elif self._kept_after or not self._put_aside(piece):
            self._kept_after.append(piece)

    def _put_aside(self, piece: bytes | memoryview) -> bool:
        """Write a piece to the unnamed file; False if there is no folder or no room for that."""
        try:
            if self._spool is None:
                import tempfile  # 4 ms for a first load

                self._spool = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by close()
            view = memoryview(piece)
            while view:
                view = view[self._spool.write(view) :]
        except OSError:
            return False
        self._spooled += len(piece)
        return True

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The pickle from its beginning, each time."""
        yield from self._kept
        left = self._spooled
        if left:
            self._spool.seek(0)
        while left:
            piece = self._spool.read(min(_SLICE, left))
            left -= len(piece)
            yield piece
        yield from self._kept_after

    def taken(self) -> Iterator[Any]:
        """The buffers in order, for whoever builds the object."""
        if self.before_taken is not None:
            self.before_taken()
        yield from self.buffers

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()


def read_container(source: Source, options: LoadOptions, *, whole: bool) -> Content:
    """Read a container from where *source* stands, and verify all of it.

    Args:
        whole: nothing may follow the container.

    Raises:
        CorruptFileError: it is damaged, or its signature is not that of the key.
        UnsupportedFormatError: it is not for this version.
    """
    return _Reading(source, options).read(whole=whole)


def skim_container(source: Source, options: LoadOptions, *, whole: bool) -> Content:
    """Read a container as :func:`read_container` does, but go past its buffers, which are not verified."""
    return _Reading(source, options, skim=True).read(whole=whole)


class Records:
    """Reads records from where a source stands. *offset* is where the one in question begins in its container.

    Attributes:
        signature: over all that is read, to be compared with the one in the trailer; None without a key.
    """

    def __init__(self, source: Source, key: bytes | None) -> None:
        self._source = source
        self.signature = source.signature = None if key is None else hmac.new(key, digestmod=hashlib.sha256)

    def head(self, line: bytes, offset: int) -> tuple[Record, bytes]:
        """Return a record and the bytes of its head, zeros included."""
        _, count, _ = unpack_record_line(line, offset)
        size = aligned(RECORD_FIXED + 8 * count)
        head = line if size == LINE else line + self._source.read(size - LINE)
        record = unpack_record(head, offset)
        if any(head[RECORD_FIXED + 8 * count :]):
            raise ChecksumError(f"the record at byte {offset} has bytes where there should be none")
        return record, head

    def plain(self, record: Record, head: bytes, offset: int) -> bytes | memoryview:
        """Return the payload of a plain record, and go past its end."""
        self._source.demand(record.size)
        check = xxh3_64(head[RECORD_FIXED:], offset)
        parts = []
        for start in range(0, record.size, _SLICE):
            part = self._source.read(min(_SLICE, record.size - start))
            check.update(part)
            parts.append(part)
        self.check_tail(record, head, offset, check)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_tail(self, record: Record, head: bytes, offset: int, check: xxh3_64, *, trusted: bool = False) -> None:
        """Read and compare the checksum after a plain payload, and the zeros after that."""
        end = len(head) + record.size
        tail = self._source.read(aligned(end + CHECKSUM_SIZE) - end)
        if int.from_bytes(tail[:CHECKSUM_SIZE], "little") != check.intdigest() and not trusted:
            raise ChecksumError(f"the checksum of the record at byte {offset} does not match")
        if any(tail[CHECKSUM_SIZE:]):
            raise ChecksumError(f"the record at byte {offset} has bytes after it where there should be none")

    def check_signature(self, trailer: Trailer) -> None:
        """Compare the signature with the one that is in the container, if one was asked for.

        Raises:
            SignatureError: they differ.
        """
        if self.signature is not None and not hmac.compare_digest(self.signature.digest(), trailer.signature):
            raise SignatureError(
                "its signature is not one of the key given: another key signed it, or somebody changed it"
            )


class _Reading(Records):
    def __init__(self, source: Source, options: LoadOptions, *, skim: bool = False) -> None:
        super().__init__(source, options.signing_key)
        self._options = options
        self._skim = skim
        self._base = source.position
        self._filling = Filling(source, options.threads)
        self._decoding: _Decoding | None = None  # as the header says, once it is read

    def read(self, *, whole: bool) -> Content:
        source = self._source
        header = unpack_header(bytes(source.read_up_to(LINE)))
        check_signed(header, self._options.signing_key)
        content = Content(header)
        try:
            self._decoding = _decoding(header, self._options)
            try:
                self._read_records(content)
            finally:
                self._filling.close()
                if self._decoding is not None:
                    self._decoding.close()
            if whole and not source.at_end():
                raise CorruptFileError("something follows its end")
        except BaseException:
            content.close()
            raise
        return content

    def _read_records(self, content: Content) -> None:
        index: list[bytes] = []
        index_offset = -1
        while True:
            offset = self._source.position - self._base
            line = bytes(self._source.read_up_to(LINE)) if index_offset < 0 else self._last_line()
            if index_offset >= 0:
                self._end(unpack_trailer(line, offset), index_offset)
                return
            if len(line) < LINE or line.startswith(END_MAGIC):
                raise TruncatedFileError("its end is missing: the writer was interrupted, or the file was cut")
            record, head = self.head(line, offset)
            if record.kind == INDEX:
                index_offset = offset
                if bytes(self.plain(record, head, offset)) != b"".join(index):
                    raise CorruptFileError("its index does not describe it")
                continue
            index.append(pack_record(record, offset))
            if record.kind == PICKLE:
                content.add(self._payload(record, head, offset))
            elif self._skim:
                self._pass_over(record, head)
                content.buffers_size += sum(record.lengths)
            else:
                content.buffers += self._buffers(record, head, offset, content.header)

    def _last_line(self) -> bytes:
        # The signature is over the trailer's first part only.
        line = bytes(self._source.read(SIGNED_OF_TRAILER))
        self._source.signature = None
        return line + bytes(self._source.read(LINE - SIGNED_OF_TRAILER))

    def _end(self, trailer: Trailer, index_offset: int) -> None:
        if trailer.index_offset != index_offset:
            raise CorruptFileError("its trailer does not belong to it")
        self.check_signature(trailer)

    def _payload(self, record: Record, head: bytes, offset: int) -> bytes | memoryview:
        """Return a payload whose size the format bounds."""
        if self._decoding is None:
            return self.plain(record, head, offset)
        target = bytearray(record.size)
        self._decode(head, record.size, memoryview(target))
        return target  # type: ignore[return-value]  # as good as bytes to whoever reads it

    def _buffers(self, record: Record, head: bytes, offset: int, header: Header) -> Iterator[Any]:
        """Return a record's buffers, each an array of bytes."""
        self._source.demand(record.size if self._decoding is None else fewest_stored(record.size))
        memory: Any
        if self._decoding is None:
            check = xxh3_64(head[RECORD_FIXED:], offset)
            memory = self._filling.array(record.size, check.update)
            self.check_tail(record, head, offset, check, trusted=Flag.CHANGED_IN_PLACE in header.flags)
        elif self._source.believes(record.size):
            memory = np.empty(record.size, np.uint8)
            self._decode(head, record.size, memoryview(memory))
        else:
            memory = np.frombuffer(self._decode(head, record.size, None), np.uint8)
        return split(memory, record.lengths)

    def _pass_over(self, record: Record, head: bytes) -> None:
        """Go to the end of a record with buffers."""
        source = self._source
        if self._decoding is None:
            source.demand(record.size)
            source.skip(record.size)
            end = len(head) + record.size
            source.read(aligned(end + CHECKSUM_SIZE) - end)
            return
        while True:
            offset = source.position - self._base
            size, stored, _ = unpack_chunk(bytes(source.read(CHUNK_HEADER)), offset)
            if not size:
                break
            source.demand(stored)
            source.skip(stored)
        source.read(-(source.position - self._base) % LINE)

    def _decode(self, head: bytes, size: int, target: memoryview | None) -> bytearray:
        """Decompress a record's chunks to where they belong; without *target*, return them."""
        assert self._decoding is not None
        grown = bytearray()
        filled = 0
        while True:
            offset = self._source.position - self._base
            chunk_header = bytes(self._source.read(CHUNK_HEADER))
            length, stored_size, check = unpack_chunk(chunk_header, offset)
            stored = self._source.read(stored_size) if stored_size else head[RECORD_FIXED:]
            if chunk_checksum(chunk_header[:8], stored, offset) != check:
                raise ChecksumError(f"the checksum of the chunk at byte {offset} does not match")
            if not length:
                break
            if length > size - filled:
                raise CorruptFileError(f"the chunk at byte {offset} is larger than what its record has left")
            place = None if target is None else target[filled : filled + length]
            grown += self._decoding.start(stored, length, place, offset)
            filled += length
        if filled != size:
            raise CorruptFileError(f"the record that ends at byte {offset} has fewer bytes than it says")
        grown += self._decoding.finish()
        if any(self._source.read(-(self._source.position - self._base) % LINE)):
            raise ChecksumError(f"after byte {offset} there are bytes where there should be none")
        return grown


def split(memory: Any, lengths: Sequence[int]) -> Iterator[Any]:
    """The buffers that lie in *memory*, each at the next multiple of the alignment.

    If there are several, copies: no small one keeps the memory of all alive.
    """
    if len(lengths) == 1:
        yield memory
        return
    start = 0
    for length in pausing(lengths):
        yield memory[start : start + length].copy()
        start = aligned(start + length)


class _Decoding:
    """Decompresses chunks on several threads: into memory that exists already, or gives them back in order."""

    def __init__(self, codec: Compressor, threads: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._codec = codec
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="aparallel-compress")
        self._most = 2 * threads + 2
        self._running: deque[Any] = deque()

    def start(self, stored: bytes | memoryview, size: int, target: memoryview | None, offset: int) -> bytes:
        """Begin with a chunk, and return what was given back meanwhile."""
        pause()
        self._running.append(self._executor.submit(self._decode, stored, size, target, offset))
        return self._running.popleft().result() if len(self._running) > self._most else b""

    def finish(self) -> bytes:
        """Wait for all chunks, and return what was given back."""
        return b"".join([self._running.popleft().result() for _ in range(len(self._running))])

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _decode(self, stored: bytes | memoryview, size: int, target: memoryview | None, offset: int) -> Any:
        try:
            data = self._codec.decompress(memoryview(stored), size)
        except MemoryError:
            raise
        except Exception as error:
            raise CorruptFileError(
                f"the codec {self._codec.name!r} cannot read the chunk at byte {offset}: {error}"
            ) from error
        if len(data) != size:
            raise CorruptFileError(f"the chunk at byte {offset} has not the size that it says")
        if target is None:
            return data
        # NumPy copies without the GIL, which the loop may be waiting for; a memoryview does not.
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(data, np.uint8))
        return b""


def _decoding(header: Header, options: LoadOptions) -> _Decoding | None:
    return _Decoding(decompressor(header.codec, options.compressors), options.threads) if header.codec else None


def check_signed(header: Header, key: bytes | None) -> None:
    """Refuse a file without signature where one is asked for.

    Raises:
        SignatureError: it has none.
    """
    if key is not None and Flag.SIGNED not in header.flags:
        raise SignatureError("it is not signed, and a signing key was given")
