"""Measure aparallel beside what people use today: ``python tests/benchmarks/run.py [works...] [--quick]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from suite.baseline import Baseline
from suite.contenders import Entry
from suite.lag import Lag
from suite.report import Report, number
from suite.rounds import Plan, run_rounds
from suite.turn import LOOPS, Turn
from suite.work import SCALES, Setting
from suite.works import OTHER_WORKS, WEB_WORKS, WORKS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print what *arguments* ask for. Returns 1 if a contender failed, else 0."""
    options = _parse(arguments)
    plan = Plan(
        works=[WORKS[name] for name in options.names],
        setting=Setting(SCALES[options.scale], options.n_jobs),
        loop=options.loop,
        seconds=options.seconds,
        only=options.contenders,
    )
    started = time.monotonic()
    baseline = Baseline.measure(plan.setting.n_jobs)
    print(header(plan, baseline), flush=True)
    turns = list(run_rounds(plan, say=lambda line: print(line, file=sys.stderr, flush=True)))
    report = Report.of(turns)
    print(f"\n{report.text(baseline.seconds_per_mb)}\n\ntook {time.monotonic() - started:.0f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(plan, baseline, report, turns), indent=1, ensure_ascii=False))
    return int(any(turn.failed for turn in turns))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    works = "\n".join(f"  {work.name:16}{work.title}" for work in WORKS.values())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"works:\n{works}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="work", help="works to run; web for all about servers; all others if none is named"
    )
    parser.add_argument("--scale", choices=SCALES, default="full", help="how much of everything (default: full)")
    parser.add_argument(
        "--quick", dest="scale", action="store_const", const="quick", default="full", help="--scale quick"
    )
    parser.add_argument("--seconds", type=float, help="time for the whole run (default: the scale's)")
    parser.add_argument("--contenders", metavar="A,B", type=_names, help="only these contenders")
    parser.add_argument("--n-jobs", type=int, default=_usable_cpus(), help="workers (default: the usable cores)")
    parser.add_argument("--loop", choices=LOOPS, default="asyncio", help="the event loop (default: asyncio)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    options = parser.parse_args(arguments)
    options.names = _expanded(options.names)
    if unknown := set(options.names) - set(WORKS):
        parser.error(f"no such work: {', '.join(sorted(unknown))}")
    known = {entry.name for work in WORKS.values() for entry in work.contenders}
    if unknown := set(options.contenders or ()) - known:
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return options


def _expanded(names: Sequence[str]) -> list[str]:
    """The names of the works that are meant, each once, in the order of the command."""
    meant = [work for name in names for work in (WEB_WORKS if name == "web" else [name])]
    return list(dict.fromkeys(meant)) or OTHER_WORKS


def _names(text: str) -> list[str]:
    return text.split(",")


def header(plan: Plan, baseline: Baseline) -> str:
    """What the figures depend on besides the contenders."""
    peers = ", ".join(f"{name} {version}" for name, version in versions(plan).items())
    n_jobs = plan.setting.n_jobs
    return (
        f"python {platform.python_version()}, {_usable_cpus()} CPUs, n_jobs={n_jobs}, "
        f"{plan.loop} loop, {plan.setting.scale.name} scale; {peers}\n"
        f"without any contender: {number(baseline.gather_us)} µs for each of 5,000 gathered no-op coroutines; "
        f"{number(baseline.write_ms)} ms to write 200 MB into new memory; "
        f"lag p50/p99/max of an idle loop {_lag_text(baseline.idle)} ms, "
        f"beside {n_jobs} busy processes {_lag_text(baseline.idle_beside_busy)} ms, "
        f"with work of its own in slices of 0.5 ms {_lag_text(baseline.working_beside_busy)} ms"
    )


def versions(plan: Plan) -> dict[str, str]:
    """Package to version, for all that takes part and is installed."""
    entries: list[Entry[Any]] = [entry for work in plan.works for entry in plan.entries(work)]
    found = {entry.package: entry.version for entry in entries if entry.package is not None}
    if plan.loop == "uvloop":
        found["uvloop"] = metadata.version("uvloop")
    return {package: version for package, version in found.items() if version is not None}


def as_json(plan: Plan, baseline: Baseline, report: Report, turns: Sequence[Turn]) -> dict[str, Any]:
    """Everything that was measured, and what follows from it."""
    return {
        "python": platform.python_version(),
        "cpus": _usable_cpus(),
        "n_jobs": plan.setting.n_jobs,
        "loop": plan.loop,
        "scale": plan.setting.scale.name,
        "versions": versions(plan),
        "baseline": asdict(baseline),
        "floors": report.floors(baseline.seconds_per_mb),
        "rows": [{**asdict(row), "unit": row.unit.value} for row in report.rows],
        "targets": [asdict(verdict) for verdict in report.verdicts()],
        "losses": report.losses(),
        "turns": [turn.to_json() for turn in turns],
    }


def _lag_text(lag: Lag) -> str:
    return "/".join(map(number, (lag.p50, lag.p99, lag.max)))


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
