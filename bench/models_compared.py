"""Several models measured in one run, their turns interleaved; decides who has a turn when, not what comes of it.

All models take turns within each round, in the next round the other way about: whatever else the machine does
meanwhile disturbs all of them alike, and ratios hold where absolute speeds do not. Accuracy is not measured, it is
read from what `aoi evaluate` left in the model folder.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from bench.machine import describe_machine, describe_project, load_average
from bench.models_report import Model, ModelsReport, Speed
from engines import open_engine
from engines.base import Engine, EngineOptions, Kind, Pixels, Ticket
from pipeline.errors import ReportError
from pipeline.recipe import Recipe

Tell = Callable[[str], None]  # what is measured next
Clock = Callable[[], int]  # ns
ACCURACIES = ("dice", "miou", "f1", "map", "accuracy", "escape")
EVALUATION = "evaluation.json"
KEPT_FREE = 0.35  # of the machine's memory: engines are closed between their turns rather than take of that
BATCHES = 4  # different ones, so that no cache holds them all


@dataclass(frozen=True)
class Contender:
    """A model that takes part."""

    name: str  # no other has it
    recipe: Recipe
    untaught: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure."""

    contenders: Sequence[Contender]
    against: str  # name of the one that the others are compared with
    batches: tuple[int, ...] = (1, 8)  # tiles, rising
    rounds: int = 5
    seconds: float = 1.0  # of each network at each batch size, in each round
    accuracy: str = "dice"  # of ACCURACIES
    engine: str = "cpu"
    threads: int = 0  # 0: every core
    in_flight: int = 2  # as a worker has it

    @property
    def steps(self) -> int:
        """How many times `tell` will be called."""
        return self.rounds * sum(len(each.recipe.stages) for each in self.contenders)


def names_of(folders: Sequence[Path]) -> list[str]:
    """The folders' names, and as much of what lies above as it takes to tell them apart.

    >>> names_of([Path("a/unet"), Path("a/inline/fold-0"), Path("b/resnet/fold-0")])
    ['unet', 'inline/fold-0', 'resnet/fold-0']
    """
    parts = [folder.resolve().parts for folder in folders]
    names = ["/".join(each[-1:]) for each in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        told = zip(parts, names, strict=True)
        names = ["/".join(each[-depth:]) if names.count(name) > 1 else name for each, name in told]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ReportError(f"model {doubled[0]} is given twice; give each folder once")
    return names


def compare_models(plan: Plan, tell: Tell) -> ModelsReport:
    """Run the plan to its end. Raises EngineError, and ReportError for an accuracy that cannot be read."""
    created, busy = datetime.now(timezone.utc), load_average()
    models = tuple(_described(each, plan.accuracy) for each in plan.contenders)
    networks = [network for contender in plan.contenders for network in _networks(contender, plan)]
    measured = _measure(networks, plan, tell)
    return ModelsReport(
        created=created.isoformat(timespec="seconds"),
        machine=describe_machine(),
        project=describe_project(),
        conditions={"load_average_before": busy},
        engine=plan.engine,
        device=networks[0].engine.spec.device,
        settings={
            "accuracy": plan.accuracy,
            "batches": list(plan.batches),
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "in_flight": plan.in_flight,
            "threads": plan.threads,
        },
        against=plan.against,
        models=models,
        measured=tuple(measured),
    )


@dataclass(frozen=True)
class Network:
    """One stage of one model; its engine is entered for a turn, or for all."""

    model: str
    engine: Engine


def _networks(contender: Contender, plan: Plan) -> Iterator[Network]:
    recipe = contender.recipe
    for stage in recipe.stages:
        model, kind = getattr(recipe, stage), cast(Kind, stage)
        options = EngineOptions("", plan.threads, plan.in_flight, max(plan.batches), model.sha256)
        yield Network(contender.name, open_engine(plan.engine, recipe.model_path(model), kind, model.classes, options))


def _measure(networks: Sequence[Network], plan: Plan, tell: Tell) -> list[Speed]:
    rates: dict[tuple[int, int], list[float]] = {
        (number, size): [] for number in range(len(networks)) for size in plan.batches
    }
    with Held(memory_is_short) as held:
        for round_ in range(plan.rounds):
            turns = list(enumerate(networks))
            for number, network in turns if round_ % 2 == 0 else reversed(turns):
                tell(f"round {round_ + 1}: {network.model}, {network.engine.spec.kind}")
                with held.opened(network.engine) as engine:
                    for size in plan.batches:
                        batches = noise(engine.spec.tile_shape, size)
                        rates[number, size].append(turn(engine, batches, int(plan.seconds * 1e9)))
    return [
        Speed(
            model=networks[number].model,
            stage=networks[number].engine.spec.kind,
            tile=networks[number].engine.spec.tile_shape,
            batch=size,
            rounds=tuple(each),
        )
        for (number, size), each in rates.items()
    ]


class Held:
    """Engines that stay open from turn to turn; once `short` says so, every further one is closed after its turn.

    Opening compiles, which for a large network takes longer than its turn; but all of them at once may not fit.
    """

    def __init__(self, short: Callable[[], bool]) -> None:
        self._short, self._stack = short, ExitStack()
        self._open: set[int] = set()

    def __enter__(self) -> Held:
        return self

    @contextmanager
    def opened(self, engine: Engine) -> Iterator[Engine]:
        """The engine, entered."""
        if id(engine) in self._open:
            yield engine
            return
        with ExitStack() as stack:
            stack.enter_context(engine)
            yield engine
            if not self._short():
                self._stack.push(stack.pop_all())
                self._open.add(id(engine))

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self._open.clear()


def memory_is_short() -> bool:
    """Is less than KEPT_FREE of the machine's memory available?"""
    memory = psutil.virtual_memory()
    return bool(memory.available < KEPT_FREE * memory.total)


def noise(shape: tuple[int, int, int], size: int) -> list[Pixels]:
    """Batches of tiles to be measured with, uint8 [size, H, W, C]: no network here is faster on one than another."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (size, *shape), np.uint8) for _ in range(BATCHES)]


def turn(engine: Engine, batches: Sequence[Pixels], for_ns: int, clock: Clock = time.monotonic_ns) -> float:
    """Tiles per second of an engine kept busy, from idle until it is idle again.

    As many batches are in flight as it takes. After the time is up only so many are added as fill it evenly, for
    else the last one of a slow network would run alone, and its time count for nothing.
    """
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    slots: dict[int, Ticket] = {}
    at_once, submitted = engine.spec.in_flight, 0
    start = clock()
    for slot in range(at_once):
        slots[slot] = _submitted(engine, batches[submitted % len(batches)], slot, done)
        submitted += 1
    while slots:
        slot = done.get()
        slots.pop(slot).result()
        if submitted % at_once or clock() - start < for_ns:
            slots[slot] = _submitted(engine, batches[submitted % len(batches)], slot, done)
            submitted += 1
    return submitted * len(batches[0]) * 1e9 / max(1, clock() - start)


def _submitted(engine: Engine, batch: Pixels, slot: int, done: queue.SimpleQueue[int]) -> Ticket:
    return engine.submit(batch, lambda: done.put(slot))


def _described(contender: Contender, key: str) -> Model:
    """The model with its accuracy, where there is one; what was not taught has none, whatever lies in its folder."""
    recipe = contender.recipe
    if contender.untaught:
        return Model(name=contender.name, recipe=recipe.label, untaught=True)
    return Model(name=contender.name, recipe=recipe.label, **accuracy_of(recipe.folder, key))


def accuracy_of(folder: Path, key: str) -> dict[str, Any]:
    """`accuracy`, `n` and `side` of a model folder's evaluation.json; {} without one. ReportError: not readable."""
    path = folder / EVALUATION
    if not path.exists():
        return {}
    again = "write it again: aoi evaluate MODEL --data DATA --report MODEL"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read ({error}); {again}") from error
    if not isinstance(facts, dict) or type(facts.get("n")) is not int:
        raise ReportError(f"{path} is not what `aoi evaluate` writes; {again}")
    value = facts.get(key)
    if value is not None and (type(value) not in (int, float) or not 0 <= value <= 1):
        raise ReportError(f"{path}: {key} is {value!r}, not a share 0…1; {again}")
    return {"accuracy": value, "n": facts["n"], "side": str(facts.get("side", ""))}
