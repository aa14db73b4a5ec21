"""Gives a source's images the identity that makes them frames: unique, in sequence without gaps, timed."""

from __future__ import annotations

import itertools
import os
import re
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import SourceError
from pipeline.messages import Encoding, Frame, PixelFormat, frame_id

NAME = re.compile(r"[A-Za-z0-9_.-]{1,48}")


def new_session() -> str:
    """A name for one run of one source: its start (UTC) and process, so that two never meet."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.{time.time_ns() % 1_000_000:06d}.{os.getpid()}"


def pixel_format(image: npt.NDArray[np.generic]) -> PixelFormat:
    """The wire's name for a uint8/uint16 [H, W] or uint8 [H, W, 3] image; SourceError for any other."""
    if image.ndim == 2 and image.dtype in (np.uint8, np.uint16):
        return "mono8" if image.dtype == np.uint8 else "mono16"
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        return "bgr8"
    raise SourceError(f"image {image.dtype} {list(image.shape)}: mono8, mono16 and BGR8 can travel; convert it")


@dataclass
class Stamp:
    """One session of one source. `facts` (line, station, lot, panel, …) go onto every frame."""

    source: str
    session: str = field(default_factory=new_session)
    deadline_ns: int = 0  # budget from the trigger; 0: none
    facts: dict[str, Any] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.source):
            raise SourceError(f"source name {self.source!r}: use 1 to 48 letters, digits, dots, dashes; see --source")

    def raw(self, image: npt.NDArray[np.generic], triggered_ns: int = 0, **facts: Any) -> Frame:
        """A frame of an image as it is, uncopied."""
        form = pixel_format(image)
        size = {"height": image.shape[0], "width": image.shape[1]}
        return self._frame(triggered_ns, pixels=image, pixel_format=form, **size, **facts)

    def encoded(self, data: bytes, encoding: Encoding, form: PixelFormat, **facts: Any) -> Frame:
        """A frame of a file's bytes; its size is known only after decoding."""
        return self._frame(0, pixels=data, encoding=encoding, pixel_format=form, **facts)

    def faulty(self, fault: str, **facts: Any) -> Frame:
        """A frame without pixels, so that an image that could not be read has its verdict all the same."""
        return self._frame(0, fault=fault, **facts)

    def _frame(self, triggered_ns: int, **facts: Any) -> Frame:
        sequence, triggered = next(self._numbers), triggered_ns or time.time_ns()
        return Frame(
            frame_id=frame_id(self.source, self.session, sequence),
            source=self.source,
            session=self.session,
            sequence=sequence,
            triggered_ns=triggered,
            deadline_ns=triggered + self.deadline_ns if self.deadline_ns else 0,
            **{**self.facts, **facts},
        )
