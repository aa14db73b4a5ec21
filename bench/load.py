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
from dataclasses import asdict, dataclass, replace

import numpy as np

from bench.usage import usage_of
from pipeline.errors import SourceError
from pipeline.messages import Frame, frame_id
from pipeline.producer import Paced, produce
from pipeline.sources import SourceOptions, open_source
from pipeline.sources.panel import PanelSimulator
from pipeline.sources.stamp import Stamp
from pipeline.stream import Limits, open_stream

GATHER = 8  # frames a round trip in the closed loop; the open loop sends each when it is due


@dataclass(frozen=True)
class Pictures:
    """What is shown to the line: the panel simulator's pictures, or those of a folder of images."""

    images: str = ""  # folder; empty: the simulator
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

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Load:
        facts = json.loads(line)
        pictures = facts.pop("pictures")
        return cls(pictures=Pictures(**{**pictures, "size": tuple(pictures["size"])}), **facts)


def render(pictures: Pictures) -> list[Frame]:
    """The distinct frames, pixels in memory. Raises SourceError where there is none that can be read."""
    names = ("seed", "size", "defect_rate", "contrast", "noise")
    simulator = PanelSimulator(**{name: getattr(pictures, name) for name in names})
    options = SourceOptions(count=pictures.distinct, simulator=simulator)
    frames = open_source(pictures.images or "panel:", Stamp("bench"), options)
    found = [_in_one_block(frame) for frame in itertools.islice(frames, pictures.distinct) if not frame.fault]
    if not found:
        raise SourceError(f"none of the first {pictures.distinct} images of {pictures.images} can be read")
    return found


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
    frames = again_and_again(rendered, load.source, f"{time.time_ns()}", load.deadline_ms)
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
