"""A folder of pictures that nobody has labelled, as a data set: to ask what engines say, not whether it is so."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.datasets.labelled import IGNORED, Dataset, DatasetError, Sample, Shape, Truth
from engines.datasets.listing import list_files


def open_unlabelled(folder: Path) -> Dataset:
    """Every picture below the folder, of one class without a truth. Raises DatasetError when there is none."""
    if not folder.is_dir():
        raise DatasetError(f"data folder {folder} does not exist; correct the path")
    listing = list_files(folder)
    samples = tuple(Sample(path, "", path, 0) for path in listing.pictures())
    if not samples:
        raise DatasetError(f"{folder} holds no picture; give a folder of frames")
    return Dataset(folder, "pictures without labels", ("any",), samples, _unknown, tuple(listing.problems))


def _unknown(sample: Sample, shape: Shape) -> Truth:
    return Truth(0, np.full(shape, IGNORED, np.uint8))
