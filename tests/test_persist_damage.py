"""Whatever happens to a file, loading it gives what was dumped or a clear error, and runs nothing of a damaged one."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hmac
import os
import pathlib
import pickle
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from aparallel import dump_chunks, dumps, errors, inspect, load, loads
from aparallel._persist import container
from aparallel._persist.dump import dump_to_bytes
from aparallel._persist.load import load_from_bytes, load_from_path
from aparallel._persist.options import DumpOptions, LoadOptions
from aparallel.errors import (
    ChecksumError,
    CorruptFileError,
    EmptyFileError,
    NewerVersionError,
    SignatureError,
    TruncatedFileError,
    UnsupportedFormatError,
)

BROKEN = (CorruptFileError, UnsupportedFormatError)
ran: list[str] = []


def note(text: str) -> str:
    ran.append(text)
    return text


class Telltale:
    """Tells when it is unpickled."""

    def __reduce__(self) -> Any:
        return note, ("unpickled",)


def dumped(obj: Any, compress: str | None = None, key: str | None = None) -> bytes:
    return dump_to_bytes(obj, DumpOptions.checked(compress, signing_key=key, n_jobs=1))


SMALL = [Telltale(), np.arange(10, dtype="u1"), "text", np.arange(3.0)]
CASES = [
    pytest.param(None, None, id="plain"),
    pytest.param("zlib", None, id="zlib"),
    pytest.param(None, "key", id="signed"),
]


def loaded(data: bytes, key: str | None = None) -> Any:
    return load_from_bytes(data, LoadOptions.checked(signing_key=key, n_jobs=1))


@pytest.fixture(autouse=True)
def nothing_ran_yet() -> None:
    ran.clear()


@pytest.mark.parametrize(("compress", "key"), CASES)
def test_cut_at_any_length_it_is_an_error_and_nothing_runs(compress: str | None, key: str | None) -> None:
    data = dumped(SMALL, compress, key)
    for length in range(len(data)):
        expected = EmptyFileError if length == 0 else TruncatedFileError
        with pytest.raises(expected):
            loaded(data[:length], key)
    assert ran == []


@pytest.mark.parametrize(("compress", "key"), CASES)
def test_any_changed_byte_is_an_error_and_nothing_runs(compress: str | None, key: str | None) -> None:
    data = dumped(SMALL, compress, key)
    for position in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            # A chunk's size may have become more than there is.
            expected = ChecksumError if compress is None and position >= len(container.MAGIC) else BROKEN
            with pytest.raises(expected):
                loaded(bytes(damaged), key)
    assert ran == []


@pytest.mark.parametrize(("compress", "key"), CASES)
def test_bytes_that_are_lost_doubled_or_added_are_an_error_and_nothing_runs(
    compress: str | None, key: str | None
) -> None:
    data = dumped(SMALL, compress, key)
    rng = random.Random(0)
    for _ in range(300):
        start = rng.randrange(len(data))
        end = rng.randrange(start + 1, len(data) + 1)
        for damaged in (data[:start] + data[end:], data[:end] + data[start:], data + data[start:end]):
            with pytest.raises(BROKEN):
                loaded(damaged, key)
    assert ran == []


def test_a_mapped_file_with_any_changed_byte_is_an_error_when_verified(tmp_path: pathlib.Path) -> None:
    data = dumped([np.arange(10, dtype="u1"), np.arange(9_000.0)])
    path = tmp_path / "file"
    options = LoadOptions.checked("r", verify=True)
    for position in [*range(0, 600, 2), *range(600, len(data), 997), *range(len(data) - 400, len(data), 2)]:
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(BROKEN):
            load_from_path(str(path), options)


def test_what_stands_between_index_and_trailer_is_an_error_for_a_map_too(tmp_path: pathlib.Path) -> None:
    data = dumped(np.arange(9_000.0))
    index_offset = container.unpack_trailer(data[-64:], len(data) - 64).index_offset
    path = tmp_path / "file"
    path.write_bytes(data[:-64] + bytes(64) + container.pack_trailer(container.Trailer(index_offset, len(data) + 64)))
    for mode in (None, "r"):
        with pytest.raises(BROKEN):
            load_from_path(str(path), LoadOptions.checked(mode))  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="files are read otherwise here")
@pytest.mark.parametrize("key", [None, "key"])
def test_a_file_that_is_cut_while_its_map_is_verified_is_truncated_and_kills_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    path = tmp_path / "file"
    path.write_bytes(dump_to_bytes(np.arange(500_000.0), DumpOptions.checked(signing_key=key)))
    options = LoadOptions.checked("r", verify=True, signing_key=key)
    assert load_from_path(str(path), options)[-1] == 499_999
    readv = os.readv

    def cutting(fd: int, buffers: Any) -> int:
        if os.lseek(fd, 0, os.SEEK_CUR) > 1_500_000:
            os.truncate(path, 1_800_000)
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", cutting)
    with pytest.raises(TruncatedFileError):
        load_from_path(str(path), options)


@pytest.mark.parametrize("flag", [8, 1 << 15])
@pytest.mark.parametrize("mmap_mode", [None, "r"])
async def test_a_flag_that_this_version_does_not_know_is_refused(
    flag: int, mmap_mode: str | None, tmp_path: pathlib.Path
) -> None:
    data = bytearray(dumped(SMALL))
    data[10:12] = struct.pack("<H", flag)
    data[56:64] = xxh3_64_intdigest(bytes(data[:56])).to_bytes(8, "little")
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UnsupportedFormatError, match="fields that version 1 does not know"):
        await load(tmp_path / "file", mmap_mode)


async def test_each_kind_of_wrong_file_has_its_error_and_its_name(tmp_path: pathlib.Path) -> None:
    data = dumped(SMALL)
    header = container.pack_header(container.Header())
    newer = bytearray(header)
    newer[8:10] = struct.pack("<H", 7)
    newer[56:] = xxh3_64_intdigest(bytes(newer[:56])).to_bytes(8, "little")
    wrong = {
        b"": EmptyFileError,
        b"PK\x03\x04 is a zip": UnsupportedFormatError,
        b"\x00" * 100: UnsupportedFormatError,
        bytes(newer) + data[64:]: NewerVersionError,
        data[:-1]: TruncatedFileError,
        data[:5]: TruncatedFileError,
        data + b"more": CorruptFileError,
        data[:70] + b"\x77" + data[71:]: ChecksumError,
        b"\x80\x04\x95": TruncatedFileError,
        b"\x80\x04\xff.": CorruptFileError,
        zlib.compress(b"hello, a text"): UnsupportedFormatError,
        gzip.compress(b""): EmptyFileError,
        bz2.compress(b"\x80\x04\x95"): TruncatedFileError,
    }
    for content, error in wrong.items():
        path = tmp_path / "the file"
        path.write_bytes(content)
        for use in (load, inspect):
            with pytest.raises(error, match="the file cannot be loaded: ") as caught:
                await use(path)
            assert caught.value.source == str(path)
            assert pickle.loads(pickle.dumps(caught.value)).source == str(path)
            assert str(caught.value).count("its pickle is damaged") <= 1
        for trusted in (None, []):
            with pytest.raises(error) as caught:
                await loads(content, trusted=trusted)
            assert str(caught.value).count("its pickle is damaged") <= 1
    assert ran == []


async def test_a_path_that_ends_in_the_middle_of_a_large_array_is_cut(tmp_path: pathlib.Path) -> None:
    data = dumped([np.arange(300_000.0)])
    (tmp_path / "file").write_bytes(data[: len(data) // 2])
    for mode in (None, "r"):
        with pytest.raises(TruncatedFileError, match=r"cut|ends"):
            await load(tmp_path / "file", mmap_mode=mode)


async def test_another_key_or_none_or_a_changed_byte_is_refused_before_anything_runs() -> None:
    signed = await dumps([Telltale(), np.arange(100_000)], signing_key="right")
    assert (await loads(signed, signing_key=b"right"))[0] == "unpickled"
    ran.clear()
    with pytest.raises(SignatureError):
        await loads(signed, signing_key="wrong")
    with pytest.raises(SignatureError, match="not signed"):
        await loads(await dumps(Telltale()), signing_key="right")
    with pytest.raises(SignatureError, match="not signed"):
        await loads(pickle.dumps(Telltale()), signing_key="right")
    forged = forge(signed)
    with pytest.raises(SignatureError):
        await loads(forged, signing_key="right")
    assert ran == []
    await loads(forged)  # every checksum of it is right


def forge(data: bytes) -> bytes:
    """Change an array's first item and mend the record's checksum, as who has no key can."""
    trailer = container.unpack_trailer(data[-64:], len(data) - 64)
    start = trailer.index_offset + 64
    size = container.unpack_record(data[trailer.index_offset : start], trailer.index_offset).size
    for offset, record in container.unpack_index(data[start : start + size], trailer.index_offset):
        if record.kind == container.BUFFERS:
            forged = bytearray(data)
            forged[offset + 64] ^= 1
            end = offset + record.head_size + record.size
            check = xxh3_64_intdigest(bytes(forged[offset + 24 : end]), offset)
            forged[end : end + 8] = check.to_bytes(8, "little")
            return bytes(forged)
    raise AssertionError("no buffers")


async def test_signatures_guard_mapped_files_too(tmp_path: pathlib.Path) -> None:
    signed = await dumps([Telltale(), np.arange(100_000)], signing_key="right")
    path = tmp_path / "file"
    path.write_bytes(forge(signed))
    with pytest.raises(SignatureError):
        await load(path, mmap_mode="r", signing_key="right")
    assert ran == []
    path.write_bytes(signed)
    assert (await load(path, mmap_mode="r", signing_key="right"))[1][5] == 5
    with pytest.raises(ValueError, match="break the signature"):
        await load(path, mmap_mode="r+", signing_key="right")


async def test_what_is_mapped_is_what_was_signed_whoever_writes_the_file_meanwhile(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(await dumps(["good", np.arange(100_000)], signing_key="right"))
    evil = await dumps(["evil", np.arange(100_000)], signing_key="wrong")
    compare = hmac.compare_digest

    def change(*digests: bytes) -> bool:
        path.write_bytes(evil)  # in place
        return compare(*digests)

    monkeypatch.setattr(hmac, "compare_digest", change)
    assert (await load(path, mmap_mode="r", signing_key="right"))[0] == "good"


@pytest.mark.parametrize("key", ["", b"", 5])
async def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="signing_key"):
        await dumps(1, signing_key=key)


# Mutation, with checksums mended: what somebody could write who knows the format.


def mend(data: bytearray) -> bytes:
    """Make all checksums, and the index, of a plain file right, as far as it can be read."""
    data[56:64] = xxh3_64_intdigest(bytes(data[:56])).to_bytes(8, "little")
    offset, index = 64, b""
    while offset + 64 <= len(data) and data[offset : offset + 4] in (b"PKL ", b"BUF ", b"IDX "):
        kind, count, size = struct.unpack_from("<4sIQ", data, offset)
        data[offset + 16 : offset + 24] = xxh3_64_intdigest(bytes(data[offset : offset + 16]), offset).to_bytes(
            8, "little"
        )
        if count > 1000 or size > len(data):
            break
        head = container.aligned(24 + 8 * count)
        end = offset + head + size
        if kind == b"IDX " and len(index) == size:
            data[offset + head : end] = index
        index += bytes(data[offset : offset + 24 + 8 * count])
        data[end : end + 8] = xxh3_64_intdigest(bytes(data[offset + 24 : end]), offset).to_bytes(8, "little")
        offset = container.aligned(end + 8)
    if len(data) >= 64:
        start = len(data) - 64
        data[start + 56 :] = xxh3_64_intdigest(bytes(data[start : start + 56]), start).to_bytes(8, "little")
    return bytes(data)


PLAIN = dumped([{"a": np.arange(10.0), "b": [1, "x", (2, 3)]}, np.zeros(3, [("a", "i4"), ("b", "M8[s]")]), {1, 2}])


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_a_mutated_file_gives_plain_data_or_an_error_whatever_its_checksums(changes: Any, mended: bool) -> None:
    data = bytearray(PLAIN)
    for position, value in changes:
        data[position] = value
    content = mend(data) if mended else bytes(data)
    with contextlib.suppress(errors.AparallelError):
        load_from_bytes(content, LoadOptions.checked(trusted=[], n_jobs=1))


@settings(max_examples=150)
@given(st.binary(max_size=200), st.sampled_from([b"", container.MAGIC, b"\x80\x04", b"\x78\x9c", b"\x1f\x8b", b"BZh9"]))
def test_any_bytes_at_all_give_an_error_or_plain_data(content: bytes, start: bytes) -> None:
    with contextlib.suppress(errors.AparallelError):
        load_from_bytes(start + content, LoadOptions.checked(trusted=[], n_jobs=1))


def test_sizes_that_lie_take_no_memory() -> None:
    for kind, size in ((container.BUFFERS, 1 << 50), (container.INDEX, 1 << 50), (container.PICKLE, 16 << 20)):
        lengths = (size,) if kind == container.BUFFERS else ()
        head = container.pack_record(container.Record(kind, size, lengths), 64).ljust(64, b"\0")
        with pytest.raises(TruncatedFileError):
            loaded(container.pack_header(container.Header()) + head)


@pytest.mark.parametrize("size", [1 << 30, 1 << 50, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_sizes_that_lie_in_what_is_compressed_or_mapped_take_no_memory(tmp_path: pathlib.Path, size: int) -> None:
    head = container.pack_record(container.Record(container.BUFFERS, size, (size,)), 64).ljust(64, b"\0")
    header = container.pack_header(container.Header(container.Flag.COMPRESSED, "zlib"))
    with pytest.raises(CorruptFileError):
        loaded(header + head + container.pack_chunk(1 << 20, b"stored", 128) + b"stored")
    path = tmp_path / "file"
    index = container.pack_record(container.Record(container.INDEX, size), 64).ljust(64, b"\0")
    trailer = container.pack_trailer(container.Trailer(64, 192))
    path.write_bytes(container.pack_header(container.Header()) + index + trailer)
    with pytest.raises(CorruptFileError):
        load_from_path(str(path), LoadOptions.checked("r"))


@pytest.mark.parametrize("codec", ["", "zlib"])
async def test_a_stream_whose_sizes_lie_takes_memory_only_as_bytes_come(codec: str) -> None:
    import tracemalloc

    size = 1 << 40
    head = container.pack_record(container.Record(container.BUFFERS, size, (size,)), 64).ljust(64, b"\0")
    flags = container.Flag.COMPRESSED if codec else container.Flag(0)

    async def chunks() -> Any:
        yield container.pack_header(container.Header(flags, codec)) + head
        offset = 128
        for _ in range(10):
            chunk = bytes(1 << 20)
            if codec:
                stored = zlib.compress(chunk, 1)
                chunk = container.pack_chunk(len(chunk), stored, offset) + stored
                offset += len(chunk)
            yield chunk

    tracemalloc.start()
    try:
        with pytest.raises(TruncatedFileError):
            await load(chunks())
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [None, "lz4"])
async def test_a_stream_of_a_large_array_is_believed_as_it_comes(compress: str | None) -> None:
    array = np.arange(9_000_000.0)
    assert np.array_equal(await load(dump_chunks(array, compress=compress)), array)


@pytest.mark.parametrize("codec", ["zlib", "gzip", "bz2", "xz", "lzma", "zstd", "lz4", "numeric"])
def test_a_chunk_that_would_grow_beyond_its_size_is_refused(codec: str) -> None:
    from aparallel._persist.compressors import chosen, decompressor

    choice = chosen(codec)
    assert choice is not None
    bomb = choice.create().compress(memoryview(bytes(50 << 20)), 1)
    try:
        found = decompressor(codec).decompress(memoryview(bomb), 1000)
    except Exception:  # in the codec's own words
        return
    assert len(found) == 1001  # one byte too many is enough for the reader to refuse it


def test_a_file_that_shrinks_after_it_was_mapped_is_noticed_at_the_next_load(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(dumped(np.arange(100_000.0)))
    os.truncate(path, 5000)
    with pytest.raises(TruncatedFileError):
        load_from_path(str(path), LoadOptions.checked("r"))
