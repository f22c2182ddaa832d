"""Log records and warnings on their way from a worker to its parent: a pipe that many writers share.

A worker, its threads and its forked children write to one pipe. A write of up to ``PIPE_BUF`` bytes is never mixed with
another's, and is in the pipe or is not (POSIX, write(2)), so no lock is needed that a dying writer could leave locked.
A record travels in pieces of at most that size, one write each::

    header  size u16, last u16, process u32, number u32        little-endian
    size    bytes of the piece, which follow
    last    1 if the record ends with it
    number  of the record among those of its process

A record is marshalled plain data: the first item is LOG or WARNING, the last one the values of context variables,
[(a pickled ContextVar, its value)]. A value that marshal would not take, or would not give back as it was, is a list of
one item, its pickle::

    LOG      (LOG, [the attributes ATTRIBUTES], message, exc_text, stack_info, {other attribute: value}, variables)
    WARNING  (WARNING, name of the built-in category, text, the warning as ``_transfer/failures.py`` pickles it or None,
              filename, lineno, module, line, variables)

What stands in the pipe when a worker dies stays there: the kernel keeps it for the parent.
"""

from __future__ import annotations

import select
from struct import Struct

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = 0
WARNING = 1

ATTRIBUTES = (
    "name",
    "levelno",
    "levelname",
    "pathname",
    "filename",
    "module",
    "lineno",
    "funcName",
    "created",
    "msecs",
    "thread",
    "threadName",
    "processName",
    "process",
)

PLAIN = frozenset({int, float, bool, str, bytes, type(None)})

_HEADER = Struct("<HHII")
# Larger pipes than Linux's have been seen to promise larger pieces than two bytes can tell.
_PIECE = min(getattr(select, "PIPE_BUF", 512), 4096) - _HEADER.size

# A forked child that is killed within a record leaves its pieces behind; so many such are kept.
_MANY_PARTIAL = 1024

_NUMBERS = 1 << 32


def pieces_of(data: bytes, process: int, number: int) -> list[bytes]:
    """Cut a record into what is to be written, one write each."""
    number %= _NUMBERS
    if len(data) <= _PIECE:
        return [_HEADER.pack(len(data), 1, process, number) + data]
    cuts = range(0, len(data), _PIECE)
    return [
        _HEADER.pack(min(_PIECE, len(data) - cut), cut == cuts[-1], process, number) + data[cut : cut + _PIECE]
        for cut in cuts
    ]


class Assembler:
    """Puts the records of one pipe together again."""

    def __init__(self) -> None:
        self._rest = b""
        self._partial: dict[tuple[int, int], list[bytes]] = {}

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the records that *data*, the next bytes of the pipe, completes."""
        data = self._rest + data if self._rest else data
        start = 0
        while len(data) - start >= _HEADER.size:
            size, last, process, number = _HEADER.unpack_from(data, start)
            begin = start + _HEADER.size
            if begin + size > len(data):
                break
            start = begin + size
            piece = data[begin:start]
            whole = self._add(piece, last, (process, number))
            if whole is not None:
                yield whole
        self._rest = data[start:]

    def _add(self, piece: bytes, last: int, key: tuple[int, int]) -> bytes | None:
        if not last:
            self._partial.setdefault(key, []).append(piece)
            if len(self._partial) > _MANY_PARTIAL:
                del self._partial[next(iter(self._partial))]
            return None
        parts = self._partial.pop(key, None)
        return piece if parts is None else b"".join([*parts, piece])
