"""The panel simulator: LCD-like pictures with the six classes of the AOI challenge and their pixel truth.

It decides which panel carries what and puts noise on it; how the pattern and the defects look is decided by
its siblings, and it knows nothing of frames or streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.datasets.indexed_folder import write_indexed
from engines.datasets.labelled import DatasetError
from pipeline.errors import DiskError, SourceError
from pipeline.sources.panel_defects import PAINTERS, Canvas
from pipeline.sources.panel_pattern import draw_layout, render

CLASSES = ("normal", "void", "horizontal", "vertical", "edge", "particle")

_SMALLEST, _LARGEST = 64, 16384  # px; a side must show a data line, and OpenCV warps up to 32767


@dataclass(frozen=True, eq=False)
class Panel:
    """One simulated picture and what is true about it; H and W are the simulator's size."""

    image: NDArray[np.uint8]  # [H, W], mono8
    truth: NDArray[np.uint8]  # [H, W], index into CLASSES per pixel, 0 = normal
    class_name: str  # the one class of defect on this panel, or "normal"


@dataclass(frozen=True)
class PanelSimulator:
    """Panels by number: the same parameters and sequence give the same bytes in any order and any process.

    A panel's layout, defects and noise come from independent draws, so simulators that differ only in
    `defect_rate`, `contrast` or `noise` show twins: the same panel with and without that effect.
    Raises SourceError for a parameter that cannot be rendered.
    """

    seed: int = 0
    size: tuple[int, int] = (256, 256)  # height, width in px
    defect_rate: float = 0.3  # share of panels that carry 1 to 3 defects of one class
    contrast: float = 1.0  # scales how far a defect stands out: 1.0 clear to moderate, 0.3 hard
    noise: float = 3.0  # standard deviation of the Gaussian noise, grey levels

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed is {self.seed}; give a whole number from 0")
        sides = f"size is {self.size}; give height and width, each {_SMALLEST} to {_LARGEST} px"
        _require(len(self.size) == 2 and all(_SMALLEST <= side <= _LARGEST for side in self.size), sides)
        _require(0 <= self.defect_rate <= 1, f"defect_rate is {self.defect_rate}; give a share from 0 to 1")
        _require(0 < self.contrast <= 2, f"contrast is {self.contrast}; give a factor above 0 and up to 2")
        _require(0 <= self.noise <= 64, f"noise is {self.noise}; give 0 to 64 grey levels")

    def panel(self, sequence: int) -> Panel:
        """Panel number `sequence`, counted from 0; raises SourceError for a negative number."""
        _require(sequence >= 0, f"panel number is {sequence}; panels are counted from 0")
        rng = np.random.default_rng([self.seed, sequence])
        class_name = self._draw_class(rng)
        layout = draw_layout(rng)
        focus = rng.uniform(0.45, 0.85)  # blur of the lens, px
        image = render(layout, *self.size)
        truth = np.zeros(self.size, np.uint8)
        if class_name != "normal":
            defects = np.random.default_rng([self.seed, sequence, 1])  # its own, so that twins share their noise
            for _ in range(1 + defects.choice(3, p=(0.6, 0.3, 0.1))):
                canvas = Canvas(image, truth, layout, self.contrast * defects.uniform(0.55, 1.0))
                PAINTERS[class_name](canvas, defects, CLASSES.index(class_name))
        image = cv2.GaussianBlur(image, (5, 5), focus, dst=image)
        if self.noise:
            grain = rng.standard_normal(self.size, np.float32)
            image = cv2.scaleAdd(grain, self.noise, image, dst=image)
        return Panel(cv2.convertScaleAbs(cv2.max(image, 0)), truth, class_name)

    def _draw_class(self, rng: np.random.Generator) -> str:
        defective, which = rng.random(), 1 + int(rng.integers(len(CLASSES) - 1))
        return CLASSES[which] if defective < self.defect_rate else "normal"


def render_folder(simulator: PanelSimulator, folder: Path, count: int) -> None:
    """Write panels 0 to count - 1 as a segmentation data set.

    `image/000000.png` is mono8, `label/000000.png` the class index per pixel, `classes.txt` the names.
    Raises SourceError for a count below 1 or a folder that already holds images, DiskError if writing fails.
    """
    _require(count >= 1, f"frame count is {count}; give at least 1")
    panels = map(simulator.panel, range(count))
    try:
        write_indexed(folder, CLASSES, ((panel.image, panel.truth) for panel in panels))
    except DatasetError as error:
        raise SourceError(str(error)) from error
    except OSError as error:
        raise DiskError(f"cannot write panels under {folder}: {error}; check space and rights") from error


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SourceError(message)
