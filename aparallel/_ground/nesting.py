"""How deep in workers this code runs: 0 in the program itself, 1 in a call, 2 in a call of a call."""

from __future__ import annotations

from contextvars import Context, ContextVar, copy_context

# Set once, by a worker process at its start: contextvars do not cross processes.
_process_level = 0

_level: ContextVar[int] = ContextVar("aparallel_nesting_level")


def nesting_level() -> int:
    return _level.get(_process_level)


def call_context() -> Context:
    """Return a copy of the current context for calls to run in: one level deeper."""
    context = copy_context()
    context.run(_level.set, nesting_level() + 1)
    return context


def enter_worker_process(level: int) -> None:
    """Mark this whole process as a worker's, *level* deep."""
    global _process_level
    _process_level = level
