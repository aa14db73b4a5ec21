"""What a stream is: five verbs that keep exactly one verdict for every frame, and who opens one.

The promise, true at every moment: offered = OK + NG + REVIEW + UNINSPECTED + outstanding. A frame is taken off
only together with its verdict. Full is an answer, not an error: the producer's policy decides what follows.
What a stream must not know: recipes, engines, batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pipeline.errors import StreamError, WireError
from pipeline.messages import JUDGEMENTS, Frame, Verdict, unreadable_frame

Policy = Literal["wait", "shed-newest", "shed-oldest"]
POLICIES: tuple[Policy, ...] = ("wait", "shed-newest", "shed-oldest")


@dataclass(frozen=True)
class Limits:
    """What a stream holds; the same on every client of a line, or the strictest wins."""

    max_bytes: int = 256 * 1024 * 1024  # headers and pixels of all outstanding frames
    max_frames: int = 100_000
    max_deliveries: int = 3  # a frame that took this many workers with it is poison
    keep_verdicts: int = 100_000  # settled verdicts that stay readable


@dataclass(frozen=True)
class Delivery:
    """A frame in a worker's hands, and what is needed to settle it."""

    frame: Frame
    token: str  # where it lies on the stream
    header: bytes = field(repr=False)
    size: int  # bytes it takes of the budget
    received_ns: int
    deliveries: int = 1


@dataclass(frozen=True)
class SourceCount:
    """One source's part of the ledger."""

    offered: int
    judged: Mapping[str, int]

    @property
    def settled(self) -> int:
        return sum(self.judged.values())


@dataclass(frozen=True)
class Audit:
    """The ledger at one moment. `outstanding` is counted on the frames themselves, not derived."""

    outstanding: int
    outstanding_bytes: int
    sources: Mapping[str, SourceCount]
    reasons: Mapping[str, int]  # "UNINSPECTED shed" → frames
    gaps: Sequence[tuple[str, int, int]]  # source-session, first and last sequence never offered
    workers: Sequence[str] = ()  # alive now
    dead: int = 0  # frames kept aside as poison

    @property
    def offered(self) -> int:
        return sum(source.offered for source in self.sources.values())

    @property
    def judged(self) -> dict[str, int]:
        """Verdicts by judgement, all four always present."""
        return {j: sum(source.judged.get(j, 0) for source in self.sources.values()) for j in JUDGEMENTS}

    @property
    def settled(self) -> int:
        return sum(self.judged.values())

    @property
    def holds(self) -> bool:
        """The conservation identity."""
        return self.offered == self.settled + self.outstanding


class Stream(Protocol):
    """A line's frames, verdicts and ledger. Every verb is one atomic step; all may be called from any thread.

    Raises StreamDown while it cannot be reached (the call may then be repeated: nothing counts twice) and
    StreamError when it refuses.
    """

    line: str
    forgets_s: float  # a worker that has not said for so long that it lives counts as dead

    def offer(self, frames: Sequence[Frame], policy: Policy = "wait") -> int:
        """Add these frames in order; how many were dealt with (fewer than given: full, policy `wait`)."""
        ...

    def take(self, n: int, wait_s: float = 0.0) -> list[Delivery]:
        """At most n frames for this worker alone, waiting for the first; also says that the worker lives."""
        ...

    def reclaim(self, n: int) -> list[Delivery]:
        """At most n frames of workers that no longer live; poison is put aside with its verdict.

        A frame on its last delivery comes alone of its kind: a worker never holds two such, so that one that
        kills workers takes no others with it.
        """
        ...

    def settle(self, settled: Sequence[tuple[Delivery, Verdict]]) -> list[bool]:
        """Publish and take off, each only if the frame is still this worker's; False: a late twin, no effect."""
        ...

    def audit(self) -> Audit:
        """The ledger, taken in one piece."""
        ...

    def read(self, after: str, n: int, wait_s: float = 0.0) -> list[tuple[str, Verdict]]:
        """At most n published verdicts after this place, each with its own; `0`: from the oldest kept on."""
        ...

    def newest(self) -> str:
        """The place of the newest verdict: reading after it gives only what is published from now on."""
        ...

    def close(self) -> None:
        """Say goodbye: what this worker still holds may be reclaimed at once."""
        ...


OPENERS = {
    "memory": "pipeline.stream_memory:open_memory",
    "redis": "pipeline.stream_redis:open_redis",
    "rediss": "pipeline.stream_redis:open_redis",
    "unix": "pipeline.stream_redis:open_redis",
}


def open_stream(url: str, line: str, worker: str = "", limits: Limits | None = None) -> Stream:
    """The stream of a line. `worker` is this client's name as a consumer; producers and readers need none."""
    scheme = urlsplit(url).scheme
    if scheme not in OPENERS:
        raise StreamError(f"stream URL {url!r}: use redis://, rediss://, unix:// or memory://")
    if not line or any(c in line for c in "{}: \n") or len(line) > 64:
        raise StreamError(f"line name {line!r}: use up to 64 characters without spaces, colons and braces")
    module, attribute = OPENERS[scheme].split(":")
    stream: Stream = getattr(import_module(module), attribute)(url, line, worker, limits or Limits())
    return stream


def list_lines(url: str) -> list[str]:
    """Names of the lines that have seen a frame on this Redis, sorted."""
    if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise StreamError(f"stream URL {url!r}: use redis://, rediss:// or unix://")
    lines: list[str] = import_module("pipeline.stream_redis").list_lines(url)
    return lines


def read_delivery(token: str, source: str, header: bytes, pixels: bytes, deliveries: int = 1) -> Delivery:
    """A delivery of wire bytes; an unreadable header becomes a frame with a fault, never an exception."""
    try:
        frame = Frame.from_wire(header, pixels)
    except WireError as error:
        frame = unreadable_frame(source, str(error), f"unreadable-{token}")
    if frame.source != source:
        frame = replace(frame, source=source)  # the ledger counted it under this name
    return Delivery(frame, token, header, len(header) + len(pixels), time.time_ns(), deliveries)


def uninspected(reason: str, detail: str) -> bytes:
    """The body of a verdict that a stream gives by itself; the frame's header stands beside it."""
    now = time.time_ns()
    nobody = Frame(frame_id="", source="", session="", sequence=0)
    return Verdict(frame=nobody, judgement="UNINSPECTED", reason=reason, detail=detail, settled_ns=now).body()


SHED = "the stream was full and the source could not wait"
TOO_LARGE = "larger than the stream's whole byte budget; raise --max-bytes"
POISON = "handed to as many workers as allowed without a verdict"


def parse_gaps(rows: Iterable[Any]) -> list[tuple[str, int, int]]:
    """Gaps as the server keeps them, `session first last`, a text each."""
    words = [row.rsplit(" ", 2) for row in rows]
    return [(session, int(first), int(last)) for session, first, last in words]
