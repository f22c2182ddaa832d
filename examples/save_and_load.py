"""Keep a model in a file: dump it, map it, look into it, and load what a stranger sent without running their code.

Run it: python examples/save_and_load.py
"""

import asyncio
import pickle
import tempfile
from pathlib import Path

import numpy as np

from aparallel import dump, dump_chunks, inspect, load
from aparallel.errors import CorruptFileError, UntrustedTypeError


class Stranger:
    """Somebody's object. Loading it with pickle would run their code here."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("the stranger's code runs",)


async def main() -> None:
    folder = Path(tempfile.mkdtemp())
    model = {"weights": np.arange(4_000_000, dtype=np.float32).reshape(2000, 2000), "classes": ["cat", "dog"]}

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    size = await dump(model, folder / "model.apl")
    ticker.cancel()
    print(f"{size / 1e6:.0f} MB written and synced, the loop lives: {ticks > 0}")

    mapped = await load(folder / "model.apl", mmap_mode="r")
    print(f"mapped: {type(mapped['weights']).__name__}, {mapped['weights'][1, :3]}")

    compressed = await dump(model, folder / "model.z")
    print(f"with zlib: {compressed / size:.0%} of it")

    info = await inspect(folder / "model.apl")
    print(f"inspected: {info.arrays[0].shape} {info.arrays[0].dtype}, asks for nothing else: {info.untrusted == ()}")

    received = await load(dump_chunks(model))  # as from an upload
    print(f"streamed: {received['classes']}")

    (folder / "stranger").write_bytes(pickle.dumps(Stranger()))
    try:
        await load(folder / "stranger", trusted=[])
    except UntrustedTypeError as error:
        print(f"refused: {', '.join(error.names)}")

    content = bytearray((folder / "model.apl").read_bytes())
    content[5_000_000] ^= 1
    (folder / "model.apl").write_bytes(content)
    try:
        await load(folder / "model.apl")
    except CorruptFileError as error:
        print(f"{type(error).__name__}: one bit of 16 MB was wrong")


asyncio.run(main())
