"""Engines of one model side by side: open, compare verdicts, measure in turns, then the line; decides the order only.

On a GPU machine it is the one command that builds, checks and measures: `bench engines MODEL --data FRAMES`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import import_module
from typing import Any

from bench.engine_alone import batches_of, measure_engine
from bench.load import Pictures
from bench.machine import describe_machine, describe_project, load_average
from bench.measure import Plan as LinePlan
from bench.measure import measure
from bench.report import LineRun
from engines.base import Engine, EngineError, Kind
from engines.datasets.labelled import Dataset, Problem, Sample
from pipeline.errors import AoiError
from pipeline.examine import prepared
from pipeline.opening import open_engines
from pipeline.parity import Allowed
from pipeline.parity_run import on, run_parity
from pipeline.parity_tables import as_json as parity_json
from pipeline.recipe import Recipe

SCHEMA = 1
Tell = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare."""

    recipe_name: str
    recipe: Recipe
    engines: tuple[str, ...]  # `name` or `name@device`, the reference first
    dataset: Dataset
    samples: Sequence[Sample]
    sizes: tuple[int, ...]
    rounds: int
    seconds: float  # of an engine's turn at each batch size
    line: bool
    pictures: Pictures


def compare_engines(plan: Plan, tell: Tell) -> Row:
    """The whole report. An engine that cannot be opened is left out, and why stands in it; the reference must open."""
    created, busy = datetime.now(timezone.utc), load_average()
    with ExitStack() as stack:
        opened, engines, left_out = _opened(plan, stack, tell)
        tell("comparing verdicts")
        parity = run_parity(plan.recipe, opened, plan.sizes, plan.dataset, plan.samples)
        refusals = {name: parity.refusals(name, Allowed()) for name in list(opened)[1:]}
        speed = _speeds(plan, opened, tell)
    return {
        "schema": SCHEMA,
        "kind": "engines",
        "created": created.isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "project": describe_project(),
        "conditions": {"load_average_before": busy},
        "recipe": plan.recipe.label,
        "settings": {"sizes": list(plan.sizes), "rounds": plan.rounds, "seconds": plan.seconds},
        "engines": engines,
        "left_out": left_out,
        "parity": parity_json(parity, refusals),
        "ceilings": _ceilings(tell),
        "speed": speed,
        "ratios": ratios(speed, next(iter(opened))),
        "line": [row for name in opened for row in _line(plan, name, tell)] if plan.line else [],
    }


def _opened(
    plan: Plan, stack: ExitStack, tell: Tell
) -> tuple[dict[str, Mapping[Kind, Engine]], list[Row], dict[str, str]]:
    opened: dict[str, Mapping[Kind, Engine]] = {}
    rows, left_out = list[Row](), dict[str, str]()
    for name in plan.engines:
        tell(f"opening {name}")
        start = time.perf_counter()
        try:
            opened[name] = stack.enter_context(open_engines(on(plan.recipe, name, max(plan.sizes)), unpromoted=True))
        except EngineError as error:
            if not opened:
                raise
            left_out[name] = str(error)
            continue
        spec = next(iter(opened[name].values())).spec
        took = time.perf_counter() - start  # of a GPU: building included, where the plan was not in the cache
        rows.append({"engine": name, "device": spec.device, "runtime": spec.runtime, "open_s": round(took, 3)})
    return opened, rows, left_out


def _speeds(plan: Plan, opened: Mapping[str, Mapping[Kind, Engine]], tell: Tell) -> list[Row]:
    """Medians over the rounds; in each all engines take turns, so that what disturbs the machine disturbs all."""
    tiles = list(_tiles(plan, opened))
    work = {stage: _operations(plan.recipe, stage) for stage in plan.recipe.stages}
    rates: dict[tuple[str, Kind, int], list[tuple[float, float]]] = {}
    for number in range(plan.rounds):
        tell(f"measuring, round {number + 1} of {plan.rounds}")
        for name, engines in opened.items():
            for kind, engine in engines.items():
                for size in plan.sizes:
                    run = measure_engine(engine, batches_of(tiles, engine.spec.tile_shape, size), plan.seconds)
                    rates.setdefault((name, kind, size), []).append((run.tiles_per_s, run.batch_ms.p50 or 0.0))
    return [_speed(name, kind, size, found, work[kind]) for (name, kind, size), found in rates.items()]


def _speed(name: str, kind: Kind, size: int, found: Sequence[tuple[float, float]], work: int | None) -> Row:
    """One engine, stage and batch size; `found`: (tiles a second, ms a batch) of each round."""
    rates = [rate for rate, _ in found]
    rate = statistics.median(rates)
    return {
        "engine": name,
        "stage": kind,
        "batch": size,
        "tiles_per_s": rate,
        "batch_ms": statistics.median(ms for _, ms in found),
        "spread": max(rates) / min(rates) - 1,
        "flop_per_s": None if work is None else rate * work,
    }


def _operations(recipe: Recipe, stage: str) -> int | None:
    """For one tile; None without onnx."""
    try:
        count: int = import_module("bench.network_work").operations(
            recipe.model_path(getattr(recipe, stage)).read_bytes()
        )
    except ImportError:
        return None
    return count


def _tiles(plan: Plan, opened: Mapping[str, Mapping[Kind, Engine]]) -> Iterator[Any]:
    """Of as many pictures as make a few different batches of the largest size."""
    spec, count = next(iter(next(iter(opened.values())).values())).spec, 0
    for sample in plan.samples:
        cut = prepared(plan.recipe, spec, plan.dataset, sample)
        if not isinstance(cut, Problem):
            count += len(cut.tiles)
            yield from cut.tiles
        if count >= 4 * max(plan.sizes):
            return


def _ceilings(tell: Tell) -> Row:
    """Of the first GPU, where there is one; else what is missing."""
    trt = import_module("engines.trt")
    if missing := trt.lacks():
        return {"missing": [str(lack) for lack in missing]}
    tell("measuring what the GPU can do at best")
    gpu = trt.CudaGpu()
    found = import_module("bench.gpu_ceiling").ceilings(gpu)
    return {"gpu": asdict(gpu.facts), **found}


def ratios(speed: Sequence[Row], reference: str) -> list[Row]:
    """Each engine's best batch against batch 1 of its own, and both against the reference's."""
    table = {(row["engine"], row["stage"], row["batch"]): row["tiles_per_s"] for row in speed}
    found = []
    for name, stage in dict.fromkeys((row["engine"], row["stage"]) for row in speed):
        sizes = [size for engine, of, size in table if (engine, of) == (name, stage)]
        best = max(table[name, stage, size] for size in sizes)
        best_of_reference = max(table[reference, stage, size] for size in sizes)
        smallest = min(sizes)
        found.append(
            {
                "engine": name,
                "stage": stage,
                "batch_against_single": best / table[name, stage, smallest],
                "single_against_reference": table[name, stage, smallest] / table[reference, stage, smallest],
                "best_against_reference": best / best_of_reference,
            }
        )
    return found


def _line(plan: Plan, name: str, tell: Tell) -> Iterator[Row]:
    """The whole line with this engine, closed loop and at 70 %; what goes wrong stands in place of its figures."""
    recipe = on(plan.recipe, name, max(plan.sizes))
    order = LinePlan(
        kind="batch",
        recipe_name=plan.recipe_name,
        recipe=recipe,
        sizes=(max(plan.sizes),),
        pictures=plan.pictures,
        seconds=max(1.0, plan.seconds),
        loads=(70.0,),
    )
    try:
        for run in measure(order, tell).runs:
            if isinstance(run, LineRun):
                yield {"engine": name, **asdict(run)}
    except (AoiError, EngineError) as error:
        yield {"engine": name, "failed": str(error)}
