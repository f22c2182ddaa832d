"""The codecs, what ``compress=`` means, and how much each one is told.

A codec makes of each chunk a whole stream of its format, so chunks are compressed and decompressed on all cores.
Formats: zlib RFC 1950, gzip RFC 1952, bzip2, xz and the older lzma of XZ Utils, Zstandard RFC 8878, the LZ4 frame
format, and Blosc 1 for ``numeric``. Every decompressor here is given the size that it may produce, and stops there.
"""

from __future__ import annotations

import bz2
import functools
import importlib
import lzma
import operator
import os
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel.abc import Compressor
from aparallel.errors import UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class _Leveled(Compressor):
    def __init__(self, level: int) -> None:
        self._level = level


class Zlib(_Leveled):
    name = "zlib"
    _wbits = zlib.MAX_WBITS

    def compress(self, data: memoryview, itemsize: int) -> bytes:
        compressor = zlib.compressobj(self._level, zlib.DEFLATED, self._wbits)
        return compressor.compress(data) + compressor.flush()

    def decompress(self, data: memoryview, size: int) -> bytes:
        return zlib.decompressobj(self._wbits).decompress(data, size + 1)


class Gzip(Zlib):
    name = "gzip"
    _wbits = zlib.MAX_WBITS | 16


class Bz2(_Leveled):
    name = "bz2"

    def compress(self, data: memoryview, itemsize: int) -> bytes:
        return bz2.compress(data, max(self._level, 1))

    def decompress(self, data: memoryview, size: int) -> bytes:
        return bz2.BZ2Decompressor().decompress(data, size + 1)


class Xz(_Leveled):
    name = "xz"
    _format = lzma.FORMAT_XZ

    def compress(self, data: memoryview, itemsize: int) -> bytes:
        return lzma.compress(data, self._format, preset=self._level)

    def decompress(self, data: memoryview, size: int) -> bytes:
        decompressor = lzma.LZMADecompressor(self._format, memlimit=LZMA_MEMORY)
        return decompressor.decompress(data, size + 1)


class Lzma(Xz):
    name = "lzma"
    _format = lzma.FORMAT_ALONE


# Level 9 needs 65 MiB to decompress. A hostile file may ask for up to 4 GiB.
LZMA_MEMORY = 128 << 20


class Zstd(_Leveled):
    """The standard library's (Python 3.14), or the package zstandard."""

    name = "zstd"

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._module: Any = _zstd()

    def compress(self, data: memoryview, itemsize: int) -> bytes:
        if self._module.__name__ == "zstandard":
            return bytes(self._module.ZstdCompressor(level=self._level).compress(data))
        return bytes(self._module.compress(data, self._level))

    def decompress(self, data: memoryview, size: int) -> bytes:
        if self._module.__name__ == "zstandard":
            if self._module.frame_content_size(data) != size:
                raise ValueError("the frame says another size")
            return bytes(self._module.ZstdDecompressor(max_window_size=1 << 27).decompress(data))
        return bytes(self._module.ZstdDecompressor().decompress(data, size + 1))


class Lz4(_Leveled):
    name = "lz4"

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._module: Any = lz4_frame()

    def compress(self, data: memoryview, itemsize: int) -> bytes:
        return bytes(self._module.compress(data, compression_level=self._level))

    def decompress(self, data: memoryview, size: int) -> bytes:
        return bytes(self._module.LZ4FrameDecompressor().decompress(data, size + 1))


class Numeric(_Leveled):
    """Blosc, with Zstandard inside, for arrays of numbers.

    The bytes of numbers are shuffled (all first bytes, all second bytes, …), or their bits, or nothing is, whichever
    makes a sample of each chunk smallest: shuffled measurements shrink to a half of what zlib makes of them, but
    decimal fractions grow to double. Without shuffling it is as good as zstd.
    """

    name = "numeric"

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._blosc: Any = _imported("numcodecs.blosc", "numeric", "numcodecs")

    def compress(self, data: memoryview, itemsize: int) -> bytes:
        import numpy as np

        itemsize = itemsize if 1 < itemsize <= 255 and len(data) >= itemsize else 1
        items = np.frombuffer(data, np.uint8)
        start = (len(data) // 2) // itemsize * itemsize
        sample = items[start : start + _SAMPLE // itemsize * itemsize] if len(data) > 2 * _SAMPLE else items
        best = min((_NOTHING, _BYTES, _BITS), key=lambda shuffle: len(self._compress(sample, itemsize, shuffle, 1)))
        # Bytes in their own order need the longer search of a level more; shuffled ones gain nothing from it.
        level = min(self._level + 1, 9) if best == _NOTHING else self._level
        return self._compress(items, itemsize, best, level)

    def _compress(self, items: Any, itemsize: int, shuffle: int, level: int) -> bytes:
        # Unshuffled, Blosc would still deal the bytes out by their place in an item if it knew of items.
        typesize = itemsize if shuffle != _NOTHING else 1
        whole = len(items) // typesize * typesize
        typed = items[:whole].view(f"V{typesize}") if typesize > 1 and whole == len(items) else items
        # One block: the smaller ones that Blosc would choose serve the cache, and cost a tenth of the size.
        return bytes(self._blosc.compress(typed, b"zstd", level, shuffle, len(items)))

    def decompress(self, data: memoryview, size: int) -> bytes:
        # Blosc allocates what its header says: bytes 4 to 8 are the size, 12 to 16 the compressed size.
        if len(data) < 16 or int.from_bytes(data[4:8], "little") != size:
            raise ValueError("Blosc's header says another size")
        if int.from_bytes(data[12:16], "little") != len(data):
            raise ValueError("Blosc's header says another compressed size")
        return bytes(self._blosc.decompress(data))


_NOTHING, _BYTES, _BITS = 0, 1, 2
_SAMPLE = 32 * 1024


def lz4_frame() -> Any:
    """The module of LZ4's frame format.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    return _imported("lz4.frame", "lz4", "lz4")


def _zstd() -> Any:
    try:
        return importlib.import_module("compression.zstd")
    except ModuleNotFoundError:
        return _imported("zstandard", "zstd", "zstandard")


def _imported(module: str, extra: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The codec {extra!r} needs the package {package}, which is not installed. "
            f"Run pip install 'aparallel[{extra}]'.",
            name=error.name,
        ) from error


class _Codec(NamedTuple):
    create: Callable[[int], Compressor]
    default: int
    lowest: int
    highest: int


_CODECS: dict[str, _Codec] = {
    "zlib": _Codec(Zlib, 3, 0, 9),
    "gzip": _Codec(Gzip, 3, 0, 9),
    "bz2": _Codec(Bz2, 3, 0, 9),
    "lzma": _Codec(Lzma, 3, 0, 9),
    "xz": _Codec(Xz, 3, 0, 9),
    "zstd": _Codec(Zstd, 3, 1, 22),
    "lz4": _Codec(Lz4, 0, 0, 16),
    "numeric": _Codec(Numeric, 1, 0, 9),
}
# What people may know the numeric codec as.
_ALIASES = {"blosc": "numeric", "gz": "gzip", "zst": "zstd"}
NAMES = tuple(_CODECS)

_EXTENSIONS = {
    ".z": "zlib",
    ".gz": "gzip",
    ".bz2": "bz2",
    ".lzma": "lzma",
    ".xz": "xz",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".lz4": "lz4",
}

Compress = bool | int | str | tuple[str, int | None] | Compressor | None


class Choice(NamedTuple):
    """A codec and a level, checked but with nothing imported yet; or a user's own compressor."""

    name: str
    level: int | None
    own: Compressor | None = None

    def create(self) -> Compressor:
        """Import what the codec needs. Not on the event loop.

        Raises:
            ModuleNotFoundError: it is not installed; the message says how to.
        """
        if self.own is not None:
            return self.own
        codec = _CODECS[self.name]
        return codec.create(codec.default if self.level is None else self.level)


def chosen(compress: Compress, path: str | None = None) -> Choice | None:
    """What ``compress=`` asks for: a codec, or None for none.

    Args:
        compress: None for what the extension of *path* says, else none; True for zlib, level 3; False or 0 for none; 1
            to 9 for that level of zlib; the name of a codec; a name and a level; or a compressor of the user's own.
        path: the file to be written, if it is one.

    Raises:
        ValueError: there is no such codec, or it has no such level.
        TypeError: it is none of those.
    """
    if compress is None:
        name = _EXTENSIONS.get(os.path.splitext(path)[1].lower()) if path is not None else None
        return Choice(name, None) if name is not None else None
    if isinstance(compress, Compressor):
        return Choice(_checked_own(compress), None, compress)
    if isinstance(compress, bool):
        return Choice("zlib", None) if compress else None
    if isinstance(compress, str):
        return Choice(_checked_name(compress), None)
    if isinstance(compress, (tuple, list)):
        if len(compress) != 2 or not isinstance(compress[0], str):
            raise _wrong(compress)
        name = _checked_name(compress[0])
        return Choice(name, None if compress[1] is None else _checked_level(name, compress[1]))
    level = _checked_level("zlib", compress)
    return Choice("zlib", level) if level else None


def _checked_name(name: str) -> str:
    name = _ALIASES.get(name.lower(), name.lower())
    if name not in _CODECS:
        raise ValueError(f"compress={name!r} is no codec. There are {', '.join(NAMES)}.")
    return name


def _checked_level(name: str, level: Any) -> int:
    try:
        number = operator.index(level)
    except TypeError:
        raise _wrong(level) from None
    codec = _CODECS[name]
    if not codec.lowest <= number <= codec.highest:
        raise ValueError(f"{name} has the levels {codec.lowest} to {codec.highest}, not {number}.")
    return number


def _checked_own(compressor: Compressor) -> str:
    name = compressor.name
    if not (isinstance(name, str) and name.isascii() and name.isprintable() and 0 < len(name) <= 16):
        raise ValueError(f"The name of a compressor has 1 to 16 printable ASCII characters; {name!r} does not.")
    if name in _CODECS:
        raise ValueError(f"{name!r} is a codec of aparallel; give {type(compressor).__name__} a name of its own.")
    return name


def _wrong(compress: object) -> TypeError:
    return TypeError(
        f"compress must be True, False, 0 to 9, a codec's name, a pair of name and level, or a Compressor, "
        f"got {compress!r}."
    )


def decompressor(name: str, own: Sequence[Compressor] = ()) -> Compressor:
    """The codec that a file names.

    Raises:
        UnsupportedFormatError: nobody knows it.
        ModuleNotFoundError: it is not installed; the message says how to.
    """
    for compressor in own:
        if compressor.name == name:
            return compressor
    if name not in _CODECS:
        raise UnsupportedFormatError(
            f"it is compressed with {name!r}, which is no codec of this aparallel. "
            f"If it is one of yours, pass it as load(..., compressors=[...])"
        )
    return _cached(name)


@functools.cache
def _cached(name: str) -> Compressor:
    return _CODECS[name].create(_CODECS[name].default)
