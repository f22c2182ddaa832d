"""From turns to a table, the losses and the targets. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from suite.lag import Lag
from suite.targets import TARGETS, MostTarget, RatioTarget, Target
from suite.turn import Turn
from suite.work import Figure, Unit
from suite.works import WORKS

OURS = "aparallel"

# Differences that nobody would notice: below these, the machine's noise decides who is better.
NOTABLE_LAG_MS = 1.0
NOTABLE: Mapping[Unit, float] = {Unit.MEGABYTES: 1.0}

# Of these more is better; a share is neither good nor bad by itself.
RATES = frozenset({Unit.REQUESTS_PER_SECOND})
SHARES = frozenset({Unit.PERCENT})


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one contender over all rounds."""

    work: str
    figure: str
    contender: str
    value: float
    """The median of the rounds."""
    lowest: float
    highest: float
    unit: Unit
    rounds: int
    calls: int | None
    lag: Lag | None
    """The medians of the rounds' percentiles, and the worst of their maxima."""
    copied_mb: float | None = None
    """What has to be written into new memory once, at least; None where that is not what it is about."""
    ratio: float | None = None
    """To aparallel in the same run: above 1, aparallel is better. None where the two cannot be compared: time
    is told per call, but the memory for fewer calls is another matter."""

    def excess_over(self, other: Row) -> float:
        """By how much this is worse than *other*, in the figure's unit; negative if it is better."""
        return other.value - self.value if self.unit in RATES else self.value - other.value

    def overlaps(self, other: Row) -> bool:
        """Whether the two ranges have a value in common."""
        return self.lowest <= other.highest and other.lowest <= self.highest


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what became of it."""

    text: str
    outcome: str
    """reached, missed or not measured"""
    measured: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run has shown."""

    rows: Sequence[Row]
    not_measured: Sequence[Turn]

    @classmethod
    def of(cls, turns: Iterable[Turn]) -> Report:
        measured: dict[tuple[str, str], list[Turn]] = {}
        not_measured = []
        for turn in turns:
            if turn.measurement is None:
                not_measured.append(turn)
            else:
                measured.setdefault((turn.work, turn.contender), []).append(turn)
        return cls(list(_rows(measured)), not_measured)

    def row(self, work: str, figure: str, contender: str) -> Row | None:
        wanted = (work, figure, contender)
        return next((row for row in self.rows if (row.work, row.figure, row.contender) == wanted), None)

    def losses(self) -> list[str]:
        """One line for every figure, and for every lag, in which somebody was better than aparallel."""
        ours = [row for row in self.rows if row.contender == OURS]
        lines = [*map(self._better_than, ours), *map(self._less_laggy_than, ours)]
        return [line for line in lines if line]

    def _peers(self, ours: Row) -> list[Row]:
        return [row for row in self.rows if (row.work, row.figure) == (ours.work, ours.figure) and row is not ours]

    def _better_than(self, ours: Row) -> str:
        better = [
            f"{row.contender} {number(row.value)}" + (" (ranges overlap)" if row.overlaps(ours) else "")
            for row in self._peers(ours)
            if not row.contender.startswith(OURS)
            and row.ratio is not None
            and ours.excess_over(row) > NOTABLE.get(row.unit, 0.0)
        ]
        figure = f"{ours.work}, {ours.figure}: {OURS} {number(ours.value)} {ours.unit.value}"
        return f"{figure}; better: {', '.join(better)}" if better else ""

    def _less_laggy_than(self, ours: Row) -> str:
        if ours.lag is None or ours.figure != WORKS[ours.work].figures[0].name:
            return ""
        better = [
            f"{row.contender} {number(row.lag.p99)}"
            for row in self._peers(ours)
            if not row.contender.startswith(OURS)
            and row.lag is not None
            and row.lag.p99 + NOTABLE_LAG_MS < ours.lag.p99
        ]
        return f"{ours.work}, lag p99: {OURS} {number(ours.lag.p99)} ms; better: {', '.join(better)}" if better else ""

    def verdicts(self) -> list[Verdict]:
        """What became of the targets of the works that were run."""
        works = {row.work for row in self.rows}
        return [self._verdict(target) for target in TARGETS if target.work in works]

    def _verdict(self, target: Target) -> Verdict:
        if isinstance(target, RatioTarget):
            theirs = self.row(target.work, target.figure, target.contender)
            ours = self.row(target.work, target.figure, target.ours)
            measured = None if theirs is None or ours is None or not ours.value else theirs.value / ours.value
            if target.ours == OURS and theirs is not None:
                measured = theirs.ratio
            is_reached = measured is not None and measured >= target.at_least
        elif isinstance(target, MostTarget):
            row = self.row(target.work, target.figure, OURS)
            measured = None if row is None else row.value
            is_reached = measured is not None and measured <= target.at_most
        else:
            ours = next((row for row in self.rows if (row.work, row.contender) == (target.work, OURS)), None)
            measured = ours.lag.p99 if ours is not None and ours.lag is not None else None
            is_reached = measured is not None and measured <= target.at_most_ms
        outcome = "not measured" if measured is None else "reached" if is_reached else "missed"
        return Verdict(target.text, outcome, measured)

    def floors(self, seconds_per_mb: float) -> list[list[str]]:
        """For every figure that is about copying: the time of one copy, and how many of those each contender took."""
        lines = []
        for ours in self.rows:
            if ours.contender == OURS and ours.copied_mb is not None and seconds_per_mb > 0:
                floor = ours.copied_mb * seconds_per_mb
                each = [f"{row.contender} {number(row.value / floor)}" for row in (ours, *self._peers(ours))]
                lines.append([f"{ours.work}, {ours.figure}", f"{number(floor)} s", ", ".join(each)])
        return lines

    def text(self, seconds_per_mb: float = 0.0) -> str:
        """Everything. *seconds_per_mb*: what it takes to write a megabyte into new memory; 0 if that is not known."""
        sections = [_table(self.rows)]
        if floors := self.floors(seconds_per_mb):
            title = "the floor, one copy into new memory, and how many times as long it took"
            sections.append(_section(title, _aligned(floors, right=(1,))))
        if self.not_measured:
            sections.append(_section("not measured", _reasons(self.not_measured)))
        targets = [[verdict.text, number(verdict.measured), verdict.outcome] for verdict in self.verdicts()]
        sections.append(_section("targets", _aligned(targets, right=(1,))))
        was_measured = any(row.contender == OURS for row in self.rows)
        nowhere = "(nowhere in this run)" if was_measured else f"(unknown: {OURS} was not measured)"
        sections.append(_section(f"where {OURS} loses", self.losses() or [nowhere]))
        return "\n\n".join(sections)


def number(value: float | None) -> str:
    """Three digits that matter, and no exponents."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def _rows(measured: dict[tuple[str, str], list[Turn]]) -> Iterator[Row]:
    for work in WORKS.values():
        for figure in work.figures:
            rows = [
                _row(figure, measured[work.name, entry.name])
                for entry in work.contenders
                if (work.name, entry.name) in measured
            ]
            ours = next((row for row in rows if row.contender == OURS), None)
            yield from rows if figure.is_part else (_with_ratio(row, ours) for row in rows)


def _row(figure: Figure, turns: Sequence[Turn]) -> Row:
    measurements = [turn.measurement for turn in turns if turn.measurement is not None]
    values = [measurement.figures[figure.name] for measurement in measurements]
    calls = [measurement.calls for measurement in measurements if measurement.calls is not None]
    lags = [measurement.lag for measurement in measurements if measurement.lag is not None]
    return Row(
        work=turns[0].work,
        figure=figure.name,
        contender=turns[0].contender,
        value=median(values),
        lowest=min(values),
        highest=max(values),
        unit=figure.unit,
        rounds=len(values),
        calls=min(calls, default=None),
        lag=_lag_of_rounds(lags) if lags else None,
        copied_mb=measurements[0].copied_mb.get(figure.name),
    )


def _lag_of_rounds(lags: Sequence[Lag]) -> Lag:
    return Lag(median(lag.p50 for lag in lags), median(lag.p99 for lag in lags), max(lag.max for lag in lags))


def _with_ratio(row: Row, ours: Row | None) -> Row:
    if ours is None or ours.value <= 0 or row.unit in SHARES:
        return row
    if row.unit is Unit.MEGABYTES and row.calls != ours.calls:
        return row
    if row.unit in RATES:
        return replace(row, ratio=ours.value / row.value) if row.value > 0 else row
    return replace(row, ratio=row.value / ours.value)


def _table(rows: Sequence[Row]) -> str:
    lag_head = ["lag p50", "p99", "max ms"]
    head = ["work", "figure", "contender", "median", "range", "unit", "ratio", *lag_head, "calls", "rounds"]
    lines: list[list[str]] = [head]
    for before, row in zip((None, *rows), rows, strict=False):
        is_new_group = before is None or (before.work, before.figure) != (row.work, row.figure)
        if is_new_group:
            lines.append([""] * len(head))
        lag = (row.lag.p50, row.lag.p99, row.lag.max) if row.lag is not None else (None,) * 3
        group = [row.work, row.figure] if is_new_group else ["", ""]
        spread = f"{number(row.lowest)}–{number(row.highest)}" if row.rounds > 1 else ""
        measured = [number(row.value), spread, row.unit.value, number(row.ratio), *map(number, lag)]
        calls = "–" if row.calls is None else f"{row.calls:,}"
        lines.append([*group, row.contender, *measured, calls, str(row.rounds)])
    return "\n".join(_aligned(lines, right=(3, 4, 6, 7, 8, 9, 10, 11)))


def _aligned(lines: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _reasons(turns: Sequence[Turn]) -> list[str]:
    """One line for each contender and reason, with the works that it is the reason for."""
    works: dict[tuple[str, str], list[str]] = {}
    for turn in turns:
        reason = f"failed: {turn.reason}" if turn.failed else turn.reason
        works.setdefault((turn.contender, reason), []).append(turn.work)
    return [f"{contender}: {reason} ({', '.join(names)})" for (contender, reason), names in works.items()]


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])
