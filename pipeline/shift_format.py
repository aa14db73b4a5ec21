"""What a recorded shift is: an MCAP file of frames, verdicts and amendments in their wire form; opens no file.

MCAP (https://mcap.dev/spec), profile `aoi-shift/1`, message encoding `msgpack`. A message is a map of the fields
that it has on the stream: `h` the frame's header, `p` its pixels, `v` the verdict's body (pipeline/messages.py), all
three verbatim. The log time of all that belongs to a frame is when the frame was offered, so a stretch of time holds
frames together with their verdicts; the publish time of a verdict is when it was settled.
Channels have fixed numbers, so that a file whose first chunk is lost can still be read. The attachment `index.msgpack`
has one row per frame: whoever looks for a frame, a panel or a lot reads it, and then only the chunks of that time.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import msgpack

from pipeline.errors import ShiftError
from pipeline.messages import MAX_BODY_BYTES, MAX_HEADER_BYTES, Frame, Verdict
from pipeline.msgpack_map import unpack_map

VERSION = 1
PROFILE = "aoi-shift/"
INDEX_NAME = "index.msgpack"
FRAMES, VERDICTS, AMENDMENTS = 1, 2, 3  # channels
TOPICS = {FRAMES: "frames", VERDICTS: "verdicts", AMENDMENTS: "amendments"}
_BYTES = {"type": "string", "contentEncoding": "binary"}
_HEADER = {**_BYTES, "description": f"frame header, a msgpack map of at most {MAX_HEADER_BYTES} bytes"}
SCHEMAS: dict[int, tuple[str, bytes]] = {
    channel: (name, json.dumps({"title": name, "type": "object", "properties": fields, "required": [*fields]}).encode())
    for channel, name, fields in (
        (FRAMES, "aoi.Frame", {"h": _HEADER, "p": {**_BYTES, "description": "pixels, as they travelled"}}),
        (VERDICTS, "aoi.Verdict", {"h": _HEADER, "v": {**_BYTES, "description": "msgpack map of the verdict"}}),
        (AMENDMENTS, "aoi.Amendment", {"h": _HEADER, "v": {**_BYTES, "description": "msgpack map of the verdict"}}),
    )
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One frame of a shift with all that was kept of it, in wire form."""

    header: bytes
    pixels: bytes | memoryview | None = field(default=None, repr=False)  # None: they were not kept
    verdict: bytes | None = field(default=None, repr=False)
    amendment: bytes | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Bytes of it all."""
        return len(self.header) + sum(len(part) for part in (self.pixels, self.verdict, self.amendment) if part)

    def frame(self) -> Frame:
        """With its pixels, if they were kept. Raises WireError when it cannot be read."""
        return Frame.from_wire(self.header, b"" if self.pixels is None else self.pixels)

    def judged(self) -> Verdict | None:
        """What was said on the line. Raises WireError when it cannot be read."""
        return None if self.verdict is None else Verdict.from_wire(self.header, self.verdict)

    def amended(self) -> Verdict | None:
        """The real answer after a fail-safe verdict. Raises WireError when it cannot be read."""
        return None if self.amendment is None else Verdict.from_wire(self.header, self.amendment)


@dataclass(frozen=True, slots=True)
class Row:
    """One frame in the index of a shift."""

    time_ns: int  # the log time of its messages
    frame_id: str
    lot: str
    panel: str
    judgement: str  # "": no verdict was seen
    has_pixels: bool


def pack_message(header: bytes, name: str, value: bytes | memoryview) -> bytes:
    """A message as it stands in the file."""
    packed: bytes = msgpack.packb({"h": header, name: value})
    return packed


def unpack_message(data: bytes, name: str) -> tuple[bytes, bytes]:
    """The header and its other part. Raises ShiftError for anything that is no message of ours."""
    try:
        facts = msgpack.unpackb(data, max_bin_len=MAX_BODY_BYTES * 8, max_map_len=16, max_array_len=16, max_str_len=64)
        header, value = facts["h"], facts[name]
    except Exception as error:  # msgpack raises a family of unrelated types on foreign bytes
        raise ShiftError(f"a message is not one of a shift: {error or type(error).__name__}") from error
    if not isinstance(header, bytes) or not isinstance(value, bytes):
        raise ShiftError("a message is not one of a shift: its parts are no bytes")
    return header, value


def pack_index(rows: list[Row]) -> bytes:
    """The attachment's bytes: the CRC-32 of what follows, then msgpack."""
    facts = [[r.time_ns, r.frame_id, r.lot, r.panel, r.judgement, r.has_pixels] for r in rows]
    packed: bytes = msgpack.packb(facts, unicode_errors="replace")
    return zlib.crc32(packed).to_bytes(4, "little") + packed


def unpack_index(data: bytes) -> list[Row]:
    """The rows of an attachment. Raises ShiftError."""
    try:
        if zlib.crc32(data[4:]).to_bytes(4, "little") != data[:4]:
            raise ValueError("its CRC is wrong")
        facts: list[Any] = msgpack.unpackb(data[4:], max_str_len=MAX_HEADER_BYTES, max_array_len=1 << 24)
        return [Row(*row) for row in facts]
    except Exception as error:
        raise ShiftError(f"its index of frames is damaged ({error or type(error).__name__})") from error


def identity(header: bytes) -> tuple[str, str, str, int]:
    """(frame id, lot, panel, offered ns) of a header, and of one that cannot be read what can be had."""
    try:
        facts = unpack_map(header, 1024)
    except ValueError:
        return "", "", "", 0
    texts = [value if isinstance(value := facts.get(name, ""), str) else "" for name in ("frame_id", "lot", "panel")]
    offered = facts.get("offered_ns") or facts.get("triggered_ns") or 0
    return texts[0], texts[1], texts[2], offered if type(offered) is int and 0 <= offered < 1 << 63 else 0


def check_profile(profile: str, path: object) -> None:
    """ShiftError where a file is no shift, or one of a schema that this software cannot read."""
    version = profile.removeprefix(PROFILE)
    if not profile.startswith(PROFILE) or not version.isdecimal():
        raise ShiftError(f"{path} is an MCAP file of something else (profile {profile!r}), not a shift of `aoi record`")
    if int(version) > VERSION:
        raise ShiftError(f"{path} has schema {version}, this software reads up to {VERSION}: update it")
