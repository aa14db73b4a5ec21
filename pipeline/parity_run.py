"""Runs the engines that are compared over the same tiles, at every batch size; compares nothing itself.

Every picture is prepared and cut once, by the line's own code, so that engines alone make the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from engines.base import Engine, EngineError, Kind, Outputs
from engines.datasets.labelled import Dataset, Problem, Sample
from pipeline.examine import Cut, Examined, judged, prepared, run, whole
from pipeline.opening import open_engines
from pipeline.parity import Compared, Parity, Said
from pipeline.recipe import Recipe

Engines = Mapping[Kind, Engine]
Tell = Callable[[int], None]  # pictures done


def on(recipe: Recipe, engine: str, max_batch: int) -> Recipe:
    """The recipe with another engine, `name` or `name@device`, and no other to fall back on."""
    name, _, device = engine.partition("@")
    return replace(
        recipe, batching=replace(recipe.batching, engine=name, device=device, max_batch=max_batch, fallback="")
    )


def open_all(recipe: Recipe, names: Sequence[str], max_batch: int, stack: ExitStack) -> dict[str, Engines]:
    """Every engine that is compared, open until the stack is left. Raises EngineError with the engine's name."""
    opened: dict[str, Engines] = {}
    for name in names:
        try:
            opened[name] = stack.enter_context(open_engines(on(recipe, name, max_batch), unpromoted=True))
        except EngineError as error:
            raise EngineError(f"{name}: {error}", error.kind) from error
    return opened


def run_parity(
    recipe: Recipe,
    opened: Mapping[str, Engines],
    batches: Sequence[int],
    dataset: Dataset,
    samples: Iterable[Sample],
    tell: Tell = lambda done: None,
) -> Parity:
    """Compare all with the first, at each of these batch sizes and at 1; engines as `open_all` gives them."""
    sizes = sorted({1, *batches})
    parity = Parity(next(iter(opened)))
    table = {(name, size): Compared(name, size) for name in opened for size in sizes}
    parity.compared = list(table.values())
    spec = next(iter(opened[parity.reference].values())).spec
    waiting: list[Cut] = []
    done = 0
    for sample in samples:
        done += 1
        cut = prepared(recipe, spec, dataset, sample)
        if isinstance(cut, Problem):
            parity.left_out.append(f"{cut.path}: {cut.reason}")
            continue
        waiting.append(cut)
        if sum(len(each.tiles) for each in waiting) >= max(sizes) * spec.in_flight:
            _compare(recipe, opened, dataset, waiting, parity, table)
            waiting = []
            tell(done)
    if waiting:
        _compare(recipe, opened, dataset, waiting, parity, table)
    tell(done)
    return parity


def _compare(
    recipe: Recipe,
    opened: Mapping[str, Engines],
    dataset: Dataset,
    cut: Sequence[Cut],
    parity: Parity,
    table: Mapping[tuple[str, int], Compared],
) -> None:
    """One group of pictures through every engine at every size; the reference alone is what all are held against."""
    alone: dict[str, list[Said]] = {}
    for (name, size), compared in table.items():
        said = _said(recipe, opened[name], cut, size, compared)
        mine = alone.setdefault(name, said)  # sizes ascend from 1
        reference = alone[parity.reference]
        for each, was, own, now in zip(cut, reference, mine, said, strict=True):
            sample = each.picture.sample
            class_name = dataset.classes[each.picture.class_index]
            compared.against.add(sample.image, class_name, was, now)
            compared.company.add(sample.image, class_name, own, now)
    parity.judged.update(each.judgement for each in alone[parity.reference])


def _said(recipe: Recipe, engines: Engines, cut: Sequence[Cut], size: int, compared: Compared) -> list[Said]:
    try:
        tiles = [tile for each in cut for tile in each.tiles]
        outputs = {kind: run(engine, tiles, size) for kind, engine in engines.items()}
    except EngineError as error:
        if error.kind == "broken":
            raise
        compared.faults.append(str(error))
        return [Said("UNINSPECTED", "engine") for _ in cut]
    said, start = [], 0
    for each in cut:
        rows = slice(start, start + len(each.tiles))
        said.append(_judged(recipe, each, outputs, rows))
        start = rows.stop
    return said


def _judged(recipe: Recipe, cut: Cut, outputs: Mapping[Kind, Outputs], rows: slice) -> Said:
    examined = whole(recipe, cut, outputs, rows)
    if not isinstance(examined, Examined):  # scores that are no numbers, and nothing else, come to this
        return Said("UNINSPECTED", "engine", finite=False)
    judgement, reason, _ = judged(examined, recipe)
    scores = None if examined.scores is None else np.array(examined.scores)
    return Said(judgement, reason, scores, examined.labels, examined.confidence)
