"""Writing a file so that it is whole or absent, whatever happens to the writer.

A file is written aside, under another name in the same folder, then synced, then renamed over the target. A writer
holds a lock (flock) on its file until after the rename. The kernel takes the lock back when the process ends, however
it ends; so a file of such a name that can be locked has no writer any more, and the next writer of the same target
removes it. There are a few such names for each target, which that writer looks for: it need not search the folder,
which may hold a million files. A writer that finds all of them taken makes up one more.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING

from aparallel._persist.freeing import Freeing
from aparallel._persist.pipes import writing_to_pipe
from aparallel._persist.sinks import FileSink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._ground.stoppable import Stop

try:
    import fcntl
except ImportError:  # Windows: litter of killed processes stays there
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".aparallel"
_NAMES = 4
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_NAME_LIMIT = 255
_freeing = Freeing()


@contextlib.contextmanager
def replacing(path: str, *, durable: bool, stop: Stop) -> Iterator[FileSink]:
    """Write *path* anew: what is written to the sink becomes the file's content when the block ends without error.

    On any error the file is as it was, or still absent. A link is followed. Owner, group, permissions and access list
    of an existing file are kept as far as we may. What is no regular file, such as a pipe or a device, is written to
    directly.

    Args:
        durable: also survive a crash of the machine: the content is synced before the rename, and the folder after it.

    Raises:
        OSError: it cannot be written, as when the disk is full.
    """
    # A descriptor's name, such as /dev/stdout, may be a link to a pipe, which has no other name.
    existing = _stat(path)
    target = os.path.realpath(path)
    if not path:
        raise FileNotFoundError(errno.ENOENT, "Cannot dump to a path without a name", path)
    if path.endswith(os.sep) or (existing is not None and stat.S_ISDIR(existing.st_mode)):
        raise IsADirectoryError(errno.EISDIR, "Cannot dump to a folder. Name a file in it", path)
    if existing is not None and not stat.S_ISREG(existing.st_mode):
        with writing_to_pipe(path, stop) as sink:
            yield sink
        return
    if existing is not None and not os.access(target, os.W_OK):
        # A rename would replace it all the same, but who made it read-only meant it.
        raise PermissionError(errno.EACCES, "The file exists and may not be written", path)
    folder, name = os.path.split(target)
    remove_litter(folder, name)
    _freeing.wait(stop)
    # Nobody may read what takes the place of a file that not everybody may read, until it has that one's rights.
    aside, fd = _create_aside(folder, name, 0o666 if existing is None else 0o600)
    try:
        try:
            is_linux = sys.platform == "linux"
            sink = FileSink(fd, stop, reserve=is_linux, early=durable and is_linux)
            yield sink
            sink.flush()
            if existing is not None and hasattr(os, "fchmod"):  # Windows has it from Python 3.13 on
                _keep_rights(fd, target, existing)
            if durable:
                _sync(fd)
            stop.check()
            if fcntl is None:  # Windows renames no file that is open
                os.close(fd)
                fd = -1
            with _freeing.after(target, existing):
                os.replace(aside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise
    finally:
        # After the rename: as long as the name is there, so is the lock.
        if fd >= 0:
            os.close(fd)
    if durable:
        _sync_folder(folder)


def remove_litter(folder: str, name: str) -> None:
    """Remove what writers of this file left beside it that were killed."""
    if fcntl is None:
        return
    found = list(filter(os.path.lexists, _aside_names(folder, name)))
    if len(found) == _NAMES:  # there may be more, with names that were made up
        found = _search(folder, name)
    for path in found:
        _remove_if_abandoned(path)


def _search(folder: str, name: str) -> list[str]:
    prefix = _aside_prefix(name)
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX)]
    except OSError:  # a folder may be written to and not listed
        return []


def _remove_if_abandoned(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # gone, or not ours to open
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have renamed it before we had the lock, and another begun under the same name. From here on
        # the name keeps its meaning: nobody renames or removes a file without its lock.
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            os.unlink(path)
    except OSError:  # it has a writer, or the writer has just renamed it
        pass
    finally:
        os.close(fd)


def _create_aside(folder: str, name: str, mode: int) -> tuple[str, int]:
    made_up = (_aside(folder, name, secrets.token_hex(8)) for _ in itertools.count())
    for path in itertools.chain(_aside_names(folder, name), made_up):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, mode)
        except FileExistsError:  # another writer's
            continue
        if fcntl is None or (_locked(fd) and os.fstat(fd).st_nlink > 0):
            return path, fd
        # Another writer found it in the moment before it was locked, took it for litter, and removes it or has done so.
        os.close(fd)
    raise AssertionError("there is always one more name")


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks: nobody can lock the file, so nobody will remove it either.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _aside_names(folder: str, name: str) -> list[str]:
    return [_aside(folder, name, str(number)) for number in range(_NAMES)]


def _aside(folder: str, name: str, mark: str) -> str:
    return os.path.join(folder, f"{_aside_prefix(name)}{mark}{_SUFFIX}")


def _aside_prefix(name: str) -> str:
    # Not too long for a name, and none that a glob for the target's kind would find.
    return f".{name.encode(errors='surrogateescape')[: _NAME_LIMIT - 30].decode(errors='ignore')}."


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _keep_rights(fd: int, path: str, existing: os.stat_result) -> None:
    """Give a new file to those who may use the *existing* one at *path*, and to nobody else."""
    ours, mode = os.fstat(fd), stat.S_IMODE(existing.st_mode)
    if (ours.st_uid, ours.st_gid) != (existing.st_uid, existing.st_gid):
        try:
            os.fchown(fd, existing.st_uid, existing.st_gid)
        except OSError:  # only root may give files away
            mode &= ~stat.S_ISUID
            try:
                os.fchown(fd, -1, existing.st_gid)
            except OSError:
                # Our own group was not meant: it may what everybody may.
                mode = mode & ~(stat.S_ISGID | stat.S_IRWXG) | (mode & stat.S_IRWXO) << 3
    os.fchmod(fd, mode)
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):  # most files have no list, and some file systems no lists
            os.setxattr(fd, _ACCESS_LIST, os.getxattr(path, _ACCESS_LIST))


_ACCESS_LIST = "system.posix_acl_access"


def _sync(fd: int) -> None:
    # On macOS, fsync leaves what was written in the disk's own cache, which a loss of power empties.
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
    os.fsync(fd)


# What file systems say to a sync that they do not have.
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.EBADF)


def _sync_folder(folder: str) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written to and not read, or Windows
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(fd)
