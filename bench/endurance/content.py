"""What the frames of a chaos run show: frame n is a pure function of seed and n, and so is its right judgement.

Knows nothing of processes and streams. Small frames, cheap to make, for the engine of `deadly_engine.py`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.messages import Frame, frame_id

SIDE = 16  # px
GREY, BRIGHT, REFUSED, DEADLY = 100, 255, 13, 66  # first pixel of a frame; BRIGHT is a defect for the fake engine
SESSION = "chaos"
KINDS = {  # what the line must say: judgement and reason
    "good": ("OK", ""),
    "bright": ("NG", "scratch"),
    "broken": ("UNINSPECTED", "undecodable"),
    "refused": ("UNINSPECTED", "engine"),
    "deadly": ("UNINSPECTED", "poison"),
}
OF_10000 = (("bright", 1000), ("broken", 1050), ("refused", 1060))  # upper ends; the rest is good
RECIPE = """name = "chaos"
[classifier]
file = "net.fake"
classes = ["good", "scratch"]
[segmenter]
file = "net.fake"
classes = ["good", "scratch"]
[judge]
min_area_px = 1
[batching]
engine = "deadly"
max_batch = 64
"""
MODEL = f'{{"height": {SIDE}, "width": {SIDE}, "poison": {REFUSED}}}'


def write_model(folder: Path) -> None:
    """The model folder that workers of a chaos run are started with."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "net.fake").write_text(MODEL)


@dataclass(frozen=True)
class Content:
    """Frames 0 … `frames`-1 of one source; `deadly` of the first two thirds kill whoever inspects them."""

    source: str
    seed: int
    frames: int
    deadly: int = 0
    _deadly: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = random.Random(f"{self.seed} {self.source}").sample(range(self.frames - self.frames // 3), self.deadly)
        object.__setattr__(self, "_deadly", frozenset(numbers))

    def kind(self, number: int) -> str:
        """Which of KINDS frame `number` is."""
        if number in self._deadly:
            return "deadly"
        drawn = _mixed(self.seed * 0x10001 + number) % 10_000
        return next((kind for kind, end in OF_10000 if drawn < end), "good")

    def from_number(self, first: int) -> Iterator[Frame]:
        """The frames from this one on, triggered when they are asked for."""
        templates = {kind: _template(kind, self.source) for kind in KINDS}
        for number in range(first, self.frames):
            identity = frame_id(self.source, SESSION, number)
            template = templates[self.kind(number)]
            yield replace(template, frame_id=identity, sequence=number, triggered_ns=time.time_ns())


def _template(kind: str, source: str) -> Frame:
    pixels = np.full((SIDE, SIDE), GREY, np.uint8)
    if kind == "bright":
        pixels[4:10, 4:10] = BRIGHT
    pixels[0, 0] = {"refused": REFUSED, "deadly": DEADLY}.get(kind, GREY)
    data = pixels.tobytes()[: 7 if kind == "broken" else None]
    return Frame(frame_id="", source=source, session=SESSION, sequence=0, height=SIDE, width=SIDE, pixels=data)


def _mixed(n: int) -> int:
    """Neighbouring numbers → numbers without order: https://prng.di.unimi.it/splitmix64.c"""
    n = (n * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    n = ((n ^ (n >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    n = ((n ^ (n >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return n ^ (n >> 31)
