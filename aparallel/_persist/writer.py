"""Writes containers: records out to a sink, plain or through a codec on several threads."""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from xxhash import xxh3_64

from aparallel._ground.hop import pause
from aparallel._persist.container import (
    BUFFERS,
    CHECKSUM_SIZE,
    INDEX,
    LINE,
    MAX_STORED,
    PICKLE,
    RECORD_FIXED,
    SIGNED_OF_TRAILER,
    Flag,
    Header,
    Record,
    Trailer,
    buffers_size,
    pack_chunk,
    pack_header,
    pack_record,
    pack_trailer,
    padding,
)
from aparallel._persist.summing import Checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from aparallel.abc import Compressor

Bytes = bytes | bytearray | memoryview
R = TypeVar("R")


class Sink(Protocol):
    """Where a container goes. Each write raises ``Stopped`` once that is to be."""

    def write(self, data: bytes | memoryview) -> None: ...
    def expect(self, size: int) -> None: ...
    def flush(self) -> None: ...


# What is written at a time if it is summed up before: the caches of a core hold it, in the program's memory and in the
# kernel's.
_PIECE = 1 << 20
# If another thread sums it up: each piece takes 15 µs of Python code. A pipe's other end, a stop and the counts of
# progress wait for a millisecond.
_LARGE_PIECE = 8 << 20
# What is compressed at a time, about.
_CHUNK = 1 << 20


def _chunk_size(itemsize: int) -> int:
    """How much is compressed at a time: whole items, so that a codec can tell their bytes apart."""
    return _CHUNK - _CHUNK % itemsize or _CHUNK


class ContainerWriter:
    """Writes one container.

    Args:
        sink: takes the bytes in order; nothing is written twice or looked at again.
        compressor: None for a plain file.
        threads: that compress at a time; the caller ends them with :meth:`close`.
        signing_key: None for a file without signature.
        looks_again: sum up each large buffer once more when it has been written, about 4 ms for 100 MB, and raise if
            it has changed, as nobody knows then what was written.
    """

    def __init__(
        self,
        sink: Sink,
        compressor: Compressor | None = None,
        threads: int = 1,
        signing_key: bytes | None = None,
        *,
        looks_again: bool = False,
    ) -> None:
        self._sink = sink
        self._position = 0
        self._threads = threads
        self._looks_again = looks_again
        self._signature = None if signing_key is None else hmac.new(signing_key, digestmod=hashlib.sha256)
        self._index: list[bytes] = []
        self._compressing = None if compressor is None else _Compressing(compressor, threads)
        # What is to be written after chunks that are still being compressed, in order.
        self._later: deque[Callable[[], None]] = deque()
        # How the sink or the compressor failed, if one did.
        self._failure: BaseException | None = None
        flags = Flag.COMPRESSED if compressor is not None else Flag(0)
        flags |= Flag.SIGNED if signing_key is not None else Flag(0)
        self._write(pack_header(Header(flags, compressor.name if compressor is not None else "")))

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._position

    def taken_failure(self) -> BaseException | None:
        """How the sink or the compressor failed, if one did; told once, as the error's traceback refers to this."""
        failure, self._failure = self._failure, None
        return failure

    def write_pickle(self, pieces: Sequence[Bytes]) -> None:
        """Write a piece of the pickle, given in parts. Not more than a record may hold."""
        size = sum(map(len, pieces))
        self._write_record(Record(PICKLE, size), [b"".join(pieces) if len(pieces) > 1 else pieces[0]], 1)

    def write_buffers(self, buffers: Sequence[Bytes], itemsize: int) -> None:
        """Write small buffers in one record. They must not change before :meth:`finish`."""
        lengths = tuple(map(len, buffers))
        self._write_record(Record(BUFFERS, buffers_size(lengths), lengths), [_joined(buffers)], itemsize)

    def write_buffer(self, size: int, parts: Iterable[Bytes], itemsize: int) -> None:
        """Write a buffer of *size* bytes, given in parts of any size that must not change before :meth:`finish`."""
        self._write_record(Record(BUFFERS, size, (size,)), parts, itemsize)

    def finish(self) -> int:
        """Write what is left and the end; return the container's size in bytes."""
        self._settle(0)
        offset = self._position
        index = b"".join(self._index)
        self._write_plain(Record(INDEX, len(index)), [index], entered=False)
        trailer = Trailer(offset, self._position + LINE)
        if self._signature is not None:
            # The signature covers the trailer up to itself.
            self._signature.update(pack_trailer(trailer)[:SIGNED_OF_TRAILER])
            trailer = trailer._replace(signature=self._signature.digest())
        self._noting(self._sink.write, pack_trailer(trailer))
        self._position += LINE
        self._noting(self._sink.flush)
        return self._position

    def close(self) -> None:
        """End the threads, whatever became of the container."""
        if self._compressing is not None:
            self._compressing.close()

    def _write_record(self, record: Record, parts: Iterable[Bytes], itemsize: int) -> None:
        if self._compressing is None:
            self._write_plain(record, parts)
        else:
            self._write_compressed(record, parts, itemsize, self._compressing)

    def _write_plain(self, record: Record, parts: Iterable[Bytes], *, entered: bool = True) -> None:
        offset = self._position
        head = self._write_head(record, entered=entered)
        self._noting(self._sink.expect, record.size)
        with Checksum(head[RECORD_FIXED:], offset, record.size, self._threads) as check:
            step = _LARGE_PIECE if check.has_helper else _PIECE
            whole = memoryview(b"")
            for part in parts:
                whole = view = memoryview(part)
                check.announce(view)
                while view:
                    # Pieces end where pages of the file do: a page that is written in two parts is looked for twice.
                    piece = view[: step - self._position % step]
                    check.add(piece)
                    self._write(piece)
                    check.add_written(piece)
                    view = view[len(piece) :]
            checksum = check.value()
            # What comes in several parts is made for this, of copies; nobody else has it.
            if self._looks_again and len(whole) == record.size and not whole.readonly:
                self._check_unchanged(whole, xxh3_64(head[RECORD_FIXED:], offset), checksum)
            self._write(checksum.to_bytes(CHECKSUM_SIZE, "little"))
        self._write(padding(self._position))

    def _check_unchanged(self, written: memoryview, again: xxh3_64, checksum: int) -> None:
        for start in range(0, len(written), _LARGE_PIECE):
            self._noting(self._sink.write, b"")  # raises if this is to stop
            again.update(written[start : start + _LARGE_PIECE])
        if again.intdigest() != checksum:
            raise RuntimeError("an array or a buffer changed while it was written")

    def _write_head(self, record: Record, *, entered: bool = True) -> bytes:
        """Write a record's head with its zeros, and enter it in the index."""
        head = pack_record(record, self._position)
        if entered:
            self._index.append(head)
        head += padding(len(head))
        self._write(head)
        return head

    def _write_compressed(
        self, record: Record, parts: Iterable[Bytes], itemsize: int, compressing: _Compressing
    ) -> None:
        head = b""

        def write_head() -> None:
            nonlocal head
            head = self._write_head(record)

        def write_chunk(size: int, compressed: Any) -> None:
            stored = self._noting(compressed.result)
            self._write(pack_chunk(size, stored, self._position))
            self._write(stored)

        def write_end() -> None:
            self._write(pack_chunk(0, b"", self._position, covered=head[RECORD_FIXED:]))
            self._write(padding(self._position))

        self._later.append(write_head)
        step = _chunk_size(itemsize)
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), step):
                chunk = view[start : start + step]
                compressed = compressing.start(chunk, itemsize)
                self._later.append(functools.partial(write_chunk, len(chunk), compressed))
                self._settle(compressing.most)
        self._later.append(write_end)

    def _settle(self, remaining: int) -> None:
        """Write what is due until no more than so many things wait."""
        while len(self._later) > remaining:
            self._later.popleft()()

    def _write(self, data: bytes | memoryview) -> None:
        self._position += len(data)
        if self._signature is not None:
            self._signature.update(data)
        self._noting(self._sink.write, data)

    def _noting(self, step: Callable[..., R], *args: Any) -> R:
        """Do what can fail whatever the object is, and remember how it did."""
        try:
            return step(*args)
        except BaseException as error:
            self._failure = error
            raise


class _Compressing:
    """Threads that compress chunks. Begun with the first chunk."""

    def __init__(self, compressor: Compressor, threads: int) -> None:
        self._compressor = compressor
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        # Chunks under way, at most: enough that no thread waits for the writer.
        self.most = 2 * threads + 2

    def start(self, chunk: memoryview, itemsize: int) -> Any:
        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="aparallel-compress")
        pause()
        return self._executor.submit(self._compress, chunk, itemsize)

    def _compress(self, chunk: memoryview, itemsize: int) -> memoryview:
        stored = memoryview(self._compressor.compress(chunk, itemsize)).cast("B")
        if not 0 < len(stored) <= MAX_STORED:  # no reader would take it
            raise ValueError(
                f"The compressor {self._compressor.name!r} made {len(stored):,} bytes of a chunk of "
                f"{len(chunk):,}. Make it at least one and at most {MAX_STORED:,}."
            )
        return stored

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _joined(buffers: Sequence[Bytes]) -> bytes:
    parts: list[Bytes] = []
    for buffer in buffers[:-1]:
        parts += (buffer, padding(len(buffer)))
    return b"".join([*parts, *buffers[-1:]])
