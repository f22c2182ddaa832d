"""Files that joblib's releases wrote are read, with joblib not there. tests/data/joblib/make.py has written them."""

from __future__ import annotations

import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import zipfile
from typing import Any

import aiofiles
import anyio
import numpy as np
import pytest
from persisted import assert_same

from aparallel import inspect, load, loads
from aparallel._persist import sources
from aparallel.errors import CorruptFileError, SignatureError, UnsupportedFormatError, UntrustedTypeError

DATA = pathlib.Path(__file__).parent / "data" / "joblib"
WAYS = ("plain", "zlib", "gzip", "bz2", "lzma", "xz", "lz4")
CORPUS = [
    (archive.stem, way)
    for archive in sorted(DATA.glob("*.zip"))
    for way in WAYS
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
    assert len(CORPUS) > 90


@pytest.mark.parametrize(("release", "way"), CORPUS)
async def test_what_a_release_wrote_is_read(release: str, way: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written(release, way))
    assert_is_content(await load(path))
    assert_is_content(await load(path, trusted=[]))


@pytest.mark.parametrize("release", sorted({release for release, _ in CORPUS}))
async def test_its_arrays_are_mapped_where_they_lie(release: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written(release, "plain"))
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


async def test_one_that_is_compressed_cannot_be_mapped(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written(CORPUS[-1][0], "gzip"))
    with pytest.raises(UnsupportedFormatError, match="compressed with gzip"):
        await load(path, mmap_mode="r")


@pytest.mark.parametrize("way", WAYS)
async def test_inspect_tells_what_is_in_it(way: str) -> None:
    import io

    info = await inspect(io.BytesIO(written(CORPUS[-1][0], way)))
    assert info.format == "joblib"
    assert info.compression == (None if way == "plain" else way)
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


@pytest.mark.parametrize("way", WAYS)
async def test_cut_anywhere_it_is_an_error(way: str) -> None:
    data = written(CORPUS[-1][0], way)
    for length in sorted({*range(1, 40), *range(40, len(data) - 20, len(data) // 40)}):
        with pytest.raises((CorruptFileError, UnsupportedFormatError)):
            await loads(data[:length])
        with pytest.raises((CorruptFileError, UnsupportedFormatError, UntrustedTypeError)):
            await loads(data[:length], trusted=[])


async def test_several_in_one_open_file_are_read_one_by_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written(CORPUS[-1][0], "plain") + written(CORPUS[0][0], "plain"))
    with path.open("rb") as file:
        assert_is_content(await load(file))
        assert_is_content(await load(file))


@pytest.mark.parametrize("protocol", [2, 4])
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
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as target:
        target.write(pickle.dumps([{"id": 1}], 2) + pickle.dumps("next", 2))
        target.flush()
        assert await load(source) == [{"id": 1}]
        assert await load(source) == "next"


async def test_a_plain_pickle_of_any_protocol_is_read() -> None:
    import pickle

    for protocol in (2, 3, 4, 5):
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
