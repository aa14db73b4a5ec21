"""The producer of a chaos run, a process of its own that may be killed and started again at any moment.

`python -m bench.endurance.feeder` offers its Content to a line, from where the ledger says it stopped; the last
few frames not before the gate, a file, is there, so that the line is at work until its last fault. SIGTERM ends it
between two offers. Exit code 0: all is offered; 130: stopped before that.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.endurance.content import Content
from pipeline.errors import Exit, StreamDown
from pipeline.messages import Frame
from pipeline.patience import Patience
from pipeline.producer import produce
from pipeline.stream import Limits, Stream, open_stream

log = logging.getLogger("aoi.feeder")
GATHER, LEAST_CALLS = 64, 50  # frames in one round trip at most, round trips at least
BEHIND_GATE = 0.03  # of the frames
LOOK_S = 0.05


def main() -> int:
    """See the module's text."""
    given, stop = _arguments(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    content = Content(given.source, given.seed, given.frames, given.deadly)
    stream = open_stream(given.url, given.line, limits=Limits(max_frames=given.window))
    first = offered_so_far(stream, given.source, stop)
    if first is not None:
        frames = held_back(content.from_number(first), int(content.frames * (1 - BEHIND_GATE)), given.gate, stop)
        produce(frames, stream, gather=max(1, min(GATHER, content.frames // LEAST_CALLS)), stop=stop)
    stream.close()
    return int(Exit.INTERRUPTED if stop.is_set() else Exit.OK)


def held_back(frames: Iterable[Frame], last: int, gate: Path, stop: threading.Event) -> Iterator[Frame]:
    """The frames, from number `last` on once the gate is there; ends when stopped."""
    for frame in frames:
        while frame.sequence >= last and not gate.exists() and not stop.wait(LOOK_S):
            pass
        if stop.is_set():
            return
        yield frame


def offered_so_far(stream: Stream, source: str, stop: threading.Event) -> int | None:
    """How many frames of a source, which has one session without gaps, the ledger counts; None: stopped first."""
    patience = Patience(log)
    while not stop.is_set():
        try:
            count = stream.audit().sources.get(source)
            return count.offered if count else 0
        except StreamDown as error:
            patience.wait(error, "nothing is offered", stop)
    return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("url", "line", "source"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--gate", type=Path, required=True)
    for name in ("seed", "frames", "deadly", "window"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
