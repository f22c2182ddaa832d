"""One contender's turn: ``python -m suite.turn`` in a process of its own, so that nobody runs beside another's threads.

What was measured goes to a file as JSON; stdout and stderr are the contender's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from suite.contender import NotOffered
from suite.lag import Lag
from suite.work import SCALES, Measurement, Setting
from suite.works import WORKS

LOOPS = ("asyncio", "uvloop")


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of one contender at one work: a measurement, or the reason why there is none."""

    work: str
    contender: str
    measurement: Measurement | None = None
    reason: str = ""
    failed: bool = False
    """The contender should have been able to, and was not."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, parts: dict[str, Any]) -> Self:
        measured = parts["measurement"]
        if measured is None:
            return cls(**parts)
        lag = measured["lag"] and Lag(**measured["lag"])
        return cls(**{**parts, "measurement": Measurement(**{**measured, "lag": lag})})


async def take(work_name: str, contender_name: str, setting: Setting) -> Turn:
    """Let a new contender do a work in the running loop. Its errors are not caught."""
    work = WORKS[work_name]
    roster = {entry.name: entry for entry in work.contenders}
    contender = roster[contender_name].create()
    try:
        return Turn(work_name, contender_name, await work.measure(contender, setting))
    except NotOffered as not_offered:
        return Turn(work_name, contender_name, reason=str(not_offered))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    setting = Setting(SCALES[options.scale], options.n_jobs)
    turns = []
    for work in options.works:
        with asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner:
            turns.append(runner.run(take(work, options.contender, setting)).to_json())
    options.report.write_text(json.dumps(turns))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender")
    parser.add_argument("works", nargs="+", choices=WORKS)
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--n-jobs", type=int, required=True)
    parser.add_argument("--loop", choices=LOOPS, required=True)
    parser.add_argument("--report", type=Path, required=True)
    return parser.parse_args(arguments)


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


if __name__ == "__main__":
    main()
