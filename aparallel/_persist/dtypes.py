"""Data types of NumPy, as pickles spell them: checked against what NumPy itself would write.

``numpy.dtype`` takes its pickled state on trust: a state that lies about fields, sizes or flags makes arrays that read
and write outside their memory, and one given to a data type that was not copied changes NumPy's own. So the data type
is built from public constructors, and the state must be the one that this data type is pickled with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aparallel._persist.standins import OPAQUE, TEXT, Global, Items, Made


class WrongDtype(Exception):
    """The state is none that NumPy writes; the text says why."""


def named_dtype(args: Any) -> np.dtype[Any]:
    """The data type that ``numpy.dtype(*args)`` makes, before its state is set.

    Raises:
        WrongDtype: NumPy does not call it so when it unpickles.
    """
    if not (isinstance(args, tuple) and len(args) == 3 and args[1] in (False, True, 0, 1) and args[2] in (True, 1)):
        raise WrongDtype("is made in a way that NumPy does not use")
    kind = args[0]
    if isinstance(kind, Global):
        if kind != Global("numpy", "record"):
            raise WrongDtype(f"is made of {kind}")
        kind = np.record
    elif not (isinstance(kind, str) and len(kind) <= 32 and kind.isascii() and kind.isalnum()):
        raise WrongDtype("is made of something else than a short name")
    try:
        return np.dtype((np.record, [])) if kind is np.record else np.dtype(kind, copy=True)
    except Exception as error:
        raise WrongDtype(f"cannot be made: {error}") from error


def string_dtype(args: Any) -> np.dtype[Any] | None:
    """NumPy's data type of texts of any length, as it is pickled; None if it is not pickled so, or NumPy has none."""
    kind = getattr(np.dtypes, "StringDType", None) if hasattr(np, "dtypes") else None
    if kind is None or not (isinstance(args, tuple) and len(args) in (1, 2) and args[0] in (False, True, 0, 1)):
        return None
    # What stands for a missing text: None, a text or a number, which is all that one asks for.
    if not all(item is None or item is OPAQUE or item is TEXT or isinstance(item, (str, int)) for item in args[1:]):
        return None
    found: np.dtype[Any] = kind(coerce=bool(args[0]))
    return found


def stated_dtype(made: np.dtype[Any], state: Any) -> np.dtype[Any]:
    """The data type that *made* becomes with *state*.

    Raises:
        WrongDtype: the state is none that NumPy writes for any data type.
    """
    if not (isinstance(state, tuple) and len(state) in (8, 9) and state[0] in (3, 4)):
        raise WrongDtype("has a state of a form that is not known")
    try:
        found = _stated(made, state)
    except WrongDtype:
        raise
    except Exception as error:
        raise WrongDtype(f"has a state that cannot be: {error}") from error
    if _levels(found, {}) > _MOST_LEVELS:
        raise WrongDtype(f"has more than {_MOST_LEVELS} levels of fields within fields")
    return found


# NumPy calls itself for each, to hash, to compare and to print a data type, and looks at no limit.
_MOST_LEVELS = 64


def _levels(found: np.dtype[Any], known: dict[int, int]) -> int:
    """How many levels of data types there are; *known* is by identity, as one may be in many places."""
    if id(found) not in known:
        parts = [field[0] for field in (found.fields or {}).values()]
        if found.subdtype is not None:
            parts.append(found.subdtype[0])
        known[id(found)] = 1 + max((_levels(part, known) for part in parts), default=0)
    return known[id(found)]


def _stated(made: np.dtype[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    # As numpy.dtype.__reduce__ writes it: a version, and for dates and metadata, of version 4, a ninth item.
    order, subarray, names, fields, itemsize, _, flags = state[1:8]
    if made.kind in "mM":
        return _dated(made, state)
    # NumPy does not look whether metadata is a dictionary, and takes it for one from then on.
    if len(state) != (9 if state[0] == 4 else 8) or (state[0] == 4 and not isinstance(state[8], Items)):
        raise WrongDtype("has metadata that is no dictionary")
    if (subarray is not None or names is not None) and made.kind != "V":
        # Of others NumPy keeps the size that they have, which says nothing of what they hold.
        raise WrongDtype("has parts where there is one value")
    if subarray is not None:
        base, shape = subarray
        found = np.dtype((_part(base), shape))
    elif names is not None:
        found = _structured(made, names, fields, itemsize, flags)
    elif made.kind in "SUV":
        found = np.dtype(f"{made.kind}{itemsize // (4 if made.kind == 'U' else 1)}")
    else:
        found = made
    if order in ("<", ">") and found.names is None and found.subdtype is None:
        found = found.newbyteorder(order)
    reduced: Any = found.__reduce__()
    written = reduced[2]
    # Fields and subarrays were built from what was checked; of those, what must agree is that they are there.
    given = (order, *(part is None for part in state[2:5]), *state[5:8])
    if given != (written[1], *(part is None for part in written[2:5]), *written[5:8]):
        raise WrongDtype("has a state that does not fit it")
    return found


def _structured(made: np.dtype[Any], names: Any, fields: Any, itemsize: Any, flags: Any) -> np.dtype[Any]:
    if not (isinstance(names, tuple) and isinstance(fields, Items) and set(names) <= set(fields)):
        raise WrongDtype("has fields that are not known")
    entries = [fields[name] for name in names]
    # A title is a second key for the same field.
    titles = [entry[2] if len(entry) > 2 else None for entry in entries]
    if set(fields) != {*names, *(title for title in titles if title is not None)}:
        raise WrongDtype("has fields without names")
    formats, offsets = [_part(entry[0]) for entry in entries], [entry[1] for entry in entries]
    # NumPy adds in 32 bits, so that a field far outside of the item seems to end inside.
    if not all(0 <= offset <= itemsize - part.itemsize for part, offset in zip(formats, offsets, strict=True)):
        raise WrongDtype("has fields outside of its items")
    parts: Any = {"names": list(names), "formats": formats, "offsets": offsets, "itemsize": itemsize}
    if any(title is not None for title in titles):
        parts["titles"] = titles
    found = np.dtype(parts, align=bool(flags & _ALIGNED))
    return np.dtype((np.record, found)) if made.type is np.record else found


_ALIGNED = 0x80


def _dated(made: np.dtype[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    """A date or a span of time, whose unit is at the state's end: ``(None, (b"ns", 1, 1, 1))``."""
    if state[0] != 4 or len(state) != 9 or not isinstance(state[8], tuple):
        raise WrongDtype("has no unit of time")  # NumPy would take the unit from address 0
    metadata, (unit, count, divisor, event) = state[8]
    if isinstance(unit, Made):  # as bytes are spelled in protocol 2
        unit = unit.known
    name = unit.decode("ascii") if isinstance(unit, bytes) else unit
    if (
        not (metadata is None or isinstance(metadata, Items))
        or name not in _UNITS
        or type(count) is not int
        or not 0 < count < 1 << 31
        or (divisor, event) != (1, 1)
        or state[1] not in ("<", ">")
        or state[2:8] != (None, None, None, -1, -1, 0)
    ):
        raise WrongDtype("has a unit of time that is not known")
    found = np.dtype(made.char) if name == "generic" else np.dtype(f"{made.char}8[{count}{name}]")
    return found.newbyteorder(state[1])


_UNITS = frozenset({"generic", "Y", "M", "W", "D", "h", "m", "s", "ms", "us", "μs", "ns", "ps", "fs", "as"})


def _part(value: Any) -> np.dtype[Any]:
    found = known_dtype(value)
    if found is None:
        raise WrongDtype("has a field of a type that is not known")
    return found


def known_dtype(value: Any) -> np.dtype[Any] | None:
    """The data type that *value* stands for, if that is known, and cannot change any more."""
    return value.known if isinstance(value, Made) and value.built and isinstance(value.known, np.dtype) else None


def is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(length) is int and length >= 0 for length in value)
