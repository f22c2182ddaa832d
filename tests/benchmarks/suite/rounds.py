"""Rounds of turns: at each work everyone takes a turn, and after the last work all begin again while the time lasts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.contenders import WEB, Entry
from suite.turn import Turn
from suite.work import Setting, Work

FOLDER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, and how."""

    works: Sequence[Work[Any]]
    setting: Setting
    loop: str = "asyncio"
    seconds: float | None = None
    """For all works together; None for what the scale says (:attr:`time`). A turn that has begun ends."""
    only: Collection[str] | None = None
    """Names of the contenders; None for all."""

    @property
    def time(self) -> float:
        """Seconds for all works together."""
        if self.seconds is not None:
            return self.seconds
        scale = self.setting.scale
        return scale.web_seconds if all(work.contenders is WEB for work in self.works) else scale.seconds

    def entries(self, work: Work[Any]) -> list[Entry[Any]]:
        return [entry for entry in work.contenders if self.only is None or entry.name in self.only]


def run_rounds(plan: Plan, say: Callable[[str], None] = lambda line: None) -> Iterator[Turn]:
    """One round of every work, then another one of every work for which there is time, and so on."""
    end = time.monotonic() + plan.time
    taking_part = {work.name: plan.entries(work) for work in plan.works}
    longest_round = dict.fromkeys(taking_part, 0.0)
    for number in range(plan.setting.scale.max_rounds):
        for work in plan.works:
            started = time.monotonic()
            if number > 0 and started + longest_round[work.name] > end:
                continue
            say(f"round {number + 1}: {work.name}")
            turns = [_turn(work, entry, plan, end) for entry in taking_part[work.name]]
            yield from turns
            # What could not be measured once is not tried again.
            measured = {turn.contender for turn in turns if turn.measurement is not None}
            taking_part[work.name] = [entry for entry in taking_part[work.name] if entry.name in measured]
            longest_round[work.name] = max(longest_round[work.name], time.monotonic() - started)


def _turn(work: Work[Any], entry: Entry[Any], plan: Plan, end: float) -> Turn:
    if not entry.is_installed:
        return Turn(work.name, entry.name, reason="not installed")
    if time.monotonic() > end:
        return Turn(work.name, entry.name, reason="no time left")
    return take_in_process([work.name], entry.name, plan.setting, plan.loop)[0]


def take_in_process(works: Sequence[str], contender: str, setting: Setting, loop: str = "asyncio") -> list[Turn]:
    """One contender's turns at *works* in a new process, which is killed if it does not end."""

    def failed(reason: str) -> list[Turn]:
        return [Turn(work, contender, reason=reason, failed=True) for work in works]

    with tempfile.TemporaryDirectory() as directory:
        report, output = Path(directory) / "report.json", Path(directory) / "output"
        options = ["--scale", setting.scale.name, "--n-jobs", str(setting.n_jobs), "--loop", loop]
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "suite.turn", contender, *works, *options, "--report", str(report)],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
            try:
                process.wait(setting.scale.hung_after)
            except subprocess.TimeoutExpired:
                return failed(f"not done after {setting.scale.hung_after:.0f} s")
            finally:
                _kill_group(process)
        if process.returncode != 0 or not report.exists():
            return failed(_last_line(output) or f"ended with {process.returncode}")
        return [Turn.from_json(parts) for parts in json.loads(report.read_text())]


def _environment() -> dict[str, str]:
    """This process's, with the suite importable for the turn and for the workers of every contender."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))
    # pip has compiled the installed peers; a package that is used from its sources must be able to keep its bytecode.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a turn, also if it is this process that is being interrupted."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(output: Path) -> str:
    lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
