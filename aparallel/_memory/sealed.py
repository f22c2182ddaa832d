"""Entries in a store, under seal: what goes in is packed and signed, what comes out is checked before it is used."""

from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aparallel._ground.cpus import cpu_count
from aparallel._memory.entry import Body, Damaged, Entry, NotOurs, pack, secret_of, split, unpack
from aparallel._memory.results import StoredCall
from aparallel._memory.values import read_value, verify_value, write_to_bytes, write_to_file
from aparallel._persist.options import DumpOptions, LoadOptions
from aparallel.abc import Compressor

if TYPE_CHECKING:
    from collections.abc import Hashable
    from io import FileIO

    from aparallel._ground.sharing import MmapMode
    from aparallel._ground.store import Listed, Place, Store


class Found(NamedTuple):
    """An entry that was read and is what it should be. To be closed.

    Attributes:
        version: of its record.
        content: what its value is read from.
        container_size: bytes at the beginning of *content* that are the value's container, or 0.
    """

    entry: Entry
    version: Hashable
    content: bytes | FileIO
    container_size: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        close(self.content)


class SealedStore:
    """Writes entries to *store*, and reads those that were written with the same *signing_key*. For any thread.

    Args:
        compress: as of ``dump``, for large values.
    """

    def __init__(self, store: Store, signing_key: bytes | None = None, compress: Any = None) -> None:
        self._store = store
        self._signing_key = signing_key
        self._compress = compress
        self._compressors = (compress,) if isinstance(compress, Compressor) else ()
        self._secret = None if signing_key is None else secret_of(signing_key)
        self._dump_options: DumpOptions | None = None  # made where files may be read: it counts the cores

    def read(self, place: Place, *, mapped: bool = False) -> Found | None:
        """Return the entry at *place*, or None if there is none. *mapped*: its arrays are to be mapped.

        Raises:
            Damaged, NotOurs: there is one that cannot be used.
            OSError: it cannot be read.
        """
        record = self._store.get(place, as_file=mapped)
        if record is None:
            return None
        content = record.content
        try:
            packed, tail, size = split(content)
            entry = unpack(place.key, packed, self._secret)
            if entry.body_kind is Body.CONTAINER and (entry.body != tail or not tail):
                raise Damaged("the container before it is another one")
        except BaseException:
            close(content)
            raise
        return Found(entry, record.version, content, size)

    def stored_call(self, listed: Listed) -> StoredCall | None:
        """Return what there is to tell of an entry; None if that cannot be read."""
        described = self.described(listed.place)
        if described is None:
            return None
        entry, meta = described
        return StoredCall(
            function=meta.get("function", listed.place.function),
            key=listed.place.key.hex(),
            created=entry.created,
            last_used=listed.used,
            size=listed.size,
            seconds=meta.get("seconds", 0.0),
            tags=tuple(meta.get("tags", ())),
            arguments=meta.get("values", {}),
        )

    def described(self, place: Place) -> tuple[Entry, dict[str, Any]] | None:
        """Return the entry at *place* and its metadata; None if it is gone or cannot be read."""
        try:
            found = self.read(place)
            if found is None:
                return None
            with found:
                return found.entry, found.entry.meta()
        except (OSError, ValueError, Damaged, NotOurs):
            return None

    def value_of(self, found: Found, mmap_mode: MmapMode | None = None) -> Any:
        """Return the value of an entry. Arrays are mapped, if that is asked for, and their file is one.

        Raises:
            Damaged: it cannot be rebuilt.
        """
        if found.entry.body_kind is Body.CONTAINER:
            mode = None if isinstance(found.content, bytes) else mmap_mode
            options = LoadOptions(
                mmap_mode=mode, signing_key=self._signing_key, threads=cpu_count(), compressors=self._compressors
            )
            return read_value(found.content, found.container_size, options)
        try:
            return pickle.loads(found.entry.body)
        except Exception as error:
            raise Damaged(f"it cannot be unpickled here: {type(error).__name__}: {error}") from error

    def verify(self, place: Place) -> None:
        """Check an entry against its checksums and signature. Nothing of it is built.

        Raises:
            Damaged: it is not what was written.
            NotOurs, UnsupportedFormatError: whether it is cannot be told, without its key or by this version.
            OSError: it cannot be read.
            ModuleNotFoundError: its codec is not installed.
        """
        found = self.read(place)
        if found is not None:
            with found:
                if found.entry.body_kind is Body.CONTAINER:
                    verify_value(found.content, found.container_size, self._signing_key)

    def write(self, place: Place, entry: Entry, *, lifetime: float | None = None) -> Hashable:
        """Store an entry that holds its value, and return its version. Raises what a store's ``put`` does."""
        return self._store.put(place, pack(place.key, entry, self._secret), lifetime=lifetime)

    def write_large(self, place: Place, entry: Entry, value: Any, *, lifetime: float | None = None) -> Hashable:
        """Store *value* as a container, and *entry* after it. Raises what ``dump`` and a store's ``put`` do."""
        if self._dump_options is None:
            self._dump_options = DumpOptions.checked(self._compress, durable=False, signing_key=self._signing_key)
        options = self._dump_options

        def seal(tail: bytes) -> bytes:
            return pack(place.key, entry._replace(body_kind=Body.CONTAINER, body=tail), self._secret)

        if self._store.keeps_files:
            write = functools.partial(write_to_file, value=value, options=options, seal=seal)
            return self._store.put_file(place, write, lifetime=lifetime)
        return self._store.put(place, write_to_bytes(value, options, seal), lifetime=lifetime)


def close(content: bytes | FileIO) -> None:
    if not isinstance(content, bytes):
        content.close()
