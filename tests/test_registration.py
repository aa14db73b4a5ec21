"""A board is laid onto its golden template, or refused: what is only shifted does not turn into defects."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import pytest
from training_pictures import REPOSITORY

from pipeline.registration import Align, Registration, TemplateError, against_template, onto, register, stacked

BOARDS = Path(os.environ.get("AOI_DATA", REPOSITORY.parent / "shared" / "data")) / "deep-pcb"
# One of each group; pairs of this set lie up to 13 px off by themselves, so what is added is what is measured.
NAMES = ("00041/00041000", "13000/13000002", "20085/20085001", "44000/44000064", "77000/77000000")
MARGIN = 24  # px cut off, so that a shifted board shows at its border what really lies there

Pair = tuple[np.ndarray, np.ndarray]


def crop(image: np.ndarray, dx: float = 0.0, dy: float = 0.0, degrees: float = 0.0) -> np.ndarray:
    """The inner part of a board of which the content was turned and then moved right and down, in px."""
    centre = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D(centre, degrees, 1.0)
    matrix[:, 2] += dx, dy
    moved = cv2.warpAffine(image, matrix, image.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(moved[MARGIN:-MARGIN, MARGIN:-MARGIN])


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Boards of DeepPCB with their templates, mono8 [640, 640]."""
    tests = [path for name in NAMES if (path := BOARDS / f"group{name[:5]}" / f"{name}_test.jpg").is_file()]
    if not tests:
        pytest.skip("no DeepPCB pairs in ../shared/data or AOI_DATA")
    return [(cv2.imread(str(p), 0), cv2.imread(str(p).replace("_test", "_temp"), 0)) for p in tests]


def drawn(seed: int = 0, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A part without any data set: a few dozen rectangles on grey."""
    rng, image = np.random.default_rng(seed), np.full(size, 90, np.uint8)
    for _ in range(40):
        x, y, width, height = rng.integers(0, (size[1], size[0], 50, 50))
        cv2.rectangle(image, (int(x), int(y)), (int(x + width), int(y + height)), int(rng.integers(40, 240)), -1)
    return image


def angle(found: Registration) -> float:
    """Counter-clockwise turn of the picture in degrees."""
    matrix = found.matrix
    return math.degrees(math.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))


def differing(picture: np.ndarray, template: np.ndarray) -> float:
    """Share of pixels that are black in one and white in the other."""
    return float((cv2.absdiff(picture, template) > 127).mean())


@pytest.mark.parametrize(("dx", "dy"), [(3.0, -5.0), (-7.5, 2.25), (12.0, 9.0), (-0.5, 0.0)])
def test_shift_of_a_board_is_recovered(pairs: list[Pair], dx: float, dy: float) -> None:
    """What a board is moved by is found within 0.2 px, defects and all; also a part of a pixel."""
    for board, template in pairs:
        own = register(crop(board), crop(template)).shift
        found = register(crop(board, dx, dy), crop(template)).shift
        assert np.subtract(found, own) == pytest.approx((dx, dy), abs=0.2)


def test_shifted_board_does_not_turn_into_defects(pairs: list[Pair]) -> None:
    """After registration as few pixels differ as before the shift; without it more than three times as many."""
    for board, template in pairs:
        golden, still, moved = crop(template), crop(board), crop(board, 4.0, -6.0)
        before = differing(still, onto(still, golden, register(still, golden)))
        after = differing(moved, onto(moved, golden, register(moved, golden)))
        assert after < 1.25 * before
        assert differing(moved, golden) > 3 * after


@pytest.mark.parametrize("degrees", [0.5, -0.5])
def test_turned_board_is_laid_straight(pairs: list[Pair], degrees: float) -> None:
    """Half a degree is found (boards are a little turned themselves); fewer pixels differ than with a shift alone."""
    for board, template in pairs:
        turned, golden = crop(board, 2.0, -3.0, degrees), crop(template)
        found = register(turned, golden, "ecc")
        assert angle(found) == pytest.approx(degrees, abs=0.125)
        shifted = onto(turned, golden, register(turned, golden, "shift"))
        assert differing(turned, onto(turned, golden, found)) < 0.7 * differing(turned, shifted)


def test_scale_is_found_too() -> None:
    """A camera that came 1 % nearer; the picture's own centre says by how much it moved."""
    template = drawn()
    matrix = cv2.getRotationMatrix2D((159.5, 119.5), 0.0, 1.01)
    picture = cv2.warpAffine(template, matrix, (320, 240), borderMode=cv2.BORDER_REPLICATE)
    found = register(picture, template, "ecc")
    assert found.matrix[:, :2] == pytest.approx(np.eye(2) / 1.01, abs=0.002)
    assert found.shift == pytest.approx((0, 0), abs=0.2)


@pytest.mark.parametrize("align", ["shift", "ecc"])
def test_template_of_another_board_is_refused(pairs: list[Pair], align: Align) -> None:
    """Better not judged than judged against the wrong one; the reason says so."""
    for number, (board, _) in enumerate(pairs):
        with pytest.raises(TemplateError, match=r"(too little like|off) its golden template"):
            register(board, pairs[number - 1][1], align)


def test_board_beyond_the_bound_is_refused() -> None:
    """A shift of 10 px where 6 are allowed is no small shift of another kind; where 12 are, it is found."""
    template = drawn()
    picture = np.roll(template, 10, axis=1)
    with pytest.raises(TemplateError, match="golden template"):
        register(picture, template, max_shift_px=6)
    assert register(picture, template, max_shift_px=12).shift == pytest.approx((10, 0), abs=0.1)


@pytest.mark.parametrize("grey", [0, 90, 255])
def test_blank_frame_is_refused(grey: int) -> None:
    """A dark, an empty and a blinded frame show nothing to go by; nor does a blank template."""
    blank = np.full((240, 320), grey, np.uint8)
    with pytest.raises(TemplateError, match="the picture shows nothing"):
        register(blank, drawn())
    with pytest.raises(TemplateError, match="the golden template shows nothing"):
        register(drawn(), blank)


def test_noise_alone_is_refused() -> None:
    """A camera without a part before it looks like no template."""
    noise = np.random.default_rng(0).normal(90, 20, (240, 320)).clip(0, 255).astype(np.uint8)
    with pytest.raises(TemplateError, match="golden template"):
        register(noise, drawn())


def test_shading_that_all_frames_share_does_not_pass_for_the_part() -> None:
    """Two different parts under the same strong falloff of light are still different."""
    y, x = np.mgrid[0:240, 0:320]
    light = np.exp(-((x - 160) ** 2 + (y - 120) ** 2) / 2e4)
    ours, theirs = ((0.2 * drawn(seed) * light + 180 * light).astype(np.uint8) for seed in (0, 1))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95
    with pytest.raises(TemplateError, match="golden template"):
        register(ours, theirs)
    assert register(ours, ours).shift == (0, 0)


def test_light_and_noise_do_not_move_a_part() -> None:
    """Another exposure and σ 12 of noise leave the shift where it is."""
    template = drawn()
    noise = np.random.default_rng(1).normal(0, 12, template.shape)
    picture = (np.roll(template, (3, -6), (0, 1)) * 0.7 + 20 + noise).clip(0, 255).astype(np.uint8)
    assert register(picture, template).shift == pytest.approx((-6, 3), abs=0.2)


def test_pattern_that_repeats_is_not_mistaken_by_a_period() -> None:
    """Cells of 16 px: the nearest of all shifts that fit is meant, because no other is allowed."""
    cell = drawn(size=(16, 16))
    template = np.tile(cell, (12, 16))
    picture = np.roll(template, (2, -3), (0, 1))
    assert register(picture, template, max_shift_px=7).shift == pytest.approx((-3, 2), abs=0.2)


def test_large_frames_are_registered_as_finely() -> None:
    """Reduced for the search, the answer is in pixels of the frame: 2,000 × 1,500 px within 0.3."""
    template = cv2.resize(drawn(), (2000, 1500), interpolation=cv2.INTER_NEAREST)
    matrix = np.array([[1, 0, 17.0], [0, 1, -9.5]])
    picture = cv2.warpAffine(template, matrix, (2000, 1500), borderMode=cv2.BORDER_REPLICATE)
    assert register(picture, template).shift == pytest.approx((17, -9.5), abs=0.3)


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (7, 5), (33, 17)])
@pytest.mark.parametrize("align", ["shift", "ecc"])
def test_tiny_frames_end_in_an_answer(size: tuple[int, int], align: Align) -> None:
    """However small, a frame is registered or refused with a reason; nothing else comes out."""
    picture = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    with suppress(TemplateError):
        assert register(picture, picture, align).shift == (0, 0)


def test_same_answer_every_time(pairs: list[Pair]) -> None:
    """The same two pictures give the same matrix to the last bit."""
    board, template = crop(pairs[0][0], 3.3, 1.7, 0.2), crop(pairs[0][1])
    first, again = (register(board, template, "ecc") for _ in range(2))
    assert np.array_equal(first.matrix, again.matrix)
    assert first.quality == again.quality


def test_without_align_nothing_is_moved_or_checked() -> None:
    """A part that lies in a fixture: the difference is that of the pixels as they are."""
    picture, template = drawn(0), drawn(1)
    stack = against_template(picture, template, "none")
    assert np.array_equal(stack[..., 0], picture)
    assert np.array_equal(stack[..., 1], template)
    assert np.array_equal(stack[..., 2], np.abs(picture.astype(int) - template))
    assert np.array_equal(stacked(picture, template), stack)


def test_defect_stays_where_the_frame_has_it() -> None:
    """The template moves, the frame does not: the difference is the defect, at its place, and nothing else."""
    template = drawn()
    picture = np.roll(template, (5, 8), (0, 1))
    picture[:5], picture[:, :8] = 33, 33  # what a shifted part lets into view; the template knows nothing of it
    picture[100:110, 150:170] = np.where(picture[100:110, 150:170] > 128, 0, 255)
    stack = against_template(picture, template)
    assert stack.shape == (240, 320, 3)
    assert np.array_equal(stack[..., 0], picture)
    assert cv2.boundingRect((stack[..., 2] > 0).astype(np.uint8)) == (150, 100, 20, 10)


def test_sizes_must_agree() -> None:
    """A template of another size is refused with both sizes, width first."""
    with pytest.raises(TemplateError, match="golden template is 320×200 px, the picture 320×240 px"):
        register(drawn(), drawn()[:200])


def test_registration_is_cheap(pairs: list[Pair]) -> None:
    """A frame of 592 × 592 px takes tens of milliseconds, not hundreds, on one slow core too."""
    board, template = crop(pairs[0][0], 3, -5), crop(pairs[0][1])
    took = []
    for _ in range(5):
        start = time.perf_counter()
        against_template(board, template)
        took.append(time.perf_counter() - start)
    assert median(took) < 0.25
