"""What a measurement leaves behind: plain facts, their versioned JSON form, and the file they are kept in.

    {"schema": 1, "kind": "single" | "batch", "created": …, "machine": {…}, "project": {…}, "conditions": {…},
     "recipe": "name@hash", "engine": …, "device": …, "settings": {…},
     "runs": [{"what": "engine", …EngineRun}, {"what": "line", …LineRun}, …]}

Times are milliseconds, CPU is microseconds per frame (per tile for an engine alone), memory is bytes.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.percentiles import Spread
from pipeline.errors import DiskError, ReportError

SCHEMA = 1
STEPS = ("captured", "offered", "received", "batched", "inferred", "settled")
STAGES = tuple(f"{a}→{b}" for a, b in itertools.pairwise(STEPS))


# Verdicts of frames with a deadline: judged before it; given the fail-safe before it; after it, where the frame was
# offered too late already, and where it was not.
IN_TIME = ("judged", "fail_safe", "offered_late", "missed")


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """One network alone, batches of one size: nothing but submit and result."""

    stage: str
    batch: int
    in_flight: int
    tiles_per_s: float  # `in_flight` batches at a time
    batch_ms: Spread  # one batch at a time
    cpu_us: float  # of all threads, per tile

    @property
    def key(self) -> tuple[str, ...]:
        """What makes runs of two reports comparable."""
        return ("engine", self.stage, str(self.batch))

    @property
    def label(self) -> str:
        return f"{self.stage} alone, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one process of the line took."""

    cpu_us: float  # per frame offered
    rss_peak: int  # bytes, since the process started

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Cost:
        return cls(**table)


@dataclass(frozen=True, kw_only=True)
class LineRun:
    """The whole line: producer, Redis and worker, each a process, and every verdict read back."""

    batch: int  # largest batch the worker may form
    loop: str  # `closed`: as fast as frames are settled; `open`: at a fixed rate, whatever happens
    load: float = 0.0  # open loop: per cent of the closed loop's frames/s; 0: the rate was given
    rate: float = 0.0  # open loop: frames/s scheduled
    frames: int  # offered, each settled exactly once
    warmup: int  # of them, the first that were settled; not counted below
    frames_per_s: float  # settled
    mean_batch: float  # tiles
    judgements: Mapping[str, int]  # of all frames
    latency_ms: Spread  # open loop: scheduled trigger → settlement; closed: empty, its queue is its own making
    stages_ms: Mapping[str, Spread] = field(default_factory=dict)  # of STAGES; frames that were inspected
    costs: Mapping[str, Cost] = field(default_factory=dict)  # producer, redis, worker, reader
    in_time: Mapping[str, int] = field(default_factory=dict)  # of IN_TIME; empty: frames had no deadline

    @property
    def key(self) -> tuple[str, ...]:
        """What makes runs of two reports comparable."""
        return ("line", self.loop, str(self.batch), *([self.offered] if self.loop == "open" else []))

    @property
    def offered(self) -> str:
        """The load in words."""
        if self.loop == "closed":
            return "closed"
        return f"{self.load:g} %" if self.load else f"{self.rate:g}/s"

    @property
    def label(self) -> str:
        return f"line, batch {self.batch}, {'closed loop' if self.loop == 'closed' else self.offered}"

    @property
    def keeps_up(self) -> bool:
        """Was as much settled as was scheduled? If not, latency only tells how long the run was."""
        return self.loop == "closed" or bool(self.in_time) or self.frames_per_s >= 0.95 * self.rate

    @property
    def producer_limited(self) -> bool:
        """Did frames wait longer to be offered than for everything after that? Then the line is not at fault."""
        before, whole = self.stages_ms[STAGES[0]].mean, self.latency_ms.mean
        return before is not None and whole is not None and before > whole / 2


Run = EngineRun | LineRun


@dataclass(frozen=True, kw_only=True)
class Report:
    """One measurement."""

    kind: str
    created: str  # UTC, ISO 8601
    machine: Mapping[str, Any]
    project: Mapping[str, Any]
    conditions: Mapping[str, Any]  # what else was going on
    recipe: str
    engine: str
    device: str
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def engine_runs(self) -> list[EngineRun]:
        return [run for run in self.runs if isinstance(run, EngineRun)]

    @property
    def line_runs(self) -> list[LineRun]:
        return [run for run in self.runs if isinstance(run, LineRun)]

    def as_json(self) -> dict[str, Any]:
        """One object of plain values."""
        table = {"schema": SCHEMA, **{n: getattr(self, n) for n in self.__dataclass_fields__ if n != "runs"}}
        return {**table, "runs": [_run_json(run) for run in self.runs]}

    @classmethod
    def from_json(cls, table: Any) -> Report:
        """The other way; ReportError for any other object or another schema."""
        if not isinstance(table, dict) or "runs" not in table:
            raise ReportError("not a report of `bench single` or `bench batch`")
        if table.get("schema") != SCHEMA:
            raise ReportError(f"schema {table.get('schema')!r}, this software reads {SCHEMA}: measure again")
        try:
            facts = {name: table[name] for name in cls.__dataclass_fields__}
            return cls(**{**facts, "runs": tuple(_run_from_json(dict(run)) for run in table["runs"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReportError(f"report is incomplete ({type(error).__name__}: {error}): measure again") from error


def _run_json(run: Run) -> dict[str, Any]:
    facts = {name: round(v, 3) if isinstance(v, float) else v for name, v in asdict(run).items()}
    if isinstance(run, EngineRun):
        return {"what": "engine", **facts, "batch_ms": run.batch_ms.as_json()}
    stages = {name: spread.as_json() for name, spread in run.stages_ms.items()}
    costs = {n: {"cpu_us": round(c.cpu_us, 2), "rss_peak": c.rss_peak} for n, c in run.costs.items()}
    return {"what": "line", **facts, "latency_ms": run.latency_ms.as_json(), "stages_ms": stages, "costs": costs}


def _run_from_json(facts: dict[str, Any]) -> Run:
    what = facts.pop("what")
    if what == "engine":
        return EngineRun(**{**facts, "batch_ms": Spread.from_json(facts["batch_ms"])})
    if what != "line":
        raise ValueError(f"run of unknown kind {what!r}")
    stages = {name: Spread.from_json(table) for name, table in facts["stages_ms"].items()}
    costs = {name: Cost.from_json(table) for name, table in facts["costs"].items()}
    latency = Spread.from_json(facts["latency_ms"])
    return LineRun(**{**facts, "latency_ms": latency, "stages_ms": stages, "costs": costs})


def file_stem(report: Report) -> str:
    """A name that sorts by time and says what was measured."""
    when = report.created.replace("-", "").replace(":", "").partition("+")[0]
    return f"{report.kind}-{report.recipe.partition('@')[0]}-{report.engine}-{when}"


def make_folder(folder: Path) -> None:
    """DiskError when it is not there and cannot be made, or cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"folder {folder} cannot be made: {error.strerror}; choose another --out") from error
    if not os.access(folder, os.W_OK):
        raise DiskError(f"folder {folder} cannot be written to; choose another --out")


def save(report: Report, folder: Path) -> Path:
    """Write the report's JSON into the folder; DiskError when that cannot be done."""
    make_folder(folder)
    path = folder / f"{file_stem(report)}.json"
    try:
        path.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DiskError(f"report cannot be written to {path}: {error.strerror}; choose another --out") from error
    return path


def load(path: Path) -> Report:
    """Read a report; ReportError names the file and what is wrong with it."""
    try:
        return Report.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from error
