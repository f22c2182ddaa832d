"""Whether a directory may be believed: an entry is a pickle, and who can write one runs code here."""

from __future__ import annotations

import errno
import os
import stat

from aparallel.errors import UntrustedDirectoryError


def make_directory(path: str, *, trust_group: bool) -> None:
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


def check_directory(path: str, *, trust_group: bool) -> None:
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
