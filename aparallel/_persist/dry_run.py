"""Lets the C unpickler itself go through a pickle with nothing imported: a dry run.

Wherever the pickle imports a name it is given a class that was made up for it. Whatever it calls, or gives a state or
items to, is such a class or an instance of one, which tells the :class:`~aparallel._persist.standins.Watcher` and does
nothing. What is no stand-in is plain data, and real. So the watcher sees what :mod:`aparallel._persist.walk` would show
it, at the speed of C for all that is plain data, and with arguments that are exactly those of the real run.

Why the real run does nothing else: both runs are the same C code over the same opcodes, and where its way depends on an
object, this is so:

- A name is text of the pickle's own, never what a call gave: a stand-in there ends the dry run (STACK_GLOBAL wants
  ``str`` itself). So both runs ask for the same names.
- Only names can be called (REDUCE, NEWOBJ, OBJ, INST): instances of stand-ins and plain data cannot, and end it.
- A state (BUILD) and items (APPENDS, SETITEMS, ADDITEMS) go to a ``list``, ``dict`` or ``set`` of the pickle's own, to
  which that is all that can happen, or to an instance, which tells. A stand-in for a name takes neither, and plain data
  with no such method ends the dry run.
- Buffers are given as bytes of no length, which take neither items nor a state.
- What was checked may be changed later only if it is a list, a dictionary, a set or a bytearray. Calls that are trusted
  copy them, with one exception: NumPy's data types keep the dictionary of their fields. It is taken out of reach here,
  see :class:`_Fields`.
- Keys are compared by identity here, and by value there. That decides what is in a dictionary or a set, and no check
  looks there.
- :mod:`aparallel._persist.tokens` has seen that there are no extensions of copyreg (which the unpickler would take from
  a table of objects), persistent IDs, or memo entries of any number.

Whatever ends the dry run is for the walk to judge (:class:`Undecided`). It takes the memory that the object takes, and
has given it back before the real run.
"""

from __future__ import annotations

import itertools
from _pickle import Unpickler
from typing import TYPE_CHECKING, Any, ClassVar

from aparallel._ground.hop import pausing
from aparallel._ground.stoppable import Stopped
from aparallel._persist.nesting import FRAIL
from aparallel._persist.standins import (
    BUFFER,
    BYTES,
    DTYPE,
    LONGEST_BYTES,
    LONGEST_TEXT,
    MOST_ITEMS,
    OPAQUE,
    SET,
    TEXT,
    WRAPPERS,
    Global,
    Items,
    Listed,
    Made,
    Opaque,
)

if TYPE_CHECKING:
    from aparallel._persist.standins import Watcher

# A class takes a kilobyte; no pickler asks for as many.
_MOST_NAMES = 10_000
# Of one call's arguments, so many parts are looked at, and of those with more than a few, so many in all: a pickle can
# ask again and again for a call with the same long tuple, in five bytes.
_MOST_PARTS = 1 << 15
_FEW_PARTS = 16
_MOST_IN_ALL = 1 << 20
# So much of a list is gone through between two pauses.
_SLICE = 1 << 14


class Undecided(Exception):
    """The dry run did not get to the end, or saw what it cannot judge."""


def dry_run(reader: Any, watcher: Watcher) -> None:
    """Show *watcher* what the pickle in *reader* would do.

    Args:
        reader: a file for the C unpickler, as for the real run.

    Raises:
        Undecided: let the walk show it.
        Stopped: by the reader.
    """
    run = _DryRun(reader, watcher)
    try:
        run.load()
    except (Stopped, MemoryError, Undecided):
        raise
    except Exception as error:
        raise Undecided(str(error)) from error
    if run.fields.were_changed():
        raise Undecided("the fields of a data type are changed after it was made")


class _DryRun(Unpickler):
    def __init__(self, reader: Any, watcher: Watcher) -> None:
        super().__init__(reader, buffers=pausing(itertools.repeat(_Buffer())))
        self._watcher = watcher
        self._names: dict[tuple[str, str], type] = {}
        self._seen = _Seen()
        self.fields = _Fields(self._seen)

    def find_class(self, module: str, name: str) -> Any:
        found = self._names.get((module, name))
        if found is None:
            if len(self._names) >= _MOST_NAMES:
                raise Undecided("it asks for more names than any pickler does")
            found = self._names[module, name] = self._made_up(Global(module, name))
        return found

    def _made_up(self, name: Global) -> type:
        if name in WRAPPERS:
            raise Undecided("its arrays stand between its opcodes")
        watcher = self._watcher
        watcher.on_global(name)
        # None of this leads back to the unpickler: in a cycle, its memo would wait for the garbage collector.
        members = {
            "__slots__": (),
            "name": name,
            "watcher": watcher,
            "seen": self._seen,
            "fields": self.fields,
            "changes_matter": watcher.changes_matter(name),
        }
        found = type("StandIn", (_Called if watcher.calls_matter(name) else _Instance,), members)
        if name in FRAIL:
            self._seen.frail.add(found)
        return found


class _Instance:
    """What calling a name gives. The classes that stand in for names are subclasses.

    The unpickler looks for the methods below on names, too. It finds them, and cannot call them: they lack *self*.

    Attributes:
        name: what was called.
        changes_matter: the watcher is told of states and items.
        made: what the watcher is shown, from when it is.
    """

    __slots__ = ("made",)
    name: ClassVar[Global]
    watcher: ClassVar[Watcher]
    seen: ClassVar[_Seen]
    fields: ClassVar[_Fields]
    changes_matter: ClassVar[bool]
    made: Made

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        return object.__new__(cls)

    def shown(self) -> Made:
        try:
            return self.made
        except AttributeError:
            self.made = Made(self.name, OPAQUE)
            return self.made

    def __setstate__(self, state: Any) -> None:
        made = self.shown()
        if made.built:
            # What was made of it meanwhile relies on its first one.
            self.watcher.on_odd("a second state for one object")
        made.built = True
        if self.changes_matter:
            if self.name == DTYPE and type(state) is tuple and len(state) > _FIELDS and type(state[_FIELDS]) is dict:
                state = (*state[:_FIELDS], self.fields.taken(state[_FIELDS]), *state[_FIELDS + 1 :])
            self.watcher.on_build(made, self.seen.of(state))

    def extend(self, items: Any) -> None:
        self._filled(items)

    def append(self, item: Any) -> None:
        self._filled([item])

    def add(self, item: Any) -> None:
        self._filled([item])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._filled([value])

    def _filled(self, items: list[Any]) -> None:
        if self.changes_matter:
            self.watcher.on_fill(self.shown(), self.seen.frail_among(items))


class _Called(_Instance):
    """What calling a name gives, if it matters with which arguments."""

    __slots__ = ()

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        self = object.__new__(cls)
        self.made = Made(cls.name, OPAQUE if keywords else cls.seen.of(args))
        cls.watcher.on_call(self.made)
        return self


class _Buffer(bytes):
    """Stands for a buffer out of the pickle's band."""

    def __setstate__(self, state: Any) -> None:
        raise Undecided("it gives a state to a buffer")


class _Fields:
    """The dictionaries of fields that data types were given.

    Each is emptied, and gets an entry that no pickle can name and no opcode can remove. So whatever is put into it from
    then on shows at the end.
    """

    def __init__(self, seen: _Seen) -> None:
        self._seen = seen
        self._taken: dict[int, tuple[dict[Any, Any], Items]] = {}

    def taken(self, fields: dict[Any, Any]) -> Items:
        """Return what *fields* held when it was first seen here."""
        if id(fields) not in self._taken:
            self._taken[id(fields)] = fields, self._contents(fields)
            fields.clear()
            fields[self] = None
        return self._taken[id(fields)][1]

    def were_changed(self) -> bool:
        return any(len(fields) != 1 for fields, _ in self._taken.values())

    def _contents(self, fields: dict[Any, Any]) -> Items:
        if len(fields) > MOST_ITEMS:
            return Items({None: OPAQUE})
        return Items({key if type(key) is str else None: self._seen.of(value) for key, value in fields.items()})


# Where in the state of a data type its fields are.
_FIELDS = 4


class _Seen:
    """What a call's arguments look like to a watcher, as the walk would show them."""

    def __init__(self) -> None:
        # How many parts of the present call's arguments may still be looked at, and how many have been of all calls.
        self._left = 0
        self._in_all = 0
        # The stand-ins for names that make what is frail.
        self.frail: set[type] = set()

    def frail_among(self, items: list[Any]) -> list[Made]:
        """What in a list is frail."""
        found = []
        for start in pausing(range(0, len(items), _SLICE)):
            part = items[start : start + _SLICE]
            if not self.frail.isdisjoint(map(type, part)):
                found += [item.shown() for item in part if type(item) in self.frail]
        return found

    def of(self, value: Any) -> Any:
        """Return what stands for *value*.

        Raises:
            Undecided: this pickle has made us look at more than it can be worth.
        """
        # The parts of tuples that tuples share are shown once for each: there must be an end to it.
        self._left = _MOST_PARTS
        found = self._part(value, 0)
        looked_at = _MOST_PARTS - self._left
        if looked_at > _FEW_PARTS:
            self._in_all += looked_at
            if self._in_all > _MOST_IN_ALL:
                raise Undecided("its calls share large arguments")
        return found

    def _part(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is tuple:
            self._left -= len(value)
            if len(value) > MOST_ITEMS or depth > _DEEPEST or self._left < 0:
                return OPAQUE
            return tuple([self._part(item, depth + 1) for item in value])
        if kind is str:
            return value if _is_short(value) else TEXT
        if kind is int:
            return value if -_LARGE <= value < _LARGE else OPAQUE
        if kind is bytes:
            return value if len(value) <= LONGEST_BYTES else BYTES
        if value is None or kind is bool or kind is Items:
            return value
        if kind is list:
            return Listed(len(value), self.frail_among(value) if self.frail else None)
        if isinstance(value, _Instance):
            return value.shown()
        if isinstance(value, type):
            return value.name  # type: ignore[attr-defined]  # all classes here are stand-ins
        if kind is dict:
            return Items({None: OPAQUE})
        return _KINDS.get(kind, OPAQUE)


_KINDS: dict[type, Opaque] = {_Buffer: BUFFER, bytearray: BYTES, set: SET}
_LARGE = 1 << 127
_DEEPEST = 8


def _is_short(text: str) -> bool:
    return 4 * len(text) <= LONGEST_TEXT or (
        len(text) <= LONGEST_TEXT and len(text.encode("utf-8", "surrogatepass")) <= LONGEST_TEXT
    )
