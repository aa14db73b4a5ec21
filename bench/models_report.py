"""What `bench models` leaves behind: accuracy and speed of several models of one run, and their ratios; plain facts.

    {"schema": 1, "kind": "models", "created": …, "machine": {…}, "project": {…}, "conditions": {…}, "engine": …,
     "device": …, "settings": {…}, "against": "model", "models": [{…Model}, …], "measured": [{…Speed}, …],
     "summary": [{…}, …]}

`summary` holds what the table shows and follows from the rest. Speeds are of engines kept busy. Tiles of different
models differ in size, so speeds are compared per megapixel of tile: a part's surface costs what its pixels cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import make_folder
from pipeline.errors import DiskError, ReportError

SCHEMA = 1
KIND = "models"
BOTH = "both"  # of a cascade: a tile goes through classifier and segmenter, as every suspect does
USUAL_TILE_MPX = 256 * 256 / 1e6


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model folder."""

    name: str  # in this report only; one that was never taught says so
    recipe: str  # name@hash
    untaught: bool = False
    accuracy: float | None = None  # None: not known
    n: int | None = None  # pictures it was measured on
    side: str = ""  # of their split


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One network at one batch size, or BOTH of a cascade."""

    model: str
    stage: str
    tile: tuple[int, int, int]  # height, width in px, channels
    batch: int
    rounds: tuple[float, ...]  # tiles/s of each round

    @property
    def mpx(self) -> float:
        """Megapixels of a tile."""
        return self.tile[0] * self.tile[1] / 1e6

    @property
    def tiles_per_s(self) -> float:
        """Median of the rounds."""
        return float(median(self.rounds))

    @property
    def ms_per_tile(self) -> float:
        return 1e3 / self.tiles_per_s

    @property
    def ms_per_mpx(self) -> float:
        return self.ms_per_tile / self.mpx

    @property
    def ms_per_usual_tile(self) -> float:
        """For as many px as a tile of 256×256 has."""
        return self.ms_per_mpx * USUAL_TILE_MPX

    @property
    def spread(self) -> float | None:
        """Half of what lies between the slowest round and the fastest, as a share of the median; None: one round."""
        if len(self.rounds) < 2:
            return None
        return (max(self.rounds) - min(self.rounds)) / 2 / self.tiles_per_s


@dataclass(frozen=True)
class Row:
    """One speed beside that of the model it is compared with."""

    speed: Speed
    best: bool  # at the fastest batch of both; else at the smallest
    ratio: float  # how many times as fast as the model compared with


@dataclass(frozen=True, kw_only=True)
class ModelsReport:
    """One measurement."""

    created: str  # UTC, ISO 8601
    machine: Mapping[str, Any]
    project: Mapping[str, Any]
    conditions: Mapping[str, Any]
    engine: str
    device: str
    settings: Mapping[str, Any]  # accuracy: its key; batches, rounds, seconds, in_flight, threads
    against: str  # name of the model that the others are compared with
    models: tuple[Model, ...]
    measured: tuple[Speed, ...]

    def stages(self, model: str) -> list[str]:
        """What was measured of a model, BOTH last where it has two."""
        found = list(dict.fromkeys(speed.stage for speed in self.measured if speed.model == model))
        return [*found, BOTH] if len(found) > 1 else found

    def speeds(self, model: str, stage: str) -> list[Speed]:
        """At every batch size, from the smallest."""
        if stage == BOTH:
            first, then = (self.speeds(model, each) for each in self.stages(model)[:-1])
            return [one_after_the_other(*each) for each in zip(first, then, strict=True)]
        found = [speed for speed in self.measured if (speed.model, speed.stage) == (model, stage)]
        return sorted(found, key=lambda speed: speed.batch)

    def whole(self, model: str) -> list[Speed]:
        """Of a tile that goes through everything the model has."""
        return self.speeds(model, self.stages(model)[-1])

    def rows(self) -> Iterator[Row]:
        """The smallest batch and the fastest, which may be the same, of every stage of every model."""
        for model in self.models:
            for stage in self.stages(model.name):
                speeds = self.speeds(model.name, stage)
                rivals = self._rivals(stage)
                yield Row(speeds[0], False, times_as_fast(speeds[0], rivals[0]))
                if len(speeds) > 1:
                    yield Row(best(speeds), True, times_as_fast(best(speeds), best(rivals)))

    def _rivals(self, stage: str) -> list[Speed]:
        """Of the model compared with: the same stage, or all it has where it has no such stage."""
        return self.speeds(self.against, stage) if stage in self.stages(self.against) else self.whole(self.against)

    def as_json(self) -> dict[str, Any]:
        """One object of plain values."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "models": [asdict(model) for model in self.models],
            "measured": [_speed_json(speed) for speed in self.measured],
            "summary": [_row_json(row) for row in self.rows()],
        }

    @classmethod
    def from_json(cls, table: Any) -> ModelsReport:
        """The other way; ReportError for any other object or another schema."""
        if not isinstance(table, dict) or table.get("kind") != KIND:
            raise ReportError("not a report of `bench models`")
        if table.get("schema") != SCHEMA:
            raise ReportError(f"schema {table.get('schema')!r}, this software reads {SCHEMA}: measure again")
        try:
            facts = {name: table[name] for name in cls.__dataclass_fields__}
            models = tuple(Model(**each) for each in table["models"])
            measured = tuple(
                Speed(**{**each, "tile": tuple(each["tile"]), "rounds": tuple(each["rounds"])})
                for each in table["measured"]
            )
            return cls(**{**facts, "models": models, "measured": measured})
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f"report is incomplete ({type(error).__name__}: {error}): measure again") from error


def best(speeds: Sequence[Speed]) -> Speed:
    """The fastest; of equals the smallest batch."""
    return max(speeds, key=lambda speed: (speed.tiles_per_s, -speed.batch))


def times_as_fast(speed: Speed, other: Speed) -> float:
    """Median over the rounds of the ratio within each: what slows a whole round down slows both, and cancels out."""
    return float(median(a * speed.mpx / (b * other.mpx) for a, b in zip(speed.rounds, other.rounds, strict=True)))


def one_after_the_other(first: Speed, then: Speed) -> Speed:
    """The tiles of `then`, each of whose pixels went through both networks."""
    share = then.mpx / first.mpx
    rounds = tuple(1 / (share / a + 1 / b) for a, b in zip(first.rounds, then.rounds, strict=True))
    return Speed(model=then.model, stage=BOTH, tile=then.tile, batch=then.batch, rounds=rounds)


def _speed_json(speed: Speed) -> dict[str, Any]:
    return {**asdict(speed), "rounds": [round(rate, 3) for rate in speed.rounds]}


def _row_json(row: Row) -> dict[str, Any]:
    speed = row.speed
    return {
        "model": speed.model,
        "stage": speed.stage,
        "batch": speed.batch,
        "best": row.best,
        "tiles_per_s": round(speed.tiles_per_s, 3),
        "ms_per_tile": round(speed.ms_per_tile, 4),
        "ms_per_mpx": round(speed.ms_per_mpx, 3),
        "spread": None if speed.spread is None else round(speed.spread, 4),
        "times_as_fast": round(row.ratio, 4),
    }


def save(report: ModelsReport, folder: Path) -> Path:
    """Write the report's JSON into the folder; DiskError when that cannot be done."""
    make_folder(folder)
    when = report.created.replace("-", "").replace(":", "").partition("+")[0]
    path = folder / f"models-{report.engine}-{when}.json"
    try:
        path.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError(f"report cannot be written to {path}: {error.strerror}; choose another --out") from error
    return path
