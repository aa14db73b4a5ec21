"""Reads from a file's first bytes how large its image is, before a decoder takes memory for it; decodes nothing.

A few bytes may claim gigabytes, and OpenCV believes them: it picks the decoder by content, whatever the name says
(29 bytes of GIF took 6.9 GB), and makes room for a PNG chunk of the length stated (84 bytes took 2 GB). So only the
formats below reach a decoder, only when they are what they are called, and only with a size that their bytes can
hold. What it must not know: frames, and what is done with the pixels.

    PNG   chunks, IHDR        https://www.w3.org/TR/png-3/#11IHDR
    JPEG  markers, SOF0…2     ITU-T T.81, B.1.1.3 and B.2.2
    BMP   BITMAPINFOHEADER    https://learn.microsoft.com/windows/win32/gdi/bitmap-storage
    TIFF  first IFD           TIFF 6.0, sections 2 and 8
    PNM   text header         https://netpbm.sourceforge.net/doc/pgm.html
    WebP  VP8, VP8L, VP8X     RFC 9649
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

Kind = Literal["png", "jpeg", "bmp", "tiff", "pnm", "webp"]
Bytes = bytes | memoryview

MAX_PIXELS = 1 << 28  # 256 Mpx: larger than any line camera's frame, small enough to refuse nonsense
MAX_SIDE = 1 << 20  # px; OpenCV's own limit, and what a frame of one row becomes when it is cut into tiles
SIGNATURES: Mapping[Kind, re.Pattern[bytes]] = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg": re.compile(rb"\xff\xd8"),
    "bmp": re.compile(rb"BM"),
    "tiff": re.compile(rb"II\x2a\0|MM\0\x2a"),
    "pnm": re.compile(rb"P[1-6]\s"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
INFLATES = 1032  # times, at most: https://www.zlib.net/zlib_tech.html
PNG_CHUNKS = 100_000  # a full 256 Mpx frame of 16 bits in pieces of 8 KiB has 65,536
PNG_TEXTS = 16  # compressed ones; each costs the decoder up to 8 MB of inflating
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, with Huffman codes
JPEG_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
JPEG_BARE = (0x01, *range(0xD0, 0xD8))  # markers without a length
JPEG_SCANS = 32  # of a progressive one: encoders write about ten, and a few bytes go over the whole image again
JPEG_PX_PER_BYTE = 512  # at most: a bit for every block of 8×8


class Size(NamedTuple):
    """Of an image, in px."""

    height: int
    width: int


def kind_of(data: Bytes) -> Kind | None:
    """The format by its first bytes; None for any other."""
    head = bytes(data[:16])
    return next((kind for kind, signature in SIGNATURES.items() if signature.match(head)), None)


def declared_size(data: Bytes, kind: Kind) -> Size:
    """The size a file of this kind says it has; ValueError when it is another kind, or cannot be true."""
    if kind_of(data) != kind:
        raise ValueError(f"{kind} of {len(data)} bytes does not decode: it is {kind_of(data) or 'something else'}")
    try:
        size = READERS[kind](data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"{kind} of {len(data)} bytes does not decode: its header is cut off") from error
    check_size(*size)
    return size


def check_size(height: int, width: int) -> None:
    """ValueError for an image without pixels or with more than any camera's."""
    if min(height, width) < 1:
        raise ValueError(f"{height}×{width} is no image")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise ValueError(f"{height}×{width} is more than {MAX_PIXELS} pixels, or than {MAX_SIDE} in a row or column")


def _png(data: Bytes) -> Size:
    length, kind, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if (length, kind) != (13, b"IHDR") or colour not in PNG_SAMPLES:
        raise ValueError("png does not decode: its first chunk is no IHDR")
    row = -(-width * depth * PNG_SAMPLES[colour] // 8) + 1
    found = list(_png_chunks(data))
    pixels = sum(length for kind, length in found if kind == b"IDAT")
    if height * row > INFLATES * pixels:
        raise ValueError(f"png does not decode: {height}×{width} cannot be in {pixels} bytes of pixels")
    if pixels > 2 * height * row + 65536:
        raise ValueError(f"png of {pixels} bytes of pixels holds more than its {height}×{width}")
    if sum(kind in (b"zTXt", b"iTXt") for kind, _ in found) > PNG_TEXTS:
        raise ValueError(f"png has more than {PNG_TEXTS} compressed texts; save it without them")
    return Size(height, width)


def _png_chunks(data: Bytes) -> Iterator[tuple[bytes, int]]:
    """Type and length of every chunk up to the end; ValueError when one is not there as a whole."""
    at, end = 8, len(data)
    for _ in range(PNG_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if at > end:
            raise ValueError("png does not decode: it is cut off, or a chunk is shorter than it says")
        yield kind, length
        if kind == b"IEND":
            return
    raise ValueError(f"png has more than {PNG_CHUNKS} chunks; save it again with larger ones")


def _jpeg(data: Bytes) -> Size:
    whole = bytes(data)  # to be searched; a camera's JPEG is small
    at = 2
    while True:
        marker, at = _next_marker(whole, at)
        if marker in JPEG_FRAMES:
            _, height, width = struct.unpack_from(">BHH", whole, at + 2)
            _check_jpeg(whole, height, width, progressive=marker == 0xC2)
            return Size(height, width)
        if marker in JPEG_OTHER_FRAMES:
            raise ValueError(f"jpeg does not decode: of kind SOF{marker - 0xC0}; save it as baseline or progressive")
        if marker in (0xD8, 0xD9, 0xDA):
            raise ValueError("jpeg does not decode: it has no frame header")
        at += 0 if marker in JPEG_BARE else max(2, *struct.unpack_from(">H", whole, at))


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker and where its segment begins, after fill bytes and whatever decoders skip."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise ValueError("jpeg does not decode: it has no frame header")
        while data[at] == 0xFF:
            at += 1
        if data[at]:
            return data[at], at + 1


def _check_jpeg(data: bytes, height: int, width: int, progressive: bool) -> None:
    if height * width > JPEG_PX_PER_BYTE * len(data):
        raise ValueError(f"jpeg does not decode: {height}×{width} cannot be in {len(data)} bytes")
    if progressive and data.count(b"\xff\xda") > JPEG_SCANS:
        raise ValueError(f"jpeg has more than {JPEG_SCANS} scans; save it as baseline")


def _bmp(data: Bytes) -> Size:
    header = struct.unpack_from("<I", data, 14)[0]
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return Size(abs(height), width)  # negative: from the top down


def _tiff(data: Bytes) -> Size:
    order = "<" if bytes(data[:2]) == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    found: dict[int, int] = {}
    for number in range(count):
        at = start + 2 + 12 * number
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        if tag in (256, 257, 322, 323) and kind in (3, 4):  # width, length; of a tile
            found.setdefault(tag, struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, at + 8)[0])
    if 322 in found or 323 in found:
        check_size(found.get(323, 0), found.get(322, 0))
    return Size(found.get(257, 0), found.get(256, 0))


def _pnm(data: Bytes) -> Size:
    head = re.sub(rb"#[^\n\r]*", b"", bytes(data[:4096]))
    numbers = re.match(rb"P[1-6]\s+(\d{1,10})\s+(\d{1,10})\s", head)
    if not numbers:
        raise ValueError("pnm does not decode: its header has no size")
    return Size(int(numbers[2]), int(numbers[1]))


def _webp(data: Bytes) -> Size:
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return Size(height, width)


READERS: Mapping[Kind, Callable[[Bytes], Size]] = {
    "png": _png,
    "jpeg": _jpeg,
    "bmp": _bmp,
    "tiff": _tiff,
    "pnm": _pnm,
    "webp": _webp,
}
