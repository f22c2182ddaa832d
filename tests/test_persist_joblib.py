"""Files that joblib's releases wrote are read, with joblib not there. tests/data/joblib/make.py has written them."""

from __future__ import annotations

import asyncio
import collections
import gc
import gzip
import importlib.util
import io
import lzma
import math
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import aiofiles
import anyio
import numpy as np
import pytest
from persisted import assert_same

from aparallel import dumps, inspect, load, loads
from aparallel._persist import sources, unpickling
from aparallel.errors import CorruptFileError, SignatureError, UnsupportedFormatError, UntrustedTypeError

DATA = pathlib.Path(__file__).parent / "data" / "joblib"
WAYS = ("plain", "zlib", "gzip", "bz2", "lzma", "xz", "lz4")
# Not compressed either, and without the mark with which later protocols of pickle begin.
OLD = ("protocol-0", "protocol-1")
CORPUS = [
    (archive.stem, way)
    for archive in sorted(DATA.glob("*.zip"))
    for way in (*WAYS, *OLD)
    if way in zipfile.ZipFile(archive).namelist()
]


def content() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("make", DATA / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.content()
    return found


def written(release: str, way: str) -> bytes:
    with zipfile.ZipFile(DATA / f"{release}.zip") as archive:
        return archive.read(way)


def assert_is_content(found: Any) -> None:
    expected = content()
    assert_same(list(found.pop("array of arrays")), list(expected.pop("array of arrays")))
    assert_same(found, expected)


def test_the_corpus_is_of_releases_from_the_first_to_the_latest() -> None:
    releases = {release.split("-")[1] for release, _ in CORPUS}
    assert {
        "0.10.0",
        "0.11",
        "0.12.5",
        "0.13.2",
        "0.14.1",
        "1.0.1",
        "1.2.0",
        "1.3.2",
        "1.4.2",
        "1.5.3",
        "1.6.0",
    } <= releases
    assert len(CORPUS) > 100
    assert len([way for _, way in CORPUS if way in OLD]) == 10


@pytest.mark.parametrize(("release", "way"), CORPUS)
async def test_what_a_release_wrote_is_read(release: str, way: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written(release, way))
    assert_is_content(await load(path))
    assert_is_content(await load(path, trusted=[]))


@pytest.mark.parametrize(("release", "way"), [one for one in CORPUS if one[1] in ("plain", *OLD)])
async def test_its_arrays_are_mapped_where_they_lie(release: str, way: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written(release, way))
    found = await load(path, mmap_mode="r")
    larger = found["larger"]
    assert isinstance(larger, np.memmap)
    assert not larger.flags.writeable
    assert np.array_equal(larger, content()["larger"])
    assert path.read_bytes()[larger.offset : larger.offset + larger.nbytes] == larger.tobytes()
    for name, array in (await load(path, mmap_mode="c")).items():
        if isinstance(array, np.memmap):
            assert_same(np.array(array, subok=False), content()[name])
    changed = await load(path, mmap_mode="r+")
    changed["larger"][:] = -1
    del changed
    assert (await load(path))["larger"].max() == -1


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
@pytest.mark.parametrize("trusted", [None, []])
async def test_arrays_that_go_beyond_what_was_read_ahead_are_mapped(
    mode: Any, trusted: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_AHEAD_IN_MAPPED", 64)
    path = tmp_path / "file.pkl"
    path.write_bytes(written(CORPUS[-1][0], "plain"))
    found = await load(path, mmap_mode=mode, trusted=trusted)
    assert list(found) == list(content())
    assert isinstance(found["larger"], np.memmap)
    assert np.array_equal(found["larger"], content()["larger"])


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
async def test_what_is_mapped_is_let_go_of_with_the_last_array_without_a_collection(
    mode: Any, tmp_path: pathlib.Path, no_collections: None
) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written(CORPUS[-1][0], "plain"))
    found = await load(path, mmap_mode=mode)
    mapping = weakref.ref(found["larger"]._mmap)
    assert mapping() is not None
    del found
    async with asyncio.timeout(10):
        while mapping() is not None:  # noqa: ASYNC110 (the thread that has loaded it may take a moment to forget it)
            await asyncio.sleep(0.001)


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def test_one_that_is_compressed_cannot_be_mapped(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written(CORPUS[-1][0], "gzip"))
    with pytest.raises(UnsupportedFormatError, match="compressed with gzip"):
        await load(path, mmap_mode="r")


async def test_a_file_of_aparallel_that_somebody_compressed_is_told_from_others() -> None:
    data = gzip.compress(await dumps([1, 2]))
    with pytest.raises(UnsupportedFormatError, match="a file of aparallel inside gzip data: decompress that first"):
        await loads(data)
    assert await loads(gzip.decompress(data)) == [1, 2]


@pytest.mark.parametrize("way", [*WAYS, *OLD])
async def test_inspect_tells_what_is_in_it(way: str) -> None:
    import io

    info = await inspect(io.BytesIO(written(CORPUS[-1][0], way)))
    assert info.format == "joblib"
    assert info.compression == (None if way in ("plain", *OLD) else way)
    assert info.untrusted == ()
    assert info.array_count >= 18
    assert {(2, 3, 4), (), (0, 5)} <= {array.shape for array in info.arrays}


async def test_arrays_are_gone_past_where_nobody_wants_them(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joblib = pytest.importorskip("joblib")
    path = tmp_path / "file.pkl"
    joblib.dump({"large": np.arange(2_000_000), "text": "t" * 1000}, path)
    read, sizes = os.read, []

    def counted(fd: int, size: int) -> bytes:
        sizes.append(size)
        return read(fd, size)

    monkeypatch.setattr(sources.os, "read", counted)
    info = await inspect(path)
    assert (info.array_count, info.size) == (1, path.stat().st_size)
    found = await load(path, mmap_mode="r", trusted=[])
    assert found["large"][-1] == 1_999_999
    assert sum(sizes) < 2_000_000


@pytest.mark.parametrize("way", [*WAYS, *OLD])
async def test_cut_anywhere_it_is_an_error(way: str) -> None:
    data = written(CORPUS[-1][0], way)
    for length in sorted({*range(1, 40), *range(40, len(data) - 20, len(data) // 40)}):
        with pytest.raises((CorruptFileError, UnsupportedFormatError)):
            await loads(data[:length])
        with pytest.raises((CorruptFileError, UnsupportedFormatError, UntrustedTypeError)):
            await loads(data[:length], trusted=[])


async def test_xz_streams_that_follow_each_other_are_one_pickle() -> None:
    data = pickle.dumps(list(range(100_000)))
    streams = [lzma.compress(data[start : start + 50_000]) for start in range(0, len(data), 50_000)]
    assert await loads(b"".join(streams)) == list(range(100_000))
    assert await loads(lzma.compress(pickle.dumps("all")) + b"tail") == "all"


@pytest.mark.parametrize("size", [64 << 20, 1 << 30])
async def test_a_file_of_lzma_is_not_given_as_much_memory_as_it_says_that_it_needs(size: int) -> None:
    data = bytearray(lzma.compress(pickle.dumps("text"), lzma.FORMAT_ALONE))
    data[1:5] = size.to_bytes(4, "little")
    if size < 1 << 30:  # as of the highest level
        assert (await inspect(io.BytesIO(data))).compression == "lzma"
    else:
        with pytest.raises(CorruptFileError, match="Memory usage limit"):
            await inspect(io.BytesIO(data))


async def test_several_in_one_open_file_are_read_one_by_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pkl"
    ways = ("plain", *OLD, "plain")
    path.write_bytes(b"".join(written(CORPUS[-1][0], way) for way in ways) + b"tail")
    for trusted in (None, []):
        with path.open("rb") as file:
            for _ in ways:
                assert_is_content(await load(file, trusted=trusted))
            assert file.read() == b"tail"
    async with aiofiles.open(path, "rb") as asynchronous:
        with path.open("rb") as file:
            for way in ways:
                size = len(written(CORPUS[-1][0], way))
                for source in (file, asynchronous):
                    info = await inspect(source)
                    assert (info.size, info.content_size) == (size, size)
            assert file.read() == await asynchronous.read() == b"tail"


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
async def test_open_files_are_read_ahead_and_no_further_than_the_object(tmp_path: pathlib.Path, protocol: int) -> None:
    import pickle

    class Counting(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            return super().read(size)

    rows = [{"id": number} for number in range(1_000)]
    content = pickle.dumps(rows, protocol) + pickle.dumps("next", protocol) + b"tail"
    file = Counting(content)
    assert await load(file) == rows
    assert file.reads < 10
    assert await load(file) == "next"
    assert file.getvalue()[file.tell() :] == b"tail"
    file.seek(0)
    assert await load(file, trusted=[]) == rows
    assert await load(file, trusted=[]) == "next"
    assert file.getvalue()[file.tell() :] == b"tail"
    path = tmp_path / "file"
    path.write_bytes(content)
    for opening in (aiofiles.open(path, "rb"), await anyio.open_file(path, "rb")):
        async with opening as asynchronous:
            assert await load(asynchronous) == rows
            assert await load(asynchronous) == "next"
            assert await asynchronous.read() == b"tail"


async def test_of_a_pipe_no_more_is_read_than_the_object() -> None:
    import pickle

    reader, writer = os.pipe()
    values = [[{"id": 1}], None, 5, "next"]
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as target:
        for protocol in (0, 1, 2, 5):
            # The writer stays: who reads one byte too many waits for ever.
            target.write(b"".join(pickle.dumps(value, protocol) for value in values))
            target.flush()
            for value in values:
                assert await load(source) == value


@pytest.mark.parametrize(
    "data",
    [
        b"ZF0x10                x\x9c",
        b"\x80\x02cjoblib.numpy_pickle\nNDArrayWrapper\n)\x81.",
        b"\x80\x02csklearn.externals.joblib.numpy_pickle\nZNDArrayWrapper\n)\x81.",
    ],
)
async def test_what_joblib_before_0_10_wrote_is_told_so(data: bytes) -> None:
    with pytest.raises(UnsupportedFormatError, match=r"joblib 0\.9 or earlier"):
        await loads(data)


async def test_a_plain_pickle_of_any_protocol_is_read() -> None:
    import pickle

    for protocol in range(6):
        data = pickle.dumps(content(), protocol)
        # NumPy itself gives big-endian arrays back as native ones.
        expected = pickle.loads(data)
        expected.pop("array of arrays")
        for trusted in (None, []):
            found = await loads(data, trusted=trusted)
            found.pop("array of arrays")
            assert_same(found, expected)
        with pytest.raises(SignatureError):
            await loads(data, signing_key="key")


@pytest.mark.parametrize("trusted", [None, []])
async def test_a_memmap_that_an_old_numpy_pickled_is_read(trusted: list[Any] | None, tmp_path: pathlib.Path) -> None:
    data = pickle.dumps(np.memmap(tmp_path / "array", np.int64, "w+", shape=3), 2)
    assert b"cnumpy\nmemmap\n" in data
    found = await loads(data.replace(b"cnumpy\nmemmap\n", b"cnumpy.core.memmap\nmemmap\n"), trusted=trusted)
    assert type(found) is np.memmap
    assert found.tolist() == [0, 0, 0]


class Pipe(io.BytesIO):
    """Cannot go back."""

    def seekable(self) -> bool:
        return False


async def test_what_cannot_go_back_is_checked_without_a_file_unless_it_is_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    temporary_file = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: made.append(temporary_file()) or made[-1])
    expected = [bytes([number]) * 1000 for number in range(100)]
    pipe = Pipe(pickle.dumps(expected) + b"more")
    assert await load(pipe, trusted=[]) == expected
    assert not made
    monkeypatch.setattr(unpickling, "_IN_MEMORY", 10_000)
    pipe.seek(0)
    assert await load(pipe, trusted=[]) == expected
    assert len(made) == 1


# Each is a file of its own in protocols 0 and 1, some of a few bytes, and begins with another opcode.
VALUES = [0, -5, 256, 65536, True, 1.5, -1.5, math.inf, -math.inf, math.nan, 1e300, 10**40, "", "a" * 256, "a" * 70_000]
VALUES += ["\"'", b"", b"x" * 256, None, [], {}, (), [0], {"a": 0}, (0,), {0}, collections.OrderedDict(a=0), int, len]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("protocol", [0, 1])
async def test_a_single_value_of_an_old_protocol_is_read_or_cut(value: Any, protocol: int) -> None:
    import pickle

    data = pickle.dumps(value, protocol)
    for found in (await loads(data), await load(Pipe(data))):
        assert repr(found) == repr(value)
    for length in range(1, min(len(data), 100)):
        with pytest.raises(CorruptFileError):
            await loads(data[:length])


NO_PICKLES = [
    b"name,age\nAnna,5\n",
    b"Name,age\nAnna,5\n",
    b"Id;Value\n1;2\n",
    b"(c) Copyright\n",
    b"Lines of text.\n",
    b"Version 1.0\nof something\n",
    b"Some text",
    b"cat\ndog\nbird\n",
    b"colour\nred, green\n",
    b"import os\n",
    b"I am a text\n",
    b"F\n",
    b"]]) and so on",
    b"}{",
    b"(1, 2)",
    b"Title of a text that goes on and on, and ends.",
    b"[1, 2]",
    b'{"a": 1}',
    b"PK\x03\x04" + bytes(30),
    b"\x93NUMPY" + bytes(60),
    b"\x89PNG\r\n\x1a\n",
    b"The first line\nand a second one\n" * 100,
    b"Time,Value\n1,2\n" * 100,
    b"XML is a text, too\n" * 100,
    b"Lorem ipsum dolor sit amet, " * 100,
    b"Important: no line of this ends. " * 100,
    b"Find it. " * 200,
    b"call me, " * 200,
    b"SQLite format 3\0" + bytes(4000),
]


@pytest.mark.parametrize("data", NO_PICKLES)
async def test_what_only_begins_as_an_old_pickle_is_none(
    data: bytes, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cat.py").write_text("raise AssertionError('imported')")
    (tmp_path / "file").write_bytes(data)
    for use in (
        lambda: loads(data),
        lambda: loads(data, trusted=[]),
        lambda: load(io.BytesIO(data)),
        lambda: inspect(io.BytesIO(data)),
        lambda: inspect(tmp_path / "file"),
    ):
        with pytest.raises(UnsupportedFormatError):
            await use()
    # Of a pipe, no more is looked at than two bytes.
    with pytest.raises((UnsupportedFormatError, CorruptFileError)):
        await inspect(Pipe(data))


class Kept:
    """A class of the user's."""


class KeptNumber(float):
    pass


class KeptText(str):  # noqa: SLOT000  # it keeps more
    pass


class KeptList(list[Any]):
    pass


class KeptDict(dict[str, Any]):
    pass


class KeptPair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize("protocol", [0, 1])
async def test_a_number_a_text_or_a_collection_of_the_user_s_is_trusted_by_its_class(protocol: int) -> None:
    import pickle

    import scipy.sparse

    for kept in (KeptNumber(1.5), KeptText("a"), KeptList([1, 2]), KeptDict(a=1), KeptPair([1], "b")):
        if not isinstance(kept, tuple):
            kept.__dict__ = {"b": 2}  # type: ignore[union-attr]
        data = pickle.dumps(kept, protocol)
        with pytest.raises(UntrustedTypeError) as refused:
            await loads(data, trusted=[])
        assert refused.value.names == (f"{__name__}.{type(kept).__name__}",)
        found = await loads(data, trusted=[type(kept)])
        assert type(found) is type(kept)
        assert found == kept
        assert getattr(found, "__dict__", {}) == getattr(kept, "__dict__", {})
    # SciPy says so in any protocol.
    matrix = scipy.sparse.dok_array(np.eye(3))
    data = await dumps(matrix)
    assert ((await loads(data, trusted=(await inspect(io.BytesIO(data))).untrusted)) != matrix).nnz == 0


@pytest.mark.parametrize("protocol", [0, 1])
async def test_what_an_old_protocol_makes_is_trusted_by_its_class(protocol: int) -> None:
    import pickle

    found = Kept()
    found.__dict__ = {"a": [1, -5, 2**40, True, 0, 0.5, "ü\\"], "b": b"\xff"}
    data = pickle.dumps(found, protocol)
    with pytest.raises(UntrustedTypeError) as refused:
        await loads(data, trusted=[])
    assert refused.value.names == (f"{__name__}.Kept",)
    for trusted in ([Kept], [f"{__name__}.Kept"], None):
        assert (await loads(data, trusted=trusted)).__dict__ == found.__dict__


@pytest.mark.parametrize(
    "data",
    [
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nint\nc__builtin__\nint\nI5\ntR.",
        b"ccopy_reg\n_reconstructor\n(cbuiltins\nlist\nc__builtin__\nlist\n(I1\nltR.",
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nbytearray\nc__builtin__\nbytearray\nI99999999999\ntR.",
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nset\nc__builtin__\nxrange\n(I99999999999\ntRtR.",
        b"ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nstr\nS'true'\ntR.",
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nint\ncos\nsystem\nS'true'\ntR.",
        b"ccopyreg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
        b"ccopy_reg\n_reconstructor\n(I1\nc__builtin__\nobject\nNtR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
    ],
)
async def test_an_old_pickle_makes_nothing_that_is_not_trusted(data: bytes) -> None:
    with pytest.raises(UntrustedTypeError):
        await loads(data, trusted=[])


@pytest.mark.parametrize("number", [b"010", b"0x10", b"1_0", b"+1", b" 1", b"-0", b"001", b"1 "])
async def test_a_number_that_no_pickler_writes_is_refused(number: bytes) -> None:
    # The unpickler reads some of them otherwise than they look.
    for opcode in (b"I", b"L"):
        with pytest.raises(CorruptFileError):
            await loads(b"(lp0\n" + 500 * b"I1\na" + opcode + number + b"\na.", trusted=[])


def test_joblib_is_not_needed() -> None:
    release = CORPUS[-1][0]
    script = f"""
import asyncio, sys, zipfile
sys.modules["joblib"] = None
from aparallel import loads
data = zipfile.ZipFile({str(DATA / f"{release}.zip")!r}).read("xz")
print(asyncio.run(loads(data))["larger"].sum())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == str(content()["larger"].sum()), run.stderr
