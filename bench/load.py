"""The offered load, in a process of its own: pictures rendered beforehand, offered again and again as new frames.

`python -m bench.load` reads one JSON line, a Load, from stdin, renders, says `ready`, waits for a second line,
offers, and says as a JSON line what it did and used. When stdin closes, it stops: it never outlives its parent.
Every frame's trigger is the moment it was scheduled for, not the moment it was sent: if this process or the
stream stalls, the frames that were due meanwhile are late, and their latency says so (no coordinated omission).
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bench.usage import usage_of
from pipeline.errors import SourceError, WireError
from pipeline.messages import Frame, frame_id
from pipeline.producer import Paced, produce
from pipeline.replay import InRhythm, ReadAhead
from pipeline.shift_choice import Wanted, frames_of
from pipeline.shift_files import files_of
from pipeline.shift_reader import FOREVER, open_shift
from pipeline.sources import SourceOptions, open_source
from pipeline.sources.panel import PanelSimulator
from pipeline.sources.stamp import Stamp
from pipeline.stream import Limits, open_stream

GATHER = 8  # frames a round trip in the closed loop; the open loop sends each when it is due


@dataclass(frozen=True)
class Pictures:
    """What is shown to the line: the panel simulator's pictures, or those of a folder of images or of a shift."""

    images: str = ""  # folder; empty: the simulator
    shift: str = ""  # recorded shift, file or folder, instead
    seed: int = 0
    size: tuple[int, int] = (256, 256)  # height, width in px
    defect_rate: float = 0.3
    contrast: float = 1.0
    noise: float = 3.0
    distinct: int = 64


@dataclass(frozen=True)
class Load:
    """How much, how fast, and where to."""

    url: str
    line: str
    source: str  # the name under which the ledger counts this load
    pictures: Pictures
    rate: float = 0.0  # frames/s of the open loop; 0: closed loop, as fast as frames are settled
    frames: int = 0  # end after so many; 0: after `seconds`
    seconds: float = 10.0
    window: int = 64  # closed loop: frames outstanding at most
    deadline_ms: float = 0.0  # from the scheduled trigger; 0: none
    recorded: bool = False  # open loop: all frames of the shift, at the times they were offered

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Load:
        facts = json.loads(line)
        pictures = facts.pop("pictures")
        return cls(pictures=Pictures(**{**pictures, "size": tuple(pictures["size"])}), **facts)


def render(pictures: Pictures) -> list[Frame]:
    """The distinct frames, pixels in memory. Raises SourceError where there is none that can be read."""
    if pictures.shift:
        found = list(itertools.islice(frames_of_shift(pictures.shift), pictures.distinct))
        if not found:
            raise SourceError(f"no frame of shift {pictures.shift} has pixels; record with --keep all")
        return found
    names = ("seed", "size", "defect_rate", "contrast", "noise")
    simulator = PanelSimulator(**{name: getattr(pictures, name) for name in names})
    options = SourceOptions(count=pictures.distinct, simulator=simulator)
    frames = open_source(pictures.images or "panel:", Stamp("bench"), options)
    found = [_in_one_block(frame) for frame in itertools.islice(frames, pictures.distinct) if not frame.fault]
    if not found:
        raise SourceError(f"none of the first {pictures.distinct} images of {pictures.images} can be read")
    return found


def frames_of_shift(path: str) -> Iterator[Frame]:
    """Those with pixels, in the order they were offered."""
    for each in frames_of(Path(path), Wanted()):
        if each.pixels is not None:
            with suppress(WireError):
                yield each.frame()


def mean_rate(path: str) -> float:
    """Frames/s of a shift, to three digits, from the first with pixels to the last.

    Raises SourceError where there are not two.
    """
    rows = (row for file in files_of(Path(path)) for row in open_shift(file).rows() if row.has_pixels)
    count, first, last = 0, FOREVER, 0
    for row in rows:
        count, first, last = count + 1, min(first, row.time_ns), max(last, row.time_ns)
    if count < 2 or last <= first:
        raise SourceError(f"shift {path} has {count} frames with pixels: too few for a rhythm; record more of them")
    return float(f"{(count - 1) / ((last - first) / 1e9):.3g}")


def at_recorded_times(
    frames: Iterable[Frame],
    load: Load,
    session: str,
    stop: threading.Event,
    clock: Callable[[], int] = time.monotonic_ns,
    wall: Callable[[], int] = time.time_ns,
) -> Iterator[Frame]:
    """A shift's frames as new ones, each when it was offered, counted from the first; that is when it is triggered."""
    budget_ns, start, first_ns = int(load.deadline_ms * 1e6), 0, 0
    for sequence, frame in enumerate(InRhythm(frames, 1.0, stop, clock=clock)):
        start, first_ns = (start, first_ns) if sequence else (wall(), frame.offered_ns)
        due = start + frame.offered_ns - first_ns
        identity = frame_id(load.source, session, sequence)
        renamed = replace(frame, frame_id=identity, source=load.source, session=session, sequence=sequence)
        yield replace(renamed, triggered_ns=due, deadline_ns=due + budget_ns if budget_ns else 0)


def _in_one_block(frame: Frame) -> Frame:
    return replace(frame, pixels=np.ascontiguousarray(frame.pixels)) if frame.encoding == "raw" else frame


def again_and_again(rendered: Sequence[Frame], source: str, session: str, deadline_ms: float = 0.0) -> Iterator[Frame]:
    """The same pictures as ever new frames, triggered when they are asked for."""
    budget_ns = int(deadline_ms * 1e6)
    for sequence, picture in enumerate(itertools.cycle(rendered)):
        identity = frame_id(source, session, sequence)
        now = time.time_ns()
        frame = replace(picture, frame_id=identity, source=source, session=session, sequence=sequence)
        yield replace(frame, triggered_ns=now, deadline_ns=now + budget_ns if budget_ns else 0)


def scheduled(
    frames: Iterable[Frame],
    load: Load,
    stop: threading.Event,
    clock: Callable[[], int] = time.monotonic_ns,
    wall: Callable[[], int] = time.time_ns,
) -> Iterator[Frame]:
    """The load's frames in its rhythm, from now on."""
    if load.rate:
        count = load.frames or max(1, round(load.rate * load.seconds))
        return Paced(itertools.islice(frames, count), load.rate, stop, clock, wall)
    if load.frames:
        return itertools.islice(iter(frames), load.frames)
    end = time.monotonic() + load.seconds
    return itertools.takewhile(lambda _: time.monotonic() < end, frames)


def main() -> None:
    """See the module's text."""
    load = Load.from_line(sys.stdin.readline())
    rendered = render(load.pictures)
    limits = Limits() if load.rate else Limits(max_frames=load.window)
    stream = open_stream(load.url, load.line, limits=limits)
    stream.audit()  # connects, so that the first frame need not
    _say("ready")
    sys.stdin.readline()
    stop = threading.Event()
    threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    before = usage_of(os.getpid())
    session = f"{time.time_ns()}"
    if load.recorded:
        ahead = ReadAhead(frames_of_shift(load.pictures.shift), lambda frame: frame.payload_bytes)
        chosen = itertools.islice(ahead, load.frames or None)
        offered = produce(at_recorded_times(chosen, load, session, stop), stream, stop=stop)
        ahead.close()
    else:
        frames = again_and_again(rendered, load.source, session, load.deadline_ms)
        offered = produce(scheduled(frames, load, stop), stream, gather=GATHER, stop=stop)
    after = usage_of(os.getpid())
    stream.close()
    _say(json.dumps({"offered": offered.frames, "cpu_s": after.cpu_s - before.cpu_s, "rss_peak": after.rss_peak}))


def _stop_with_parent(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
