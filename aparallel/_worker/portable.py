"""What a record refers to, as data that any process can read. Standard library only, as all that a worker loads."""

from __future__ import annotations

from _pickle import dumps

from aparallel._transfer.pickling import MAIN, pickle_by_value
from aparallel._wire.records import PLAIN


def portable(value: object) -> object:
    """Return plain data for *value*: itself, a list of its pickle, or its repr if it cannot be pickled."""
    if type(value) in PLAIN:
        return value
    try:
        return [_pickle(value)]
    except Exception:  # __reduce__ may raise anything
        return _repr(value)


def _pickle(value: object) -> bytes:
    """Pickle *value*, by value only if ``__main__`` is the reason: what cannot be pickled is met again and again."""
    try:
        data = dumps(value, 5)
    except Exception as error:
        if "__main__" not in str(error):
            raise
        return pickle_by_value(value)
    return pickle_by_value(value) if MAIN in data else data


def _repr(value: object) -> str:
    try:
        return "".join([repr(value)])
    except Exception as error:
        return f"<{type(value).__qualname__}, whose repr() raised {type(error).__name__}>"
