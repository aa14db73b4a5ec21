"""Pictures and data sets that training is tried on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from engines.datasets.labelled import Picture, Sample

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS = REPOSITORY / "engines" / "models"
SIDE = 64  # px of a synthetic picture


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def grey(value: int, height: int = 40, width: int = 30) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def with_defect(kind: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels, uint8 [64, 64]: noise, and on it nothing (0), a bright square (1) or a bright line (2)."""
    rng = np.random.default_rng(seed)
    pixels, labels = rng.normal(110, 4, (SIDE, SIDE)), grey(0, SIDE, SIDE)
    y, x = rng.integers(6, SIDE - 18, 2)
    if kind == 1:
        labels[y : y + 12, x : x + 12] = 1
    elif kind == 2:
        labels[y : y + 3, 4:-4] = 2
    pixels[labels > 0] += 90
    return pixels.clip(0, 255).astype(np.uint8), labels


def pictures_with_defects(count: int) -> list[Picture]:
    """In turn good, with a square, with a line; every picture is a part of its own."""
    pictures = []
    for number in range(count):
        pixels, labels = with_defect(number % 3, number)
        sample = Sample(f"{number}.png", "", str(number), number % 3)
        pictures.append(Picture(sample, pixels, labels, number % 3))
    return pictures


def write_pictures_with_defects(folder: Path, count: int) -> None:
    """The same in the simulator's form: `image`, `label` with class indexes, `classes.txt`."""
    for picture in pictures_with_defects(count):
        name = f"{int(picture.sample.group):06d}.png"
        save(folder / "image" / name, picture.pixels)
        save(folder / "label" / name, picture.labels)
    (folder / "classes.txt").write_text("good\nspot\nline\n")


def with_spot(size: int = 64, at: int = 20, side: int = 8, value: int = 255) -> np.ndarray:
    """A grey picture with one bright, or darker, square."""
    pixels = grey(100, size, size)
    pixels[at : at + side, at : at + side] = value
    return pixels
