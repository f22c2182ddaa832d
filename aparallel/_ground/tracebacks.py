"""What tracebacks of workers lack. Loaded when one is shown."""

from __future__ import annotations

import linecache
import re


def with_sources(trace: str) -> str:
    """Return a worker's traceback with the lines of code that it had no file for: those of a notebook's cells."""

    def with_source(line: re.Match[str]) -> str:
        source = linecache.getline(line["file"], int(line["number"])).strip()
        return f"{line[0]}\n    {source}" if source else line[0]

    without_source = r'^  File "(?P<file>.+)", line (?P<number>\d+), in .+$(?!\n    )'
    return re.sub(without_source, with_source, trace, flags=re.MULTILINE)
