"""What travels: a Frame towards the worker, a Verdict back; each knows its msgpack wire form.

A frame on the wire is a small msgpack map (the header) and, beside it, one binary field with the pixels.
The header can be read without touching the pixels, and raw pixels are used where they arrived, uncopied.
A verdict on the wire is the frame's header, verbatim, and a msgpack map of its own: so even a script on the
server, which has read no header, can publish a verdict that says whose it is.

All times are nanoseconds since 1970 (UTC). Both maps carry `v`, the schema version; a reader that meets
another version says so instead of guessing. msgpack: https://github.com/msgpack/msgpack/blob/master/spec.md

Whoever writes may be broken or hostile: sizes are bounded before memory is taken for them, a key stands once,
numbers are finite, and a file's own header is read before a decoder sees the file (pipeline/image_header.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast

import cv2
import msgpack
import numpy as np
import numpy.typing as npt

from engines import rle
from pipeline.errors import WireError
from pipeline.image_header import MAX_PIXELS, MAX_SIDE, Kind, Size, declared_size
from pipeline.msgpack_map import unpack_map

SCHEMA = 1
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_DEFECTS = 65_536  # of one frame
MAX_MASKS = 256  # labels are uint8
MAX_VALUES = 16 * MAX_DEFECTS + 4096  # in all lists and maps of a body: a defect has 15
MAX_NUMBER = 1 << 63
JPEG_END = b"\xff\xd9"  # without it OpenCV < 5 fills the missing part with grey, and grey looks good
JPEG_TAIL = 4096  # bytes at the end in which it must lie, before any padding: cameras fill up whole blocks
# neither shortened to 8 bits nor turned by an EXIF tag: as IMREAD_UNCHANGED does for the mono formats
MONO_AS_IT_IS = cv2.IMREAD_UNCHANGED
COLOUR_AS_IT_IS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION

PixelFormat = Literal["mono8", "mono16", "bgr8"]
Encoding = Literal["raw", "png", "jpeg"]
Judgement = Literal["OK", "NG", "REVIEW", "UNINSPECTED"]
Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

JUDGEMENTS: tuple[Judgement, ...] = ("OK", "NG", "REVIEW", "UNINSPECTED")
PIXEL_FORMATS: dict[str, tuple[type[np.uint8] | type[np.uint16], int]] = {
    "mono8": (np.uint8, 1),
    "mono16": (np.uint16, 1),
    "bgr8": (np.uint8, 3),
}
ENCODINGS = ("raw", "png", "jpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One image of a part and everything known of it when it was taken.

    `pixels` is the payload: for `raw`, height × width × channels little-endian samples without padding;
    for `png` and `jpeg`, the file's bytes (height and width may then be 0: not known before decoding).
    `sequence` counts from 0 without gaps within a source's session, so that a gap is visible.
    `fault` is set by a source that could not read its image: the frame still gets its verdict.
    """

    frame_id: str
    source: str
    session: str
    sequence: int
    line: str = ""
    pixel_format: PixelFormat = "mono8"
    encoding: Encoding = "raw"
    height: int = 0
    width: int = 0
    triggered_ns: int = 0
    deadline_ns: int = 0  # 0: none
    offered_ns: int = 0
    station: str = ""
    lot: str = ""
    panel: str = ""
    reference: str = ""  # golden template
    name: str = ""  # the source's own name for the image; shown, never opened
    fault: str = ""
    pixels: bytes | memoryview | npt.NDArray[np.generic] = field(default=b"", repr=False, compare=False)

    @property
    def payload_bytes(self) -> int:
        """Size of the pixels on the wire, in bytes."""
        return self.pixels.nbytes if isinstance(self.pixels, np.ndarray | memoryview) else len(self.pixels)

    def header(self) -> bytes:
        """Msgpack map of every field but the pixels; fields at their default are left out."""
        known: dict[str, Any] = {"v": SCHEMA}
        for name, default in _HEADER_DEFAULTS:
            value = getattr(self, name)
            if value != default:
                known[name] = value
        packed: bytes = msgpack.packb(known, unicode_errors="replace")  # file names need not be UTF-8
        if len(packed) > MAX_HEADER_BYTES:
            raise WireError(f"frame header of {len(packed)} bytes: shorten name, lot and station to {MAX_HEADER_BYTES}")
        return packed

    def payload(self) -> bytes | memoryview:
        """The pixels as one block of bytes, without a copy when they lie in one block already."""
        if isinstance(self.pixels, np.ndarray):
            return np.ascontiguousarray(self.pixels).data.cast("B")
        return self.pixels

    def image(self) -> Image:
        """Pixels as uint8 or uint16, [H, W] for mono and [H, W, 3] for BGR; for `raw` a view, not a copy.

        Raises WireError when they cannot be decoded or do not have the size the header states.
        """
        if self.fault:
            raise WireError(self.fault)
        image = self._raw_image() if self.encoding == "raw" else self._decoded_image()
        self._check_shape(image.shape[0], image.shape[1])
        return image

    def _check_shape(self, height: int, width: int) -> None:
        if (self.height or self.width) and (height, width) != (self.height, self.width):
            raise WireError(f"header says {self.height}×{self.width}, the image is {height}×{width}")

    def _raw_image(self) -> Image:
        if isinstance(self.pixels, np.ndarray):
            return cast(Image, self.pixels)
        dtype, channels = PIXEL_FORMATS[self.pixel_format]
        want = self.height * self.width * channels * np.dtype(dtype).itemsize
        if not want or self.payload_bytes != want:
            shape = f"{self.height}×{self.width} {self.pixel_format}"
            raise WireError(f"{shape} takes {want} bytes, the frame carries {self.payload_bytes}")
        flat: Image = np.frombuffer(self.pixels, dtype=np.dtype(dtype).newbyteorder("<"))
        return flat.reshape((self.height, self.width) if channels == 1 else (self.height, self.width, 3))

    def _decoded_image(self) -> Image:
        dtype, channels = PIXEL_FORMATS[self.pixel_format]
        payload = self.payload()
        if self.encoding == "jpeg" and not _ends(payload):
            raise WireError(f"jpeg of {len(payload)} bytes is cut off: its end mark is missing")
        size = self._declared_size(payload)
        try:
            image = cv2.imdecode(np.frombuffer(payload, np.uint8), COLOUR_AS_IT_IS if channels == 3 else MONO_AS_IT_IS)
            if image is not None and channels == 1 and image.ndim == 3:
                image = cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
        except cv2.error:  # bytes that only start like an image
            image = None
        if image is None:
            raise WireError(f"{self.encoding} of {len(payload)} bytes does not decode to an image")
        if image.dtype != dtype:
            raise WireError(f"wrong bit depth: header says {self.pixel_format}, the image is {image.dtype}")
        if image.shape[:2] != size:
            raise WireError(f"the file says {size.height}×{size.width}, decoded it is {image.shape[:2]}")
        decoded: Image = image
        return decoded

    def _declared_size(self, payload: bytes | memoryview) -> Size:
        """What the file says of itself, before a decoder takes memory for it."""
        try:
            size = declared_size(payload, cast(Kind, self.encoding))
        except ValueError as error:
            raise WireError(str(error)) from error
        self._check_shape(*size)
        return size

    def without_pixels(self) -> Frame:
        """The same frame's identity and times: what a verdict keeps of it."""
        return replace(self, pixels=b"")

    @classmethod
    def from_wire(cls, header: bytes, payload: bytes | memoryview = b"") -> Frame:
        """Read a header; raises WireError when it is not one of ours or its facts cannot be true."""
        facts = _unpack(header, "frame header", MAX_HEADER_BYTES, 1024)
        known = {name: facts[name] for name in _HEADER_NAMES & facts.keys()}
        try:
            frame = cls(**known, pixels=payload)
        except TypeError as error:
            raise WireError(f"frame header is incomplete: {error}") from error
        _check_header(frame)
        return frame


def _ends(jpeg: bytes | memoryview) -> bool:
    """Is its end mark there, padding or not?"""
    data = np.frombuffer(jpeg, np.uint8)
    if JPEG_END in data[-64:].tobytes():
        return True
    content = np.flatnonzero((data != 0) & (data != 0xFF))
    end = int(content[-1]) + 1 if content.size else 0
    return JPEG_END in data[max(0, end - JPEG_TAIL) : end + 1].tobytes()


_HEADER_DEFAULTS = [(f.name, f.default) for f in fields(Frame) if f.name != "pixels"]
_HEADER_NAMES = {name for name, _ in _HEADER_DEFAULTS}
_TEXTS = tuple(f.name for f in fields(Frame) if f.type in ("str", "PixelFormat", "Encoding"))
_NUMBERS = tuple(f.name for f in fields(Frame) if f.type == "int")


def _unpack(data: bytes, what: str, most: int, values: int) -> dict[str, Any]:
    """A map of our schema, of at most `most` bytes with at most `values` values in all."""
    if len(data) > most:
        raise WireError(f"{what} of {len(data)} bytes is larger than {most}")
    try:
        facts = unpack_map(data, values)
    except ValueError as error:
        raise WireError(f"{what} is not msgpack: {error}") from error
    if facts.get("v") != SCHEMA:
        raise WireError(f"{what} has schema {facts.get('v')!r}, this software reads {SCHEMA}: update the older side")
    return facts


def _check_header(frame: Frame) -> None:
    for name in _TEXTS:
        if not isinstance(getattr(frame, name), str):
            raise WireError(f"frame header: {name} must be text")
    for name in _NUMBERS:
        number = getattr(frame, name)
        if not _is_count(number):
            raise WireError(f"frame header: {name} must be a whole number from 0 to 2⁶³-1")
    if frame.pixel_format not in PIXEL_FORMATS:
        raise WireError(f"pixel format {frame.pixel_format!r} is not one of {', '.join(PIXEL_FORMATS)}")
    if frame.encoding not in ENCODINGS:
        raise WireError(f"encoding {frame.encoding!r} is not one of {', '.join(ENCODINGS)}")
    if frame.height * frame.width > MAX_PIXELS or max(frame.height, frame.width) > MAX_SIDE:
        raise WireError(f"{frame.height}×{frame.width} is more than {MAX_PIXELS} pixels or {MAX_SIDE} in a row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One connected region of one class, in pixels of the frame and in millimetres of the part."""

    class_name: str
    score: float  # mean confidence over the region, 0…1
    bbox: tuple[int, int, int, int]  # x, y, width, height in px
    area_px: int
    centroid: tuple[float, float]  # x, y in px
    area_mm2: float = 0.0  # 0: the recipe does not state µm per pixel
    length_mm: float = 0.0  # longer side of the smallest enclosing rectangle
    width_mm: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values; null for sizes in mm that are not known."""
        values = {name: getattr(self, name) for name in _DEFECT_NAMES}
        return {n: v if v or not n.endswith(("_mm", "_mm2")) else None for n, v in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was decided about one frame, why, by which recipe and engine, and when each step happened."""

    frame: Frame
    judgement: Judgement
    reason: str = ""
    detail: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)  # class → probability; the worst tile's
    defects: tuple[Defect, ...] = ()
    masks: Mapping[str, rle.Runs] = field(default_factory=dict)  # class → runs
    mask_shape: tuple[int, int] = (0, 0)  # height, width in px
    recipe: str = ""  # name@hash
    engine: str = ""  # name@hash of classifier and segmenter
    device: str = ""
    worker: str = ""
    batch_size: int = 0  # tiles in the classifier's (or only) batch this frame was judged in
    deliveries: int = 0
    received_ns: int = 0
    batched_ns: int = 0
    inferred_ns: int = 0
    settled_ns: int = 0

    def body(self) -> bytes:
        """Msgpack map of everything but the frame; what no reader would take is left out, and `detail` says so."""
        defects, masks, left_out = self._within_limits()
        facts = {name: getattr(self, name) for name in _BODY_PLAIN}
        facts["v"] = SCHEMA
        facts["scores"] = {name: score for name, score in self.scores.items() if math.isfinite(score)}
        facts["defects"] = [[getattr(defect, name) for name in _DEFECT_NAMES] for defect in defects]
        facts["masks"] = {name: runs.astype("<u4").tobytes() for name, runs in masks.items()}
        facts["detail"] = "; ".join(filter(None, [self.detail, *left_out]))
        packed: bytes = msgpack.packb(facts, unicode_errors="replace")
        return packed

    def _within_limits(self) -> tuple[Sequence[Defect], Mapping[str, rle.Runs], list[str]]:
        """Defects and masks that fit into a body, and what is to be said of the rest."""
        defects, masks, left_out = self.defects, self.masks, []
        if len(defects) > MAX_DEFECTS:
            defects = tuple(sorted(defects, key=lambda defect: -defect.area_px)[:MAX_DEFECTS])
            left_out.append(f"{len(self.defects) - MAX_DEFECTS} smaller defects left out")
        if 4 * sum(runs.size for runs in masks.values()) > MAX_BODY_BYTES // 2:
            masks = {}
            left_out.append("masks left out: too many runs")
        return defects, masks, left_out

    @classmethod
    def from_wire(cls, header: bytes, body: bytes) -> Verdict:
        """Read a verdict; WireError when it is not one of ours."""
        facts = _unpack(body, "verdict", MAX_BODY_BYTES, MAX_VALUES)
        try:
            frame = Frame.from_wire(header)
        except WireError as error:
            frame = unreadable_frame("", str(error))
        try:
            plain = {name: facts[name] for name in _BODY_PLAIN if name in facts}
            plain["mask_shape"] = tuple(plain.get("mask_shape", (0, 0)))
            defects = tuple(_defect(row) for row in facts.get("defects", ()))
            masks = {name: np.frombuffer(runs, "<u4") for name, runs in facts.get("masks", {}).items()}
            verdict = cls(frame=frame, defects=defects, masks=masks, **plain)
            _check_verdict(verdict)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise WireError(f"verdict is incomplete: {error}") from error
        return verdict

    def mask(self, class_name: str | None = None) -> rle.Mask:
        """Boolean mask [H, W] of one class, or of all classes together."""
        names = [class_name] if class_name else list(self.masks)
        mask = np.zeros(self.mask_shape, dtype=bool)
        for name in names:
            if name in self.masks:
                mask |= rle.decode(self.masks[name], self.mask_shape)
        return mask

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON line; masks in Kaggle's text form."""
        frame = {n: getattr(self.frame, n) for n, default in _HEADER_DEFAULTS if getattr(self.frame, n) != default}
        own = {name: getattr(self, name) for name in _BODY_PLAIN}
        own["scores"] = {name: round(float(value), 6) for name, value in self.scores.items()}
        own["defects"] = [defect.as_json() for defect in self.defects]
        own["masks"] = {name: rle.to_text(runs) for name, runs in self.masks.items()}
        return {**frame, **own}


_BODY_PLAIN = tuple(f.name for f in fields(Verdict) if f.name not in ("frame", "defects", "masks"))
_BODY_TEXTS = tuple(f.name for f in fields(Verdict) if f.type == "str")
_BODY_NUMBERS = tuple(f.name for f in fields(Verdict) if f.type == "int")
_DEFECT_NAMES = tuple(f.name for f in fields(Defect))
_DEFECT_SIZES = tuple(f.name for f in fields(Defect) if f.type in ("int", "float"))


def _check_verdict(verdict: Verdict) -> None:
    """TypeError or ValueError when a fact is not of its kind, or the masks do not fit their shape."""
    if verdict.judgement not in JUDGEMENTS:
        raise ValueError(f"judgement {verdict.judgement!r} is not one of {', '.join(JUDGEMENTS)}")
    for name in _BODY_TEXTS:
        if not isinstance(getattr(verdict, name), str):
            raise TypeError(f"{name} must be text")
    for name in _BODY_NUMBERS:
        if not _is_count(getattr(verdict, name)):
            raise TypeError(f"{name} must be a whole number from 0 to 2⁶³-1")
    if not all(_is_number(value) for value in verdict.scores.values()):
        raise TypeError("scores must be numbers")
    height, width = verdict.mask_shape
    if type(height) is not int or type(width) is not int or min(height, width) < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"mask shape {verdict.mask_shape!r} is impossible")
    if len(verdict.masks) > MAX_MASKS:
        raise ValueError(f"{len(verdict.masks)} masks are more than {MAX_MASKS}")
    for runs in verdict.masks.values():
        rle.check(runs, height * width)


def _defect(row: list[Any]) -> Defect:
    facts = dict(zip(_DEFECT_NAMES, row, strict=True))
    facts["bbox"], facts["centroid"] = tuple(facts["bbox"]), tuple(facts["centroid"])
    numbers = [*facts["bbox"], *facts["centroid"], *(facts[name] for name in _DEFECT_SIZES)]
    sizes = len(facts["bbox"]), len(facts["centroid"])
    if not isinstance(facts["class_name"], str) or sizes != (4, 2) or not all(map(_is_number, numbers)):
        raise TypeError(f"defect {row!r} is not one of ours")
    return Defect(**facts)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_NUMBER


def unreadable_frame(source: str, why: str, frame_id: str = "unreadable") -> Frame:
    """Stands for a frame whose header cannot be read, so that it too can have its verdict."""
    return Frame(frame_id=frame_id, source=source, session="", sequence=0, fault=f"unreadable header: {why}")


def frame_id(source: str, session: str, sequence: int) -> str:
    """A name that no other frame will ever have."""
    return f"{source}-{session}-{sequence}"
