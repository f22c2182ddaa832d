"""Exceptions on their way from a worker: described there, raised again here.

A description is a pickle of plain data, so it always arrives: (stage, type name, text, traceback,
chain), where the chain is a pickle of the exception and its explicit causes, or None if they
cannot be pickled.
"""

from __future__ import annotations

from _pickle import Pickler, dumps, loads
from copyreg import dispatch_table
from io import BytesIO
from itertools import pairwise

from aparallel._ground.exceptions import (
    ReducesExceptions,
    format_error,
    means_something_else_here,
    qualified_name,
    remote_call_error,
    text_of,
)
from aparallel._transfer.out_of_band import NEVER, OutOfBand
from aparallel._transfer.pickling import MAIN, array_reducers

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

# Where a call failed.
LOADING = "loading"  # while the worker rebuilt it
RUNNING = "running"
RETURNING = "returning"  # while the worker pickled its result

_LONGEST_CHAIN = 16

# Arrays stay in the pickle, reduced as those of results are: a read-only argument arrives as writable memory.
_IN_STREAM = OutOfBand(NEVER, None)


def describe_failure(error: BaseException, stage: str) -> bytes:
    """Describe *error* for the parent, and part it from its frames. Never raises for what the error is."""
    shown = _users_frames(error.__traceback__) if stage == RUNNING else error.__traceback__
    try:
        return dumps(
            (stage, qualified_name(type(error)), text_of(error), format_error(error, shown), pickle_chain(error)), 5
        )
    finally:
        _part_from_frames(error)


def _users_frames(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the worker's own frames, which tell the user nothing: the first, and all up to where it awaits."""
    shown = link = trace
    while link is not None and trace is not None:
        if link.tb_frame.f_code.co_filename == trace.tb_frame.f_code.co_filename:
            shown = link.tb_next
        link = link.tb_next
    return shown or trace


def _part_from_frames(error: BaseException) -> None:
    """Drop the tracebacks of *error* and of what it came from.

    A frame that has its own error in a variable is in a cycle with it, and the call's arrays with them: their memory
    would wait for the garbage collector, which a worker rarely gives cause to run.
    """
    seen: list[BaseException] = []
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is None or any(link is other for other in seen) or len(seen) > _LONGEST_CHAIN:
            continue
        seen.append(link)
        BaseException.with_traceback(link, None)
        links += link.__cause__, link.__context__, *(link.exceptions if isinstance(link, BaseExceptionGroup) else ())


def rebuild_failure(data: bytes | memoryview, load: Callable[[bytes], Any] = loads) -> tuple[str, BaseException]:
    """Return the stage and the exception that *data* describes, ready to be raised here. *load* unpickles it.

    Raises:
        NotImported: *load* did.
    """
    from aparallel.errors import RemoteTraceback

    stage, type_name, text, trace, chain = loads(data)
    links = rebuild_chain(chain, load)
    if not links or means_something_else_here(links[0]):
        links = [remote_call_error(type_name, text, trace)]
    # In place of what it may have: the same object may have come before, where there is but one of its kind.
    _set_cause(links[-1], RemoteTraceback(trace))
    return stage, links[0]


def _set_cause(error: BaseException, cause: BaseException) -> None:
    """Chain them, whatever the error's own ``__setattr__`` thinks of it."""
    BaseException.__setattr__(error, "__cause__", cause)


def pickle_chain(error: BaseException) -> bytes | None:
    """Pickle an exception and its explicit causes; None if they cannot be pickled. Never raises."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(chain) < _LONGEST_CHAIN and not any(link is seen for seen in chain):
        chain.append(link)
        link = link.__cause__
    for links in (chain, chain[:1]):
        try:
            return _dump(links)
        except BaseException:  # user code (__reduce__) may raise anything, and the error must arrive all the same
            continue
    return None


def _dump(links: list[BaseException]) -> bytes:
    reducers = array_reducers(_IN_STREAM)
    sink = BytesIO()
    try:
        plain = _Plain(sink, 5)
        if reducers:
            plain.dispatch_table = {**dispatch_table, **reducers}
        plain.dump(links)
    except Exception:
        by_value = True
    else:
        by_value = MAIN in sink.getvalue()
    if by_value:
        from aparallel._transfer.by_value import ByValuePickler

        class ByValue(ReducesExceptions, ByValuePickler):
            pass

        sink = BytesIO()
        pickler = ByValue(sink, 5)
        pickler.array_reducers = reducers
        pickler.dump(links)
    return sink.getvalue()


class _Plain(ReducesExceptions, Pickler):
    pass


def rebuild_chain(chain: bytes | None, load: Callable[[bytes], Any] = loads) -> list[BaseException]:
    """Return the exception and its causes, which it has; none if it cannot be rebuilt.

    Raises:
        NotImported: *load*, which unpickles them, did.
    """
    if chain is None:
        return []
    from aparallel._transfer.unpickling import NotImported

    try:
        links: list[BaseException] = load(chain)
    except NotImported:
        raise
    except BaseException:  # whatever rebuilding raises, RemoteCallError tells the story instead
        return []
    if not all(isinstance(link, BaseException) for link in links):
        return []
    for effect, cause in pairwise(links):
        _set_cause(effect, cause)
    return links
