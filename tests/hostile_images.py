"""Image files that lie or that are made to cost: a few bytes that would take gigabytes or minutes to decode."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes, length: int = -1) -> bytes:
    """A PNG chunk; `length` is what it says of itself."""
    said = len(data) if length < 0 else length
    return struct.pack(">I", said) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, inflated: int = 0, extra: bytes = b"", said: int = -1) -> bytes:
    """A grey PNG of this size, by its header; its pixels inflate to so many zeros."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG + head + extra + chunk(b"IDAT", zeros(inflated), said) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """So many zeros, as small as deflate makes them: one packed block again and again."""
    blocks, rest = divmod(count, 1 << 20)
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.compress(bytes(rest)) + packer.flush()
    return b"\x78\xda" + block * blocks + end + struct.pack(">I", (count % 65521) << 16 | 1)


def gif(side: int) -> bytes:
    """29 bytes of GIF that say they are side × side px."""
    head = b"GIF89a" + struct.pack("<HH", side, side) + b"\0\0\0,"
    return head + struct.pack("<HHHH", 0, 0, side, side) + b"\0\2\2\x44\1\0;"


def jpeg(side: int, progressive: bool = False) -> bytes:
    """A black one, as it should be."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive), cv2.IMWRITE_JPEG_OPTIMIZE, int(progressive)]
    return bytes(cv2.imencode(".jpg", np.zeros((side, side), np.uint8), options)[1])


def jpeg_that_says(height: int, width: int) -> bytes:
    data = bytearray(jpeg(16))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    """A progressive one whose last scan, of a few bytes, stands there again and again."""
    data = jpeg(side, progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def bmp(height: int, width: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 154, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(100)
    )


def tiff(height: int, width: int, tile: int = 0, big_endian: bool = False) -> bytes:
    order = ">" if big_endian else "<"
    tags = [(256, width), (257, height)] + ([(322, tile), (323, tile)] if tile else [])
    rows = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    start = b"MM\0*" if big_endian else b"II*\0"
    return start + struct.pack(f"{order}IH", 8, len(tags)) + rows + bytes(100)


def pgm(height: int, width: int) -> bytes:
    return b"P5\n# a comment 1 1\n%d %d\n255\n" % (width, height) + bytes(100)


def webp(side: int) -> bytes:
    """A lossless one's header."""
    bits = (side - 1) | (side - 1) << 14
    return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<IBI", 17, 0x2F, bits) + bytes(12)


def costly() -> dict[str, tuple[str, bytes]]:
    """What each would do → encoding it is sent as, and its bytes. None of them may reach a decoder."""
    text = chunk(b"zTXt", b"a\0\0" + zeros(7 << 20))
    return {
        "60000×60000 in 100 bytes": ("png", png(60_000, 60_000, 60)),
        "30000×30000 in 100 bytes": ("png", png(30_000, 30_000, 60)),
        "20000×20000, whole and valid": ("png", png(20_000, 20_000, 20_000 * 20_001)),
        "a row of 2³¹-1": ("png", png(1, 2**31 - 1, 60)),
        "a chunk of 2 GB": ("png", png(64, 64, 64 * 65, said=0x7FFFFFFF)),
        "200 MB of pixels for 64×64": ("png", png(64, 64, 200 << 20)),
        "200 texts of 7 MB": ("png", png(64, 64, 64 * 65, extra=text * 200)),
        "GIF of 30000×30000 sent as PNG": ("png", gif(30_000)),
        "GIF of 30000×30000 sent as JPEG": ("jpeg", gif(30_000) + b"\xff\xd9"),
        "BMP sent as PNG": ("png", bmp(16_000, 16_000)),
        "JPEG of 65000×65000 in 400 bytes": ("jpeg", jpeg_that_says(65_000, 65_000)),
        "JPEG of 10000×10000 in 400 bytes": ("jpeg", jpeg_that_says(10_000, 10_000)),
        "JPEG of 2000 scans": ("jpeg", jpeg_of_many_scans(1000, 2000)),
    }
