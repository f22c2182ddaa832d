"""What is dumped is what is loaded, whatever it is, wherever to and however compressed."""

from __future__ import annotations

import asyncio
import copyreg
import errno
import functools
import io
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import tracemalloc
import types
from collections.abc import AsyncIterator
from typing import Any

import aiofiles
import anyio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from persisted import Point, Tagged, arrays, assert_same, plain, twice

from aparallel import dump, dump_chunks, dumps, inspect, load, loads
from aparallel._persist import pickling, reader
from aparallel._persist.compressors import NAMES, Zlib
from aparallel._persist.dump import dump_to_bytes
from aparallel._persist.load import load_from_bytes
from aparallel._persist.options import DumpOptions, LoadOptions
from aparallel.abc import Compressor
from aparallel.testing import CompressorSuite


async def chunked(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
        yield b""


@pytest.mark.parametrize("name", arrays())
async def test_every_kind_of_array_comes_back_the_same(name: str) -> None:
    expected = arrays()[name]
    assert_same(await loads(await dumps(expected)), expected)


@pytest.mark.parametrize("name", plain())
async def test_plain_data_comes_back_the_same(name: str) -> None:
    expected = plain()[name]
    assert_same(await loads(await dumps(expected)), expected)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("level", ["default", "lowest", "highest"])
async def test_every_codec_at_its_levels_gives_everything_back(codec: str, level: str, tmp_path: pathlib.Path) -> None:
    from aparallel._persist.compressors import _CODECS

    if level == "highest" and codec in ("zstd", "lz4"):
        highest = 15 if codec == "zstd" else 12
    else:
        highest = _CODECS[codec].highest
    number = {"default": None, "lowest": _CODECS[codec].lowest, "highest": highest}[level]
    expected = [arrays(), plain()] if level == "default" else [np.arange(20_000.0), "x" * 1000]
    path = tmp_path / "file"
    await dump(expected, path, compress=(codec, number), durable=False)
    assert_same(await load(path), expected)


async def test_shared_and_recursive_references_are_kept() -> None:
    a = np.arange(3)
    looped: list[Any] = [a, {"a": a}]
    looped.append(looped)
    found = await loads(await dumps(looped))
    assert found[0] is found[1]["a"]
    assert found[2] is found


async def test_functions_and_classes_travel_by_reference_or_by_value() -> None:
    offset = 3
    found = await loads(await dumps([twice, lambda x: x + offset, Point(1, 2), Point.Inner]))
    assert found[0] is twice
    assert found[1](1) == 4
    assert found[2] == Point(1, 2)
    assert found[3] is Point.Inner


async def test_buffers_of_other_types_travel_out_of_band() -> None:
    data = bytearray(os.urandom(200_000))
    found = await loads(await dumps([pickle.PickleBuffer(data), pickle.PickleBuffer(b"small")]))
    assert bytes(found[0]) == data
    assert bytes(found[1]) == b"small"


async def test_a_memmap_is_stored_as_an_array(tmp_path: pathlib.Path) -> None:
    mapped = np.memmap(tmp_path / "raw", "f8", "w+", shape=(10,))
    mapped[:] = np.arange(10)
    assert_same(await loads(await dumps(mapped)), np.arange(10.0))


async def test_a_loaded_array_owns_no_more_memory_than_its_own() -> None:
    found = await loads(await dumps([np.arange(10.0) for _ in range(100)]))
    assert all(array.base is None or array.base.nbytes == array.nbytes for array in found)


def test_small_arrays_are_not_held_twice_while_they_are_loaded() -> None:
    data = dump_to_bytes([np.full(5000, number) for number in range(500)], DumpOptions())
    tracemalloc.start()
    try:
        load_from_bytes(data, LoadOptions())
        assert tracemalloc.get_traced_memory()[1] < len(data) + (5 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1 << 20, 3_000_000, 100_000_000])
def test_dumped_bytes_are_not_held_twice(size: int) -> None:
    expected = np.full(size, 7, "u1")
    tracemalloc.start()
    try:
        data = dump_to_bytes(expected, DumpOptions())
        # What is reserved and never written to counts here, and takes no memory.
        assert tracemalloc.get_traced_memory()[1] < max(len(data) * 9 // 8, 64 << 20) + (5 << 20)
        assert tracemalloc.get_traced_memory()[0] < len(data) + (1 << 20)
    finally:
        tracemalloc.stop()
    assert_same(load_from_bytes(data, LoadOptions()), expected)


async def test_a_subclass_of_array_may_be_registered_with_copyreg(monkeypatch: pytest.MonkeyPatch) -> None:
    def rebuilt(data: Any) -> Any:
        return np.asarray(data).view(Tagged) + 1

    monkeypatch.setitem(copyreg.dispatch_table, Tagged, lambda array: (rebuilt, (np.asarray(array),)))
    found = await loads(await dumps(np.arange(3).view(Tagged)))
    assert type(found) is Tagged
    assert found.tolist() == [1, 2, 3]


def test_a_record_array_is_one_for_whoever_loads_it() -> None:
    # In a new process, where nothing has loaded the module that its class names.
    program = """
import asyncio, sys
import numpy as np
from aparallel import dumps
array = np.zeros(3, [("a", "i4")]).view(np.recarray)
sys.stdout.buffer.write(asyncio.run(dumps(array)))
"""
    run = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, check=True)
    assert type(load_from_bytes(run.stdout, LoadOptions.checked(trusted=[]))) is np.recarray


async def test_frames_models_and_sparse_matrices_come_back(tmp_path: pathlib.Path) -> None:
    import pandas as pd
    import scipy.sparse
    from sklearn.ensemble import RandomForestClassifier

    frame = pd.DataFrame(
        {"a": np.arange(100.0), "b": list("ab" * 50), "c": pd.Categorical(list("xy" * 50))},
        index=pd.date_range("2020", periods=100),
    )
    sparse = scipy.sparse.random(100, 50, 0.1, format="csr", random_state=0)
    model = RandomForestClassifier(5, random_state=0).fit(np.arange(40.0).reshape(20, 2), [0, 1] * 10)
    for compress in (0, "zlib"):
        await dump([frame, sparse, model], tmp_path / "file", compress=compress)
        frame2, sparse2, model2 = await load(tmp_path / "file")
        pd.testing.assert_frame_equal(frame, frame2)
        assert (sparse != sparse2).nnz == 0
        assert model2.predict([[1, 2]]) == model.predict([[1, 2]])


class Reversing(Compressor):
    name = "reversing"

    def compress(self, data: memoryview, itemsize: int) -> bytes:
        return bytes(data[::-1])

    def decompress(self, data: memoryview, size: int) -> bytes:
        return bytes(data[::-1][: size + 1])


class TestReversing(CompressorSuite):
    def new_compressor(self) -> Compressor:
        return Reversing()


class TestZlib(CompressorSuite):
    def new_compressor(self) -> Compressor:
        class Renamed(Zlib):
            name = "renamed zlib"

        return Renamed(level=3)


async def test_items_of_any_size_are_compressed_whole() -> None:
    pytest.importorskip("numcodecs")
    whole = np.zeros(600_000, [("x", "f4"), ("y", "i4"), ("z", "f4")])
    whole["x"] = np.arange(600_000) / 100
    whole["y"] = np.arange(600_000)
    split = whole.view("u1")
    data = await dumps(whole, compress="numeric")
    assert len(data) < len(await dumps(split, compress="numeric")) / 2
    assert_same(await loads(data), whole)


async def test_small_arrays_are_compressed_as_the_numbers_that_they_are() -> None:
    pytest.importorskip("numcodecs")
    rng = np.random.default_rng(0)
    numbers = [rng.integers(0, 1000, 200) for _ in range(500)]
    alone = await dumps(numbers, compress="numeric")
    mixed = await dumps([*numbers, np.zeros(2, [("x", "f4"), ("y", "f8")])], compress="numeric")
    beside_bytes = await dumps([*numbers, np.zeros(3, "?")], compress="numeric")
    assert len(alone) < 0.8 * len(beside_bytes)
    assert len(mixed) < len(beside_bytes)
    assert_same(await loads(alone), numbers)


async def test_a_compressor_of_the_users_own_serves_both_ways() -> None:
    from aparallel.errors import UnsupportedFormatError

    expected = [np.arange(200_000), "text"]
    data = await dumps(expected, compress=Reversing())
    assert_same(await loads(data, compressors=[Reversing()]), expected)
    with pytest.raises(UnsupportedFormatError, match=r"'reversing'.*compressors="):
        await loads(data)
    for wrong in (Reversing(), [Reversing], None):
        with pytest.raises(TypeError, match="a list of instances"):
            await loads(data, compressors=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a list of instances"):
            await inspect(io.BytesIO(data), compressors=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (lambda: b"", ValueError),
        (lambda: bytes(6 << 20), ValueError),
        (lambda: None, TypeError),
        ([].pop, IndexError),
    ],
    ids=["nothing", "too much", "no bytes", "an error"],
)
async def test_a_compressor_that_fails_is_told_and_leaves_the_old_file(
    tmp_path: pathlib.Path, made: Any, error: type[Exception]
) -> None:
    class Failing(Reversing):
        def compress(self, data: memoryview, itemsize: int) -> bytes:
            found: bytes = made()
            return found

    path = tmp_path / "file"
    await dump("old", path)
    with pytest.raises(error) as raised:
        await dump([1, np.arange(200_000)], path, compress=Failing())
    assert type(raised.value) is error
    assert await load(path) == "old"


async def test_what_a_compressor_makes_is_stored_as_bytes() -> None:
    class Viewed(Reversing):
        def compress(self, data: memoryview, itemsize: int) -> Any:
            items: Any = np.frombuffer(super().compress(data, itemsize) + bytes(-len(data) % 4), np.uint32)
            return memoryview(items)

        def decompress(self, data: memoryview, size: int) -> bytes:
            return super().decompress(data[:size], size)

    assert await loads(await dumps("text", compress=Viewed()), compressors=[Viewed()]) == "text"


# Targets and sources


async def test_a_path_may_be_text_pathlike_or_anyios(tmp_path: pathlib.Path) -> None:
    for number, target in enumerate([str(tmp_path / "a"), tmp_path / "b", anyio.Path(tmp_path / "c")]):
        size = await dump(number, target)
        assert size == os.path.getsize(target)
        assert await load(target) == number


async def test_binary_files_are_used_from_where_they_stand() -> None:
    file = io.BytesIO()
    file.write(b"head")
    await dump([1, np.arange(3)], file)
    await dump("second", file, compress="zlib")
    file.seek(4)
    assert_same(await load(file), [1, np.arange(3)])
    assert await load(file) == "second"


async def test_a_file_that_would_have_to_be_waited_for_is_an_error_and_loses_nothing_unsaid() -> None:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    with os.fdopen(ends[0], "rb", buffering=0) as source, os.fdopen(ends[1], "wb", buffering=0) as target:
        with pytest.raises(BlockingIOError, match="waits until"):
            await load(source)
        with pytest.raises(BlockingIOError, match="waits until"):
            await dump(np.zeros(1_000_000), target)


async def test_what_a_file_of_its_own_kind_keeps_is_not_the_array_itself() -> None:
    class Keeping:
        def __init__(self) -> None:
            self.parts: list[Any] = []

        def write(self, data: Any) -> None:
            self.parts.append(data)

    array, file = np.zeros(1_000_000), Keeping()
    await dump(array, file)
    array[:] = 1
    assert (await loads(b"".join(file.parts))).sum() == 0


@pytest.mark.parametrize("returned", [None, True, "done", 1.0, 10])
async def test_what_write_returns_is_a_count_or_means_that_all_was_taken(returned: Any) -> None:
    taken: list[bytes] = []

    class File:
        def write(self, data: Any) -> Any:
            taken.append(bytes(data)[: returned if type(returned) is int else None])
            return returned

    class AsyncFile(File):
        async def write(self, data: Any) -> Any:
            return super().write(data)

    for file in (File(), AsyncFile()):
        taken.clear()
        await dump([1, 2], file)
        assert await loads(b"".join(taken)) == [1, 2]


async def test_a_count_that_cannot_be_is_an_error_and_no_endless_loop() -> None:
    class File:
        def write(self, data: Any) -> int:
            return -1

    class AsyncFile(File):
        async def write(self, data: Any) -> int:  # type: ignore[override]
            return -1

    for file in (File(), AsyncFile()):
        with pytest.raises(ValueError, match="says that it took -1"):
            await dump([1, 2], file)


async def test_bytes_where_no_path_is_are_told_where_they_belong() -> None:
    data = await dumps([1, 2])
    with pytest.raises(TypeError, match=r"there is loads\(\)"):
        await load(data)
    with pytest.raises(TypeError, match=r"Put bytes into an io\.BytesIO"):
        await inspect(data)
    assert await loads(memoryview(data + data)[: len(data)]) == [1, 2]
    every_other = bytearray(2 * len(data))
    every_other[::2] = data
    assert await loads(memoryview(every_other)[::2]) == [1, 2]


async def test_what_would_have_to_be_awaited_and_does_not_say_so_is_told() -> None:
    async def take(data: Any) -> int:
        return len(data)

    class File:
        def write(self, data: Any) -> Any:
            return take(data)

        read = write

    with pytest.raises(TypeError, match=r"write\(\).* async def"):
        await dump([1, 2], File())
    with pytest.raises(TypeError, match=r"read\(\).* async def"):
        await load(File())


async def test_coroutine_functions_are_known_in_any_form() -> None:
    class Write:
        def __init__(self) -> None:
            self.data = b""

        async def __call__(self, data: Any) -> None:
            self.data += data

    async def read(data: io.BytesIO, size: int) -> bytes:
        return data.read(size)

    target: Any = types.SimpleNamespace(write=Write())
    await dump([1, 2], target)
    source: Any = types.SimpleNamespace(read=functools.partial(read, io.BytesIO(target.write.data)))
    assert await load(source) == [1, 2]
    with pytest.raises(TypeError, match="nobody would await it"):
        await load(source, progress=Write())  # type: ignore[arg-type]


async def test_asynchronous_files_are_used_from_where_they_stand(tmp_path: pathlib.Path) -> None:
    expected = [np.arange(500_000.0), "x"]
    for opened, close in ((aiofiles.open, "close"), (anyio.open_file, "aclose")):
        file = await opened(tmp_path / "file", "wb")  # type: ignore[operator]
        await dump(expected, file)
        await dump("second", file, compress="gzip")
        await getattr(file, close)()
        file = await opened(tmp_path / "file", "rb")  # type: ignore[operator]
        assert_same(await load(file), expected)
        assert await load(file) == "second"
        await getattr(file, close)()


async def test_streams_of_asyncio_carry_objects() -> None:
    expected = [np.arange(300_000.0), {"a": 1}]
    received: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await load(reader))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        await dump(expected, writer)
        assert_same(await received, expected)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("compress", [None, "zlib"])
@pytest.mark.parametrize("size", [1, 7, pytest.param(64, marks=pytest.mark.soak), 100_000])
async def test_chunks_are_the_file_and_load_from_any_chunking(compress: Any, size: int) -> None:
    expected = [np.zeros(2_000 if size < 64 else 2_000_000, "i1"), "x" * 3000]
    chunks = [chunk async for chunk in dump_chunks(expected, compress)]
    assert all(0 < len(chunk) <= 1 << 20 for chunk in chunks)
    data = b"".join(chunks)
    assert data == await dumps(expected, compress)
    assert_same(await load(chunked(data, size)), expected)


async def test_a_link_is_followed_and_permissions_are_kept(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch(mode=0o640)
    os.chmod(tmp_path / "file", 0o640)
    (tmp_path / "link").symlink_to("file")
    await dump(1, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert await load(tmp_path / "file") == 1


async def test_a_new_file_has_the_permissions_that_open_gives(tmp_path: pathlib.Path) -> None:
    await dump(1, tmp_path / "file")
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


async def test_a_pipe_is_written_to_and_read_from(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    expected = [np.arange(100_000.0)]
    async with asyncio.TaskGroup() as group:
        group.create_task(dump(expected, tmp_path / "pipe"))
        loaded = group.create_task(load(tmp_path / "pipe"))
    assert_same(loaded.result(), expected)


@pytest.mark.parametrize(
    ("extension", "codec"),
    [(".z", "zlib"), (".gz", "gzip"), (".bz2", "bz2"), (".xz", "xz"), (".lzma", "lzma"), (".zst", "zstd"),
     (".lz4", "lz4"), (".apl", None), ("", None)],
)  # fmt: skip
async def test_the_extension_chooses_the_codec(extension: str, codec: str | None, tmp_path: pathlib.Path) -> None:
    from aparallel import inspect

    path = tmp_path / f"file{extension}"
    await dump([1], path)
    assert (await inspect(path)).compression == codec
    await dump([1], path, compress=0)
    assert (await inspect(path)).compression is None


@pytest.mark.parametrize(
    ("compress", "error"),
    [("nonesuch", ValueError), (10, ValueError), (-1, ValueError), (("zlib", 10), ValueError), (("zlib",), TypeError),
     (1.5, TypeError), (("zlib", "x"), TypeError), (object(), TypeError), ((3, "zlib"), TypeError)],
)  # fmt: skip
async def test_a_wrong_compress_is_refused_before_anything_is_written(
    compress: Any, error: type[Exception], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(error):
        await dump(1, tmp_path / "file", compress=compress)
    with pytest.raises(error):
        dump_chunks(1, compress)
    assert list(tmp_path.iterdir()) == []


async def test_wrong_targets_and_sources_are_told_apart(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match=r"os\.fsdecode.*dumps"):
        await dump(1, b"bytes")
    async with aiofiles.open(tmp_path / "text", "w") as text:
        with pytest.raises(TypeError, match="binary mode"):
            await dump(1, text)
    with pytest.raises(TypeError, match="binary mode"):
        await dump(1, io.StringIO())
    with pytest.raises(TypeError, match="loads"):
        await load(b"bytes")
    with pytest.raises(TypeError, match="loads takes bytes"):
        await loads("text")  # type: ignore[arg-type]
    for wrong, told in (("text", "gives text"), (5, "gives int where bytes belong")):

        async def chunks(chunk: Any = wrong) -> Any:
            yield chunk

        with pytest.raises(TypeError, match=told):
            await load(chunks())
    await dump(1, tmp_path / "file")
    for use in (load, inspect):
        async with aiofiles.open(tmp_path / "file") as text, await anyio.open_file(tmp_path / "file") as anyios:
            for file in (text, anyios):
                with pytest.raises(TypeError, match="binary mode"):
                    await use(file)
    with pytest.raises(IsADirectoryError):
        await dump(1, tmp_path)
    with pytest.raises(IsADirectoryError):
        await load(tmp_path)
    with pytest.raises(FileNotFoundError):
        await load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"absent.file'$"):
        await dump(1, tmp_path / "absent" / "file")


async def test_a_read_only_file_is_not_replaced(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch(mode=0o400)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    with pytest.raises(PermissionError):
        await dump(1, tmp_path / "file")


class Full(io.FileIO):
    """A file on a disk that has room for one frame of a pickle and a half."""

    room = 100_000

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(bytes(data[: self.room]))
        self.room -= written
        return written


@pytest.mark.parametrize("trusted", [None, []])
@pytest.mark.parametrize("folder", ["absent", "full", "nearly full"])
async def test_a_long_pickle_is_loaded_where_temporary_files_have_no_room(
    folder: str, trusted: list[Any] | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def file(buffering: int = -1) -> io.FileIO:
        if folder == "absent":
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
        full = Full(tmp_path / "file", "w+")
        full.room *= folder == "nearly full"
        return full

    monkeypatch.setattr(tempfile, "TemporaryFile", file)
    monkeypatch.setattr(reader, "_KEPT", 200)
    monkeypatch.setattr(pickling, "_PIECE", 100)
    expected = [f"text {number}" * 10 for number in range(4000)]
    assert await loads(await dumps(expected), trusted=trusted) == expected


# Properties

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
_arrays = npst.arrays(
    npst.scalar_dtypes() | npst.array_dtypes(max_size=3),
    npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
)
_objects = st.recursive(
    _scalars | _arrays,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(_objects, st.sampled_from([None, "zlib", "numeric"]), st.booleans())
def test_any_object_comes_back_the_same(expected: Any, compress: str | None, trusted: bool) -> None:
    data = dump_to_bytes(expected, DumpOptions.checked(compress, n_jobs=1))
    options = LoadOptions.checked(trusted=[] if trusted else None, n_jobs=1)
    assert_same(load_from_bytes(data, options), expected)


@settings(max_examples=60)
@given(
    npst.arrays(npst.scalar_dtypes(), npst.array_shapes(max_dims=3, max_side=6)),
    st.data(),
)
def test_any_view_of_an_array_comes_back_the_same(base: Any, data: st.DataObject) -> None:
    view = base[data.draw(npst.basic_indices(base.shape))]
    view = np.asarray(view).transpose() if data.draw(st.booleans()) else np.asarray(view)
    found = load_from_bytes(dump_to_bytes(view, DumpOptions()), LoadOptions())
    assert_same(found, np.array(view))
    assert Tagged is not type(found)
