"""The store on disk.

::

    entries/<xx>/<function>/<key>       an entry; xx, the first two digits of the key, is its slot
    entries/<xx>/<function>/<key>.apl   its value, where that is large
    functions/<function>.json           the function's name
    functions/<function>.<code>.json    the digest of each part of its code, for explain()
    tags/<tag>                          changes whenever the tag is invalidated
    evicted/<xx>                        the beginnings of the keys that were evicted lately, for explain()
    counts, locks                       see counts.py and locks.py
    tmp/                                what is being written

Every file is written in tmp and renamed into its place, so it is whole or absent. Nothing is mapped but arrays,
no descriptor stays open, and no lock is held while anything is computed but the one of its key: all of it works
on a network file system.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import secrets
import stat
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aparallel._memory.behind import behind
from aparallel._memory.counts import SLOTS, Counts
from aparallel._memory.digest import digest
from aparallel._memory.entry import Entry, pack, unpack
from aparallel._memory.eviction import SAMPLE, Candidate, Limits, Totals, age, choose
from aparallel._memory.forks import renew_after_fork
from aparallel._memory.locks import acquire_soon, open_locks
from aparallel._memory.trust import check_directory, make_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

KEY_DIGITS: Final = 64
BESIDE: Final = ".apl"

# Numbers of locks. Keys use those below 2**62.
_SLOT_LOCKS = 1 << 62
_EVICTION_LOCK = _SLOT_LOCKS + SLOTS

_SLOT_PATIENCE = 2.0  # seconds; beyond, the count stays as it is until someone looks through the slot
_NEAR = 0.9  # of a limit: from there on, writers take turns
_TURN_PATIENCE = 10.0  # seconds; beyond, an entry is published without room for it
_TOUCH_DELAY = 0.25  # seconds
_SWEEP_EVERY = 5.0  # seconds
_LITTER_AGE = 3600.0  # seconds without a write after which a file in tmp has lost its writer
_EVICTED_BYTES = 16
_EVICTED_LIMIT = 1 << 16


class Place(NamedTuple):
    """Where an entry is: the identifier of its function, and its key, 32 bytes."""

    function: str
    key: bytes


class Mark(NamedTuple):
    """What is different of a file that was replaced."""

    inode: int
    changed_ns: int
    size: int


class Found(NamedTuple):
    """An entry that was read, and the mark of its file."""

    entry: Entry
    mark: Mark


class Listed(NamedTuple):
    """An entry that was seen while looking through the directory."""

    place: Place
    size: int
    created: float
    used: float


class DirectoryStore:
    """Keeps entries in the directory *location*. Every method may block, and is safe in any thread.

    Args:
        secret: 32 bytes to sign entries with, or None.
        trust_group: whether the directory's group may write to it.
        limits: what it may hold.
    """

    def __init__(
        self, location: str, *, secret: bytes | None = None, trust_group: bool = False, limits: Limits | None = None
    ) -> None:
        self.location = location
        self._secret = secret
        self._trust_group = trust_group
        self.limits = limits or Limits()
        self._counts = Counts(self._path("counts"))
        self._locks = open_locks(self._path("locks"))
        self._numbers = itertools.count()
        self._is_checked = False
        self._known_functions: dict[str, object] = {}
        # Guarded by the mutex: which entries were used, and when, since the last flush.
        self._mutex = threading.Lock()
        self._touched: dict[Place, float] = {}
        self._next_sweep = 0.0
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Leave to the parent what it has to write down."""
        self._mutex = threading.Lock()
        self._touched = {}

    # Reading

    def read(self, place: Place) -> Found | None:
        """Return the entry at *place*, or None if there is none.

        Raises:
            Damaged, NotOurs: there is one that cannot be used.
            UntrustedDirectoryError: the directory is not to be believed.
            OSError: it cannot be read.
        """
        if not self._is_checked and not self._check():
            return None
        try:
            fd = os.open(self._entry_path(place), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            data = _read_all(fd, status.st_size)
        finally:
            os.close(fd)
        return Found(unpack(place.key, data, self._secret), _mark_of(status))

    def mark(self, place: Place) -> Mark | None:
        """Return what :meth:`read` would give as mark, without reading; None if there is no entry."""
        try:
            return _mark_of(os.stat(self._entry_path(place)))
        except FileNotFoundError:
            return None

    def beside(self, place: Place) -> str:
        """Return the path of the file beside an entry."""
        return self._entry_path(place) + BESIDE

    def touch(self, place: Place) -> None:
        """Note that an entry was used. It costs nothing now; the disk learns of it within about a second."""
        with self._mutex:
            is_first = not self._touched
            self._touched[place] = time.time()
        if is_first:
            behind.call_later(_TOUCH_DELAY, self.flush)

    def flush(self) -> None:
        """Write down what was used since the last time."""
        with self._mutex:
            touched, self._touched = self._touched, {}
        for place, used in touched.items():
            path = self._entry_path(place)
            with contextlib.suppress(OSError):
                os.utime(path, ns=(int(used * 1e9), os.stat(path).st_mtime_ns))

    # Writing

    def write(self, place: Place, entry: Entry, write_beside: Callable[[str], bytes] | None = None) -> Mark:
        """Store *entry*, whole or not at all, in place of what was there.

        *write_beside* writes the file beside it to the path that it is given, and returns the entry's body.

        Raises:
            UntrustedDirectoryError: the directory is not to be believed.
            ValueError: it is larger than everything together may be.
            OSError: it could not be stored.
        """
        self.prepare()
        temporary = self._temporary_path()
        try:
            size = 0
            if write_beside is not None:
                entry = entry._replace(body=write_beside(temporary + BESIDE))
                self._give_to_group(temporary + BESIDE, 0o660)
                size = os.stat(temporary + BESIDE).st_size
            data = pack(place.key, entry, self._secret)
            size += len(data)
            fd = self._create(temporary)
            try:
                _write_all(fd, data)
                with self._room_for(size):
                    return self._publish(place, temporary, size, fd, has_beside=write_beside is not None)
            finally:
                os.close(fd)
        except BaseException:
            _remove(temporary)
            _remove(temporary + BESIDE)
            raise

    def _publish(self, place: Place, temporary: str, size: int, fd: int, *, has_beside: bool) -> Mark:
        """Rename what was written into its place, and count it."""
        path = self._entry_path(place)
        slot = place.key[0]
        with self._slot(slot) as is_locked:
            before = _size_of(path), _size_of(path + BESIDE)
            try:
                _rename(temporary, path, has_beside=has_beside)
            except FileNotFoundError:
                self._make(os.path.dirname(path))
                _rename(temporary, path, has_beside=has_beside)
            if not has_beside and before[1] is not None:
                _remove(path + BESIDE)
            if is_locked:
                self._counts.add(slot, int(before[0] is None), size - sum(part or 0 for part in before))
            return _mark_of(os.fstat(fd))

    def remove(self, place: Place) -> bool:
        """Remove an entry, and return whether there was one."""
        self._check()
        path = self._entry_path(place)
        with self._slot(place.key[0]) as is_locked:
            sizes = _size_of(path), _size_of(path + BESIDE)
            _remove(path)
            _remove(path + BESIDE)
            if is_locked and sizes != (None, None):
                self._counts.add(place.key[0], -int(sizes[0] is not None), -sum(part or 0 for part in sizes))
            return sizes[0] is not None

    def clear(self, function: str | None = None) -> int:
        """Remove all entries, or all of one function, and return how many there were."""
        self._check()
        removed = 0
        for slot in self._slots():
            with self._slot(slot):
                chosen = [one for one in self._look_through(slot) if function is None or one.function == function]
                removed += len(self._remove_all(slot, chosen, {one.function for one in chosen}))
        return removed

    # Looking

    def listing(self, function: str | None = None) -> Iterator[Listed]:
        """Yield the entries that there are, in no order. Others may come and go meanwhile."""
        if not self._check():
            return
        for slot in self._slots():
            for found in self._scan(slot, function):
                place = Place(found.function, bytes.fromhex(found.name))
                yield Listed(place, found.size, found.created, found.used)

    def totals(self) -> Totals:
        """Return how many entries and bytes there are, from the counts."""
        self._check()
        return self._counts.total()

    def functions(self) -> dict[str, dict[str, Any]]:
        """Return what is known of each function, by identifier."""
        found = {}
        for name in _names(self._path("functions")):
            identifier, _, rest = name.partition(".")
            if rest == "json":
                found[identifier] = self._read_json("functions", name) or {}
        return found

    def note_function(self, identifier: str, about: dict[str, Any]) -> None:
        """Write down what is to be known of a function, or of a version of its code."""
        if self._known_functions.get(identifier) == about:
            return
        if self._read_json("functions", f"{identifier}.json") != about:
            self._replace(self._path("functions", f"{identifier}.json"), json.dumps(about).encode())
        self._known_functions[identifier] = about

    def about_function(self, identifier: str) -> dict[str, Any]:
        """Return what :meth:`note_function` wrote, or an empty dict."""
        return self._read_json("functions", f"{identifier}.json") or {}

    def was_evicted(self, place: Place) -> bool:
        """Whether an entry was evicted lately."""
        with contextlib.suppress(OSError), open(self._evicted_path(place.key[0]), "rb") as file:
            data = file.read()
            wanted = place.key[:_EVICTED_BYTES]
            return any(data[at : at + _EVICTED_BYTES] == wanted for at in range(0, len(data), _EVICTED_BYTES))
        return False

    # Tags

    def tag_states(self, tags: Iterable[str]) -> dict[str, str]:
        """Return for each tag a text that changes when the tag is invalidated."""
        return {tag: _read_text(self._tag_path(tag)) for tag in tags}

    def invalidate(self, tags: Iterable[str]) -> None:
        """Make every entry with one of these tags a miss."""
        self.prepare()
        for tag in tags:
            self._replace(self._tag_path(tag), secrets.token_hex(8).encode())

    # Locks of keys

    def try_lock(self, key: bytes) -> bool:
        """Take the lock of *key*, and return whether that could be done.

        It ends with :meth:`unlock`, or with this process. Where there are no locks, everyone gets it.
        """
        self.prepare()
        return self._locks.try_acquire(_lock_number(key))

    def unlock(self, key: bytes) -> None:
        with contextlib.suppress(OSError):
            self._locks.release(_lock_number(key))

    # Bounds

    @contextlib.contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """Make room for an entry of *size* bytes, which is published inside the block.

        From close below the limits on, writers take turns, in all processes: each makes its room and fills it.

        Raises:
            ValueError: it is larger than everything together may be.
        """
        if self.limits.bytes is not None and size > self.limits.bytes:
            raise ValueError(f"it has {size} bytes, and max_bytes is {self.limits.bytes}")
        wanted = self.limits.less(1, size)
        if self.limits == (None, None) or not wanted.scaled(_NEAR).excess(self._counts.total()):
            yield
            return
        with self._locked(_EVICTION_LOCK, _TURN_PATIENCE) as is_ours:
            if is_ours and wanted.excess(self._counts.total()):
                with contextlib.suppress(OSError):
                    self._evict(wanted)
            yield

    def reduce(self, limits: Limits, *, unused_for: float | None = None) -> int:
        """Remove what was not used for so many seconds, and what is over *limits*. Return how many entries went."""
        if not self._check():
            return 0
        self.remove_litter()
        self.flush()
        removed = self.sweep(SLOTS, unused_for=unused_for) if unused_for is not None else 0
        return removed + self._evict(limits)

    def _evict(self, limits: Limits) -> int:
        self.flush()
        counts = self._counts.entries()
        slots = self._slots()
        slots = [slot for slot in slots if counts[slot]] or slots
        random.shuffle(slots)
        removed = 0
        kept = Totals(0, 0)  # of what was looked at
        sample: list[Candidate] = []
        for position, slot in enumerate(slots, start=1):
            with self._slot(slot) as is_locked:
                sample += self._look_through(slot, correct=is_locked)
            if len(sample) < SAMPLE and position < len(slots):
                continue
            totals = self._counts.total()
            excess = limits.excess(totals)
            if not excess:
                break
            left = Totals(totals.entries - kept.entries, totals.bytes - kept.bytes)
            victims = choose(sample, excess, left, time.time())
            removed += len(victims)
            sizes = sum(one.size for one in sample) - sum(one.size for one in victims)
            kept = Totals(kept.entries + len(sample) - len(victims), kept.bytes + sizes)
            self._evict_all(victims)
            sample = []
        return removed

    def _evict_all(self, victims: Sequence[Candidate]) -> None:
        by_slot: dict[int, list[Candidate]] = {}
        for victim in victims:
            by_slot.setdefault(int(victim.name[:2], 16), []).append(victim)
        for slot, chosen in by_slot.items():
            with self._slot(slot):
                self._remove_all(slot, chosen)
            self._note_evicted(slot, chosen)

    def sweep(self, most_slots: int, *, unused_for: float | None = None) -> int:
        """Look through some slots for entries that have outlived their function's ttl, or *unused_for* seconds."""
        slots = list(self._slots())
        random.shuffle(slots)
        ttls = {name: about.get("ttl") for name, about in self.functions().items()}
        removed = 0
        for slot in slots[:most_slots]:
            with self._slot(slot):
                now = time.time()
                expired = [
                    one
                    for one in self._look_through(slot)
                    if ((ttl := ttls.get(one.function)) is not None and age(one.created, now) > ttl)
                    or (unused_for is not None and age(one.used, now) > unused_for)
                ]
                removed += len(self._remove_all(slot, expired))
        return removed

    def sweep_soon(self) -> None:
        """Look through one slot behind everybody's back, if that was not done lately."""
        with self._mutex:
            now = time.monotonic()
            if now < self._next_sweep:
                return
            self._next_sweep = now + _SWEEP_EVERY
        behind.call_later(0.0, lambda: self.sweep(1))

    def remove_litter(self) -> int:
        """Remove what killed writers left in tmp. Return how many files."""
        removed = 0
        now = time.time()
        for name in _names(self._path("tmp")):
            path = self._path("tmp", name)
            with contextlib.suppress(OSError):
                if now - os.stat(path).st_mtime > _LITTER_AGE:
                    os.unlink(path)
                    removed += 1
        return removed

    # Slots

    @contextlib.contextmanager
    def _slot(self, slot: int) -> Iterator[bool]:
        """Hold the lock of a slot; gives whether it is ours. Work that must be done is done without it too."""
        with self._locked(_SLOT_LOCKS + slot, _SLOT_PATIENCE) as is_ours:
            yield is_ours

    @contextlib.contextmanager
    def _locked(self, number: int, patience: float) -> Iterator[bool]:
        """Hold a lock that is never held for long; gives whether it is ours. Where there are no locks, it is."""
        try:
            is_held = is_ours = acquire_soon(self._locks, number, patience)
        except OSError:
            is_held, is_ours = False, True
        try:
            yield is_ours
        finally:
            if is_held:
                with contextlib.suppress(OSError):
                    self._locks.release(number)

    def _slots(self) -> list[int]:
        return [int(name, 16) for name in _names(self._path("entries")) if len(name) == 2]

    def _scan(self, slot: int, function: str | None = None) -> Iterator[Candidate]:
        folder = self._path("entries", f"{slot:02x}")
        for name in [function] if function is not None else _names(folder):
            yield from _scan_folder(os.path.join(folder, name), name)

    def _look_through(self, slot: int, *, correct: bool = True) -> list[Candidate]:
        """Return the entries of a slot whose lock is held, and put its count right."""
        found = list(self._scan(slot))
        if correct:
            with contextlib.suppress(OSError):
                self._counts.set(slot, Totals(len(found), sum(candidate.size for candidate in found)))
        return found

    def _remove_all(self, slot: int, chosen: Sequence[Candidate], emptied: Iterable[str] = ()) -> Sequence[Candidate]:
        """Remove entries of a slot whose lock is held; and their folders, if they are *emptied*."""
        if not chosen:
            return chosen
        folder = self._path("entries", f"{slot:02x}")
        for candidate in chosen:
            path = os.path.join(folder, candidate.function, candidate.name)
            _remove(path)
            if candidate.beside:
                _remove(path + BESIDE)
        with contextlib.suppress(OSError):
            self._counts.add(slot, -len(chosen), -sum(candidate.size for candidate in chosen))
        for name in emptied:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(folder, name))
        return chosen

    def _note_evicted(self, slot: int, chosen: Sequence[Candidate]) -> None:
        path = self._evicted_path(slot)
        with contextlib.suppress(OSError):
            self._make(os.path.dirname(path))
            with open(path, "ab") as file:
                file.write(b"".join(bytes.fromhex(one.name)[:_EVICTED_BYTES] for one in chosen))
                size = file.tell()
            if size > _EVICTED_LIMIT:
                with open(path, "rb") as file:
                    file.seek(-_EVICTED_LIMIT // 2, os.SEEK_END)
                    newest = file.read()
                self._replace(path, newest[: len(newest) // _EVICTED_BYTES * _EVICTED_BYTES])

    # The directory

    def _check(self) -> bool:
        """Check once whether the directory is to be believed. Returns whether there is one."""
        if self._is_checked:
            return True
        try:
            if self._secret is None:
                check_directory(self.location, trust_group=self._trust_group)
            elif not os.path.isdir(self.location):
                return False
        except FileNotFoundError:
            return False
        self._is_checked = True
        return True

    def prepare(self) -> None:
        """Make the directory, if it is not there, and check it once."""
        if self._is_checked and os.path.isdir(self._path("tmp")):
            return
        make_directory(self.location, trust_group=self._trust_group)
        self._check()
        for name in ("entries", "functions", "tags", "evicted", "tmp"):
            self._make(self._path(name))
        for name in ("counts", "locks") if self._trust_group else ():
            fd = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            try:
                self._give_to_group(fd, 0o660)
            finally:
                os.close(fd)
        self._replace(self._path("CACHEDIR.TAG"), _CACHEDIR_TAG)
        behind.call_later(0.0, self.remove_litter)

    def _make(self, folder: str) -> None:
        if os.path.isdir(folder):
            return
        if not os.path.isdir(self.location):
            self.prepare()
        self._make(os.path.dirname(folder))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
            self._give_to_group(folder, 0o770 | stat.S_ISGID)

    def _create(self, path: str) -> int:
        """Open a new file for writing."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._give_to_group(fd, 0o660)
        return fd

    def _give_to_group(self, path: str | int, mode: int) -> None:
        """Let the group write, if it is trusted, whatever the umask says."""
        if self._trust_group:
            with contextlib.suppress(PermissionError):  # made by another member
                os.chmod(path, mode)

    def _path(self, *names: str) -> str:
        return os.path.join(self.location, *names)

    def _entry_path(self, place: Place) -> str:
        name = place.key.hex()
        return f"{self.location}/entries/{name[:2]}/{place.function}/{name}"

    def _evicted_path(self, slot: int) -> str:
        return self._path("evicted", f"{slot:02x}")

    def _tag_path(self, tag: str) -> str:
        return self._path("tags", digest(tag.encode("utf-8", "surrogatepass")).hex()[:32])

    def _temporary_path(self) -> str:
        return self._path("tmp", f"{os.getpid():x}-{next(self._numbers):x}-{secrets.token_hex(8)}")

    def _replace(self, path: str, data: bytes) -> None:
        temporary = self._temporary_path()
        try:
            fd = self._create(temporary)
            try:
                _write_all(fd, data)
            finally:
                os.close(fd)
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise

    def _read_json(self, *names: str) -> dict[str, Any] | None:
        try:
            found = json.loads(_read_text(self._path(*names)) or "null")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


# What programs that make backups look for, see bford.info/cachedir.
_CACHEDIR_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# Results that aparallel.Memory keeps. It may be deleted.\n"
)


def _lock_number(key: bytes) -> int:
    return int.from_bytes(key[:8], "big") >> 2


def _mark_of(status: os.stat_result) -> Mark:
    return Mark(status.st_ino, status.st_mtime_ns, status.st_size)


def _read_all(fd: int, size: int) -> bytes:
    data = os.read(fd, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _rename(temporary: str, path: str, *, has_beside: bool) -> None:
    if has_beside and os.path.exists(temporary + BESIDE):
        os.replace(temporary + BESIDE, path + BESIDE)
    os.replace(temporary, path)


def _size_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _scan_folder(folder: str, function: str) -> Iterator[Candidate]:
    """Yield the entries of one function in one slot. What lies beside none any more is removed."""
    found: dict[str, os.stat_result] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found[entry.name] = entry.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, status in found.items():
        if name.endswith(BESIDE):
            if name.removesuffix(BESIDE) not in found and time.time() - status.st_mtime > _LITTER_AGE:
                _remove(os.path.join(folder, name))
        elif len(name) == KEY_DIGITS:
            beside = found.get(name + BESIDE)
            size = status.st_size + (beside.st_size if beside is not None else 0)
            yield Candidate(function, name, size, status.st_mtime, status.st_atime, beside is not None)
