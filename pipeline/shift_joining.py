"""Brings frames and what was said of them together, and decides what of it is kept; reads and writes nothing.

A frame waits here for its verdict, within a byte bound. A header is a frame's name: its verdict carries it verbatim.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from pipeline.errors import WireError
from pipeline.messages import JUDGEMENTS, Judgement, Verdict
from pipeline.postprocess import audited
from pipeline.shift_format import Recorded, identity

NEVER_ON_THE_STREAM = ("shed", "too_large")  # reasons of verdicts whose frame no reader can have seen


@dataclass(frozen=True)
class Keep:
    """Whose pixels are kept: by judgement, and a share of those judged OK. Verdicts are kept of all."""

    judgements: tuple[Judgement, ...] = JUDGEMENTS
    ok_share: float = 0.0

    def wants(self, judgement: str, frame_id: str) -> bool:
        """The share is drawn from the frame's id: another recorder of the line draws the same frames."""
        return judgement in self.judgements or (judgement == "OK" and audited(frame_id, self.ok_share))


@dataclass
class RecordCounts:
    """What a recorder has seen and done."""

    frames: int = 0  # written, with or without pixels
    pixels: int = 0  # … with
    not_wanted: int = 0  # their pixels were left out by judgement
    missed: int = 0  # their pixels were wanted and gone: judged before they were looked at
    never_there: int = 0  # shed or too large: no pixels came onto the stream
    no_room: int = 0  # dropped while they waited for a verdict
    unjudged: int = 0  # written without a verdict at the end
    amendments: int = 0
    lost_verdicts: int = 0  # gone from the stream before they could be read
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Joined:
    """What is to be written, and what of it the index needs."""

    recorded: Recorded
    judgement: str = ""
    settled_ns: int = 0


@dataclass
class Joiner:
    """Frames in by `frame`, what is to be written out by `verdict`, `amendment` and `rest`."""

    keep: Keep
    max_bytes: int
    counts: RecordCounts = field(default_factory=RecordCounts)
    _waiting: OrderedDict[bytes, bytes] = field(default_factory=OrderedDict, repr=False)
    _dropped: set[bytes] = field(default_factory=set, repr=False)
    _bytes: int = 0

    @property
    def waiting(self) -> int:
        """Frames without a verdict."""
        return len(self._waiting)

    def frame(self, header: bytes, pixels: bytes) -> None:
        """Hold a frame until its verdict comes; the oldest goes where there is no room."""
        self._take(header)
        self._waiting[header] = pixels
        self._bytes += len(header) + len(pixels)
        while self._bytes > self.max_bytes:
            oldest = next(iter(self._waiting))
            self._take(oldest)
            self._dropped.add(oldest)

    def knows(self, header: bytes) -> bool:
        """Does a frame wait for this verdict?"""
        return header in self._waiting or header in self._dropped

    def verdict(self, header: bytes, body: bytes) -> Joined:
        """What is to be written of a frame that was judged; without pixels where they are not here or not wanted."""
        pixels, counts = self._take(header), self.counts
        judgement, reason, settled_ns = _said(header, body)
        counts.frames += 1
        if not self.keep.wants(judgement, identity(header)[0]):
            counts.not_wanted += 1
            pixels = None
        elif pixels is not None:
            counts.pixels += 1
        elif header in self._dropped:
            counts.no_room += 1
        elif reason in NEVER_ON_THE_STREAM:
            counts.never_there += 1
        else:
            counts.missed += 1
        self._dropped.discard(header)
        return Joined(Recorded(header, pixels, body), judgement, settled_ns)

    def amendment(self, header: bytes, body: bytes) -> Joined:
        """The real answer after a fail-safe verdict, which was written before."""
        self.counts.amendments += 1
        judgement, _, settled_ns = _said(header, body)
        return Joined(Recorded(header, amendment=body), judgement, settled_ns)

    def rest(self) -> list[Joined]:
        """What never had a verdict, the oldest first; at the end."""
        left = [Joined(Recorded(header, pixels)) for header, pixels in self._waiting.items()]
        self.counts.frames += len(left)
        self.counts.pixels += len(left)
        self.counts.unjudged += len(left)
        self._waiting.clear()
        self._bytes = 0
        return left

    def _take(self, header: bytes) -> bytes | None:
        pixels = self._waiting.pop(header, None)
        if pixels is not None:
            self._bytes -= len(header) + len(pixels)
        return pixels


def _said(header: bytes, body: bytes) -> tuple[str, str, int]:
    """Judgement, reason and time of a verdict; of one that cannot be read nothing."""
    try:
        verdict = Verdict.from_wire(header, body)
    except WireError:
        return "", "", 0
    return verdict.judgement, verdict.reason, verdict.settled_ns
