"""What a store keeps besides entries, by name: functions, versions of their code, and tags. JSON, or a random text.

::

    functions/<function>.json           {"name": …, "ttl": seconds after which its entries are of no use, or null}
    functions/<function>.<code>.json    {"parts": {name: digest of its code}, "names": [of the arguments]}
    tags/<digest of the tag>            a text that changes whenever the tag is invalidated
    removals/all, removals/<xx>         the same for removals by request, of keys with these first two digits: see Store
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

from aparallel._memory.digest import digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._ground.store import Store


def about_function(store: Store, function: str, code: str = "") -> dict[str, Any]:
    """Return what is noted of a function, or of a version of its code; an empty dict if nothing is."""
    return about_of(store.read_note(_function_note(function, code)))


def about_of(note: bytes | None) -> dict[str, Any]:
    """Return what a note of a function, or of a version of its code, says."""
    try:
        found = json.loads(note or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def note_function(store: Store, about: dict[str, Any], function: str, code: str = "") -> None:
    """Note what is to be known of a function, or of a version of its code, unless that is noted."""
    if about_function(store, function, code) != about:
        store.write_note(_function_note(function, code), json.dumps(about).encode())


def function_of_note(name: str) -> str | None:
    """The function whose note has this name, None for notes of other things."""
    folder, _, rest = name.partition("/")
    function, _, rest = rest.partition(".")
    return function if folder == "functions" and rest == "json" else None


def tag_states(store: Store, tags: Iterable[str]) -> dict[str, str]:
    """Return for each tag a text that changes when the tag is invalidated."""
    return {tag: (store.read_note(_tag_note(tag)) or b"").decode(errors="replace") for tag in tags}


def invalidate(store: Store, tags: Iterable[str]) -> None:
    """Make every entry with one of these tags a miss."""
    for tag in tags:
        store.write_note(_tag_note(tag), secrets.token_hex(8).encode())


def _function_note(function: str, code: str) -> str:
    return f"functions/{function}.{code}.json" if code else f"functions/{function}.json"


def _tag_note(tag: str) -> str:
    return f"tags/{digest(tag.encode('utf-8', 'surrogatepass')).hex()[:32]}"
