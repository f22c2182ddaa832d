"""Records of workers, handled by this process's logging; their warnings, filtered and shown by its ``warnings``."""

from __future__ import annotations

import builtins
import logging
import pickle
import sys
import warnings
from contextvars import Context
from marshal import loads
from typing import TYPE_CHECKING, Any

from aparallel._ground.exceptions import in_short
from aparallel._transfer.failures import rebuild_chain
from aparallel._wire.records import ATTRIBUTES, LOG

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import ContextVar


class RecordHandler:
    """Does with a record what logging would do had it been made here.

    Args:
        variables: the context variables that travel with calls, by their pickles.
    """

    def __init__(self, variables: Mapping[bytes, ContextVar[Any]]) -> None:
        self._variables = variables
        # Which warnings of code that this process has not loaded were shown, by file, as modules keep it.
        self._registries: dict[str, dict[Any, Any]] = {}
        # What handlers raise is reported as logging reports it: on stderr, unless logging.raiseExceptions is false.
        self._reporter = logging.Handler()

    def handle(self, data: bytes) -> None:
        """Handle one. Raises nothing: what user code raises is reported on stderr."""
        try:
            kind, *content, values = loads(data)  # noqa: S302 (our own worker wrote it; it may run any code anyway)
            # Where the context variables have the values that they had where the record was made.
            context = Context()
            for blob, value in values:
                variable = self._variables.get(blob)
                if variable is not None:
                    context.run(variable.set, _rebuilt(value))
            context.run(self._handle_log if kind == LOG else self._handle_warning, *content)
        except Exception:  # of any kind: the thread that handles must go on
            self._reporter.handleError(logging.makeLogRecord({"msg": "(something in the pipe that is no log record)"}))

    def _handle_log(self, attributes: list[Any], message: str, *rest: Any) -> None:
        record = None
        try:
            record = _make_record(attributes, message, *rest)
            logging.getLogger(record.name).handle(record)
        except BaseException:  # a handler may even exit; the next record must be handled all the same
            self._reporter.handleError(record or logging.makeLogRecord({"msg": message, "name": attributes[0]}))

    def _handle_warning(
        self,
        category: str,
        text: str,
        whole: bytes | None,
        filename: str,
        lineno: int,
        module: str | None,
        line: str | None,
    ) -> None:
        rebuilt = rebuild_chain(whole)
        warning = rebuilt[0] if rebuilt and isinstance(rebuilt[0], Warning) else getattr(builtins, category)(text)
        try:
            warnings.warn_explicit(
                warning, type(warning), filename, lineno, module=module, registry=self._registry_of(module, filename)
            )
        except Warning:  # by now it would be an error here, but what gave it has gone on
            warnings.showwarning(warning, type(warning), filename, lineno, line=line)
        except BaseException:  # as above: user code shows warnings
            self._reporter.handleError(logging.makeLogRecord({"msg": text, "name": "py.warnings"}))

    def _registry_of(self, module: str | None, filename: str) -> dict[Any, Any]:
        """The module's own, if it is here: "once per location" then counts this process and all workers."""
        loaded = sys.modules.get(module) if module is not None else None
        if loaded is None:
            return self._registries.setdefault(filename, {})
        registry: dict[Any, Any] = loaded.__dict__.setdefault("__warningregistry__", {})
        return registry


def _make_record(
    attributes: list[Any], message: str, exc_text: str | None, stack_info: str | None, others: dict[str, Any]
) -> logging.LogRecord:
    # As logging.makeLogRecord does: the program's record factory may add to it.
    record = logging.getLogRecordFactory()(attributes[0], attributes[1], "", 0, message, None, None)
    began = record.created - record.relativeCreated / 1000
    record.__dict__.update(zip(ATTRIBUTES, attributes, strict=True))
    # Milliseconds since this program's logging began, not the worker's.
    record.relativeCreated = (record.created - began) * 1000
    if record.levelname == f"Level {record.levelno}":  # a level that got its name here
        record.levelname = logging.getLevelName(record.levelno)
    record.exc_text = exc_text
    record.stack_info = stack_info
    for name, value in others.items():
        record.__dict__[name] = _rebuilt(value)
    return record


def _rebuilt(value: Any) -> Any:
    if type(value) is not list:
        return value
    try:
        return pickle.loads(value[0])
    except BaseException as error:  # whatever rebuilding raises, the record must arrive
        return f"<not rebuilt here: {in_short(error)}>"
