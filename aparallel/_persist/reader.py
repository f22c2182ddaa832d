"""Reads containers: verifies everything, then hands out the pickle and its buffers."""

from __future__ import annotations

import hashlib
import hmac
import tempfile
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

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
    pack_record,
    unpack_chunk,
    unpack_header,
    unpack_record,
    unpack_record_line,
    unpack_trailer,
)
from aparallel.errors import ChecksumError, CorruptFileError, SignatureError, TruncatedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aparallel._persist.sources import Source
    from aparallel.abc import Compressor

# A slice is read and, while it is in the cache, summed.
_SLICE = 1 << 20
# A buffer whose source does not know its size is believed up to this size; then memory is taken as bytes come.
_BELIEVED = 64 << 20
# Pieces of the pickle that are kept in memory; what is more waits in an unnamed file.
_KEPT = 24 << 20


class Keys(NamedTuple):
    """How a container is to be read.

    Attributes:
        signing_key: None to take files without looking at their signature.
        threads: that decompress at a time.
        compressors: of the user's own.
    """

    signing_key: bytes | None = None
    threads: int = 1
    compressors: Sequence[Compressor] = ()


class Content:
    """A container that was read and verified: all pieces of its pickle, and its buffers. To be closed."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.buffers: list[Any] = []
        self.buffers_size = 0
        self.pickle_size = 0
        self._kept: list[bytes | memoryview] = []
        self._kept_size = 0
        self._spool: Any = None

    def add(self, piece: bytes | memoryview) -> None:
        self.pickle_size += len(piece)
        if self._spool is None and self._kept_size + len(piece) > _KEPT:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        if self._spool is not None:
            self._spool.write(piece)
        else:
            self._kept.append(piece)
            self._kept_size += len(piece)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The pickle from its beginning, each time."""
        yield from self._kept
        if self._spool is not None:
            self._spool.seek(0)
            while piece := self._spool.read(_SLICE):
                yield piece

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()


def read_container(source: Source, keys: Keys, *, whole: bool) -> Content:
    """Read a container from where *source* stands, and verify all of it.

    Args:
        whole: nothing may follow the container.

    Raises:
        CorruptFileError: it is damaged, or its signature is not that of the key.
        UnsupportedFormatError: it is not for this version.
    """
    return _Reading(source, keys).read(whole=whole)


def skim_container(source: Source, keys: Keys, *, whole: bool) -> Content:
    """Read a container as :func:`read_container` does, but go past its buffers, which are not verified."""
    return _Reading(source, keys, skim=True).read(whole=whole)


class _Reading:
    def __init__(self, source: Source, keys: Keys, *, skim: bool = False) -> None:
        self._source = source
        self._keys = keys
        self._skim = skim
        self._signature = _signature(keys.signing_key)
        source.signature = self._signature
        self._base = source.position

    def read(self, *, whole: bool) -> Content:
        source = self._source
        header = unpack_header(bytes(source.read_up_to(LINE)))
        check_signed(header, self._keys.signing_key)
        content = Content(header)
        try:
            self._decoding = _decoding(header, self._keys)
            try:
                self._read_records(content)
            finally:
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
            record, head = self._head(line, offset)
            if record.kind == INDEX:
                index_offset = offset
                if bytes(self._plain(record, head, offset)) != b"".join(index):
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
        if self._signature is not None and not hmac.compare_digest(self._signature.digest(), trailer.signature):
            raise wrong_signature()

    def _head(self, line: bytes, offset: int) -> tuple[Record, bytes]:
        """Return a record and the bytes of its head, zeros included."""
        _, count, _ = unpack_record_line(line, offset)
        size = aligned(RECORD_FIXED + 8 * count)
        head = line if size == LINE else line + self._source.read(size - LINE)
        record = unpack_record(head, offset)
        if any(head[RECORD_FIXED + 8 * count :]):
            raise ChecksumError(f"the record at byte {offset} has bytes where there should be none")
        return record, head

    def _payload(self, record: Record, head: bytes, offset: int) -> bytes | memoryview:
        """Return a payload whose size the format bounds."""
        if self._decoding is None:
            return self._plain(record, head, offset)
        target = bytearray(record.size)
        self._decode(head, memoryview(target))
        return target  # type: ignore[return-value]  # as good as bytes to whoever reads it

    def _plain(self, record: Record, head: bytes, offset: int) -> bytes | memoryview:
        self._source.demand(record.size)
        check = xxh3_64(head[RECORD_FIXED:], offset)
        parts = []
        for start in range(0, record.size, _SLICE):
            part = self._source.read(min(_SLICE, record.size - start))
            check.update(part)
            parts.append(part)
        self._check_tail(record, head, offset, check)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _buffers(self, record: Record, head: bytes, offset: int, header: Header) -> Iterator[Any]:
        """Return a record's buffers, each an array of bytes."""
        if self._decoding is not None:
            memory: Any = np.empty(record.size, np.uint8)
            self._decode(head, memoryview(memory))
        else:
            self._source.demand(record.size)
            check = xxh3_64(head[RECORD_FIXED:], offset)
            if self._source.size is None and record.size > _BELIEVED:
                memory = self._grown(record.size, check)
            else:
                memory = np.empty(record.size, np.uint8)
                self._fill(memoryview(memory), check)
            self._check_tail(record, head, offset, check, trusted=Flag.CHANGED_IN_PLACE in header.flags)
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

    def _fill(self, view: memoryview, check: xxh3_64) -> None:
        for start in range(0, len(view), _SLICE):
            part = view[start : start + _SLICE]
            self._source.read_into(part)
            check.update(part)

    def _grown(self, size: int, check: xxh3_64) -> Any:
        """Read a buffer whose size may be a lie: take memory only as the bytes come."""
        data = bytearray()
        while len(data) < size:
            part = self._source.read(min(_SLICE, size - len(data)))
            check.update(part)
            data += part
        return np.frombuffer(data, np.uint8)

    def _check_tail(self, record: Record, head: bytes, offset: int, check: xxh3_64, *, trusted: bool = False) -> None:
        """Read and compare the checksum after a plain payload, and the zeros after that."""
        end = len(head) + record.size
        tail = self._source.read(aligned(end + CHECKSUM_SIZE) - end)
        if int.from_bytes(tail[:CHECKSUM_SIZE], "little") != check.intdigest() and not trusted:
            raise ChecksumError(f"the checksum of the record at byte {offset} does not match")
        if any(tail[CHECKSUM_SIZE:]):
            raise ChecksumError(f"the record at byte {offset} has bytes after it where there should be none")

    def _decode(self, head: bytes, target: memoryview) -> None:
        """Decompress a record's chunks to where they belong."""
        assert self._decoding is not None
        filled = 0
        while True:
            offset = self._source.position - self._base
            chunk_header = bytes(self._source.read(CHUNK_HEADER))
            size, stored_size, check = unpack_chunk(chunk_header, offset)
            stored = self._source.read(stored_size) if stored_size else head[RECORD_FIXED:]
            if chunk_checksum(chunk_header[:8], stored, offset) != check:
                raise ChecksumError(f"the checksum of the chunk at byte {offset} does not match")
            if not size:
                break
            if size > len(target) - filled:
                raise CorruptFileError(f"the chunk at byte {offset} is larger than what its record has left")
            self._decoding.start(stored, target[filled : filled + size], offset)
            filled += size
        if filled != len(target):
            raise CorruptFileError(f"the record that ends at byte {offset} has fewer bytes than it says")
        self._decoding.settle(0)
        if any(self._source.read(-(self._source.position - self._base) % LINE)):
            raise ChecksumError(f"after byte {offset} there are bytes where there should be none")


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
    """Decompresses chunks on several threads, into memory that exists already."""

    def __init__(self, codec: Compressor, threads: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._codec = codec
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="aparallel-compress")
        self._most = 2 * threads + 2
        self._running: deque[Any] = deque()

    def start(self, stored: bytes | memoryview, target: memoryview, offset: int) -> None:
        pause()
        self._running.append(self._executor.submit(self._decode, stored, target, offset))
        self.settle(self._most)

    def settle(self, remaining: int) -> None:
        while len(self._running) > remaining:
            self._running.popleft().result()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _decode(self, stored: bytes | memoryview, target: memoryview, offset: int) -> None:
        try:
            data = self._codec.decompress(memoryview(stored), len(target))
        except MemoryError:
            raise
        except Exception as error:
            raise CorruptFileError(
                f"the codec {self._codec.name!r} cannot read the chunk at byte {offset}: {error}"
            ) from error
        if len(data) != len(target):
            raise CorruptFileError(f"the chunk at byte {offset} has not the size that it says")
        # NumPy copies without the GIL, which the loop may be waiting for; a memoryview does not.
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(data, np.uint8))


def _decoding(header: Header, keys: Keys) -> _Decoding | None:
    return _Decoding(decompressor(header.codec, keys.compressors), keys.threads) if header.codec else None


def _signature(key: bytes | None) -> hmac.HMAC | None:
    return None if key is None else hmac.new(key, digestmod=hashlib.sha256)


def check_signed(header: Header, key: bytes | None) -> None:
    """Refuse a file without signature where one is asked for.

    Raises:
        SignatureError: it has none.
    """
    if key is not None and Flag.SIGNED not in header.flags:
        raise SignatureError("it is not signed, and a signing key was given")


def wrong_signature() -> SignatureError:
    return SignatureError("its signature is not one of the key given: another key signed it, or somebody changed it")
