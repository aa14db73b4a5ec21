"""Verdicts against truth: escapes, overkill, precision and recall by class, Dice by pixel.

An escape is a defective part judged OK, overkill a good part judged NG. REVIEW is neither, so its share is
always told beside them. Dice is pooled: 2·|P ∩ T| / (|P| + |T|) over the pixels of all frames together
(Dice 1945, doi:10.2307/1932409), so that an empty frame neither adds nor takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.messages import Verdict
from pipeline.sources.panel import CLASSES, PanelSimulator


@dataclass(frozen=True)
class Truth:
    """What is known of one frame: its defect class ("" for a good part) and its defective pixels [H, W]."""

    class_name: str
    mask: npt.NDArray[np.bool_]


class Truths(Protocol):
    """Where truth comes from; None where it is not known."""

    def of(self, sequence: int) -> Truth | None: ...


@dataclass(frozen=True)
class PanelTruths:
    """The simulator draws panel n again and looks."""

    simulator: PanelSimulator

    def of(self, sequence: int) -> Truth | None:
        panel = self.simulator.panel(sequence)
        return Truth("" if panel.class_name == CLASSES[0] else panel.class_name, panel.truth > 0)


@dataclass(frozen=True)
class MaskTruths:
    """Masks beside the images of a folder: `X.png` beside `X.jpg`, defective from grey value 128 on.

    Frame n is image n of the list. The class is the one whose name occurs in the names of its folders, whatever
    the mask shows; an image of no such folder is defective if its mask says so.
    """

    folder: Path
    images: Sequence[Path]
    classes: Sequence[str]  # defect classes of the recipe

    def of(self, sequence: int) -> Truth | None:
        if sequence >= len(self.images):
            return None
        image = self.images[sequence]
        beside = image.with_suffix(".png")
        known = image.suffix != ".png" and beside.is_file()
        mask = cv2.imread(str(beside), cv2.IMREAD_GRAYSCALE) if known else None
        if mask is None:
            return None
        defective = mask > 127
        return Truth(self._class(image) or ("defect" if defective.any() else ""), defective)

    def _class(self, image: Path) -> str:
        place = "/".join(image.relative_to(self.folder).parts[:-1]).lower()
        return next((name for name in self.classes if name.lower() in place), "")


@dataclass
class Score:
    """Adds up verdicts with their truths; figures are None where nothing was there to be counted."""

    good: Counter[str] = field(default_factory=Counter)  # judgement → good frames
    defective: Counter[str] = field(default_factory=Counter)  # judgement → defective frames
    true_frames: Counter[str] = field(default_factory=Counter)  # class → frames that have it
    named_frames: Counter[str] = field(default_factory=Counter)  # class → frames the verdict names it for
    right_frames: Counter[str] = field(default_factory=Counter)  # class → both
    ng_frames: Counter[str] = field(default_factory=Counter)  # class → frames that have it and were judged NG
    overlap: Counter[str] = field(default_factory=Counter)  # class, or "" for all → pixels in both masks
    pixels: Counter[str] = field(default_factory=Counter)  # class, or "" for all → pixels in either, twice if both

    def add(self, verdict: Verdict, truth: Truth) -> None:
        (self.defective if truth.class_name else self.good)[verdict.judgement] += 1
        named = {defect.class_name for defect in verdict.defects} or (
            {verdict.reason} - {""} if _ng(verdict) else set()
        )
        self.named_frames.update(named)
        if truth.class_name:
            self.true_frames[truth.class_name] += 1
            self.right_frames[truth.class_name] += truth.class_name in named
            self.ng_frames[truth.class_name] += _ng(verdict)
        if verdict.mask_shape == truth.mask.shape:
            self._add_pixels("", verdict.mask(), truth.mask)
            for name in {*named, truth.class_name} - {""}:
                true = truth.mask if name == truth.class_name else np.zeros_like(truth.mask)
                self._add_pixels(name, verdict.mask(name), true)

    def _add_pixels(self, name: str, said: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> None:
        self.overlap[name] += int(np.count_nonzero(said & true))
        self.pixels[name] += int(np.count_nonzero(said)) + int(np.count_nonzero(true))

    @property
    def precision(self) -> float | None:
        """Of the frames judged NG, the share that is defective."""
        return _share(self.defective["NG"], self.defective["NG"] + self.good["NG"])

    @property
    def recall(self) -> float | None:
        """Of the defective frames, the share judged NG."""
        return _share(self.defective["NG"], self.defective.total())

    @property
    def escape(self) -> float | None:
        """Of the defective frames, the share judged OK."""
        return _share(self.defective["OK"], self.defective.total())

    @property
    def overkill(self) -> float | None:
        """Of the good frames, the share judged NG."""
        return _share(self.good["NG"], self.good.total())

    def dice(self, class_name: str = "") -> float | None:
        """Pooled Dice of one class, or of defective against good."""
        return _share(2 * self.overlap[class_name], self.pixels[class_name])

    def by_class(self) -> dict[str, dict[str, Any]]:
        """Per class: frames that have it, share judged NG at all, precision and recall of its name, Dice."""
        return {
            name: {
                "frames": self.true_frames[name],
                "found": _share(self.ng_frames[name], self.true_frames[name]),
                "precision": _share(self.right_frames[name], self.named_frames[name]),
                "recall": _share(self.right_frames[name], self.true_frames[name]),
                "dice": self.dice(name),
            }
            for name in sorted(self.true_frames | self.named_frames)
        }


def _ng(verdict: Verdict) -> bool:
    return verdict.judgement == "NG"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
