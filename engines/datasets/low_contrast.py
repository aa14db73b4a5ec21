"""Pictures whose defects lie below the noise: 3 grey levels under a Gaussian σ of 7; and their truth.

It decides what is on a picture and how faint it is; it knows no network and no evaluation. The published set it
stands for (github.com/Jeongyun-Lee-0423/Segmentation) has uniform noise, a whole number from 100 to 124, and adds 3
inside: a value above 124 can only be a defect, one below 103 only background, so that a network may learn to read
the answer off single pixels, which no camera will ever give it. Gaussian noise has no such values. As measured on
20 of those pictures, ours are alike otherwise: background 112.0, σ 7.21, contrast 3.0, two upright rectangles with
sides of 8 to 60 px that lie anywhere and do not add up where they overlap, 3.5 % of all pixels, no blur, no shading.
Values are rounded and cut to 0…255; rounding adds 1/12 to the variance, which at σ 7 is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.indexed_folder import write_indexed
from engines.datasets.labelled import DatasetError, Pixels

Plane = npt.NDArray[np.float32]
Range = tuple[float, float]

CLASSES = ("background", "defect")
SHAPES = ("rectangle", "ellipse", "line", "blob")
LONGEST_SIDE = 16384  # px
MOST_DEFECTS = 64


@dataclass(frozen=True, eq=False)
class FaintPicture:
    """One picture, and what is true of it; H and W are the generator's size."""

    pixels: Pixels  # uint8 [H, W]
    labels: Pixels  # uint8 [H, W], index into CLASSES
    numbers: Pixels  # uint8 [H, W], which defect, counted from 1; 0 where there is none
    contrast_to_noise: tuple[float, ...]  # of defects 1, 2, …: mean grey levels it adds ÷ σ of the noise


@dataclass(frozen=True, kw_only=True)
class LowContrast:
    """Pictures by number: the same parameters and number give the same bytes, in any order and any process.

    Shapes and noise come from independent draws, so generators that differ only in contrast show twins.
    Raises DatasetError for a parameter that cannot be drawn.
    """

    seed: int = 0
    size: tuple[int, int] = (256, 256)  # height, width in px
    noise_sigma: float = 7.0  # standard deviation, grey levels
    contrast: Range = (3.0, 3.0)  # grey levels, drawn for each defect; below 0 it is darker
    shapes: tuple[str, ...] = SHAPES
    count: tuple[int, int] = (1, 4)  # defects of a picture, least and most
    side: tuple[int, int] = (8, 60)  # px: height and width of a defect, length of a line
    thickness: tuple[int, int] = (3, 8)  # px, of lines
    background: float = 112.0  # grey level
    shading: float = 0.0  # grey levels by which the background differs from one place to another, at most
    blur: float = 0.0  # σ of the lens, px; the noise comes after it

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed is {self.seed}; give a whole number from 0")
        _require(min(self.size) >= 8 and max(self.size) <= LONGEST_SIDE, f"size is {self.size}; 8 to {LONGEST_SIDE} px")
        _require(0 < self.noise_sigma <= 64, f"noise_sigma is {self.noise_sigma}; above 0 and up to 64 grey levels")
        known = bool(self.shapes) and set(self.shapes) <= set(SHAPES)
        _require(known, f"shapes are {', '.join(self.shapes)}; there are {', '.join(SHAPES)}")
        for name, least, most in (("count", 0, MOST_DEFECTS), ("side", 1, min(self.size)), ("thickness", 1, 255)):
            low, high = getattr(self, name)
            _require(least <= low <= high <= most, f"{name} is {low} to {high}; give {least} to {most}, least first")
        low_contrast, high_contrast = self.contrast
        _require(-128 <= low_contrast <= high_contrast <= 128, f"contrast is {self.contrast}; −128 to 128, least first")
        _require(0 <= self.background <= 255, f"background is {self.background}; give a grey level, 0 to 255")
        _require(0 <= self.shading <= 128, f"shading is {self.shading}; give 0 to 128 grey levels")
        _require(0 <= self.blur <= 16, f"blur is {self.blur}; give a σ of 0 to 16 px")

    def picture(self, number: int) -> FaintPicture:
        """Picture `number`, counted from 0; raises DatasetError for a negative one."""
        _require(number >= 0, f"picture number is {number}; pictures are counted from 0")
        rng = np.random.default_rng([self.seed, number])
        added, numbers = self._defects(rng)
        shade = _smooth(rng, self.size) * np.float32(self.shading) + np.float32(self.background)
        if self.blur:
            added = cv2.GaussianBlur(added, (0, 0), self.blur)
        noise = np.random.default_rng([self.seed, number, 1]).standard_normal(self.size, np.float32)
        grey = shade + added + noise * np.float32(self.noise_sigma)
        pixels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        seen = [abs(float(added[numbers == n].mean())) / self.noise_sigma for n in range(1, int(numbers.max()) + 1)]
        return FaintPicture(pixels, (numbers > 0).astype(np.uint8), numbers, tuple(seen))

    def _defects(self, rng: np.random.Generator) -> tuple[Plane, Pixels]:
        """Grey levels that the defects add, and which defect each pixel belongs to; the later one lies on top."""
        added, order = np.zeros(self.size, np.float32), np.zeros(self.size, np.uint8)
        for drawn in range(1, int(rng.integers(self.count[0], self.count[1] + 1)) + 1):
            # With its own generator: a draw more for one shape would move all that come after it.
            mask = self._shape(np.random.default_rng(rng.integers(1 << 62)))
            added[mask], order[mask] = rng.uniform(*self.contrast), drawn
        left, numbers = np.unique(order, return_inverse=True)  # one that is covered wholly counts no more
        first = 0 if left[0] == 0 else 1
        return added, (numbers.reshape(self.size) + first).astype(np.uint8)

    def _shape(self, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        shape = self.shapes[int(rng.integers(len(self.shapes)))]
        height, width = (int(side) for side in rng.integers(self.side[0], self.side[1] + 1, 2))
        top = int(rng.integers(0, self.size[0] - height + 1))
        left = int(rng.integers(0, self.size[1] - width + 1))
        mask = np.zeros(self.size, np.uint8)
        if shape == "rectangle":
            mask[top : top + height, left : left + width] = 1
        elif shape == "line":
            ends = ((left, top), (left + width - 1, top + height - 1))
            (x0, y0), (x1, y1) = ends if rng.random() < 0.5 else ((left, ends[1][1]), (ends[1][0], top))
            cv2.line(mask, (x0, y0), (x1, y1), 1, int(rng.integers(self.thickness[0], self.thickness[1] + 1)))
        else:
            roughness = 0.25 if shape == "blob" else 0.0
            cv2.fillPoly(mask, [_outline(rng, (top, left, height, width), roughness)], 1)
        return mask > 0


def as_published(seed: int = 0, **changes: float | tuple[int, ...] | tuple[float, ...]) -> LowContrast:
    """The published set's pictures, but for its noise: two rectangles, 3 grey levels, σ 7."""
    return LowContrast(seed=seed, shapes=("rectangle",), count=(2, 2), **changes)  # type: ignore[arg-type]


def write_folder(generator: LowContrast, folder: Path, count: int) -> None:
    """Write pictures 0 to count - 1 as a segmentation data set (`indexed_folder`).

    Raises DatasetError for a count below 1 or a folder that already holds images, OSError when writing fails.
    """
    _require(count >= 1, f"count is {count}; give at least 1")
    pictures = map(generator.picture, range(count))
    write_indexed(folder, CLASSES, ((picture.pixels, picture.labels) for picture in pictures))


def _outline(rng: np.random.Generator, box: tuple[int, int, int, int], roughness: float) -> npt.NDArray[np.int32]:
    """Corners [64, 1, 2] of an ellipse that fills the box (top, left, height, width), or of a rough one inside it."""
    top, left, height, width = box
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(turn)
    for waves in (2, 3, 5):
        radius += roughness * rng.uniform(-1, 1) * np.cos(waves * turn + rng.uniform(0, 2 * np.pi))
    radius /= max(1.0, float(radius.max()))
    x = left + (width - 1) / 2 * (1 + radius * np.cos(turn))
    y = top + (height - 1) / 2 * (1 + radius * np.sin(turn))
    return np.rint(np.stack([x, y], axis=1)).astype(np.int32)[:, None]


def _smooth(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    """Soft hills of −½ to ½, float32 of this height and width."""
    coarse = rng.uniform(-0.5, 0.5, (4, 4)).astype(np.float32)
    hills = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(np.asarray(hills, np.float32), -0.5, 0.5)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DatasetError(message)
