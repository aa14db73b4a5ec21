"""Which layers of a quantised model must stay in float: measured on the engine that is to run it, told by the gate.

A layer's sensitivity is how far the outputs move when it alone is quantised. It is asked of the engine, not of the
file: two runtimes do not compute the same Q/DQ file alike, and what is lost may be lost in one of them. The most
sensitive layers go back to float, one, two, four … of them, until the gate has nothing against the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from engines import open_engine
from engines.base import EngineOptions, Kind, Outputs, Pixels
from engines.precision import precision_of, variant_path
from pipeline.examine import run
from pipeline.recipe import Model, Recipe

Made = Mapping[str, bytes]  # stage → the quantised file
Gate = Callable[[Recipe], Sequence[str]]  # a recipe whose quantised files lie in its folder → why it is refused
Tell = Callable[[str], None]


class Quantiser:
    """What engines.quantize.Quantizer is here; named so that this module needs no ONNX Runtime."""

    layers: tuple[str, ...]

    def quantized(self, only: Sequence[str] | None = None) -> bytes:
        """The model as Q/DQ ONNX, `only` these layers quantised."""
        raise NotImplementedError


@dataclass(frozen=True)
class Found:
    """One stage, quantised as far as the gate lets it."""

    content: bytes
    layers: tuple[str, ...]  # all that could be quantised
    in_float: tuple[str, ...]  # those that are not, the most sensitive first


def search(
    recipe: Recipe,
    engine: str,
    quantisers: Mapping[Kind, Quantiser],
    tiles: Sequence[Pixels],
    gate: Gate,
    tell: Tell = lambda said: None,
) -> tuple[dict[Kind, Found], Sequence[str]]:
    """Each stage with as many quantised layers as the gate lets pass, and what it still has against them (nothing).

    `tiles` rank the layers. Each stage is brought through the gate with the other one in float, then both together.
    """
    search_ = _Search(recipe, engine, quantisers, tiles, gate, tell)
    counts = {kind: search_.least_alone(kind) for kind in quantisers}
    refusals = search_.refusals(counts)
    while refusals and any(count < len(quantisers[kind].layers) for kind, count in counts.items()):
        counts = {kind: _more(count, quantisers[kind]) for kind, count in counts.items()}
        refusals = search_.refusals(counts)
    return {kind: search_.found(kind, count) for kind, count in counts.items()}, refusals


def _more(count: int, quantiser: Quantiser) -> int:
    """Twice as many in float."""
    return min(max(1, 2 * count), len(quantiser.layers))


@dataclass
class _Search:
    recipe: Recipe
    engine: str
    quantisers: Mapping[Kind, Quantiser]
    tiles: Sequence[Pixels]
    gate: Gate
    tell: Tell

    def __post_init__(self) -> None:
        self._ranked: dict[Kind, tuple[str, ...]] = {}
        self._made: dict[tuple[Kind, int], bytes] = {}

    def least_alone(self, kind: Kind) -> int:
        """How few layers of this stage must be in float, the other stage being so as a whole."""
        others = {other: len(each.layers) for other, each in self.quantisers.items() if other != kind}
        count, all_of_them = 0, len(self.quantisers[kind].layers)
        while count < all_of_them and self.refusals({**others, kind: count}):
            count = _more(count, self.quantisers[kind])
        return count

    def refusals(self, counts: Mapping[Kind, int]) -> Sequence[str]:
        """What the gate has against the model with so many layers of each stage in float."""
        with tempfile.TemporaryDirectory(prefix="aoi-build-") as folder:
            trial = _folder(
                self.recipe, self.engine, {kind: self.content(kind, n) for kind, n in counts.items()}, folder
            )
            refused = self.gate(trial)
        said = ", ".join(f"{kind} {counts[kind]} of {len(each.layers)}" for kind, each in self.quantisers.items())
        self.tell(f"layers in float: {said}: {'; '.join(refused) or 'nothing against it'}")
        return refused

    def content(self, kind: Kind, count: int) -> bytes:
        """The stage with so many layers in float."""
        if (kind, count) not in self._made:
            quantiser = self.quantisers[kind]
            in_float = set(self.ranked(kind)[:count]) if 0 < count < len(quantiser.layers) else set()
            chosen = (
                [] if count == len(quantiser.layers) else [each for each in quantiser.layers if each not in in_float]
            )
            self._made[kind, count] = quantiser.quantized(chosen)
        return self._made[kind, count]

    def found(self, kind: Kind, count: int) -> Found:
        layers = self.quantisers[kind].layers
        in_float = layers if count == len(layers) else self.ranked(kind)[:count] if count else ()
        return Found(self.content(kind, count), layers, tuple(in_float))

    def ranked(self, kind: Kind) -> tuple[str, ...]:
        """The stage's layers, those first whose quantisation alone moves the outputs most."""
        if kind not in self._ranked:
            quantiser = self.quantisers[kind]
            self.tell(f"{kind}: how sensitive is each of its {len(quantiser.layers)} layers")
            plain = self._outputs(kind, quantiser.quantized([]))
            moved = {name: _moved(plain, self._outputs(kind, quantiser.quantized([name]))) for name in quantiser.layers}
            self._ranked[kind] = tuple(sorted(quantiser.layers, key=lambda name: -moved[name]))
        return self._ranked[kind]

    def _outputs(self, kind: Kind, content: bytes) -> Outputs:
        model: Model = getattr(self.recipe, kind)
        with tempfile.TemporaryDirectory(prefix="aoi-build-") as folder:
            trial = _folder(self.recipe, self.engine, {kind: content}, folder)
            options = EngineOptions(self.recipe.batching.device, self.recipe.batching.threads, 1, 1)
            with open_engine(self.engine, trial.model_path(model), kind, model.classes, options) as engine:
                return run(engine, self.tiles)


def _moved(plain: Outputs, quantised: Outputs) -> float:
    """How far outputs are apart: mean difference of probabilities, or of pixels' labels and their confidence."""
    moved = 0.0
    for name, was in plain.items():
        now = quantised[name]
        if name == "labels":
            moved += float(np.mean(was != now))
        else:
            scale = 255 if name == "confidence" else 1
            moved += float(np.nanmean(np.abs(was.astype(np.float64) - now.astype(np.float64)))) / scale
    return moved if np.isfinite(moved) else float("inf")


def _folder(recipe: Recipe, engine: str, contents: Mapping[Kind, bytes], folder: str) -> Recipe:
    """The recipe in a folder of its own, with these quantised files beside copies of its models."""
    for stage in recipe.stages:
        kind, model = cast(Kind, stage), getattr(recipe, stage)
        here = Path(folder, model.file)
        here.parent.mkdir(parents=True, exist_ok=True)
        content = recipe.model_path(model).read_bytes()
        here.write_bytes(content)
        variant_path(here, precision_of(engine)).write_bytes(contents.get(kind, content))
    return replace(recipe, folder=Path(folder), batching=replace(recipe.batching, engine=engine, fallback=""))
