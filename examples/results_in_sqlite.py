"""Remember results somewhere else than in files: here, in one table of SQLite. Six methods are enough for a Store.

``tests/test_stores.py`` runs aparallel's conformance suite over it.
"""

import asyncio
import contextlib
import math
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Iterator

from aparallel import Memory
from aparallel.abc import Listed, Place, Record, Store

SCHEMA = """
    CREATE TABLE IF NOT EXISTS entries (
        key BLOB PRIMARY KEY, function TEXT, version TEXT, content BLOB, created REAL, used REAL
    );
    CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, content BLOB);
"""


class SQLiteStore(Store):
    """Keeps results in a database of SQLite, for all processes that open it."""

    def __init__(self, path: str) -> None:
        self.path = path
        with self._database() as database:
            database.executescript(SCHEMA)

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        # A connection for each call: it may be any thread's, and nothing stays open. What a Store cannot do it
        # tells by OSError, so that the functions work on without it.
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as database, database:
                yield database
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}") from error

    def get(self, place: Place, *, as_file: bool = False) -> Record | None:
        """Return an entry. There are no files to give."""
        with self._database() as database:
            row = database.execute(
                "SELECT content, version FROM entries WHERE key = ? AND function = ?", (place.key, place.function)
            ).fetchone()
        return None if row is None else Record(*row)

    def put(self, place: Place, content: bytes, *, lifetime: float | None = None) -> str:
        """Keep an entry; the transaction makes it whole or absent."""
        version, now = secrets.token_hex(8), time.time()
        with self._database() as database:
            database.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)",
                (place.key, place.function, version, content, now, now),
            )
        return version

    def remove(self, place: Place) -> bool:
        """Remove an entry."""
        with self._database() as database:
            return database.execute("DELETE FROM entries WHERE key = ?", (place.key,)).rowcount > 0

    def entries(self, function: str | None = None) -> Iterator[Listed]:
        """Yield all entries. The connection is closed before the first one: others may write meanwhile."""
        with self._database() as database:
            rows = database.execute("SELECT function, key, length(content), created, used FROM entries").fetchall()
        for name, key, size, created, used in rows:
            if function is None or name == function:
                yield Listed(Place(name, key), size, created, used)

    def read_note(self, name: str) -> bytes | None:
        """Return a note."""
        with self._database() as database:
            row = database.execute("SELECT content FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def write_note(self, name: str, content: bytes) -> None:
        """Keep a note."""
        with self._database() as database:
            database.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, content))


def primes_below(limit: int) -> list[int]:
    """Return all prime numbers below *limit*."""
    return [n for n in range(2, limit) if all(n % d for d in range(2, math.isqrt(n) + 1))]


async def main() -> None:
    """Compute, then remember."""
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(os.path.join(folder, "results.db"))
        for run in ("first", "second"):
            primes = Memory(store).cache(primes_below)
            found = await asyncio.gather(*(primes(limit) for limit in (20_000, 30_000, 20_000)))
            statistics = primes.statistics()
            print(f"{run} run: {[len(each) for each in found]} primes, {statistics.misses} computed")
        print(f"{len([entry async for entry in Memory(store).entries()])} results in {os.path.basename(store.path)}")


if __name__ == "__main__":
    asyncio.run(main())
