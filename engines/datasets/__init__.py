"""Labelled images on disk, in the forms the field writes them: read, described, shared out; no network in sight.

`FORMS` names every form of folder that can be read; without a name the first one that recognises the folder reads
it. Whatever the form, what comes out is the same: samples, and for each of them pixels, a class, labels per pixel
where the data has them, and boxes where they are the truth.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from engines.datasets.labelled import Dataset, DatasetError, Form, Options

# In the order in which they are asked whether a folder is theirs: the most particular first.
FORMS = {
    "deep-pcb": "engines.datasets.deep_pcb",
    "steel-rle": "engines.datasets.steel_rle",
    "coco": "engines.datasets.coco",
    "labelme": "engines.datasets.labelme",
    "id-label": "engines.datasets.id_label",
    "image-mask": "engines.datasets.image_mask",
    "class-folders": "engines.datasets.class_folders",
}


def open_dataset(folder: Path, options: Options | None = None, form: str = "") -> Dataset:
    """List a data folder. Raises DatasetError when no form fits, or the folder holds no labelled image."""
    if not folder.is_dir():
        raise DatasetError(f"data folder {folder} does not exist; correct the path")
    name = form or next((name for name in FORMS if load_form(name).fits(folder)), "")
    if not name:
        raise DatasetError(f"{folder} is in none of the known forms ({', '.join(FORMS)}); see `aoi dataset forms`")
    dataset = load_form(name).open(folder, options or Options())
    if not dataset.samples:
        raise DatasetError(f"{folder}, read as {name}, holds no labelled image{_first_reason(dataset)}")
    return dataset


def load_form(name: str) -> Form:
    """The module behind a form's name. Raises DatasetError for a name that is none."""
    if name not in FORMS:
        raise DatasetError(f"no form {name!r} of data; known: {', '.join(FORMS)}")
    return cast(Form, import_module(FORMS[name]))


def _first_reason(dataset: Dataset) -> str:
    return f"; first problem: {dataset.problems[0].path}: {dataset.problems[0].reason}" if dataset.problems else ""
