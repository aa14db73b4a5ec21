"""Recorded shifts for tests: frames of different pixels, with verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.messages import Defect, Frame, Verdict
from pipeline.shift_format import Recorded
from pipeline.shift_writer import ShiftWriter

START_NS = 1_700_000_000_000_000_000
STEP_NS = 10_000_000


def recorded(number: int, **facts: object) -> Recorded:
    """Frame `number` of a shift, offered 10 ms after the one before; every third NG, noise in its pixels."""
    at = START_NS + number * STEP_NS
    pixels = np.random.default_rng(number).integers(0, 256, (32, 48), np.uint8)
    known = {"lot": f"lot{number // 10}", "panel": f"panel{number // 2}", **facts}
    frame = Frame(
        frame_id=f"cam-s-{number}", source="cam", session="s", sequence=number, height=32, width=48,
        triggered_ns=at - 1_000_000, offered_ns=at, pixels=pixels, **known,  # type: ignore[arg-type]
    )  # fmt: skip
    defect = Defect(class_name="scratch", score=0.9, bbox=(1, 2, 3, 4), area_px=12, centroid=(2.0, 4.0))
    verdict = Verdict(
        frame=frame.without_pixels(), judgement="OK" if number % 3 else "NG", scores={"good": 0.1, "scratch": 0.9},
        defects=() if number % 3 else (defect,), recipe="panel@12", engine="classifier@34", settled_ns=at + 5_000_000,
    )  # fmt: skip
    return Recorded(frame.header(), bytes(frame.payload()), verdict.body())


def write_shift(path: Path, frames: Sequence[Recorded], chunk_bytes: int = 8192) -> Path:
    """A whole shift file of about five frames a chunk."""
    with ShiftWriter(path, chunk_bytes) as writer:
        for each in frames:
            verdict = each.judged()
            assert verdict
            writer.add(each, verdict.judgement, verdict.settled_ns)
    return path
