"""Which class of the data is which class of a recipe: by name, whatever their order; it judges nothing.

Where one side knows a single kind of defect under a name that the other has not, both are compared as defective or
good: a recipe that only finds defects is not wrong about the classes of a data set that tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import IGNORED
from pipeline.recipe import Recipe


@dataclass(frozen=True, eq=False)
class ClassNames:
    """Classes that data and recipe are compared in, the good one first."""

    classes: tuple[str, ...]
    of_data: npt.NDArray[np.uint8]  # [256] class index of the data, or IGNORED → index here
    of_segmenter: npt.NDArray[np.uint8]  # [256] class index of the segmenter → index here
    of_name: Mapping[str, int]  # name of a recipe's class, as it stands in verdicts → index here
    remarks: tuple[str, ...] = ()


def match_names(data: Sequence[str], recipe: Recipe) -> ClassNames:
    """Match the data's classes, the good one first, with those of the recipe; capitals do not matter."""
    defects = _recipe_defects(recipe)
    known = {name.casefold() for name in data[1:]}
    strange = [name for name in defects if name.casefold() not in known]
    if strange and (len(defects) == 1 or len(data) == 2):
        return _as_one_kind(data, recipe, defects)
    classes = (*data, *strange)
    place = {name.casefold(): index for index, name in enumerate(classes) if index}
    missing = [name for name in data[1:] if name.casefold() not in {name.casefold() for name in defects}]
    remarks = []
    if missing:
        remarks.append(f"the recipe does not know {', '.join(missing)}: never right in class-aware figures")
    if strange:
        remarks.append(f"the data has no {', '.join(strange)}: always wrong in class-aware figures")
    of_name = {name: place[name.casefold()] for name in defects}
    return ClassNames(classes, _table(range(len(data))), _segmenter(recipe, of_name), of_name, tuple(remarks))


def _as_one_kind(data: Sequence[str], recipe: Recipe, defects: Sequence[str]) -> ClassNames:
    name = defects[0] if len(defects) == 1 else data[1]
    of_name = dict.fromkeys(defects, 1)
    remark = f"classes are not told apart: data has {', '.join(data[1:])}, the recipe {', '.join(defects)}"
    of_data = _table([0] + [1] * (len(data) - 1))
    return ClassNames((data[0], name), of_data, _segmenter(recipe, of_name), of_name, (remark,))


def _recipe_defects(recipe: Recipe) -> list[str]:
    """Names of both stages that the mode runs, each once."""
    stages = [getattr(recipe, stage).classes[1:] for stage in reversed(recipe.stages)]
    return list(dict.fromkeys(name for names in stages for name in names))


def _segmenter(recipe: Recipe, of_name: Mapping[str, int]) -> npt.NDArray[np.uint8]:
    named = recipe.segmenter.classes[1:] if "segmenter" in recipe.stages else ()
    return _table([0, *(of_name[name] for name in named)])


def _table(places: Sequence[int] | range) -> npt.NDArray[np.uint8]:
    table = np.full(256, IGNORED, np.uint8)
    table[: len(places)] = places
    return table
