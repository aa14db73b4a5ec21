"""Which engines the parity gate let through for a model folder: `promoted.json`, by `aoi parity`, for workers.

    {"schema": 1, "promoted": [{"engine": "cpu-int8", "device": …, "runtime": …, "judging": …, "max_batch": 8,
      "reference": "cpu", "pictures": 300, "flips": 0,
      "models": {"classifier": SHA-256, …}, "files": {…}, "at": …}, …]}

A promotion holds for what was compared and for nothing else: these files on this device with this release of the
runtime, up to this batch size, under these rules of judging. Engines that run the model itself in float32 on a CPU
need none: they are what others are compared with.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from engines.base import EngineError, EngineSpec, Kind
from engines.onnx_file import read_model_file
from engines.precision import FLOAT, precision_of
from pipeline.errors import DiskError
from pipeline.recipe import Batching, Recipe

FILE = "promoted.json"
SCHEMA = 1
COMPILED = "trt"  # engines whose name begins so run what a compiler made of the model
Specs = Mapping[Kind, EngineSpec]


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One engine that judged as the reference does."""

    engine: str
    device: str
    runtime: str
    judging: str  # hash of all that decides a judgement but the engines
    max_batch: int
    reference: str
    pictures: int
    flips: int
    models: Mapping[str, str]  # stage → SHA-256 of the model
    files: Mapping[str, str]  # stage → SHA-256 of the file that runs, made from it
    at: str  # ISO 8601, UTC


def needs_promotion(engine: str, device: str) -> bool:
    """Whether an engine may compute anything else than the model says."""
    if engine == "cpu":
        return device not in ("", "CPU")  # on a GPU or NPU OpenVINO computes in half precision
    return precision_of(engine) != FLOAT or engine.startswith(COMPILED)


def judging_of(recipe: Recipe) -> str:
    """A hash of what decides a judgement, batching and file names apart."""
    plain = replace(
        recipe,
        batching=Batching(),
        folder=Path(),
        hash="",
        name="",
        classifier=replace(recipe.classifier, file=""),
        segmenter=replace(recipe.segmenter, file=""),
    )
    return hashlib.sha256(json.dumps(asdict(plain), sort_keys=True, default=str).encode()).hexdigest()


def promotion_of(recipe: Recipe, specs: Specs, reference: str, pictures: int, flips: int, at: str) -> Promotion:
    """What there is to be written down of engines that passed."""
    first = next(iter(specs.values()))
    return Promotion(
        engine=first.engine,
        device=first.device,
        runtime=first.runtime,
        judging=judging_of(recipe),
        max_batch=first.max_batch,
        reference=reference,
        pictures=pictures,
        flips=flips,
        models=_models(recipe),
        files={kind: spec.model_hash for kind, spec in specs.items()},
        at=at,
    )


def check_promoted(recipe: Recipe, specs: Specs) -> None:
    """Raises EngineError unless these engines were promoted for this recipe, on this device."""
    engine = next(iter(specs.values())).engine
    again = f"aoi parity {recipe.folder} --engines cpu,{engine} --data FRAMES"
    mend = f"compare it here: {again}; or start with --unpromoted"
    known = [each for each in read_promotions(recipe.folder) if each.engine == engine]
    if not known:
        raise EngineError(f"engine {engine} was not promoted for {recipe.name}; {mend}", "unfit")
    reasons = [_unlike(each, recipe, specs) for each in known]
    if all(reasons):
        raise EngineError(f"engine {engine} was promoted for {recipe.name}, but {reasons[-1]}; {mend}", "unfit")


def _unlike(promotion: Promotion, recipe: Recipe, specs: Specs) -> str:
    """What has changed since; empty: nothing."""
    first = next(iter(specs.values()))
    if promotion.models != _models(recipe):
        return "for another model"
    if any(promotion.files.get(kind) != spec.model_hash for kind, spec in specs.items()):
        return "with other files"
    if promotion.device != first.device:
        return f"on {promotion.device}, and this is {first.device}"
    if promotion.runtime != first.runtime:
        return f"with {promotion.runtime}, and this is {first.runtime}"
    if promotion.judging != judging_of(recipe):
        return "under other rules: the recipe has changed since"
    if promotion.max_batch < max(spec.max_batch for spec in specs.values()):
        return f"for batches up to {promotion.max_batch}"
    return ""


def _models(recipe: Recipe) -> dict[str, str]:
    """Stage → SHA-256 of the recipe's own file."""
    return {stage: read_model_file(recipe.model_path(getattr(recipe, stage)))[1] for stage in recipe.stages}


def read_promotions(folder: Path) -> list[Promotion]:
    """Of a model folder, the newest last. Raises EngineError when the file is not one of ours."""
    path = folder / FILE
    try:
        told = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} cannot be read ({error}); run `aoi parity` again", "unfit") from error
    try:
        if told["schema"] != SCHEMA:
            raise EngineError(
                f"{path} is of another release (schema {told['schema']}); run `aoi parity` again", "unfit"
            )
        return [_promotion(each) for each in told["promoted"]]
    except (KeyError, TypeError) as error:
        raise EngineError(f"{path} is no list of promotions; remove it and run `aoi parity` again", "unfit") from error


def _promotion(told: Mapping[str, Any]) -> Promotion:
    return Promotion(**{each.name: told[each.name] for each in fields(Promotion)})


def write_promotions(folder: Path, passed: Iterable[Promotion], refused: Sequence[tuple[str, str]]) -> None:
    """Add promotions; one of the same engine and device goes, also where that is `refused` now: (engine, device)."""
    passed = list(passed)
    gone = {*refused, *((each.engine, each.device) for each in passed)}
    kept = [each for each in read_promotions(folder) if (each.engine, each.device) not in gone]
    text = json.dumps({"schema": SCHEMA, "promoted": [asdict(each) for each in [*kept, *passed]]}, indent=1)
    path = folder / FILE
    beside = path.with_name(f".{FILE}.{os.getpid()}")
    try:
        beside.write_text(text + "\n", "utf-8")
        os.replace(beside, path)
    except OSError as error:
        mend = "copy the model folder to where you may write, and name that"
        raise DiskError(f"{path} cannot be written: {error.strerror}; {mend}") from error
