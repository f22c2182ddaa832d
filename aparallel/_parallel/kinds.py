"""Kinds of workers by their names, and what they mean inside a worker."""

from __future__ import annotations

from typing import Literal

from aparallel._ground.nesting import nesting_level
from aparallel.abc import Backend

BackendName = Literal["process", "thread", "inline", "loky", "multiprocessing", "threading", "sequential"]

_ALIASES = {"loky": "process", "multiprocessing": "process", "threading": "thread", "sequential": "inline"}
KINDS = ("process", "thread", "inline")


def kind_of(backend: str | Backend) -> str:
    """Return the kind that a backend's name or alias means; a Backend instance's own name.

    Raises:
        ValueError: no such backend.
    """
    if isinstance(backend, Backend):
        return backend.name
    kind = _ALIASES.get(backend, backend) if isinstance(backend, str) else None
    if kind not in KINDS:
        raise ValueError(
            f"backend={backend!r} is not one of {', '.join(map(repr, (*KINDS, *_ALIASES)))}, nor a Backend instance."
        )
    return kind


def nested_kind(kind: str) -> str:
    """Return *kind*, or what stands for it inside a worker: threads first, the loop itself deeper in."""
    level = nesting_level()
    if level >= 1 and kind == "process":
        kind = "thread"
    if level >= 2 and kind == "thread":
        kind = "inline"
    return kind
