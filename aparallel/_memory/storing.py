"""Storing results, and explaining why one is not there. All of it happens in a thread."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel._memory.digest import digest
from aparallel._memory.entry import Body, Entry, metadata_of
from aparallel._memory.lookup import State
from aparallel._memory.notes import about_function, note_function
from aparallel._memory.results import Explanation
from aparallel._memory.values import pickle_error, pickle_small

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._memory.keys import Key
    from aparallel._memory.lookup import Lookup, PendingCall

_logger = logging.getLogger("aparallel.memory")

_ARGUMENT_DIGITS = 16
_CODE_DIGITS = 16
_LONGEST_TEXT = 200  # characters of an argument
_MOST_COMPARED = 2000  # stored calls, when one is missing


class NotStored(NamedTuple):
    """Why a result could not be stored.

    Attributes:
        problem: what went wrong, in words.
        part: what with: the store, or this function's results. It is warned of once for each.
    """

    problem: str
    part: str


class Storing:
    """Stores the results that *lookup* finds later."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._noted_code = b""

    def store(self, call: PendingCall, value: Any, seconds: float, *, is_error: bool) -> NotStored | None:
        """Store, and return what went wrong, if anything did."""
        own = self._lookup
        if self._is_outdated(call):
            return None
        try:
            self._write(call, value, seconds, is_error=is_error)
            if self._is_outdated(call):  # since it was written, perhaps; else whoever removes finds it there
                own.store.remove(call.place)
                own.shelf.tier.drop(call.place.key)
                return None
        except Exception as error:
            own.statistics.not_stored += 1
            _logger.info("A result of %s is not stored: %s", own.name, repr(error))
            part = "the store" if isinstance(error, OSError) else own.identifier
            return NotStored(f"{type(error).__name__}: {error}", part)
        own.statistics.stored += 1
        return None

    def _is_outdated(self, call: PendingCall) -> bool:
        """Whether results were removed by request since this one was asked for: it is its caller's, and not stored."""
        return self._lookup.removals_at(call.place) != call.removals

    def _write(self, call: PendingCall, value: Any, seconds: float, *, is_error: bool) -> None:
        own, options = self._lookup, self._lookup.options
        body: bytes | None
        if is_error:
            body = pickle_error(value)
        else:
            is_mapped = options.mmap_mode is not None
            body = pickle_small(value, compressed=own.shelf.options.is_compressed, mapped=is_mapped)
        kind = Body.ERROR if is_error else Body.VALUE
        entry = Entry(kind, time.time(), metadata_of(self._described(call, seconds)), body or b"")
        self._note_function(call.key)
        if body is None:
            own.shelf.sealed.write_large(call.place, entry, value, lifetime=options.lifetime)
        else:
            version = own.shelf.sealed.write(call.place, entry, lifetime=options.lifetime)
            own.keep(call.place, version, entry, value, call.tags)

    def _described(self, call: PendingCall, seconds: float) -> dict[str, Any]:
        """Return the metadata of a call that took so long."""
        own, key = self._lookup, call.key
        parts = {
            "function": own.name,
            "seconds": seconds,
            "code": _code_of(key),
            "arguments": [digest(part).hex()[:_ARGUMENT_DIGITS] for part in (*key.arguments, key.held)],
        }
        if call.tags:
            parts["tags"] = call.tags
        if own.shelf.options.store_arguments:
            binder = own.keys.binder
            parts["values"] = dict(zip(binder.names, map(_short, binder.bind(call.args, call.kwargs)), strict=True))
        return parts

    def _note_function(self, key: Key) -> None:
        """Write down, once per process and version, what entries need not repeat."""
        if self._noted_code == key.fingerprint.static:
            return
        own = self._lookup
        with contextlib.suppress(OSError):
            note_function(own.store, {"name": own.name, "ttl": own.options.lifetime}, own.identifier)
            about = {"parts": _parts_of(key), "names": self._names()}
            note_function(own.store, about, own.identifier, _code_of(key))
            self._noted_code = key.fingerprint.static

    def explain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
        """Say whether a call would be a hit, or why it would be a miss."""
        own = self._lookup
        call, look = own.find(None, args, kwargs)
        unseen = own.keys.unseen(call.key, args, kwargs)
        if look.state is State.HIT:
            return Explanation(hit=True, reason="hit", unseen=unseen)
        if look.state is not State.MISSING:
            reason = State.EXPIRED if look.state is State.STALE else look.state
            return Explanation(hit=False, reason=reason.value, unseen=unseen)
        return replace(self._explain_missing(call), unseen=unseen)

    def _explain_missing(self, call: PendingCall) -> Explanation:
        """Say how *call* differs from the stored one of the same function that is most like it."""
        store = self._lookup.store
        if store.was_evicted(call.place):
            return Explanation(hit=False, reason="evicted")
        if store.was_expired(call.place):
            return Explanation(hit=False, reason="expired")
        this, names, parts = self._described(call, 0.0), self._names(), _parts_of(call.key)
        # What of the code is another now, by the version that a stored call was made with.
        changed: dict[str, tuple[str, ...]] = {this["code"]: ()}
        best: tuple[tuple[int, int], tuple[str, ...], str] | None = None
        for other in itertools.islice(self._stored(), _MOST_COMPARED):
            theirs, code = other.get("arguments", []), other.get("code", "")
            differing = tuple(
                name
                for name, a, b in itertools.zip_longest(names, this["arguments"], theirs)
                if a != b and name is not None
            )
            if code not in changed:
                known = about_function(store, call.place.function, code).get("parts", {})
                changed[code] = tuple(sorted(name for name in {*known, *parts} if known.get(name) != parts.get(name)))
            distance = (len(differing) + (code != this["code"]), len(changed[code]))
            if distance[0] and (best is None or distance < best[0]):
                best = (distance, differing, code)
        if best is None:
            return Explanation(hit=False, reason="never computed")
        _, differing, code = best
        reason = "code changed" if code != this["code"] and not differing else "argument differs"
        return Explanation(hit=False, reason=reason, arguments=differing, code=changed[code])

    def _stored(self) -> Iterator[dict[str, Any]]:
        """Yield the metadata of the function's stored calls."""
        own = self._lookup
        for listed in own.store.entries(own.identifier):
            described = own.shelf.sealed.described(listed.place)
            if described is not None:
                yield described[1]

    def _names(self) -> list[str]:
        """What the digests in metadata are of."""
        return [*self._lookup.keys.binder.names, "what it closes over"]


def _parts_of(key: Key) -> dict[str, str]:
    return {name: part.hex()[:_CODE_DIGITS] for name, part in key.fingerprint.parts.items()}


def _code_of(key: Key) -> str:
    return key.fingerprint.static.hex()[:_CODE_DIGITS]


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a repr is user code
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"
