"""Data folders that the readers of forms are tried on, written file by file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from training_pictures import REPOSITORY

from engines.datasets.labelled import Dataset, Picture, Problem, read_pictures

DATA = Path(os.environ.get("AOI_DATA", REPOSITORY.parent / "shared" / "data"))


def shared(name: str) -> Path:
    """A folder of real data; the test is skipped where it is not."""
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not here; set AOI_DATA to the folder with {name}/")
    return DATA / name


def mask_of(*rows: str) -> np.ndarray:
    """A small label image: one digit a pixel."""
    return np.array([[int(digit) for digit in row] for row in rows], np.uint8)


def square(top: int, left: int, size: int = 4, value: int = 255, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    """A mask with one bright square."""
    mask = np.zeros(shape, np.uint8)
    mask[top : top + size, left : left + size] = value
    return mask


def write(path: Path, content: str | bytes) -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pictures_of(dataset: Dataset) -> dict[str, Picture]:
    """Every picture by path; nothing may have been skipped."""
    pictures, skipped = read_pictures(dataset, dataset.samples)
    assert skipped == []
    return {picture.sample.image: picture for picture in pictures}


def reasons(problems: tuple[Problem, ...] | list[Problem]) -> dict[str, str]:
    """Reason by path."""
    return {problem.path: problem.reason for problem in problems}


def why_unreadable(dataset: Dataset) -> str:
    """The reason why the only picture of a set cannot be read."""
    pictures, skipped = read_pictures(dataset, dataset.samples)
    assert pictures == []
    assert len(skipped) == 1
    return skipped[0].reason
