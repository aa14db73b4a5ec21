"""The panel simulator as a source: panel number n is frame number n."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.messages import Frame
from pipeline.sources import SourceOptions
from pipeline.sources.panel import PanelSimulator
from pipeline.sources.stamp import Stamp


@dataclass
class PanelFrames:
    """`count` frames (0: without end) of a simulator, from panel 0 on."""

    simulator: PanelSimulator
    stamp: Stamp
    count: int = 0

    def __iter__(self) -> Iterator[Frame]:
        numbers = range(self.count) if self.count else itertools.count()
        for number in numbers:
            yield self.stamp.raw(self.simulator.panel(number).image, panel=str(number))


def open_panel(address: str, stamp: Stamp, options: SourceOptions) -> PanelFrames:
    """`panel:`, the simulator of the options."""
    return PanelFrames(options.simulator, stamp, options.count)
