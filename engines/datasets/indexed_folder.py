"""Pictures and labels written as the plainest form that is read: `image/`, `label/`, `classes.txt`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2

from engines.datasets.labelled import DatasetError, Pixels


def write_indexed(folder: Path, classes: Sequence[str], pictures: Iterable[tuple[Pixels, Pixels]]) -> None:
    """Each (pixels, labels), uint8 [H, W]: `image/000000.png` and `label/000000.png` with class indexes, and so on.

    Raises DatasetError for a folder that already holds images, OSError when writing fails.
    """
    images, labels = folder / "image", folder / "label"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    if any(images.iterdir()):  # pictures left by a longer run would mix into this data set unnoticed
        raise DatasetError(f"{images} is not empty; choose another folder or empty it")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for number, (pixels, truth) in enumerate(pictures):
        (images / f"{number:06d}.png").write_bytes(_png(pixels))
        (labels / f"{number:06d}.png").write_bytes(_png(truth))


def _png(pixels: Pixels) -> bytes:
    _, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])  # noise does not compress anyway
    return bytes(data)
