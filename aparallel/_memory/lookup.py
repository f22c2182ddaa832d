"""Looking for the result of a call: in memory, then on disk, which happens in a thread."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel._ground.store import Place, age
from aparallel._memory.constants import is_frozen
from aparallel._memory.entry import Body, Damaged, Entry, NotOurs
from aparallel._memory.keys import Key, KeyMaker
from aparallel._memory.notes import tag_states
from aparallel._memory.options import checked_tags
from aparallel._memory.results import FunctionStatistics
from aparallel._memory.tier import LOOP_SIZE, TRUSTED_FOR, Kept, copy_of, keepable, size_of
from aparallel.errors import UntrustedDirectoryError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from aparallel._memory.options import FunctionOptions
    from aparallel._memory.sealed import Found
    from aparallel._memory.shelf import Shelf

# It is given texts: who keeps records would keep an error, its frames, and the arrays that they hold.
_logger = logging.getLogger("aparallel.memory")


class State(Enum):
    """What a look for a call's result found."""

    HIT = "hit"
    STALE = "stale"
    """Expired, but good enough to be served while a new one is computed."""
    MISSING = "missing"
    EXPIRED = "expired"
    INVALIDATED = "invalidated"
    REFUSED = "refused"
    DAMAGED = "damaged"
    NOT_SIGNED = "not signed"


class Look(NamedTuple):
    """What a look for a call's result found, and the result if it is good."""

    state: State
    value: Any = None
    is_error: bool = False
    is_from_memory: bool = False


@dataclass(slots=True, eq=False)
class PendingCall:
    """A call whose result is looked for, or computed.

    Attributes:
        tags: those of its result, each with the text that says whether it was invalidated since.
        removals: what the store said of removals before the result was computed.
        is_new: it goes straight to where it would be computed, and its result is looked for there first.
        is_refresh: it is computed though its result is stored.
        is_told: what is wrong with its entry has been logged.
        deadline: until when it waits for another process that computes it, on time.monotonic's clock. Infinite, unless
            it was made inside another memoized call.
        is_locked: this process has its key's lock for it.
        is_abandoned: nobody waits for it any more. Who takes the lock then gives it back at once.
    """

    place: Place
    key: Key
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_new: bool = False
    is_refresh: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    removals: Hashable = None
    is_told: bool = False
    deadline: float = math.inf
    # Guards the two below: a thread takes the lock while the task that asked for it may be cancelled.
    mutex: threading.Lock = field(default_factory=threading.Lock)
    is_locked: bool = False
    is_abandoned: bool = False

    def again(self) -> PendingCall:
        """Return the same call, which nobody has begun to look for."""
        return PendingCall(
            self.place, self.key, self.args, self.kwargs, is_refresh=self.is_refresh, deadline=self.deadline
        )


class Lookup:
    """Finds the stored results of one function.

    Attributes:
        store: where they are.
        identifier: what the function's entries are kept under.
        is_plain: a kept result may be used with no more than a look at its age.
        expects_miss: what was looked for last was not there, so the next one may not be either. Only a guess, which
            saves a hop if it is right, and nobody's result depends on.
    """

    def __init__(
        self, shelf: Shelf, fn: Callable[..., Any], options: FunctionOptions, name: str, identifier: str
    ) -> None:
        self.shelf = shelf
        self.store: Any = shelf.store
        self.options = options
        self.name = name
        self.identifier = identifier
        self.keys = KeyMaker(fn, name=name, ignore=options.ignore, track=options.track, depends_on=options.depends_on)
        self.statistics = FunctionStatistics()
        self.is_plain = options.validate is None
        self.expects_miss = False

    def call_of(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Key | None = None,
        *,
        is_new: bool = False,
        is_refresh: bool = False,
    ) -> PendingCall:
        """Return the call, with its key, which is made if it is not given."""
        if key is None:
            key = self.keys.make(args, kwargs)
        place = Place(self.identifier, key.digest)
        return PendingCall(place, key, args, kwargs, is_new=is_new, is_refresh=is_refresh)

    def look_at_once(self, key: bytes, most: int = LOOP_SIZE) -> Look | None:
        """Return the result of the call with this key if it is in memory, needs no look at the store, and is small.

        This alone is done on the loop. *most* limits its size in bytes.
        """
        kept = self.shelf.tier.get(key)
        if kept is None or not self.is_plain or kept.size > most or time.monotonic() - kept.checked >= TRUSTED_FOR:
            return None
        ttl = self.options.ttl
        if ttl is not None and age(kept.created, time.time()) > ttl:
            return None
        return self._use_kept(kept)

    def find(self, key: Key | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[PendingCall, Look]:
        """Make the key, if it is not made yet, and look for its result: one hop for both."""
        call = self.call_of(args, kwargs, key)
        return call, self.look_for(call)

    def look_for(self, call: PendingCall) -> Look:
        """Look for the result, in memory and then in the store. What cannot be read is missing."""
        look = self._look_for(call)
        self.expects_miss = look.state is State.MISSING
        return look

    def _look_for(self, call: PendingCall) -> Look:
        place = call.place
        tier = self.shelf.tier
        try:
            kept = tier.get(place.key)
            if kept is not None and self.is_plain and self.store.version(place) == kept.version:
                state = self._state_of(kept.created, kept.tags)
                look = self._use_kept(kept) if state is State.HIT else None
                if look is not None:
                    kept.checked = time.monotonic()
                    return look
            tier.drop(place.key)
            return self._read(call)
        except UntrustedDirectoryError:
            raise
        except OSError as error:
            self.shelf.log_trouble(f"Results of {self.name} cannot be read", error)
            return Look(State.MISSING)

    def _use_kept(self, kept: Kept) -> Look | None:
        """Return what is kept; None if it cannot be unpickled, which the store's copy then says, too."""
        try:
            look = Look(State.HIT, kept.value(), kept.is_error, is_from_memory=True)
        except Exception:
            return None
        self.shelf.tier.used(kept.place.key)
        self.store.touch(kept.place)
        return look

    def _read(self, call: PendingCall) -> Look:
        place = call.place
        generation = self.shelf.generation(place)
        try:
            found = self.shelf.sealed.read(place, mapped=self.options.mmap_mode is not None)
            if found is None:
                return Look(State.MISSING)
            with found:
                look = self._use(place, found)
            if self.shelf.generation(place) != generation:
                self.shelf.tier.drop(place.key)
            return look
        except Damaged as error:
            self._tell(call, "A stored result of %s is damaged and will be replaced: %s", error)
            return Look(State.DAMAGED)
        except NotOurs as error:
            self._tell(call, "A stored result of %s is not used: %s", error)
            return Look(State.NOT_SIGNED)

    def _tell(self, call: PendingCall, message: str, error: Exception) -> None:
        """Log what is wrong with an entry, once for a call, which looks for it again under the lock of its key."""
        _logger.log(logging.DEBUG if call.is_told else logging.WARNING, message, self.name, str(error))
        call.is_told = True

    def _use(self, place: Place, found: Found) -> Look:
        """Return the value of an entry, if it is still good."""
        entry = found.entry
        meta = entry.meta() if b'"tags"' in entry.metadata or not self.is_plain else {}
        state = self._state_of(entry.created, meta.get("tags"))
        if state is State.HIT and not self._is_valid(entry, meta):
            state = State.REFUSED
        if state not in (State.HIT, State.STALE):
            return Look(state)
        value = self.shelf.sealed.value_of(found, self.options.mmap_mode)
        if state is State.HIT:
            self.keep(place, found.version, entry, value, meta.get("tags"))
            self.store.touch(place)
        self.say(10, "found")
        return Look(state, value, entry.body_kind is Body.ERROR)

    def keep(self, place: Place, version: Hashable, entry: Entry, value: Any, tags: dict[str, str] | None) -> None:
        """Put a result into the memory tier."""
        tier = self.shelf.tier
        is_error = entry.body_kind is Body.ERROR
        if is_error or (entry.body_kind is not Body.CONTAINER and not is_frozen(value)):
            tier.put(Kept(place, version, entry.created, body=entry.body, is_error=is_error, tags=tags))
        elif keepable(value) and tier.takes(size_of(value)):  # else it would be copied for nothing
            tier.put(Kept(place, version, entry.created, value=copy_of(value), size=size_of(value), tags=tags))

    def _state_of(self, created: float, tags: dict[str, str] | None) -> State:
        if tags and tag_states(self.store, tags) != tags:
            return State.INVALIDATED
        ttl = self.options.ttl
        if ttl is None:
            return State.HIT
        old = age(created, time.time())
        if old <= ttl:
            return State.HIT
        return State.STALE if old <= ttl + self.options.stale_while_revalidate else State.EXPIRED

    def _is_valid(self, entry: Entry, meta: dict[str, Any]) -> bool:
        validate = self.options.validate
        if validate is None:
            return True
        told = {"duration": meta.get("seconds"), "time": entry.created, "input_args": meta.get("values", {})}
        return bool(validate(told))

    def tags_of(self, call: PendingCall) -> dict[str, str]:
        """Return the tags of a call, each with a text that changes when it is invalidated."""
        tags = self.options.tags
        if callable(tags):
            tags = checked_tags(tags(*call.args, **call.kwargs))
        return tag_states(self.store, tags) if tags else {}

    def removals_at(self, place: Place) -> Hashable:
        """Return what the store says of removals at *place*; None if it says nothing."""
        try:
            removals: Hashable = self.store.removals(place)
        except OSError:
            return None
        return removals

    def count_hit(self, look: Look) -> None:
        """Note in the statistics that a caller gets what was found."""
        self.statistics.hits += 1
        self.statistics.memory_hits += look.is_from_memory

    def say(self, level: int, what: str) -> None:
        """Tell on stderr, if so much is to be told."""
        if self.options.verbose >= level:
            sys.stderr.write(f"[memory] {self.name}: {what}\n")


def given(look: Look) -> Any:
    """Return the result that was found, or raise it."""
    if look.is_error:
        raise look.value
    return look.value
