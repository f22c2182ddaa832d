"""The command line: ``aparallel cache ls|show|prune|clear|verify DIR``.

Nothing here unpickles: a directory can be looked at, thinned out and verified without trust in what it holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aparallel import __version__
from aparallel._ground.store import Limits, Listed
from aparallel._ground.units import parse_bytes, parse_seconds
from aparallel._memory.disk.store import DiskStore
from aparallel._memory.entry import Damaged, NotOurs, WrongSignature
from aparallel._memory.notes import about_function, function_of_note
from aparallel._memory.results import StoredCall
from aparallel._memory.sealed import SealedStore
from aparallel._persist.options import checked_key
from aparallel.errors import AparallelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what *arguments* say, those of the process by default. Returns the exit code.

    0: done; 1: ``verify`` found what is damaged and left it, or what it could not check, or ``show`` found nothing;
    2: it could not be done; 130: it was interrupted; 141: nobody read to the end what was told.
    """
    if sys.stdout is None:  # it was closed, as by >&-
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays open, as the other would
    options = _parser().parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as of `| head`; the interpreter's last flush would complain too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (AparallelError, OSError, ValueError) as error:
        sys.stderr.write(f"aparallel: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aparallel", description="Parallel calls and memoization for asyncio.")
    parser.add_argument("--version", action="version", version=f"aparallel {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    cache = commands.add_parser("cache", help="look after the directory of a Memory")
    actions = cache.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        found = actions.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        found.add_argument("directory", metavar="DIR", help="the memory's location")
        found.add_argument("--json", action="store_true", help="print JSON")
        found.add_argument("--trust-group", action="store_true", help="the directory's group may write to it")
        found.add_argument("--signing-key-file", metavar="FILE", help="the file that holds the memory's signing_key")
        return found

    action("ls", _list, "list the functions and how much is stored of each")
    show = action("show", _show, "show the entries of a function, or the one of a key")
    show.add_argument(
        "what",
        nargs="?",
        metavar="FUNCTION|KEY",
        help="a function's name, or the beginning of a key; everything by default",
    )
    prune = action("prune", _prune, "remove entries, least recently used first")
    prune.add_argument(
        "--max-bytes", type=_read_by(parse_bytes), metavar="SIZE", help="until no more than this is left, such as 10GB"
    )
    prune.add_argument("--max-entries", type=_read_by(_count), metavar="N", help="until no more than so many are left")
    prune.add_argument(
        "--unused-for",
        type=_read_by(parse_seconds),
        metavar="AGE",
        help="all that were unused for so long, such as 7d",
    )
    clear = action("clear", _clear, "remove all entries, or those of one function")
    clear.add_argument("function", nargs="?", metavar="FUNCTION", help="its name, as `ls` tells it")
    verify = action("verify", _verify, "check every entry against its checksum, or its signature")
    verify.add_argument("--remove", action="store_true", help="remove those that are damaged, and only those")
    return parser


def _read_by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Have argparse tell what *parse* says of a bad value."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number, 0 or more.")
    return int(text)


def _store(options: argparse.Namespace) -> DiskStore:
    directory = os.path.abspath(options.directory)
    if not os.path.isdir(os.path.join(directory, "entries")):
        raise ValueError(f"{directory} is not the directory of a Memory.")
    return DiskStore(directory, is_signed=bool(options.signing_key_file), trust_group=options.trust_group)


def _sealed(options: argparse.Namespace, store: DiskStore) -> SealedStore:
    return SealedStore(store, _signing_key(options))


def _names(store: DiskStore) -> dict[str, str]:
    """The names of the functions that have entries, by identifier."""
    functions = [function for note in store.notes("functions") if (function := function_of_note(note)) is not None]
    return {function: about_function(store, function).get("name", function) for function in functions}


def _signing_key(options: argparse.Namespace) -> bytes | None:
    """Read the key. That of a text file ends before the file's last line break; a binary one is all of the file."""
    if not options.signing_key_file:
        return None
    with open(options.signing_key_file, "rb") as file:
        key = file.read()
    try:
        return checked_key(key.decode().rstrip("\r\n"))
    except UnicodeDecodeError:
        return key


def _list(options: argparse.Namespace) -> int:
    store = _store(options)
    names = _names(store)
    rows: dict[str, list[Listed]] = {}
    for listed in store.entries():
        rows.setdefault(names.get(listed.place.function, listed.place.function), []).append(listed)
    functions: list[dict[str, Any]] = [
        {
            "function": name,
            "entries": len(entries),
            "bytes": sum(listed.size for listed in entries),
            "oldest": min(listed.created for listed in entries),
            "last_used": max(listed.used for listed in entries),
        }
        for name, entries in sorted(rows.items())
    ]
    if options.json:
        return _print_json(functions)
    table = [
        [str(row["function"]), f"{row['entries']:,}", _size(row["bytes"]), _age(row["oldest"]), _age(row["last_used"])]
        for row in functions
    ]
    _print_table(["function", "entries", "size", "oldest", "last used"], table, right=(1, 2, 3, 4))
    return 0


def _show(options: argparse.Namespace) -> int:
    store = _store(options)
    sealed = _sealed(options, store)
    read = [sealed.stored_call(listed) for listed in store.entries()]
    calls = [call for call in read if call is not None]
    found = _called(options.what, calls)
    if options.json:
        _print_json([dataclasses.asdict(call) for call in found])
    elif found or options.what is None:
        table = [
            [
                *(call.key[:12], call.function, _size(call.size), _age(call.created), _age(call.last_used)),
                _duration(call.seconds),
                " ".join([*call.tags, *(f"{name}={value}" for name, value in call.arguments.items())]),
            ]
            for call in sorted(found, key=lambda call: -call.last_used)
        ]
        heads = ["key", "function", "size", "age", "last used", "took", "tags, arguments"]
        _print_table(heads, table, right=(2, 3, 4, 5))
    if unread := len(read) - len(calls):
        sys.stderr.write(f"aparallel: {_entries(unread)} could not be read; `verify` says why.\n")
    if found or options.what is None:
        return 0
    sys.stderr.write(
        f"aparallel: There is no function or key {options.what} in {store.location}; `ls` lists functions.\n"
    )
    return 1


def _called(what: str | None, calls: list[StoredCall]) -> list[StoredCall]:
    """Return those of the function of this name, which may look like the beginning of a key; or those of such keys."""
    if what is None:
        return calls
    return [call for call in calls if call.function == what] or [call for call in calls if call.key.startswith(what)]


def _prune(options: argparse.Namespace) -> int:
    limits = Limits(options.max_entries, options.max_bytes)
    if limits == (None, None) and options.unused_for is None:
        raise ValueError("Say how far: --max-bytes, --max-entries or --unused-for.")
    store = _store(options)
    return _removed(options, store, store.reduce(limits, unused_for=options.unused_for))


def _clear(options: argparse.Namespace) -> int:
    store = _store(options)
    if options.function is None:
        store.note_removal(None)
        return _removed(options, store, store.clear())
    known = [function for function, name in _names(store).items() if name == options.function]
    if not known:
        raise ValueError(f"There is no function {options.function} in {store.location}; `ls` lists them.")
    store.note_removal(None)
    return _removed(options, store, sum(map(store.clear, known)))


def _removed(options: argparse.Namespace, store: DiskStore, removed: int) -> int:
    left = store.totals()
    if options.json:
        return _print_json({"removed": removed, "entries": left.entries, "bytes": left.bytes})
    sys.stdout.write(f"removed {_entries(removed)}, left {_entries(left.entries)} ({_size(left.bytes)})\n")
    return 0


def _verify(options: argparse.Namespace) -> int:
    store = _store(options)
    sealed = _sealed(options, store)
    problems = [(listed.place, _problem_of(sealed, listed)) for listed in list(store.entries())]
    # What is not signed with a key that fits others was changed; if it fits none, it is the key that is wrong.
    key_fits = any(problem is None for _, problem in problems)
    damaged: list[dict[str, str]] = []
    unchecked: list[dict[str, str]] = []
    for place, problem in problems:
        is_damaged = isinstance(problem, Damaged) or (isinstance(problem, WrongSignature) and key_fits)
        if problem is not None:
            (damaged if is_damaged else unchecked).append({"key": place.key.hex(), "problem": str(problem)})
        if is_damaged and options.remove:
            store.remove(place)
    checked = len(problems)
    removed = len(damaged) if options.remove else 0
    if options.json:
        _print_json({"checked": checked, "damaged": damaged, "unchecked": unchecked, "removed": removed})
    else:
        for one in damaged + unchecked:
            sys.stdout.write(f"{one['key'][:12]}  {one['problem']}\n")
        sys.stdout.write(
            f"{_entries(checked)}, {len(damaged):,} damaged{' and removed' if options.remove else ''}"
            f"{f', {len(unchecked):,} could not be checked' if unchecked else ''}\n"
        )
    return 1 if unchecked or len(damaged) > removed else 0


def _problem_of(sealed: SealedStore, listed: Listed) -> Exception | None:
    try:
        sealed.verify(listed.place)
    except (Damaged, NotOurs, OSError, ImportError, AparallelError) as error:  # ImportError: its codec is not here
        return error
    return None


def _print_json(value: Any) -> int:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
    return 0


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int]) -> None:
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(range(len(line)), line, widths, strict=True)
        text = "  ".join(cell.rjust(width) if column in right else cell.ljust(width) for column, cell, width in cells)
        sys.stdout.write(text.rstrip() + "\n")


def _entries(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"


def _size(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def _duration(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds * 1000:.2f} ms"


def _age(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
