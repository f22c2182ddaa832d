"""Stream results from an async source as they finish, with progress, in constant memory."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

from aparallel import Call, delayed, stream_parallel


def stretch_key(password: bytes) -> str:
    return hashlib.pbkdf2_hmac("sha256", password, b"salt", 20_000).hex()


async def passwords() -> AsyncIterator[Call[str]]:
    """Calls that arrive over time. They are drawn only as fast as workers and reader keep up."""
    for number in range(40):
        await asyncio.sleep(0)  # a database cursor or a socket would wait here
        yield delayed(stretch_key)(b"password %d" % number)


def show_progress(done: int, total: int | None) -> None:
    """*total* is None while the source has not ended: an async source has no length."""
    if done % 10 == 0:
        print(f"{done} of {total or 'unknown'}")


async def main() -> None:
    async with stream_parallel(passwords(), ordered=False, progress=show_progress) as results:
        keys = {index: key async for index, key in results.indexed()}

    assert keys[7] == stretch_key(b"password 7")
    print(f"{len(keys)} keys, indexes 0 to {max(keys)}")


asyncio.run(main())
