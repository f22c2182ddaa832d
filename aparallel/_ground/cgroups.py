"""The cgroups that bind this process, and the files that tell their limits.

Text is parsed by pure functions; :class:`Cgroups` alone reads files. Sources of the formats: proc(5), cgroups(7), and
the kernel's ``admin-guide/cgroup-v2.rst`` and ``admin-guide/cgroup-v1``.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False  # loaded in workers
if TYPE_CHECKING:
    from collections.abc import Iterator


class Cgroups:
    """This process's cgroup and all above it, as far as they have *controller*, such as ``"cpu"``.

    *root* is for tests. Files that are missing or unreadable are empty: away from Linux there are none.

    The mutable state is ``_mounts``, found once: the cgroup file systems are mounted before a program starts, and the
    mount table can be thousands of lines; threads at worst read it twice. Which cgroup this process is in is read each
    time, as it may be moved.
    """

    def __init__(self, controller: str, root: str) -> None:
        self._controller = controller
        self._root = root.rstrip("/")
        self._mounts: list[Mount] | None = None

    def folders(self) -> Iterator[tuple[int, str]]:
        """Yield each folder that may hold a limit of ours, with its cgroup version: our cgroup first."""
        if self._mounts is None:
            self._mounts = parse_mounts(self.text("/proc/self/mountinfo"), self._controller)
        return limit_folders(self._mounts, parse_paths(self.text("/proc/self/cgroup"), self._controller))

    def text(self, path: str) -> str:
        """Return what is in a file, nothing if it cannot be read."""
        try:
            with open(self._root + path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return ""


class Mount(NamedTuple):
    """Where the part of a cgroup hierarchy below *root* can be read: at *point*."""

    version: int
    root: str
    point: str


def parse_mounts(mountinfo: str, controller: str) -> list[Mount]:
    """Find the hierarchies that *controller* is in, in the text of ``/proc/self/mountinfo``.

    They are version 2's only one, and the one of version 1 that has it.
    """
    mounts = []
    for line in mountinfo.splitlines():
        # id parent device root point options [tags…] - type source super-options
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5:
            continue
        version = 0
        if kind[0] == "cgroup2":
            version = 2
        elif kind[0] == "cgroup" and controller in kind[-1].split(","):
            version = 1
        if version:
            mounts.append(Mount(version, _unescape(fields[3]), _unescape(fields[4])))
    return mounts


def _unescape(field: str) -> str:
    # The kernel writes these four in octal; the backslash comes last, so that what it uncovers is not read again.
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def parse_paths(text: str, controller: str) -> dict[int, str]:
    """Return this process's own cgroup path by cgroup version, from the text of ``/proc/self/cgroup``."""
    paths = {}
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if not separator:
            continue
        if hierarchy == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    return paths


def limit_folders(mounts: list[Mount], paths: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Yield each folder that may hold a limit of ours, with its cgroup version: our cgroup first, then its parents.

    A container may see its own cgroup mounted as if it were the root, and may know its own path only
    as the host sees it. Where no mount shows the path, the mount point stands for it.
    """
    for version, path in paths.items():
        candidates = [mount for mount in mounts if mount.version == version]
        shown = [(mount, inner) for mount in candidates if (inner := _path_below(mount.root, path)) is not None]
        for mount, inner in shown or [(mount, "") for mount in candidates[:1]]:
            names = [name for name in inner.split("/") if name]
            for depth in range(len(names), -1, -1):
                yield version, "/".join([mount.point.rstrip("/"), *names[:depth]])


def _path_below(root: str, path: str) -> str | None:
    if ".." in path.split("/"):  # the process is outside its cgroup namespace's root
        return None
    prefix = root.rstrip("/")
    if path == prefix or path.startswith(f"{prefix}/"):
        return path[len(prefix) :]
    return None
