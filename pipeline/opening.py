"""Opens a recipe's engines: promoted ones only, with fewer tiles where memory is short, or those it falls back on.

A GPU may be gone, its driver too old, its memory taken: then a line that may (`batching.fallback`) goes on with
another engine, and each of its verdicts names both. A line that may not stops, and is started again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import cast

from engines import open_engine
from engines.base import Engine, EngineError, EngineOptions, Kind
from pipeline.promotion import check_promoted, needs_promotion
from pipeline.recipe import Batching, Recipe

log = logging.getLogger("aoi.engines")
Engines = dict[Kind, Engine]


@contextmanager
def open_engines(recipe: Recipe, unpromoted: bool = False) -> Iterator[Engines]:
    """The recipe's engines, compiled and warm, by stage in the order they run; released on leaving.

    Raises EngineError when a file is missing, is not the one whose hash the recipe states, or does not fit, and when
    the engine needs a promotion that it has not, unless `unpromoted` ones will do.
    """
    with ExitStack() as stack:
        yield _opened(recipe, unpromoted, stack)


def _opened(recipe: Recipe, unpromoted: bool, stack: ExitStack) -> Engines:
    batching = recipe.batching
    try:
        return _at_most(recipe, batching, unpromoted, stack)
    except EngineError as error:
        if not batching.fallback:
            raise
        log.warning("engine %s cannot be opened (%s); going on with %s", batching.engine, error, batching.fallback)
        instead = replace(batching, engine=batching.fallback, device="", fallback="")
        engines = _at_most(recipe, instead, unpromoted, stack)
        return _marked(engines, f"in place of {batching.engine}")


def _at_most(recipe: Recipe, batching: Batching, unpromoted: bool, stack: ExitStack) -> Engines:
    """With as many tiles in a batch as the device's memory takes."""
    try:
        with ExitStack() as tried:
            engines = _entered(recipe, batching, unpromoted, tried)
            stack.push(tried.pop_all())
            return engines
    except EngineError as error:
        if error.kind != "memory" or batching.max_batch == 1:
            raise
        fewer = batching.max_batch // 2
        log.warning("engine %s: %s; trying again with batches of %d", batching.engine, error, fewer)
    return _at_most(recipe, replace(batching, max_batch=fewer), unpromoted, stack)


def _entered(recipe: Recipe, batching: Batching, unpromoted: bool, stack: ExitStack) -> Engines:
    options = EngineOptions(batching.device, batching.threads, batching.in_flight, batching.max_batch)
    made: Engines = {}
    for stage in recipe.stages:
        model, kind = getattr(recipe, stage), cast(Kind, stage)
        meant = replace(options, sha256=model.sha256)
        made[kind] = open_engine(batching.engine, recipe.model_path(model), kind, model.classes, meant)
    marks = []
    if needs_promotion(batching.engine, batching.device):
        try:
            check_promoted(recipe, {kind: engine.spec for kind, engine in made.items()})
        except EngineError:
            if not unpromoted:
                raise
            marks.append("not promoted")
    engines = {kind: stack.enter_context(engine) for kind, engine in made.items()}
    return _marked(engines, *marks)


def _marked(engines: Engines, *marks: str) -> Engines:
    """With a remark for every verdict."""
    for engine in engines.values():
        remark = ", ".join(filter(None, (engine.spec.remark, *marks)))
        engine.spec = replace(engine.spec, remark=remark)  # type: ignore[misc]
    return engines
