"""Memory with a million entries. ``pytest -m soak -s`` tells the times."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from aparallel import Memory
from aparallel._ground.store import Place, Totals
from aparallel._memory.disk import slots
from aparallel._memory.disk.store import DiskStore
from aparallel._memory.entry import Body, Entry, metadata_of, pack
from aparallel._memory.values import pickle_small


def value_of(x: int) -> dict[str, int]:
    return {"x": x}


def fill(memory: Memory, entries: int) -> None:
    """Store the results of value_of for 0, 1, ... as calls would, without the calls' own cost."""
    store = memory._shelf.store
    assert isinstance(store, DiskStore)
    cached = memory.cache(value_of)
    store.directory.prepare()
    counts: dict[int, Totals] = {}
    for x in range(entries):
        key = cached._lookup.keys.make((x,), {}).digest
        body = pickle_small(value_of(x), compressed=False, mapped=False)
        assert body is not None
        data = pack(key, Entry(Body.VALUE, time.time(), metadata_of({"seconds": 0.0}), body), None)
        path = Path(store.directory.entry_path(Place(cached._lookup.identifier, key)))
        try:
            path.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        before = counts.get(key[0], Totals(0, 0))
        counts[key[0]] = Totals(before.entries + 1, before.bytes + len(data))
    for slot, totals in counts.items():
        store.slots.counts.set(slot, totals)


async def times(location: str, entries: int) -> dict[str, float]:
    """Microseconds of hits, misses (at the bound, so with eviction) and pruning, with so many entries there."""
    await asyncio.to_thread(fill, Memory(location), entries)
    memory = Memory(location, max_entries=entries)
    cached = memory.cache(value_of)
    store = memory._shelf.store
    assert store is not None
    await cached(0)

    async def each(numbers: Any) -> list[float]:
        taken = []
        for x in numbers:
            started = time.perf_counter()
            assert await cached(x) == {"x": x}
            taken.append(time.perf_counter() - started)
        return taken

    # The disk's own slowness is not the question: what is looked at is in the file system's cache.
    sample = random.sample(range(1, entries), min(500, entries - 1))
    await asyncio.to_thread(os.sync)  # nor is what it has still to write of so many at once
    await asyncio.to_thread(lambda: sum(1 for _ in store.entries()))
    await each(sample)
    memory._shelf.tier.clear()
    hits = await each(sample)
    assert cached.statistics().misses == 0
    misses = await each(range(entries, entries + 1000))
    started = time.perf_counter()
    removed = await memory.reduce_size(items_limit=entries - 2000)
    pruning = (time.perf_counter() - started) / removed
    totals = await memory.statistics()
    assert 0.9 * entries - 2000 <= totals.entries <= entries - 2000
    return {"hit": median(hits) * 1e6, "miss": sum(misses) / len(misses) * 1e6, "prune, per entry": pruning * 1e6}


async def compare(location: str, few: int, many: int) -> None:
    small = await times(f"{location}/few", few)
    large = await times(f"{location}/many", many)
    for name, value in large.items():
        print(f"{name}: {small[name]:.0f} µs with {few:,} entries, {value:.0f} with {many:,}")
    # The file system itself takes longer in a larger tree: unlinking alone four times, with 200,000 entries on ext4.
    assert large["hit"] < 3 * small["hit"]
    assert large["miss"] < 5 * small["miss"]
    assert large["prune, per entry"] < 15 * small["prune, per entry"]


@pytest.mark.parametrize("entries", [1_000, 4_000])
def test_what_is_looked_at_depends_on_what_goes_and_not_on_what_is_there(
    tmp_path: Path, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(tmp_path / "cache")
    fill(memory, entries)
    looked_at = 0
    scan_folder = slots.scan_folder

    def counting(folder: str, function: str) -> Any:
        nonlocal looked_at
        for candidate in scan_folder(folder, function):
            looked_at += 1
            yield candidate

    monkeypatch.setattr(slots, "scan_folder", counting)
    removed = asyncio.run(memory.reduce_size(items_limit=entries - 50))
    assert 50 <= removed <= 80
    assert looked_at <= 7 * removed


@pytest.mark.soak
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_million_entries_cost_no_more_than_a_few_thousand(tmp_path: Path, anyio_backend: str) -> None:
    await compare(os.fspath(tmp_path), 10_000, int(os.environ.get("APARALLEL_SOAK_ENTRIES", "1000000")))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_bound_holds_and_hits_stay_hits_with_many_entries(tmp_path: Path, anyio_backend: str) -> None:
    await times(os.fspath(tmp_path / "cache"), 3_000)
