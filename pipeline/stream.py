"""What a stream is: six verbs that keep exactly one verdict for every frame, and who opens one.

The promise, true at every moment: offered = OK + NG + REVIEW + UNINSPECTED + outstanding. A frame is taken off
only together with its verdict. Full is an answer, not an error: the producer's policy decides what follows.
An entry that came onto the stream in another way than `offer` is judged and taken off as any other, if only as
undecodable; it was never offered, so from then on the ledger does not balance, and `audit` says by how much.
What a stream must not know: recipes, engines, batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol

from pipeline.errors import StreamError, WireError
from pipeline.messages import JUDGEMENTS, MAX_HEADER_BYTES, Frame, Verdict, unreadable_frame
from pipeline.redis_url import KINDS, hidden

Policy = Literal["wait", "shed-newest", "shed-oldest"]
POLICIES: tuple[Policy, ...] = ("wait", "shed-newest", "shed-oldest")


class Settlement(IntEnum):
    """What became of a verdict that a worker settled."""

    TWIN = 0  # the frame is somebody else's by now, or had its verdict: no effect
    PUBLISHED = 1  # it is the frame's one verdict
    AMENDED = 2  # the frame had its fail-safe verdict in time; this is the real answer, published beside it


Log = Literal["verdicts", "amendments"]
Watched = Literal["frames", "verdicts", "amendments"]
FAIL_SAFE_REASONS = ("deadline", "segmenter_busy")
KEEP_LATE = 10_000  # frames with a fail-safe verdict whose real answer would still be taken
EXPIRE_AT_MOST = 256  # frames in one call: the server serves nobody else meanwhile
EXPIRE_BEFORE_S = 0.010  # before its deadline, at least, a frame nobody has taken gets its fail-safe verdict …
EXPIRE_HELD_BEFORE_S = 0.003  # … and if a worker holds it, who does so itself a little earlier, unless it is dead


@dataclass(frozen=True)
class Limits:
    """What a stream holds; the same on every client of a line, or the strictest wins."""

    max_bytes: int = 256 * 1024 * 1024  # headers and pixels of all outstanding frames
    max_frames: int = 100_000
    max_deliveries: int = 3  # a frame that took this many workers with it is poison
    keep_verdicts: int = 100_000  # settled verdicts that stay readable, at most
    keep_verdict_bytes: int = 256 * 1024 * 1024  # … and about so many bytes of them: masks can be large

    @property
    def keep_dead_bytes(self) -> int:
        """Of poison frames kept aside, the oldest going first: an eighth of the byte budget, on top of it."""
        return self.max_bytes // 8


class KeptVerdicts:
    """How many verdicts to keep, so that they take about as many bytes as allowed: by the mean size of late."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._mean = limits, 1000.0

    def count(self, size: int) -> int:
        """At most so many, this one of `size` bytes included."""
        self._mean += (size - self._mean) / 256
        return max(1, min(self._limits.keep_verdicts, int(self._limits.keep_verdict_bytes / self._mean)))


@dataclass(frozen=True)
class Delivery:
    """A frame in a worker's hands, and what is needed to settle it."""

    frame: Frame
    token: str  # where it lies on the stream
    header: bytes = field(repr=False)
    size: int  # bytes it takes of the budget
    received_ns: int
    deliveries: int = 1


class Entry(NamedTuple):
    """Something as it lies on the stream: its place, a frame's header, and the pixels or the verdict's body."""

    place: str
    header: bytes
    body: bytes


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
    amended: Mapping[str, int] = field(default_factory=dict)  # judgement → real answers after a fail-safe verdict
    missed: int = 0  # verdicts that came after their frame's deadline

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
    def unoffered(self) -> int:
        """Entries on the stream, or judged, beyond those offered: something else than `offer` writes to it."""
        return max(0, self.settled + self.outstanding - self.offered)

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

    def settle(self, settled: Sequence[tuple[Delivery, Verdict]]) -> list[Settlement]:
        """Publish and take off, each only if the frame is still this worker's; see Settlement."""
        ...

    def expire(self, verdict: Verdict, before_s: float = EXPIRE_BEFORE_S) -> float | None:
        """Give frames whose deadline is about to pass this fail-safe verdict, whoever holds them or nobody.

        `before_s`: what a frame nobody has taken would still need; one that has less left is not worth taking.
        Any client may, as often as it likes. Returns after how many seconds the next one is due; None: no frame
        has a deadline.
        """
        ...

    def audit(self) -> Audit:
        """The ledger, taken in one piece."""
        ...

    def read(self, after: str, n: int, wait_s: float = 0.0, log: Log = "verdicts") -> list[tuple[str, Verdict]]:
        """At most n published verdicts after this place, each with its own; `0`: from the oldest kept on.

        `amendments`: real answers that came after a frame's fail-safe verdict.
        """
        ...

    def watch(self, log: Watched, after: str, n: int, wait_s: float = 0.0) -> list[Entry]:
        """At most n entries after this place in wire form, taking nothing from anybody; `0`: from the oldest on.

        Of frames those that have no verdict yet, whoever holds them: one that is judged before it is looked at is
        not seen. Fewer may come than there are, so that they fit in one answer.
        """
        ...

    def newest(self, log: Watched = "verdicts") -> str:
        """The place of the newest verdict: reading after it gives only what is published from now on."""
        ...

    def close(self) -> None:
        """Say goodbye: what this worker still holds may be reclaimed at once."""
        ...


REDIS = "pipeline.stream_redis:open_redis"
OPENERS = {"memory": "pipeline.stream_memory:open_memory", **dict.fromkeys(KINDS, REDIS)}


def open_stream(url: str, line: str, worker: str = "", limits: Limits | None = None) -> Stream:
    """The stream of a line. `worker` is this client's name as a consumer; producers and readers need none."""
    if _scheme(url) not in OPENERS:
        raise StreamError(f"stream URL {hidden(url)!r}: use {', '.join(f'{name}://' for name in OPENERS)}")
    if not is_line_name(line):
        raise StreamError(f"line name {line!r}: use up to 64 characters without spaces, colons and braces")
    module, attribute = OPENERS[_scheme(url)].split(":")
    stream: Stream = getattr(import_module(module), attribute)(url, line, worker, limits or Limits())
    return stream


def is_line_name(name: str) -> bool:
    """May a line be called so? Its name stands in keys, on terminals and in logs."""
    return 0 < len(name) <= 64 and name.isprintable() and not any(sign in name for sign in "{}: ")


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()  # urlsplit quotes what it cannot read, a password too


def list_lines(url: str) -> list[str]:
    """Names of the lines that have seen a frame on this Redis, sorted."""
    if _scheme(url) not in KINDS:
        raise StreamError(f"stream URL {hidden(url)!r}: use {', '.join(f'{name}://' for name in KINDS)}")
    lines: list[str] = import_module("pipeline.stream_redis").list_lines(url)
    return lines


def read_delivery(token: str, source: str, header: bytes, pixels: bytes, deliveries: int = 1) -> Delivery:
    """A delivery of wire bytes; an unreadable header becomes a frame with a fault, never an exception."""
    source = source[:MAX_HEADER_BYTES]  # of a frame that was offered it stands in the header too
    try:
        frame = Frame.from_wire(header, pixels)
    except WireError as error:
        frame = unreadable_frame(source, str(error), f"unreadable-{token}")
    if frame.source != source:
        frame = replace(frame, source=source)  # the ledger counted it under this name
    kept = header if len(header) <= MAX_HEADER_BYTES else b""  # verdicts are kept by number, not by size
    return Delivery(frame, token, kept, len(header) + len(pixels), time.time_ns(), deliveries)


def read_verdict(header: bytes, body: bytes) -> Verdict:
    """A published verdict; one that cannot be read says so instead of keeping readers from all that follow."""
    try:
        return Verdict.from_wire(header, body)
    except WireError as error:
        frame = unreadable_frame("", "its verdict cannot be read")
        return Verdict(frame=frame, judgement="UNINSPECTED", reason="unreadable", detail=str(error))


def uninspected(reason: str, detail: str) -> bytes:
    """The body of a verdict that a stream gives by itself; the frame's header stands beside it."""
    now = time.time_ns()
    nobody = Frame(frame_id="", source="", session="", sequence=0)
    return Verdict(frame=nobody, judgement="UNINSPECTED", reason=reason, detail=detail, settled_ns=now).body()


SHED = "the stream was full and the source could not wait"
TOO_LARGE = "larger than the stream's whole byte budget; raise --max-mib"
POISON = "handed to as many workers as allowed without a verdict"


def parse_gaps(rows: Iterable[Any]) -> list[tuple[str, int, int]]:
    """Gaps as the server keeps them, `session first last`, a text each."""
    words = [row.rsplit(" ", 2) for row in rows]
    return [(session, int(first), int(last)) for session, first, last in words]
