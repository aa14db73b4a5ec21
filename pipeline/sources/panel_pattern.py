"""What a defect-free panel looks like: the repeated LCD cell and the light on it, no defects, no noise.

One pixel of the panel is three sub-pixels side by side. Each has a data line on its left, a gate line on top,
a transistor in the corner between them and a slit electrode below. Lengths are image pixels at scale 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

CELL_WIDTH, CELL_HEIGHT = 30, 72  # one sub-pixel
DATA_WIDTH, GATE_WIDTH = 5, 9  # vertical and horizontal traces
SUBSTRATE, DATA, GATE = 62.0, 196.0, 178.0  # grey levels before illumination

_DRAWN, _KEPT = (
    8,
    2,
)  # template samples per pixel: drawn fine, kept at twice the image so that a warp stays sharp
_BLOCK, _MARGIN = 512, 8  # px; a larger image is warped block by block from one field of bounded size
_ELECTRODES = (124, 136, 115)  # the three colour filters transmit differently


@dataclass(frozen=True)
class Layout:
    """How one panel lies under the camera, and the light on it."""

    to_cell: NDArray[np.float64]  # [2, 3] affine: image (x, y) → template (u, v), in template pixels
    light: NDArray[np.float32]  # [9, 9] gain over the image, coarse

    def cell_point(self, x: float, y: float) -> tuple[float, float]:
        """The template point (u, v) under image point (x, y)."""
        u, v = self.to_cell @ (x, y, 1.0)
        return float(u), float(v)

    def image_point(self, u: float, v: float) -> tuple[float, float]:
        """The image point (x, y) that shows template point (u, v)."""
        x, y = np.linalg.solve(self.to_cell[:, :2], np.array([u, v]) - self.to_cell[:, 2])
        return float(x), float(y)


def draw_layout(rng: np.random.Generator) -> Layout:
    """Period within 4 %, any phase, rotation within 0.4°, any lamp: always the same number of draws."""
    scale, angle = rng.uniform(0.96, 1.04), np.deg2rad(rng.uniform(-0.4, 0.4))
    phase = rng.uniform(0, (3 * CELL_WIDTH, CELL_HEIGHT))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    to_cell = np.array([[cos, -sin, phase[0]], [sin, cos, phase[1]]])
    return Layout(to_cell, _light(rng))


def render(layout: Layout, height: int, width: int) -> NDArray[np.float32]:
    """The lit pattern, float32 [height, width], grey levels 0 to 255, no noise."""
    image = np.empty((height, width), np.float32)
    for top in range(0, height, _BLOCK):
        for left in range(0, width, _BLOCK):
            block = image[top : top + _BLOCK, left : left + _BLOCK]
            block[:] = _render_block(layout, left, top, *block.shape)
    gain = cv2.resize(layout.light, (33, 33), interpolation=cv2.INTER_CUBIC)  # smooth; linear is enough from here
    gain = cv2.resize(gain, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.multiply(image, gain, dst=image))


def _render_block(layout: Layout, left: int, top: int, height: int, width: int) -> NDArray[np.float32]:
    matrix = layout.to_cell.copy()
    matrix[:, 2] = (matrix @ (left, top, 1.0)) % (3 * CELL_WIDTH, CELL_HEIGHT) + _MARGIN
    matrix *= _KEPT
    matrix[:, 2] += _KEPT / 2 - 0.5  # pixel centres, not corners, coincide
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(_field(), matrix, (width, height), flags=flags))


def _light(rng: np.random.Generator) -> NDArray[np.float32]:
    """Gain [9, 9]: exposure, a tilted lamp, lens vignetting and faint mura."""
    exposure, tilt_x, tilt_y = rng.uniform((0.88, -0.07, -0.07), (1.06, 0.07, 0.07))
    vignette = rng.uniform(0.04, 0.12)
    mura = rng.normal(0, 0.012, (9, 9))
    axis = np.linspace(-1, 1, 9)
    x, y = axis[None, :], axis[:, None]
    gain = exposure * (1 + tilt_x * x + tilt_y * y - vignette * (x * x + y * y) + mura)
    return gain.astype(np.float32)


@lru_cache(maxsize=1)
def _field() -> NDArray[np.float32]:
    """Pattern enough for one block at any phase, float32, `_KEPT` samples per px; drawn once per process.

    OpenCV could wrap around a single cell instead (BORDER_WRAP), at four times the cost of this plain warp.
    """
    fine = np.hstack([_cell(level) for level in _ELECTRODES])
    size = np.array((3 * CELL_WIDTH, CELL_HEIGHT))
    cell = cv2.resize(fine, (size * _KEPT).tolist(), interpolation=cv2.INTER_AREA)
    across, down = np.ceil((_BLOCK * 1.05 + 2 * _MARGIN) / size).astype(int) + 1
    field = np.tile(cell, (down, across))
    field = np.roll(field, _MARGIN * _KEPT, (0, 1))
    field.flags.writeable = False  # shared by every panel
    return field


def _cell(electrode: int) -> NDArray[np.float32]:
    """One sub-pixel, drawn bottom layer first as the fab deposits it."""
    cell = np.full((CELL_HEIGHT * _DRAWN, CELL_WIDTH * _DRAWN), SUBSTRATE, np.float32)
    _box(cell, (7, 12), (28, 70), electrode)
    _box(cell, (7, 12), (17, 18), SUBSTRATE)  # the electrode leaves the transistor its corner
    for x in (11, 16, 21):  # chevron slits give the electrode its domains
        _stroke(cell, ((x, 24), (x + 3, 40), (x, 62)), 1.3, electrode - 30)
    _box(cell, (7, 42), (28, 46), electrode + 26)  # storage capacitor
    _box(cell, (0, 0), (CELL_WIDTH, GATE_WIDTH), GATE)
    _box(cell, (0, 0), (DATA_WIDTH, CELL_HEIGHT), DATA)
    _box(cell, (0, 0), (DATA_WIDTH, GATE_WIDTH), DATA + 14)  # two metals on top of each other
    _box(cell, (7, 2), (18, 11), 92)  # semiconductor island
    _box(cell, (DATA_WIDTH, 4), (10, 7), DATA)  # source
    _box(cell, (13, 4), (16, 17), DATA)  # drain
    _disc(cell, 14.5, 19, 3.4, 204)  # contact hole
    _disc(cell, 14.5, 19, 1.8, 96)
    return cell


def _box(cell: NDArray[np.float32], start: tuple[int, int], end: tuple[int, int], level: float) -> None:
    (left, top), (right, bottom) = np.array((start, end)) * _DRAWN
    cell[top:bottom, left:right] = level


def _disc(cell: NDArray[np.float32], x: float, y: float, radius: float, level: float) -> None:
    centre = (int(x * _DRAWN), int(y * _DRAWN))
    cv2.circle(cell, centre, int(radius * _DRAWN), float(level), cv2.FILLED)


def _stroke(cell: NDArray[np.float32], points: tuple[tuple[int, int], ...], width: float, level: float) -> None:
    corners = np.array(points, np.int32) * _DRAWN
    cv2.polylines(cell, [corners], False, float(level), int(width * _DRAWN))
