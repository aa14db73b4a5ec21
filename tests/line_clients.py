"""Clients of one line, and frames and verdicts to put through them."""

from __future__ import annotations

import time
from dataclasses import replace

from conftest import make_frame

from pipeline.messages import Frame, Verdict
from pipeline.stream import Delivery, Stream


def verdict_for(delivery: Delivery, judgement: str = "OK", reason: str = "") -> tuple[Delivery, Verdict]:
    frame = delivery.frame.without_pixels()
    return delivery, Verdict(frame=frame, judgement=judgement, reason=reason)  # type: ignore[arg-type]


def assert_holds(stream: Stream) -> None:
    audit = stream.audit()
    assert audit.holds, audit


def due_in(sequence: int, seconds: float, **facts: object) -> Frame:
    """A frame whose deadline comes so soon."""
    frame = make_frame(sequence, **facts)  # type: ignore[arg-type]
    return replace(frame, deadline_ns=time.time_ns() + int(1e9 * seconds))
