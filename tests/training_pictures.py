"""Pictures and data sets that training is tried on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS = REPOSITORY / "engines" / "models"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def grey(value: int, height: int = 40, width: int = 30) -> np.ndarray:
    return np.full((height, width), value, np.uint8)
