"""Two reports side by side, and whether they may be: figures of different machines say nothing about a change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.report import EngineRun, LineRun, Report, ReportError, Run
from pipeline.errors import MismatchError


@dataclass(frozen=True)
class Difference:
    """One fact in which two reports differ."""

    name: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.a if self.a != '' else 'none'} ≠ {self.b if self.b != '' else 'none'}"


@dataclass(frozen=True)
class Row:
    """One figure of one run in both reports; `more_is_better` says which way is up."""

    run: str
    figure: str
    a: float
    b: float
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """B ÷ A; None where A is nothing."""
        return self.b / self.a if self.a else None

    def as_json(self) -> dict[str, Any]:
        ratio = None if self.ratio is None else round(self.ratio, 4)
        return {"run": self.run, "figure": self.figure, "a": self.a, "b": self.b, "ratio": ratio}


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[Difference]:
    """Every fact that is not the same in both, nested ones by their dotted name."""
    found: list[Difference] = []
    for name in [*a, *(name for name in b if name not in a)]:
        left, right = a.get(name, ""), b.get(name, "")
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{name}.")
        elif left != right:
            found.append(Difference(prefix + name, left, right))
    return found


def other_differences(a: Report, b: Report) -> list[Difference]:
    """What else is not alike and may well be what is being compared: code, recipe, engine, settings."""
    names = ("kind", "project", "recipe", "engine", "device", "settings")
    left, right = ({name: getattr(report, name) for name in names} for report in (a, b))
    return differences(left, right)


def check_machines(a: Report, b: Report) -> None:
    """MismatchError with every difference, in one line."""
    if found := differences(a.machine, b.machine):
        told = "; ".join(map(str, found))
        raise MismatchError(f"the reports are of different machines ({told}): --anyway compares them all the same")


def compare(a: Report, b: Report) -> list[Row]:
    """Figures of the runs that both have, in A's order; ReportError when there are none."""
    others = {run.key: run for run in b.runs}
    rows = [row for run in a.runs if run.key in others for row in _rows(run, others[run.key])]
    if not rows:
        raise ReportError("the reports have no run in common: measure the same batch sizes and loads")
    return rows


def _rows(a: Run, b: Run) -> Iterator[Row]:
    figures = {name: (value, more) for name, value, more in _figures(b)}
    for name, value, more in _figures(a):
        other = figures.get(name, (None, more))[0]
        if value is not None and other is not None:
            yield Row(a.label, name, value, other, more)


def _figures(run: Run) -> list[tuple[str, float | None, bool]]:
    """(figure, value, is more better?)"""
    if isinstance(run, EngineRun):
        batch = run.batch_ms
        return [("tiles/s", run.tiles_per_s, True), ("p50 ms", batch.p50, False), ("p99 ms", batch.p99, False)]
    return _line_figures(run)


def _line_figures(run: LineRun) -> list[tuple[str, float | None, bool]]:
    cpu = sum(cost.cpu_us for cost in run.costs.values())
    if run.loop == "closed":
        return [("frames/s", run.frames_per_s, True), ("CPU µs/frame", cpu, False)]
    latency = run.latency_ms
    return [("p50 ms", latency.p50, False), ("p99 ms", latency.p99, False), ("CPU µs/frame", cpu, False)]
