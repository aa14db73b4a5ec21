"""Which pictures of a data set show the same scene: the same bytes, the same pixels, or nearly; it knows no label.

Nearly the same means: at another exposure, with noise, cropped or shifted by up to an eighth of its size. Two steps
make that affordable for thousands of pictures. The amplitude spectrum of a thumbnail's middle, which a shift does not
change, proposes for each picture a dozen others (one matrix product in blocks). Normalised cross-correlation of the
two thumbnails, over every shift that keeps their middle inside, confirms. Thumbnails hold texture only: the local mean
is taken away and the local contrast made even, so that light and exposure say nothing.

Not found: turned, mirrored or rescaled copies. Parts that are alike by design, lying in a fixture, look like one part
taken often; `look_alike` says when that is so.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.connected import first_of_each
from engines.datasets.labelled import Pixels, Shape

LIKENESS = 0.78  # measured on 1,014 magnetic tiles: 0.74 is the most that pictures of different tiles reach
CANDIDATES = 12
BLOCK = 512  # pictures compared with all others at once; 20 MB for 10,000 pictures
SHORT_SIDE = 72  # px of the middlemost picture's thumbnail
PATCH = 48  # px of the thumbnail's middle whose spectrum is taken
MIDDLE = 0.75  # of the smaller thumbnail is looked for in the other
SIGMA = 3.0  # px of a thumbnail; what varies over more than this is light
GREY_NOISE = 0.5  # grey levels of local contrast below which there is no texture
STEPS = 24.0  # of int8 per standard deviation
LOOK_ALIKE = 0.25  # share of the pictures in one set from which the parts rather than the pictures are alike

Texture = npt.NDArray[np.int8]
Spectra = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """Two pictures that show the same, in the order of their paths."""

    first: str
    second: str
    kind: str  # "same bytes", "same pixels" or "near"
    likeness: float  # normalised cross-correlation, up to 1


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What is kept of a picture to compare it with others: about 15 kB."""

    image: str
    content: bytes  # digest of the file
    pixels: bytes  # digest of shape and grey values
    texture: Texture  # int8 [h, w], local mean removed, 24 steps per local standard deviation

    @cached_property
    def spectrum(self) -> Spectra:
        """float32 [PATCH × (PATCH/2 + 1)], zero mean, of length 1, or all zero where there is no texture."""
        patch = np.zeros((PATCH, PATCH), np.float32)
        height, width = (min(size, PATCH) for size in self.texture.shape)
        down, right = (PATCH - height) // 2, (PATCH - width) // 2
        patch[down : down + height, right : right + width] = _middle(self.texture, height, width)
        window = np.hanning(PATCH).astype(np.float32)
        amplitudes = np.log1p(np.abs(np.fft.rfft2(patch * np.outer(window, window)))).ravel()
        amplitudes -= amplitudes.mean()
        length = float(np.linalg.norm(amplitudes))
        return (amplitudes / length if length > 0 else amplitudes).astype(np.float32)


def thumbnail_scale(shapes: Iterable[Shape]) -> float:
    """The scale at which the middlemost of these pictures (height, width in px) gets a thumbnail of the usual size."""
    return min(1.0, SHORT_SIDE / float(np.median([min(shape) for shape in shapes])))


def fingerprint(image: str, content: bytes, pixels: Pixels, scale: float) -> Fingerprint:
    """`pixels`: uint8 [H, W] or [H, W, 3]; `scale` is one for the whole set, or shifts could not be compared."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if pixels.ndim == 3 else pixels
    known = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    known.update(np.ascontiguousarray(pixels).data)
    return Fingerprint(
        image, hashlib.blake2b(content, digest_size=16).digest(), known.digest(), _texture(np.asarray(grey), scale)
    )


def find_pairs(
    prints: Sequence[Fingerprint],
    likeness: float = LIKENESS,
    candidates: int = CANDIDATES,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Pair]:
    """Every pair found, exact ones first; of several exact copies each is paired with the next only.

    `progress` is told how many of the proposed pairs have been looked at.
    """
    by_path = sorted(prints, key=lambda known: known.image)
    bytes_pairs, one_each = _exact(by_path, "content", "same bytes")
    pixel_pairs, one_each = _exact(one_each, "pixels", "same pixels")
    proposed = _proposed(one_each, candidates)
    near = []
    for done, (first, second) in enumerate(proposed, 1):
        one, other = one_each[first], one_each[second]
        if (alike := correlation(one.texture, other.texture)) >= likeness:
            near.append(Pair(one.image, other.image, "near", round(alike, 4)))
        progress(done, len(proposed))
    return bytes_pairs + pixel_pairs + near


def correlation(one: Texture, other: Texture) -> float:
    """Normalised cross-correlation, −1 … 1, of the smaller texture's middle with the other at the best shift."""
    small, large = sorted((one, other), key=lambda texture: texture.size)
    height, width = (max(1, int(MIDDLE * min(sizes))) for sizes in zip(small.shape, large.shape, strict=True))
    template, field = _middle(small, height, width).astype(np.float32), large.astype(np.float32)
    if not template.any():
        return 0.0
    _, _, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(field, template, cv2.TM_CCOEFF_NORMED))
    # OpenCV's own figure is arbitrary where the field is flat.
    a, b = template - template.mean(), field[y : y + height, x : x + width]
    b = b - b.mean()
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length else 0.0


def proposed_groups(pairs: Iterable[Pair]) -> list[tuple[str, ...]]:
    """Pictures that hang together over any number of pairs: sets of paths that a split must keep on one side."""
    sets: dict[str, list[str]] = defaultdict(list)
    for name, first in first_of_each((pair.first, pair.second) for pair in pairs).items():
        sets[first].append(name)
    return [tuple(sorted(sets[first])) for first in sorted(sets)]


def across(sets: Iterable[tuple[str, ...]], side_of: dict[str, str]) -> list[tuple[str, ...]]:
    """The sets whose pictures are on more than one side of a split; what is left out of it is on no side."""
    leaks = []
    for paths in sets:
        sides = {side for path in paths if (side := side_of.get(path, "left-out")) != "left-out"}
        if len(sides) > 1:
            leaks.append(paths)
    return leaks


def look_alike(sets: Iterable[tuple[str, ...]], pictures: int) -> bool:
    """True when one set holds so many of the pictures that the parts, not the pictures, must be alike."""
    return max(map(len, sets), default=0) > max(12, LOOK_ALIKE * pictures)


def _texture(grey: Pixels, scale: float) -> Texture:
    height, width = (max(8, round(size * scale)) for size in grey.shape)
    small = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    small = cv2.GaussianBlur(small, (0, 0), 0.7)
    detail = small - cv2.GaussianBlur(small, (0, 0), SIGMA)
    contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 2 * SIGMA)) + GREY_NOISE
    return np.clip(np.rint(detail / contrast * STEPS), -127, 127).astype(np.int8)


def _middle(texture: Texture, height: int, width: int) -> Texture:
    down, right = (texture.shape[0] - height) // 2, (texture.shape[1] - width) // 2
    return texture[down : down + height, right : right + width]


def _exact(prints: Sequence[Fingerprint], key: str, kind: str) -> tuple[list[Pair], list[Fingerprint]]:
    """Pairs with equal digests, and one picture of each digest."""
    same: dict[bytes, list[Fingerprint]] = defaultdict(list)
    for known in prints:
        same[getattr(known, key)].append(known)
    pairs = [Pair(a.image, b.image, kind, 1.0) for some in same.values() for a, b in pairwise(some)]
    return pairs, [some[0] for some in same.values()]


def _proposed(prints: Sequence[Fingerprint], candidates: int) -> list[tuple[int, int]]:
    """Pairs of indexes (smaller first, in order) of each picture and those whose spectra are most like its own."""
    if len(prints) < 2:
        return []
    spectra = np.stack([known.spectrum for known in prints])
    count = min(candidates, len(prints) - 1)
    found: set[tuple[int, int]] = set()
    for start in range(0, len(prints), BLOCK):
        alike = spectra[start : start + BLOCK] @ spectra.T
        rows = np.arange(len(alike))
        alike[rows, start + rows] = -np.inf  # a picture does not propose itself
        nearest = np.argpartition(-alike, count - 1, axis=1)[:, :count]
        for row, others in enumerate(nearest.tolist(), start):
            found.update((min(row, other), max(row, other)) for other in others)
    return sorted(found)
