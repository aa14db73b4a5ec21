"""What each class of defect does to a panel: draws one instance into the image and marks it in the truth.

A painter works on the small window its defect needs: it makes `alpha`, the cover per pixel from 0 to 1, and
the grey level that shows where the cover is complete. The truth is the pixels with more than 30 % cover,
whatever the strength, so that one truth serves a clear defect and its faint twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.panel_pattern import (
    CELL_HEIGHT,
    CELL_WIDTH,
    DATA,
    DATA_WIDTH,
    GATE,
    GATE_WIDTH,
    SUBSTRATE,
    Layout,
)

TRUTH_COVER = 0.3  # cover above which a pixel belongs to the defect

Grey = NDArray[np.float32]
Truth = NDArray[np.uint8]
Array = NDArray[Any]


class Canvas:
    """The panel that a painter works on."""

    def __init__(self, image: Grey, truth: Truth, layout: Layout, strength: float) -> None:
        self.image, self.truth, self.layout, self.strength = image, truth, layout, strength
        self.height, self.width = image.shape

    def window(self, x: float, y: float, half_width: float, half_height: float) -> tuple[slice, slice]:
        """Rows and columns of the box around (x, y), cut to the image."""
        rows = slice(max(0, int(y - half_height)), min(self.height, int(y + half_height) + 2))
        columns = slice(max(0, int(x - half_width)), min(self.width, int(x + half_width) + 2))
        return rows, columns

    def paint(self, box: tuple[slice, slice], alpha: Array, level: Array | float, index: int) -> None:
        """Move the window towards `level` by cover × strength, and mark the covered pixels with `index`."""
        window = self.image[box]
        window += ((level - window) * (alpha * self.strength)).astype(np.float32)
        self.truth[box][alpha > TRUTH_COVER] = index


def void(canvas: Canvas, rng: np.random.Generator, index: int) -> None:
    """A blob where every layer is missing: flat substrate with a bright fringe along the torn film."""
    x, y = _anywhere(canvas, rng, 10)
    radius = rng.uniform(4.5, 13)
    box, depth, _, _ = _blob(canvas, rng, x, y, radius, flattest=0.65, roughness=0.16)
    light = float(canvas.image[box].mean()) / 130.0
    fringe = 40.0 * np.exp(-((depth - 1.0) ** 2))
    canvas.paint(box, _cover(depth), (SUBSTRATE - 14) * light + fringe, index)


def particle(canvas: Canvas, rng: np.random.Generator, index: int) -> None:
    """A lump lying on top, dark or bright, round to fibre-like, shaded by the lamp and with a burnt rim."""
    x, y = _anywhere(canvas, rng, 8)
    radius = rng.uniform(3.5, 10)
    box, depth, dx, dy = _blob(canvas, rng, x, y, radius, flattest=0.35, roughness=0.1)
    level, relief = (22.0, 26.0) if rng.random() < 0.6 else (238.0, 16.0)
    lamp = rng.uniform(0, 2 * np.pi)
    shade = relief * (dx * np.cos(lamp) + dy * np.sin(lamp)) / radius
    rim = -0.3 * level * np.exp(-((depth / 1.2) ** 2))
    canvas.paint(box, _cover(depth), level + shade + rim, index)


def horizontal(canvas: Canvas, rng: np.random.Generator, index: int) -> None:
    """A thin streak along the rows."""
    box, alpha = _streak(canvas.height, canvas.width, rng)
    canvas.paint(box, alpha, _standing_out(canvas.image[box], alpha, rng), index)


def vertical(canvas: Canvas, rng: np.random.Generator, index: int) -> None:
    """A thin streak along the columns."""
    (across, along), alpha = _streak(canvas.width, canvas.height, rng)
    box, alpha = (along, across), alpha.T
    canvas.paint(box, alpha, _standing_out(canvas.image[box], alpha, rng), index)


def edge(canvas: Canvas, rng: np.random.Generator, index: int) -> None:
    """A mouse bite out of a trace, or a protrusion of its metal into the gap."""
    axis, at, side, x, y = _trace_edge(canvas, rng)
    bite = rng.random() < 0.5
    trace_width, metal = ((DATA_WIDTH, DATA), (GATE_WIDTH, GATE))[axis]
    radius = rng.uniform(3, 5.5) if bite else rng.uniform(3.5, 7)
    box, depth, dx, dy = _blob(canvas, rng, x, y, radius, flattest=0.75, roughness=0.14)
    row = canvas.layout.to_cell[axis]
    outward = side * (row[0] * (dx + x) + row[1] * (dy + y) + row[2] - at)  # distance from the trace's edge
    inside = np.clip(0.5 - outward, 0, 1) * np.clip(outward + trace_width + 0.5, 0, 1)
    region = inside if bite else np.clip(0.5 + outward, 0, 1)
    light = _light_at(canvas, x, y)
    canvas.paint(box, _cover(depth) * region, (SUBSTRATE if bite else metal) * light, index)


PAINTERS: dict[str, Callable[[Canvas, np.random.Generator, int], None]] = {
    "void": void,
    "horizontal": horizontal,
    "vertical": vertical,
    "edge": edge,
    "particle": particle,
}


def _anywhere(canvas: Canvas, rng: np.random.Generator, margin: float) -> tuple[float, float]:
    x, y = rng.uniform(margin, (canvas.width - margin, canvas.height - margin))
    return float(x), float(y)


def _light_at(canvas: Canvas, x: float, y: float) -> float:
    light = canvas.layout.light
    return float(light[int(y / canvas.height * 9), int(x / canvas.width * 9)])


def _cover(depth: Array) -> Array:
    """Full cover inside, none outside, a ramp of 1.4 px across the outline."""
    return np.clip(depth / 1.4 + 0.5, 0, 1)


def _blob(
    canvas: Canvas,
    rng: np.random.Generator,
    x: float,
    y: float,
    radius: float,
    *,
    flattest: float,
    roughness: float,
) -> tuple[tuple[slice, slice], Array, Array, Array]:
    """A rough ellipse around (x, y): its window, depth below the outline in px, offsets dx, dy from x, y."""
    reach = radius * (1 + 3 * roughness) + 3
    box = canvas.window(x, y, reach, reach)
    dy, dx = np.ogrid[box]
    dx, dy = dx - x, dy - y
    turn, flat = rng.uniform(0, np.pi), rng.uniform(flattest, 1)
    long = dx * np.cos(turn) + dy * np.sin(turn)
    short = (dy * np.cos(turn) - dx * np.sin(turn)) / flat
    theta = np.arctan2(short, long)
    waves = zip(
        (2, 3, 5),
        rng.normal(0, roughness, 3).clip(-roughness, roughness),
        rng.uniform(0, 6.28, 3),
        strict=True,
    )
    outline = radius * (1 + sum(size * np.cos(k * theta + phase) for k, size, phase in waves))
    # Along the short axis distances are stretched by 1 / flat; the mean brings the outline's softness back.
    return box, (outline - np.hypot(long, short)) * np.sqrt(flat), dx, dy


def _streak(across: int, along: int, rng: np.random.Generator) -> tuple[tuple[slice, slice], Array]:
    """A streak in an image of `across` rows and `along` columns: its window and cover."""
    length = max(32.0, along * rng.uniform(0.25, 0.95))
    start = rng.uniform(0, along - length)
    columns = slice(int(start), min(along, int(start + length) + 1))
    tilt = np.clip(rng.normal(0, 0.008) * length / 2, -9, 9)
    bow = np.clip(rng.normal(0, 1.0), -2, 2)
    t = np.linspace(-1, 1, columns.stop - columns.start)
    path = rng.uniform(12, across - 12) + tilt * t + bow * (1 - t * t)
    thickness = rng.uniform(1.2, 3.4)
    rows = slice(max(0, int(path.min() - 4)), min(across, int(path.max() + 5)))
    distance = np.abs(np.arange(rows.start, rows.stop)[:, None] - path[None, :])
    wear = 0.8 + 0.2 * np.sin(rng.uniform(2, 9) * t + rng.uniform(0, 6.28))  # never so faint that it breaks up
    taper = np.clip((1 - np.abs(t)) * length / 24, 0, 1)
    alpha = np.clip(thickness / 2 + 0.5 - distance, 0, 1) * (wear * taper)[None, :]
    return (rows, columns), alpha


def _standing_out(window: Grey, alpha: Array, rng: np.random.Generator) -> float:
    """Bright or dark at random, but not bright on a trace nor dark in a gap, where it would not show."""
    level, other = (250.0, 18.0) if rng.random() < 0.5 else (18.0, 250.0)
    below = float(np.average(window, weights=alpha))
    return level if abs(level - below) > 70 else other


def _trace_edge(canvas: Canvas, rng: np.random.Generator) -> tuple[int, float, int, float, float]:
    """A point on a trace's edge, away from transistors and crossings.

    Returns the axis the trace blocks (0: data line, u; 1: gate line, v), the edge's coordinate on it in
    template pixels, the direction that leads out of the trace (−1 or 1), and the image point x, y.
    """
    layout, margin = canvas.layout, 8.0
    while True:  # at 64 × 64, the smallest panel, about every third try succeeds
        u, v = layout.cell_point(*_anywhere(canvas, rng, margin))
        side = 1 if rng.random() < 0.5 else -1
        axis = int(rng.random() < 0.35)
        left, top = u - u % CELL_WIDTH, v - v % CELL_HEIGHT
        if axis == 0:
            u, v = left + (DATA_WIDTH if side == 1 else 0), top + rng.uniform(24, 66)
        else:
            u, v = left + rng.uniform(20, 28), top + (GATE_WIDTH if side == 1 else 0)
        x, y = layout.image_point(u, v)
        if margin <= x < canvas.width - margin and margin <= y < canvas.height - margin:
            return axis, (u, v)[axis], side, x, y
