"""Where a picture lies against its golden template, and both of them with their difference as one picture; pure.

Phase correlation (Kuglin & Hines 1975; `cv2.phaseCorrelate` knows no bound, so the surface is computed here and
searched within the recipe's) proposes shifts on reduced pictures; the normalised correlation of what then overlaps
chooses among them, and none at all is one of them. ECC (Evangelidis & Psarakis 2008, doi:10.1109/TPAMI.2008.113,
`cv2.findTransformECC`) refines that to a part of a pixel, or to a small turn and scale as well. A picture that even
then looks too little like its template is refused with the reason: judging it against a wrong one would be worse
than not judging it. It is the template that is moved, so that defects stay where the frame has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

Align = Literal["none", "shift", "ecc"]
Gray8 = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

ALIGNS: tuple[Align, ...] = ("none", "shift", "ecc")
MAX_SHIFT_PX = 24
# DeepPCB: boards with their own templates have 0.65 and more (one of 1,000: 0.496), with another design's 0.23 at most.
MIN_QUALITY = 0.5
LEAST_STRUCTURE = 1.0  # standard deviation in grey levels of what is left without the slow shading
COARSE_PX = 192  # longest side on which shifts are proposed; what noise does to one pixel is gone there
FINE_PX = 512  # … and on which they are refined
PROPOSALS = 4
SNAP_PX = 0.1  # a shift this close to whole pixels is taken for one: then no pixel is interpolated
WORTH = 0.85  # a turn and a scale must leave at most this share of what a shift alone leaves unexplained
ITERATIONS = cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4


class TemplateError(Exception):
    """A picture that cannot be compared with its golden template; the text is the reason, as a verdict gives it."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Where each pixel of a picture lies in its template, and how much both then look alike."""

    matrix: Matrix  # [2, 3]: (x, y, 1) of the picture in px → (x, y) of the template in px
    quality: float  # normalised correlation of what overlaps, slow shading removed; at most 1
    shape: tuple[int, int]  # height, width of both in px

    @property
    def shift(self) -> tuple[float, float]:
        """How far right and down, in px, what the picture shows has moved; of its centre."""
        x, y = (self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2
        there = self.matrix @ (x, y, 1.0)
        return float(x - there[0]), float(y - there[1])


def against_template(
    picture: Gray8, template: Gray8, align: Align = "shift", max_shift_px: float = MAX_SHIFT_PX
) -> Gray8:
    """uint8 [H, W, 3]: picture, template laid onto it, absolute difference; both given as uint8 [H, W].

    Where the template does not reach, it is taken to be as the picture is. Raises TemplateError.
    """
    return stacked(picture, onto(picture, template, register(picture, template, align, max_shift_px)))


def register(
    picture: Gray8, template: Gray8, align: Align = "shift", max_shift_px: float = MAX_SHIFT_PX
) -> Registration:
    """Find where the picture [H, W] lies in a template of the same size; the same two always give the same answer.

    With `none` nothing is looked for and nothing checked. Raises TemplateError when the sizes differ, when one
    of both shows nothing to go by, when they look too little alike, or when a corner moved more than allowed.
    """
    shape = (picture.shape[0], picture.shape[1])
    if template.shape != picture.shape:
        raise TemplateError(f"golden template is {_size(template)}, the picture {_size(picture)}")
    if align == "none":
        return Registration(np.eye(2, 3), 1.0, shape)
    by = _factor(shape, FINE_PX)
    start = _scaled(_proposed(picture, template, max_shift_px), 1 / by)
    matrix, quality = _refined(_reduced(picture, by), _reduced(template, by), start, align, max_shift_px / by)
    matrix = _snapped(_scaled(matrix, by), align)
    if not quality >= MIN_QUALITY:
        raise TemplateError(f"picture looks too little like its golden template: {quality:.2f} of {MIN_QUALITY}")
    if (far := _farthest(matrix, shape)) > max_shift_px:
        raise TemplateError(f"picture lies {far:.1f} px off its golden template, {max_shift_px:g} at most")
    return Registration(matrix, quality, shape)


def onto(picture: Gray8, template: Gray8, found: Registration) -> Gray8:
    """The template as the picture [H, W] should look, uint8 [H, W]; where it does not reach, the picture itself."""
    if np.array_equal(found.matrix, np.eye(2, 3)):
        return template
    size, how = found.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(template, found.matrix, size, flags=how)
    reached = cv2.warpAffine(np.full(found.shape, 255, np.uint8), found.matrix, size, flags=how)
    cv2.copyTo(picture, cv2.compare(reached, 255, cv2.CMP_LT), moved)
    return cast(Gray8, moved)


def stacked(picture: Gray8, template: Gray8) -> Gray8:
    """uint8 [H, W, 3] of two uint8 [H, W]: picture, template, absolute difference."""
    return cast(Gray8, cv2.merge([picture, template, cv2.absdiff(picture, template)]))


def _factor(shape: tuple[int, ...], longest_px: int) -> int:
    return max(1, min(-(-max(shape) // longest_px), min(shape) // 8))


def _reduced(image: Gray8, by: int) -> Plane:
    """`by` times smaller and a little smoothed."""
    height, width = image.shape[0] // by, image.shape[1] // by
    whole = np.ascontiguousarray(image[: height * by, : width * by])
    small = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    return cast(Plane, cv2.GaussianBlur(small.astype(np.float32), (5, 5), 1.0))


def _structure(plane: Plane) -> Plane:
    """Without the slow shading, which all frames of a camera share and which must not pass for the part."""
    side = max(3, max(plane.shape) // 8) | 1
    return cast(Plane, plane - cv2.blur(plane, (side, side)))


def _proposed(picture: Gray8, template: Gray8, max_shift_px: float) -> Matrix:
    """The best of the shifts that phase correlation finds, and of none, as a matrix in px of the picture."""
    by = _factor(picture.shape, COARSE_PX)
    seen, golden = _structure(_reduced(picture, by)), _structure(_reduced(template, by))
    for plane, what in ((seen, "picture"), (golden, "golden template")):
        if float(plane.std()) < LEAST_STRUCTURE:
            raise TemplateError(f"the {what} shows nothing by which it could be registered")
    most = min(int(-(-max_shift_px // by)) + 1, (min(seen.shape) - 1) // 2)
    shifts = [(0, 0), *_peaks(_phase_surface(seen, golden, most))]
    dx, dy = max(shifts, key=lambda shift: _alike(seen, golden, *shift))
    return np.array([[1.0, 0.0, -dx * by], [0.0, 1.0, -dy * by]])


def _phase_surface(seen: Plane, golden: Plane, most: int) -> Plane:
    """[2 most + 1, 2 most + 1]: how much speaks for each shift of whole pixels, (0, 0) in the middle."""
    height, width = seen.shape
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    padding = cv2.getOptimalDFTSize(height) - height, cv2.getOptimalDFTSize(width) - width
    spectra = [
        cv2.dft(np.pad(window * plane, ((0, padding[0]), (0, padding[1]))), flags=cv2.DFT_COMPLEX_OUTPUT)
        for plane in (seen, golden)
    ]
    cross = cv2.mulSpectrums(spectra[0], spectra[1], 0, conjB=True)
    size = cv2.magnitude(cross[..., 0], cross[..., 1])
    cross /= (size + np.float32(1e-3) * size.mean() + np.float32(1e-12))[
        ..., None
    ]  # frequencies without content keep out of it
    surface = cv2.dft(cross, flags=cv2.DFT_INVERSE | cv2.DFT_REAL_OUTPUT)
    around = np.arange(-most, most + 1)
    return cast(Plane, surface[np.ix_(around, around)])


def _peaks(surface: Plane) -> list[tuple[int, int]]:
    """(dx, dy) of the highest local maxima, the highest first."""
    highest = surface >= cv2.dilate(surface, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(highest)
    order = np.argsort(-surface[rows, columns], kind="stable")[:PROPOSALS]
    middle = surface.shape[0] // 2
    return [(int(columns[i]) - middle, int(rows[i]) - middle) for i in order]


def _alike(seen: Plane, golden: Plane, dx: int, dy: int) -> float:
    """Normalised correlation of what overlaps when `seen` is `golden` moved by whole pixels."""
    height, width = seen.shape
    ours = seen[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    theirs = golden[max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)]
    return _correlation(ours.ravel(), theirs.ravel())


def _correlation(one: Plane, other: Plane) -> float:
    one, other = one - one.mean(), other - other.mean()
    both = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / both if both > 0 else 0.0


def _refined(seen: Plane, golden: Plane, start: Matrix, align: Align, most: float) -> tuple[Matrix, float]:
    """The guess, or what ECC makes of it where that is better, in px of these planes; and its quality.

    ECC works on the planes with their shading: without, their borders would not move with the rest. A turn, a
    scale and a shear have to earn their place: where a pattern runs in one direction only they drift along it.
    """
    structures = _structure(seen), _structure(golden)
    best = start, _quality(*structures, start)
    steps = [(cv2.MOTION_TRANSLATION, 1.0), (cv2.MOTION_AFFINE, WORTH)]
    for motion, share in steps if align == "ecc" else steps[:1]:
        try:
            _, found = cv2.findTransformECC(seen, golden, best[0].astype(np.float32), motion, ITERATIONS, None, 5)
        except cv2.error:  # it has run off the picture
            continue
        matrix = found.astype(np.float64)
        quality = _quality(*structures, matrix)
        if 1 - quality < share * (1 - best[1]) and _farthest(matrix, seen.shape) <= most:
            best = matrix, quality
    return best


def _quality(seen: Plane, golden: Plane, matrix: Matrix) -> float:
    """Normalised correlation of `seen` and `golden` laid onto it, where it reaches."""
    size, how = seen.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(golden, matrix, size, flags=how, borderValue=float("nan"))
    reached = np.isfinite(moved)
    return _correlation(seen[reached], moved[reached]) if reached.mean() > 0.25 else 0.0


def _farthest(matrix: Matrix, shape: tuple[int, ...]) -> float:
    """How far, in px, the corner that has moved most has moved."""
    right, down = shape[1] - 1.0, shape[0] - 1.0
    corners = np.array([[0, 0, 1], [right, 0, 1], [0, down, 1], [right, down, 1]])
    return float(np.hypot(*(corners @ matrix.T - corners[:, :2]).T).max())


def _scaled(matrix: Matrix, by: float) -> Matrix:
    """The same movement in pixels `by` times as fine; whole pixels have their centre at whole numbers."""
    centre = (by - 1) / 2
    finer = np.array([[by, 0.0, centre], [0.0, by, centre], [0.0, 0.0, 1.0]])
    whole = finer @ np.vstack([matrix, [0.0, 0.0, 1.0]]) @ np.linalg.inv(finer)
    return cast(Matrix, whole[:2])


def _snapped(matrix: Matrix, align: Align) -> Matrix:
    whole = np.rint(matrix)
    return whole if align == "shift" and np.abs(matrix - whole).max() < SNAP_PX else matrix


def _size(image: Gray8) -> str:
    return f"{image.shape[1]}×{image.shape[0]} px"
