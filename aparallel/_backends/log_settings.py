"""What workers must know of this process's logging and warnings: levels and filters, as plain data."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# In the root logger's cache of what is enabled, which logging empties whenever a level is set anywhere: while this is
# there, no level has changed. Looking takes 0.05 µs; looking at a thousand loggers takes 100.
_CANARY: Any = "aparallel"

# The state of this process's logging and warnings, as last seen. What it is made from is the process's own, too.
_settings: tuple[Any, list[Any]] = (None, [])
_filters_list: list[Any] | None = None
_filters_seen: list[Any] = []


def current() -> tuple[Any, list[Any]]:
    """Return the levels and the filters: the same object as long as nothing has changed."""
    global _settings, _filters_list, _filters_seen
    cache: dict[Any, Any] = logging.root._cache  # type: ignore[attr-defined]
    filters: Any = warnings.filters
    if _CANARY in cache and filters is _filters_list and filters == _filters_seen:
        return _settings
    # The canary first: a level set while we look makes us look again.
    cache[_CANARY] = True
    levels = _levels()
    # A new list means a new catch_warnings block, in which each warning counts as not seen yet.
    if filters is not _filters_list or filters != _filters_seen:
        _filters_list, _filters_seen = filters, list(filters)
        _settings = levels, list(_plain_filters(_filters_seen))
    elif levels != _settings[0]:
        _settings = levels, _settings[1]
    return _settings


def _levels() -> tuple[dict[str, int], int, list[str]]:
    """Levels by logger, "" for the root; what ``logging.disable`` was given; the loggers that are disabled.

    Plain numbers: a member of somebody's enum would have workers import that, or fail to.
    """
    manager = logging.root.manager
    loggers = [logger for logger in list(manager.loggerDict.values()) if isinstance(logger, logging.Logger)]
    levels = {logger.name: int(logger.level) for logger in loggers if logger.level != logging.NOTSET}
    levels[""] = int(logging.root.level)
    return levels, int(manager.disable), [logger.name for logger in loggers if logger.disabled]


def _plain_filters(filters: list[Any]) -> Iterator[tuple[Any, ...]]:
    for action, message, category, module, lineno in filters:
        with contextlib.suppress(AttributeError):  # a pattern of somebody's own: what it lets through is filtered here
            yield action, _plain_pattern(message), _names_of(category), _plain_pattern(module), lineno


def _names_of(category: Any) -> list[tuple[str, str]]:
    """Return module and name of a category, or of each in a tuple, which ``warnings.simplefilter`` takes, too."""
    if isinstance(category, tuple):
        return [named for kind in category for named in _names_of(kind)]
    return [(category.__module__, category.__qualname__)]


def _plain_pattern(pattern: Any) -> Any:
    return pattern if pattern is None or isinstance(pattern, str) else (pattern.pattern, pattern.flags)
