"""Keeping a directory within its limits: before each entry, at leisure, and when told to; and noting what went."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Literal

from aparallel._ground.forks import renew_after_fork
from aparallel._ground.store import Limits, Totals, age
from aparallel._memory.behind import behind
from aparallel._memory.disk.eviction import SAMPLE, choose
from aparallel._memory.disk.files import names_in, read_file
from aparallel._memory.notes import about_of, function_of_note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aparallel._ground.store import Listed
    from aparallel._memory.disk.directory import Directory
    from aparallel._memory.disk.recency import Recency
    from aparallel._memory.disk.slots import Slots

_NEAR = 0.9  # of a limit: from there on, writers take turns
_SWEEP_EVERY = 5.0  # seconds

_NOTED = 16  # bytes of a key that was removed
_MOST_NOTED = 1 << 22  # bytes of the file of them; then the older half is forgotten


class Bounds:
    """Removes what is too much, too old, or of no use any more.

    Attributes:
        evicted, expired: what went lately, for explanations.
    """

    def __init__(self, directory: Directory, slots: Slots, recency: Recency, limits: Limits) -> None:
        self._directory = directory
        self._slots = slots
        self._recency = recency
        self.evicted = Removed(directory, "evicted")
        self.expired = Removed(directory, "expired")
        self._limits = limits
        self._next_sweep = 0.0
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Make the lock of ``_next_sweep`` anew."""
        self._mutex = threading.Lock()

    # Before an entry

    def check(self, size: int) -> None:
        """Refuse an entry that can never have room.

        Raises:
            ValueError: it is larger than everything together may be.
        """
        if self._limits.bytes is not None and size > self._limits.bytes:
            raise ValueError(f"it has {size} bytes, and max_bytes is {self._limits.bytes}")

    @contextlib.contextmanager
    def room_for(self, size: int) -> Iterator[None]:
        """Make room for an entry of *size* bytes, which is published inside the block.

        From close below the limits on, writers take turns, in all processes: each makes its room and fills it.
        """
        wanted = self._limits.less(1, size)
        if self._limits == (None, None) or not wanted.scaled(_NEAR).excess(self._slots.counts.total()):
            yield
            return
        with self._slots.turn() as is_ours:
            if is_ours and wanted.excess(self._slots.counts.total()):
                with contextlib.suppress(OSError):
                    self.evict(wanted)
            yield

    # When told to

    def reduce(self, limits: Limits, unused_for: float | None) -> int:
        """Remove what was not used for so many seconds, and what is over *limits*. Return how many entries went."""
        self._directory.remove_litter()
        self._recency.flush()
        removed = self._sweep(self._slots.numbers(), unused_for) if unused_for is not None else 0
        return removed + self.evict(limits)

    def evict(self, limits: Limits) -> int:
        """Remove the least recently used until the limits hold; a few slots are looked at for each part that goes."""
        self._recency.flush()
        counts = self._slots.counts.entries()
        slots = self._slots.numbers()
        slots = [slot for slot in slots if counts[slot]] or slots
        random.shuffle(slots)
        removed = 0
        kept = Totals(0, 0)  # of what was looked at
        sample: list[Listed] = []
        for position, slot in enumerate(slots, start=1):
            sample += self._slots.look_through(slot)
            if len(sample) < SAMPLE and position < len(slots):
                continue
            totals = self._slots.counts.total()
            excess = limits.excess(totals)
            if not excess:
                break
            left = Totals(totals.entries - kept.entries, totals.bytes - kept.bytes)
            victims = choose(sample, excess, left, time.time())
            sizes = sum(one.size for one in sample) - sum(one.size for one in victims)
            kept = Totals(kept.entries + len(sample) - len(victims), kept.bytes + sizes)
            removed += self._remove(victims)
            sample = []
        return removed

    def _remove(self, victims: Sequence[Listed]) -> int:
        by_slot: dict[int, list[Listed]] = {}
        for victim in victims:
            by_slot.setdefault(victim.place.key[0], []).append(victim)
        removed = sum([self._slots.remove_all(slot, chosen) for slot, chosen in by_slot.items()])
        self.evicted.note(victim.place.key for victim in victims)
        return removed

    # At leisure

    def sweep_soon(self) -> None:
        """Look through one slot behind everybody's back, if that was not done lately."""
        with self._mutex:
            now = time.monotonic()
            if now < self._next_sweep:
                return
            self._next_sweep = now + _SWEEP_EVERY
        behind.call_later(0.0, self._sweep_one)

    def _sweep_one(self) -> None:
        slots = self._slots.numbers()
        self._sweep(random.sample(slots, min(1, len(slots))), None)

    def _sweep(self, slots: Sequence[int], unused_for: float | None) -> int:
        """Remove from slots what has outlived its function's lifetime, or was not used for so many seconds."""
        lifetimes = self._lifetimes()
        expired: list[bytes] = []
        unused: list[bytes] = []

        def is_over(one: Listed) -> bool:
            now = time.time()
            lifetime = lifetimes.get(one.place.function)
            if lifetime is not None and age(one.created, now) > lifetime:
                expired.append(one.place.key)
            elif unused_for is not None and age(one.used, now) > unused_for:
                unused.append(one.place.key)
            else:
                return False
            return True

        removed = sum([self._slots.remove_if(slot, is_over) for slot in slots])
        for keys, reason in ((expired, self.expired), (unused, self.evicted)):
            if keys:
                reason.note(keys)
        return removed

    def _lifetimes(self) -> dict[str, float | None]:
        """How long the entries of each function are of use, as its note says."""
        found: dict[str, float | None] = {}
        for name in names_in(self._directory.path("functions")):
            function = function_of_note(f"functions/{name}")
            if function is not None:
                with contextlib.suppress(OSError):
                    found[function] = about_of(read_file(self._directory.path("functions", name))).get("ttl")
        return found


class Removed:
    """Which keys were removed lately for one *reason*: their beginnings, in a file of that name.

    Not in a file for each, because to make one where many were removed just now takes ext4 longer than to remove ten.
    """

    def __init__(self, directory: Directory, reason: Literal["evicted", "expired"]) -> None:
        self._directory = directory
        self._path = directory.path(reason)

    def note(self, keys: Iterable[bytes]) -> None:
        """Note keys. What goes wrong costs an explanation and is not told."""
        with contextlib.suppress(OSError):
            with open(self._path, "ab") as file:
                file.write(b"".join(key[:_NOTED] for key in keys))
                size = file.tell()
            if size > _MOST_NOTED:
                with open(self._path, "rb") as file:
                    file.seek(-_MOST_NOTED // 2, os.SEEK_END)
                    newest = file.read()
                self._directory.write(self._path, newest[: len(newest) // _NOTED * _NOTED])

    def has(self, key: bytes) -> bool:
        """Whether *key* was removed lately."""
        with contextlib.suppress(OSError):
            noted = read_file(self._path) or b""
            at = noted.find(key[:_NOTED])
            while at >= 0 and at % _NOTED:  # parts of two others
                at = noted.find(key[:_NOTED], at + 1)
            return at >= 0
        return False
