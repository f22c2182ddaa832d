"""What a worker does once ``logging`` is imported: a handler on the root logger, and the parent's levels."""

from __future__ import annotations

import logging

from aparallel._wire.records import ATTRIBUTES, PLAIN

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    # Levels by logger, "" for the root; logging.disable(); loggers that are disabled.
    Levels = tuple[dict[str, int], int, list[str]]

_formatter = logging.Formatter()

# Attributes that travel in a form of their own, or that the parent makes anew.
_OWN = frozenset(
    {*ATTRIBUTES, "msg", "args", "exc_info", "exc_text", "stack_info", "relativeCreated", "message", "asctime"}
)


def begin(send: Callable[..., None]) -> Callable[[Levels], None]:
    """Put a handler in place that gives records to *send*. Returns what follows the parent's levels."""
    logging.getLogger().addHandler(RelayHandler(send))
    return _Follower().follow


class RelayHandler(logging.Handler):
    """Sends each record to the parent. The user may remove it from the root logger: its name is "aparallel"."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self.set_name("aparallel")
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(*_describe(record))
        except RecursionError:  # as in logging's own handlers
            raise
        except Exception:
            self.handleError(record)


def _describe(record: logging.LogRecord) -> tuple[Any, ...]:
    """Return what travels of *record*. Its arguments become part of the message: they need not be picklable."""
    attributes = record.__dict__
    core = [_plain(attributes.get(name)) for name in ATTRIBUTES]
    text = record.exc_text
    if record.exc_info and not text:
        text = _formatter.formatException(record.exc_info)
    others = {name: value for name, value in attributes.items() if name not in _OWN}
    return core, str(record.getMessage()), _plain(text), _plain(record.stack_info), others


def _plain(value: object) -> object:
    if type(value) in PLAIN:
        return value
    return int(value) if isinstance(value, int) else str(value)  # a level may be a member of an enum


class _Follower:
    """Gives loggers the parent's levels, and takes back none but those that it gave."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        self._disabled: set[str] = set()

    def follow(self, levels: Levels) -> None:
        by_name, disable, disabled = levels
        for name, level in self._given.items():
            logger = logging.getLogger(name)
            if name not in by_name and logger.level == level:
                logger.setLevel(logging.NOTSET)
        for name, level in by_name.items():
            logging.getLogger(name).setLevel(level)
        self._given = by_name
        for name in self._disabled.difference(disabled):
            logging.getLogger(name).disabled = False
        for name in disabled:
            logging.getLogger(name).disabled = True
        self._disabled = set(disabled)
        logging.disable(disable)
