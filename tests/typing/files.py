"""Type-checked, never run: what dump and load give, and which arguments are refused."""

from __future__ import annotations

from typing import Any, assert_type

from aparallel import FileInfo, dump, dump_chunks, dumps, inspect, load, loads


async def files() -> None:
    assert_type(await dump({}, "file"), int)
    assert_type(await dump({}, "file", ("zstd", 9), durable=False, signing_key="secret"), int)
    assert_type(await dumps({}, True), bytes)
    assert_type([chunk async for chunk in dump_chunks({})], list[bytes])
    assert_type(await load("file", "r+", trusted=["module.Name", dict]), Any)
    assert_type(await loads(b"", progress=print), Any)
    assert_type(await inspect("file"), FileInfo)

    await load("file", "w")  # type: ignore[arg-type]
    await load("file", mmap_mode=True)  # type: ignore[arg-type]
    await dump({}, "file", compress=1.5)  # type: ignore[arg-type]
    await dumps({}, durable=False)  # type: ignore[call-arg]
    await loads("text")  # type: ignore[arg-type]
