"""What users give: paths and files, what is read on the event loop, and signing keys."""

from __future__ import annotations

import inspect
import io
import os
from typing import TYPE_CHECKING, Any

from aparallel._ground.awaiting import is_coroutine_function

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


def path_of(target: object) -> str | None:
    """Return *target* as a path if it is one: text or an ``os.PathLike``, but not bytes, which may be content."""
    if isinstance(target, str):
        return target
    if isinstance(target, os.PathLike):
        return os.fsdecode(os.fspath(target))
    return None


class OnLoop:
    """A source that is read on the event loop.

    Attributes:
        read: returns about as many bytes as asked for, none at the end.
        file: the file that is read, if it is one: others may read what follows.
    """

    def __init__(self, read: Callable[[int], Awaitable[Any]], file: Any = None) -> None:
        self.read = read
        self.file = file

    @property
    def exact(self) -> bool:
        return self.file is not None

    async def goes_back(self) -> bool:
        """Whether it can go back to where it was before."""
        seekable = getattr(self.file, "seekable", None)
        if not (callable(seekable) and is_coroutine_function(getattr(self.file, "seek", None))):
            return False
        found = seekable()
        return bool(await found if inspect.isawaitable(found) else found)

    async def give(self, size: int) -> Any:
        """Answer a request of :class:`~aparallel._persist.sources.StreamSource`'s."""
        if size >= 0:
            return await self.read(size)
        await self.file.seek(size, os.SEEK_CUR)
        return b""


def is_text(file: Any) -> bool:
    """Whether a file is open for text, whatever reads or writes it."""
    # Asynchronous files pass on what the file in them has.
    return isinstance(file, io.TextIOBase) or isinstance(getattr(file, "encoding", None), str)


def reader_back(file: Any) -> Callable[[int], Any] | None:
    """A reader of *file* that goes back when it is asked for fewer bytes than none, if that is cheap."""
    if not (isinstance(file, (io.BytesIO, io.BufferedReader, io.BufferedRandom, io.FileIO)) and file.seekable()):
        return None

    def read(size: int) -> Any:
        if size >= 0:
            return file.read(size)
        file.seek(size, os.SEEK_CUR)
        return b""

    return read


def reader_of(source: Any, what: str) -> OnLoop | Callable[[int], Any]:
    """How to read from something that is no path.

    Raises:
        TypeError: nobody can.
    """
    read = getattr(source, "read", None)
    if callable(read) and not is_text(source):
        if is_coroutine_function(read):
            return OnLoop(read, source)
        return read  # type: ignore[no-any-return]
    if hasattr(source, "__aiter__") and not callable(read):
        return OnLoop(_next_chunk(source.__aiter__()))
    hint = ""
    if isinstance(source, (bytes, bytearray, memoryview)):
        hint = " For bytes there is loads()." if what == "load" else " Put bytes into an io.BytesIO."
    raise TypeError(
        f"{what} reads a path, a binary file, an asynchronous file or an asynchronous iterator of bytes, "
        f"not {type(source).__name__}. Open text files in binary mode.{hint}"
    )


def _next_chunk(chunks: AsyncIterator[Any]) -> Callable[[int], Awaitable[Any]]:
    async def read(size: int) -> Any:
        async for chunk in chunks:
            # An empty one is not the end: servers send some. What is no chunk, the reader refuses.
            if not hasattr(chunk, "__len__") or len(chunk):
                return chunk
        return b""

    return read


def checked_key(key: str | bytes | None) -> bytes | None:
    """Return a secret as bytes, text in UTF-8.

    Raises:
        ValueError: it is empty.
        TypeError: it is neither text nor bytes.
    """
    if key is None:
        return None
    if isinstance(key, str):
        key = key.encode()
    if not isinstance(key, (bytes, bytearray, memoryview)):
        raise TypeError(f"signing_key must be bytes or text, got {type(key).__name__}.")
    if not len(key):
        raise ValueError("signing_key is empty, so anyone could sign. Use secrets.token_bytes(32), and keep it secret.")
    return bytes(key)
