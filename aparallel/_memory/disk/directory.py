"""The directory of a store: whether it is believed, what is where in it, and files that are whole or absent.

An entry is a pickle, and who can write one runs code here.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, Final

from aparallel._memory.behind import behind
from aparallel._memory.disk.files import names_in, remove, spread_over_disk, write_all
from aparallel._memory.disk.locks import HAS_BYTE_LOCKS
from aparallel.errors import UntrustedDirectoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._ground.store import Place

SLOTS: Final = 256
"""Into so many the entries are divided, by the first byte of their keys."""

LITTER_AGE: Final = 3600.0
"""Seconds without a write after which a file in tmp has lost its writer."""

# What programs that make backups look for, see bford.info/cachedir.
_CACHEDIR_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# Results that aparallel.Memory keeps. It may be deleted.\n"
)


def _renew_mark() -> None:
    global _our_mark
    _our_mark = f"{secrets.token_hex(8)}-"


# How the names in tmp begin that this process makes. Process numbers come again: in a container, each process may have
# the number of the one before it.
_our_mark = ""
_renew_mark()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_mark)


class Directory:
    """The directory *location*. It is made when something is first written.

    It is checked before it is used, before each write, and when a file in it is someone else's: who cleans up ``/tmp``
    may have removed ours, and anybody may have made another in its place.

    Args:
        is_signed: entries are signed, so it does not matter who may write here.
        trust_group: the directory's group may.
    """

    def __init__(self, location: str, *, is_signed: bool, trust_group: bool) -> None:
        self.location = location
        self._is_signed = is_signed
        self._trust_group = trust_group
        self._is_checked = False
        # Where it begins differs, so that short-lived processes do not all write in the same few folders.
        self._numbers = itertools.count(secrets.randbelow(SLOTS))

    def is_there(self) -> bool:
        """Return whether it exists, or did when it was last checked.

        Raises:
            UntrustedDirectoryError: it is not to be believed.
        """
        return self._is_checked or self._check()

    def check_again(self, found: os.stat_result) -> None:
        """Check it again if a file that was *found* in it is someone else's.

        Raises:
            UntrustedDirectoryError: it is not to be believed.
        """
        if found.st_uid != os.geteuid():
            self._check()

    def _check(self) -> bool:
        try:
            if not self._is_signed:
                _check_directory(self.location, trust_group=self._trust_group)
            elif not os.path.isdir(self.location):
                return False
        except FileNotFoundError:
            return False
        self._is_checked = True
        return True

    def prepare(self) -> None:
        """Make it if it is not there, and check it.

        Raises:
            UntrustedDirectoryError: it is not to be believed.
        """
        if self._is_checked and os.path.isdir(self.path("tmp")):
            return
        _make_directory(self.location, trust_group=self._trust_group)
        self._check()
        for name in ("entries", "functions", "tags", "removals", "tmp", *([] if HAS_BYTE_LOCKS else ["locks.d"])):
            self.make(self.path(name))
        for name in ("entries", "tmp"):
            spread_over_disk(self.path(name))
        for name in ("counts", "locks", "evicted", "expired") if self._trust_group else ():
            fd = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            try:
                self._give_to_group(fd, 0o660)
            finally:
                os.close(fd)
        self.write(self.path("CACHEDIR.TAG"), _CACHEDIR_TAG)
        behind.call_later(0.0, self.remove_litter)

    # What is where

    def path(self, *names: str) -> str:
        return "/".join((self.location, *names))

    def entry_path(self, place: Place) -> str:
        name = place.key.hex()
        return f"{self.location}/entries/{name[:2]}/{place.function}/{name}"

    def temporary_paths(self) -> Iterator[str]:
        """Yield what is being written, and what was left half written."""
        for folder in names_in(self.path("tmp")):
            for name in names_in(self.path("tmp", folder)):
                yield self.path("tmp", folder, name)

    # Writing

    @contextlib.contextmanager
    def aside(self) -> Iterator[tuple[str, int]]:
        """Make a file to be written, and moved into its place before the block ends: its path and a descriptor.

        It is removed if the block fails.
        """
        path, fd = self._begin()
        try:
            yield path, fd
        except BaseException:
            remove(path)
            raise
        finally:
            os.close(fd)

    def _begin(self) -> tuple[str, int]:
        if not self._check():
            self.prepare()
        number = next(self._numbers)
        path = self.path("tmp", f"{number % SLOTS:02x}", f"{_our_mark}{secrets.token_hex(8)}")
        try:
            return path, self._create(path)
        except FileNotFoundError:  # this folder is new, or somebody removed the directory
            self.prepare()
            self.make(os.path.dirname(path))
            return path, self._create(path)

    def _create(self, path: str) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._give_to_group(fd, 0o660)
        return fd

    def move(self, temporary: str, path: str) -> None:
        """Rename what was written to its place, in a folder that may have to be made."""
        try:
            os.replace(temporary, path)
        except FileNotFoundError:
            self.make(os.path.dirname(path))
            os.replace(temporary, path)

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, whole or not at all, in place of what was there."""
        with self.aside() as (temporary, fd):
            write_all(fd, data)
            self.move(temporary, path)

    def make(self, folder: str) -> None:
        """Make a folder in it, and itself if it has vanished."""
        if os.path.isdir(folder):
            return
        if not os.path.isdir(self.location):
            self.prepare()
        self.make(os.path.dirname(folder))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
            self._give_to_group(folder, 0o770 | stat.S_ISGID)

    def remove_litter(self) -> None:
        """Remove what killed writers left in tmp. Our own live, whatever a clock that jumps says of their age."""
        now = time.time()
        for path in self.temporary_paths():
            if os.path.basename(path).startswith(_our_mark):
                continue
            with contextlib.suppress(OSError):
                if now - os.stat(path).st_mtime > LITTER_AGE:
                    os.unlink(path)

    def _give_to_group(self, path: str | int, mode: int) -> None:
        """Let the group write, if it is trusted, whatever the umask says."""
        if self._trust_group:
            with contextlib.suppress(PermissionError):  # made by another member
                os.chmod(path, mode)


def _make_directory(path: str, *, trust_group: bool) -> None:
    """Make *path*, for its owner alone, or for its group too, if it does not exist."""
    mode = 0o770 if trust_group else 0o700
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        os.makedirs(parent, exist_ok=True)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    if trust_group:
        os.chmod(path, mode | stat.S_ISGID)  # whatever the umask says; and entries belong to the group


def _check_directory(path: str, *, trust_group: bool) -> None:
    """Refuse a directory that others may have written to.

    Raises:
        UntrustedDirectoryError: it belongs to someone else, or others than its owner may write to it.
        NotADirectoryError: it is none.
    """
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    if not hasattr(os, "geteuid"):
        return
    if found.st_uid != os.geteuid() and not (trust_group and found.st_gid in {os.getegid(), *os.getgroups()}):
        reason = f"it belongs to user {found.st_uid}, and this process to user {os.geteuid()}"
    elif found.st_mode & stat.S_IWOTH:
        reason = "everybody may write to it"
    elif found.st_mode & stat.S_IWGRP and not trust_group:
        reason = "its group may write to it"
    else:
        return
    hint = ", trust_group=True if you trust its group" if "group" in reason else ""
    raise UntrustedDirectoryError(
        f"The directory {path} is not used: {reason}, and whoever writes an entry can run code here. "
        f"Use a directory of your own (chmod 700){hint}, or signing_key=... to accept signed entries only.",
        path=path,
        reason=reason,
    )
