"""Finds out of large plain data that it is a tree, so that the pickler need not remember what it has met.

The pickler keeps a table of all objects that it has met, in case one comes again. For millions of objects that table is
most of the work, and it grows in one piece with the GIL held: with 700,000 entries for 40 ms. What has only one
reference cannot come again. So where everything has but one, except texts, the pickler may do without the table
(``Pickler.fast``), as long as it knows those texts.
"""

from __future__ import annotations

from itertools import chain, compress, islice
from sys import getrefcount
from typing import TYPE_CHECKING, Any

from aparallel._ground.hop import pause

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._ground.stoppable import Stop

# Members from which on a container is worth the look. The table's growth begins to show at 40,000 entries.
_MANY = 20_000
# Shared texts, at most: so many entries the table has then.
_MOST_SHARED = 20_000
_AT_ONCE = 2048
# Deeper down than 50 levels the pickler without its memo would keep another one.
_DEEPEST = 16
# CPython lets dictionaries of up to 30 keys have their table of keys in common.
_FEW_KEYS = 64

# Not frozenset: without its memo CPython's pickler counts each as one level deeper than the one before, and fails.
_CONTAINERS = frozenset({dict, list, tuple, set})
_LEAVES = frozenset({str, bytes})
_REMEMBERED = _CONTAINERS | _LEAVES
# What the pickler never remembers.
_UNREMEMBERED = frozenset({int, float, bool, type(None)})
# What getrefcount says, called by map over a list, of what only that list and one container hold.
_ALONE = max(map(getrefcount, [object()])) + 1
_is_shared = _ALONE.__lt__


def shared_leaves(obj: object, stop: Stop) -> list[str | bytes] | None:
    """Return the texts and bytes that may occur several times in *obj*, if nothing else in it does.

    Returns None if something else may (a list that two dictionaries hold, a cycle), if there are other types than
    those of plain data, or if *obj* is not large enough for it to matter.

    Raises:
        Stopped: *stop* was set.
    """
    if not _is_large(obj):
        return None
    survey = _Survey(stop)
    return list(survey.shared.values()) if survey.is_tree([obj], type(obj), 0) else None


def _is_large(obj: Any) -> bool:
    return type(obj) in _CONTAINERS and (
        len(obj) >= _MANY
        or any(type(part) in _CONTAINERS and len(part) >= _MANY for part in islice(_parts([obj], type(obj)), 100))
    )


def _parts(containers: list[Any], kind: type) -> Iterable[Any]:
    """What is in *containers*, all of one kind; of dictionaries, the values."""
    return chain.from_iterable(map(dict.values, containers) if kind is dict else containers)


class _Survey:
    """One look at an object.

    Attributes:
        shared: the texts and bytes, by identity, that have been met and may be met again.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.shared: dict[int, str | bytes] = {}

    def is_tree(self, containers: list[Any], kind: type, depth: int) -> bool:
        """Whether all below *containers*, which are of one kind, is met once, but for :attr:`shared`."""
        if depth > _DEEPEST:
            return False
        pause()
        if kind is dict and not self._knows_keys(containers, depth):
            return False
        return self._are_trees(_parts(containers, kind), sum(map(len, containers)), depth)

    def _knows_keys(self, dicts: list[dict[Any, Any]], depth: int) -> bool:
        small, large = dicts, []
        if max(map(len, dicts)) > _FEW_KEYS:
            small = [found for found in dicts if len(found) <= _FEW_KEYS]
            large = [found for found in dicts if len(found) > _FEW_KEYS]
        # One reference of a key may stand for many dictionaries: small ones can have a table of keys in common.
        if not self.shared.keys() >= set(map(id, chain.from_iterable(small))) and not self._share(
            key for key in chain.from_iterable(small) if type(key) not in _UNREMEMBERED
        ):
            return False
        return self._are_trees(chain.from_iterable(large), sum(map(len, large)), depth)

    def _are_trees(self, parts: Iterable[Any], count: int, depth: int) -> bool:
        parts = iter(parts)
        for _ in range(0, count, _AT_ONCE):
            self._stop.check()
            # No other list may hold them: references are counted.
            held = [part for part in islice(parts, _AT_ONCE) if type(part) not in _UNREMEMBERED]
            kinds = set(map(type, held))
            references = list(map(getrefcount, held))
            if not kinds <= _REMEMBERED or not self._share(compress(held, map(_is_shared, references))):
                return False
            for kind in kinds & _CONTAINERS:
                of_kind = held if len(kinds) == 1 else [part for part in held if type(part) is kind]
                if not self.is_tree(of_kind, kind, depth + 1):
                    return False
        return True

    def _share(self, found: Iterable[Any]) -> bool:
        """Enter what may be met again, unless only leaves may."""
        for leaf in found:
            if type(leaf) in _LEAVES:
                self.shared[id(leaf)] = leaf
            elif type(leaf) is not tuple or len(leaf):  # of empty ones there is one, which is not remembered
                return False
        return len(self.shared) <= _MOST_SHARED
