"""Why a result is not there: compared with the stored ones of the same function."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aparallel._memory.entry import Damaged, NotOurs
from aparallel._memory.notes import about_function
from aparallel._memory.results import Explanation

if TYPE_CHECKING:
    from aparallel._ground.store import Place, Store
    from aparallel._memory.sealed import SealedStore

_MOST: Final = 2000
"""Stored calls that are compared."""


def explain_missing(
    store: Store,
    sealed: SealedStore,
    place: Place,
    meta: Mapping[str, Any],
    names: Sequence[str],
    parts: Mapping[str, str],
) -> Explanation:
    """Say how the call at *place*, described by *meta*, differs from the stored one that is most like it.

    *names* are those of its arguments, *parts* the digests of its code's parts by name.
    """
    if store.was_evicted(place):
        return Explanation(hit=False, reason="evicted")
    if store.was_expired(place):
        return Explanation(hit=False, reason="expired")
    own = meta["code"]
    # What of the code is another now, by the version that a stored call was made with.
    changed: dict[str, tuple[str, ...]] = {own: ()}
    best: tuple[tuple[int, int], tuple[str, ...], str] | None = None
    for other in itertools.islice(_stored(store, sealed, place.function), _MOST):
        theirs, code = other.get("arguments", []), other.get("code", "")
        differing = tuple(
            name
            for name, a, b in itertools.zip_longest(names, meta["arguments"], theirs)
            if a != b and name is not None
        )
        if code not in changed:
            known = about_function(store, place.function, code).get("parts", {})
            changed[code] = tuple(sorted(name for name in {*known, *parts} if known.get(name) != parts.get(name)))
        distance = (len(differing) + (code != own), len(changed[code]))
        if distance[0] and (best is None or distance < best[0]):
            best = (distance, differing, code)
    if best is None:
        return Explanation(hit=False, reason="never computed")
    _, differing, code = best
    reason = "code changed" if code != own and not differing else "argument differs"
    return Explanation(hit=False, reason=reason, arguments=differing, code=changed[code])


def _stored(store: Store, sealed: SealedStore, function: str) -> Iterator[dict[str, Any]]:
    for listed in store.entries(function):
        with contextlib.suppress(OSError, Damaged, NotOurs, ValueError):
            found = sealed.read(listed.place)
            if found is not None:
                with found:
                    meta = found.entry.meta()
                yield meta
