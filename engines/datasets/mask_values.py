"""What the values of mask files mean: one defect, a class each, or a colour each; it knows no folder and no picture.

Masks come as 0/1 and as 0/255, with the fuzz that JPEG and smoothing leave at edges, with a class index per pixel,
with classes spread over the grey scale, as palette images and in colours. The meaning is found once, over the masks
of a whole data set: one mask alone would say too little.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import IGNORED, DatasetError, Pixels, UnreadablePictureError

Levels = npt.NDArray[np.int32]  # [H, W]: the grey value, or COLOUR + 0xRRGGBB of a pixel that is not grey

COLOUR = 1 << 24
SAMPLE = 200  # masks looked at to find the meaning; evenly spread, all where there are fewer
MOST_CLASSES = 32  # more distinct values than this are fuzz, not classes
GREY_TOLERANCE = {".jpg": 24, ".jpeg": 24}  # how far the colours of a grey pixel lie apart after compression
NEAR = 8  # grey values within this of black or of the brightest are fuzz of them
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Meaning:
    """How mask values become labels."""

    classes: tuple[str, ...]  # the good one first
    threshold: float | None  # above it lies class 1; None: every value has its own class
    class_of: Mapping[int, int]  # class index or IGNORED by level, where there is no threshold

    def labels(self, levels: Levels) -> Pixels:
        """uint8 [H, W], class index or IGNORED. Raises UnreadablePictureError for a value that has no class."""
        if self.threshold is not None:
            return above(levels, self.threshold)
        labels = np.zeros(levels.shape, np.uint8)
        for level in _counted(levels):
            if level not in self.class_of:
                known = ", ".join(name_of_level(known) for known in sorted(self.class_of))
                raise UnreadablePictureError(f"mask holds {name_of_level(level)}, but classes have only {known}")
            labels[levels == level] = self.class_of[level]
        return labels


def above(levels: Levels, threshold: float) -> Pixels:
    """Labels uint8 [H, W]: 1 where a level lies above the threshold."""
    return (levels > threshold).astype(np.uint8)


def name_of_level(level: int) -> str:
    """`value 3`, or `colour #ff0000`."""
    return f"colour #{level - COLOUR:06x}" if level >= COLOUR else f"value {level}"


def read_levels(path: Path, shape: tuple[int, int] | None = None) -> Levels:
    """The values of one mask file, int32 [H, W]; raises UnreadablePictureError, also when it is not of `shape`.

    A palette image with colours yields its indexes, which are the classes; one with greys yields the greys.
    """
    if not path.is_file():
        raise UnreadablePictureError(f"mask {path.name} is missing")
    try:
        pixels, scale = _decoded(path.read_bytes())
    except OSError as error:
        raise UnreadablePictureError(f"mask {path.name} cannot be read: {error.strerror}") from error
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16, np.bool_):
        raise UnreadablePictureError(f"mask {path.name} cannot be decoded")
    if shape is not None and pixels.shape[:2] != shape:
        told = f"mask is {pixels.shape[1]}×{pixels.shape[0]} px, picture {shape[1]}×{shape[0]} px"
        raise UnreadablePictureError(told)
    if pixels.ndim == 2:
        return pixels.astype(np.int32) // scale
    return _colour_levels(pixels[..., :3], GREY_TOLERANCE.get(path.suffix.lower(), 0))


def find_meaning(paths: Sequence[Path], names: tuple[str, ...], good: str, indexes: bool = False) -> Meaning:
    """What the values of these masks mean.

    `names` are class names by index, the good one first, as far as they are known; `indexes` says that values are
    to be taken as indexes into them wherever they can be. Raises DatasetError when they contradict the names.
    """
    paths = sample(paths)
    seen = _seen(paths)
    nonzero = sorted(set(seen) - {_background(seen)})
    greys = not nonzero or max(nonzero) < COLOUR
    if names and greys and (len(names) > 2 or len(nonzero) > 1) and _are_indexes(nonzero, len(names)):
        return _indexed(names)
    if greys and (len(names) == 2 or not names) and _is_one_class(nonzero, paths):
        low, high = min(seen, default=0), max(seen, default=0)
        return Meaning(names or (good or "good", "defect"), (low + high) / 2, {})
    if names and (len(nonzero) != len(names) - 1 or (indexes and greys and min(nonzero, default=0) < len(names))):
        return _indexed_or_refused(names, nonzero, indexes and greys)
    if len(nonzero) > MOST_CLASSES:
        raise DatasetError(f"masks hold {len(nonzero)} colours; save them without compression and smoothing")
    return _ranked(names, good, _background(seen), nonzero)


def find_threshold(paths: Sequence[Path], usual: float) -> float:
    """The usual threshold, unless no mask is brighter: then half the brightest value, as 0/1 masks need it."""
    brightest = 0
    for path in sample(paths):
        try:
            brightest = max(brightest, int(read_levels(path).max(initial=0)))
        except UnreadablePictureError:
            continue  # told when the picture is read
        if brightest > usual:
            return usual
    return brightest / 2


def sample(paths: Sequence[Path]) -> list[Path]:
    """At most SAMPLE of these, evenly spread."""
    count = min(len(paths), SAMPLE)
    return [paths[index * len(paths) // count] for index in range(count)]


def _seen(paths: Iterable[Path]) -> Counter[int]:
    """How many pixels have each level."""
    seen: Counter[int] = Counter()
    for path in paths:
        try:
            seen.update(_counted(read_levels(path)))
        except UnreadablePictureError:
            continue  # told when the picture is read
    return seen


def _counted(levels: Levels) -> dict[int, int]:
    if levels.max(initial=0) < COLOUR:
        counts = np.bincount(levels.ravel())  # far faster than sorting, and greys are most masks
        return {level: int(counts[level]) for level in np.flatnonzero(counts).tolist()}
    found, numbers = np.unique(levels, return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))


def _background(seen: Counter[int]) -> int:
    """Black; where nothing is black the lowest grey, or the commonest colour."""
    if not seen or min(seen) < COLOUR:
        return min(seen, default=0)
    return seen.most_common(1)[0][0]


def _are_indexes(nonzero: list[int], count: int) -> bool:
    return all(level < count or level == IGNORED for level in nonzero) and nonzero != [IGNORED]


def _indexed(names: tuple[str, ...]) -> Meaning:
    return Meaning(names, None, {IGNORED: IGNORED} | {index: index for index in range(len(names))})


def _indexed_or_refused(names: tuple[str, ...], nonzero: list[int], indexes: bool) -> Meaning:
    if indexes and min(nonzero, default=0) < len(names):
        return _indexed(names)  # single pictures may be wrong, and are told one by one
    found = ", ".join(name_of_level(level) for level in nonzero[:8])
    raise DatasetError(
        f"masks hold {len(nonzero)} values beside the background ({found}{', …' if len(nonzero) > 8 else ''}), "
        f"but there are {len(names)} class names; name the good class and one for each value"
    )


def _ranked(names: tuple[str, ...], good: str, background: int, nonzero: list[int]) -> Meaning:
    """Each value a class, in ascending order."""
    spared = [level for level in nonzero if level == IGNORED and not names and _is_ignored(nonzero)]
    marked = [level for level in nonzero if level not in spared]
    names = names or (good or "good", *(f"class {index}" for index in range(1, len(marked) + 1)))
    class_of = {background: 0} | {level: index for index, level in enumerate(marked, 1)}
    return Meaning(names, None, class_of | dict.fromkeys(spared, IGNORED))


def _is_ignored(nonzero: list[int]) -> bool:
    """Whether 255 is beside class indexes 1, 2, 3 …: there it has always meant `not known`."""
    return len(nonzero) > 2 and nonzero == [*range(1, len(nonzero)), IGNORED]


def _is_one_class(nonzero: list[int], paths: Iterable[Path]) -> bool:
    """Whether these grey values are one defect, and whatever lies between is fuzz at its edges."""
    if len(nonzero) < 2 or len(nonzero) > MOST_CLASSES:
        return True
    if nonzero[-1] <= MOST_CLASSES or _is_ignored(nonzero):
        return False  # nobody's fuzz keeps to so few greys
    between = [level for level in nonzero if NEAR < level < nonzero[-1] - NEAR]
    return not between or not _have_area(between, paths)


def _have_area(between: list[int], paths: Iterable[Path]) -> bool:
    """Whether one of these levels fills 3×3 px anywhere: an area that somebody marked does, smoothing does not."""
    for path in paths:
        try:
            levels = read_levels(path).astype(np.uint16)
        except UnreadablePictureError:
            continue
        flat = cv2.erode(levels, np.ones((3, 3))) == cv2.dilate(levels, np.ones((3, 3)))
        if np.isin(levels[flat], between).any():
            return True
    return False


def _colour_levels(pixels: npt.NDArray[np.generic], tolerance: int) -> Levels:
    blue, green, red = (pixels[..., channel].astype(np.int32) for channel in range(3))
    brightest = np.maximum(np.maximum(blue, green), red)
    darkest = np.minimum(np.minimum(blue, green), red)
    if pixels.dtype == np.uint16 or int((brightest - darkest).max(initial=0)) <= tolerance:
        return green
    code = COLOUR + (red << 16) + (green << 8) + blue
    return np.where(brightest == darkest, green, code).astype(np.int32)


def _decoded(content: bytes) -> tuple[npt.NDArray[np.generic] | None, int]:
    """Pixels as they are stored, and by what a palette index was multiplied when it was decoded."""
    stored, scale = _as_indexes(content)
    if not stored:
        return None, 1
    try:
        return cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED), scale
    except cv2.error:  # larger than OpenCV is ready to decode
        return None, 1


def _as_indexes(content: bytes) -> tuple[bytes, int]:
    """A palette PNG with colours, called a grey one: decoders then hand out its indexes instead of the colours.

    PNG specification, 11.2.2: colour type 3 and 0 store samples alike; grey of fewer than 8 bits is stretched to
    0…255 when decoded, which is the factor given back.
    """
    if not content.startswith(PNG) or content[12:16] != b"IHDR" or content[25:26] != b"\x03":
        return content, 1
    position = content.find(b"PLTE")
    (length,) = struct.unpack(">I", content[position - 4 : position]) if position > 0 else (0,)
    stored = content[position + 4 : position + 4 + length]
    palette = np.frombuffer(stored[: len(stored) // 3 * 3], np.uint8).reshape(-1, 3)
    if (palette == palette[:, :1]).all() or content[24] not in (1, 2, 4, 8):
        return content, 1
    header = content[12:25] + b"\x00" + content[26:29]
    head = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    return _without_palette(head), 255 // ((1 << content[24]) - 1)


def _without_palette(content: bytes) -> bytes:
    kept, position = [content[:8]], 8
    while position + 8 <= len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if content[position + 4 : position + 8] not in (b"PLTE", b"tRNS", b"bKGD", b"hIST"):
            kept.append(content[position:end])
        position = end
    return b"".join(kept)
