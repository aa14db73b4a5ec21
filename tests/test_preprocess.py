"""Frames become tiles and tiles' answers become frames again, without a pixel lost, moved or shrunk away."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import WireError
from pipeline.preprocess import TilePlan, cut_tiles, plan_tiles, stitch, to_frame, working_image
from pipeline.recipe import Recipe, parse_recipe

sides = st.integers(1, 90)
plans = st.builds(plan_tiles, sides, sides, st.integers(1, 40), st.integers(1, 40), st.integers(0, 50))


def recipe_with(picture: dict[str, Any] | None = None, **optics: Any) -> Recipe:
    model = {"file": "net", "classes": ["good", "scratch"]}
    tables = {"picture": picture or {}, "optics": {"smallest_defect_px": 50, **optics}}
    return parse_recipe({"name": "r", "mode": "segment", "segmenter": model, **tables})


def numbered(height: int, width: int) -> np.ndarray:
    """A picture of which every small part is different."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width), np.uint8)


@given(plans)
def test_owned_parts_cover_every_pixel_once(plan: TilePlan) -> None:
    """The parts taken from the tiles are a partition of the picture."""
    seen = np.zeros((plan.height, plan.width), int)
    for y0, y1, x0, x1 in plan.owned:
        seen[y0:y1, x0:x1] += 1
    assert (seen == 1).all()
    assert len(plan.owned) == len(plan.origins)


@given(plans)
def test_tiles_lie_inside_and_hold_what_they_own(plan: TilePlan) -> None:
    """No tile begins before or ends behind a picture larger than it, and each contains its own part."""
    for (y, x), (y0, y1, x0, x1) in zip(plan.origins, plan.owned, strict=True):
        assert y >= 0
        assert x >= 0
        assert y + plan.tile_height <= max(plan.height, plan.tile_height)
        assert x + plan.tile_width <= max(plan.width, plan.tile_width)
        assert y <= y0 < y1 <= y + plan.tile_height
        assert x <= x0 < x1 <= x + plan.tile_width


@given(sides, st.integers(1, 40), st.integers(0, 50))
def test_neighbours_share_the_overlap_with_the_fewest_tiles(length: int, tile: int, overlap: int) -> None:
    """At least the overlap (or all but one pixel of a tile), and one tile less could not do it."""
    plan = plan_tiles(length, 1, tile, 1, overlap)
    starts = [y for y, _ in plan.origins]
    overlap = min(overlap, tile - 1)
    assert all(a + tile - b >= overlap for a, b in pairwise(starts))
    assert len(starts) == 1 or len(starts) * tile - (len(starts) - 1) * overlap >= length
    assert len(starts) == 1 or (len(starts) - 1) * tile - (len(starts) - 2) * overlap < length


@given(plans)
def test_cutting_and_stitching_gives_the_picture_back(plan: TilePlan) -> None:
    """Every tile has the network's size, and what goes through untouched comes out untouched."""
    picture = numbered(plan.height, plan.width)
    tiles = cut_tiles(picture, plan)
    assert {tile.shape for tile in tiles} == {(plan.tile_height, plan.tile_width, 1)}
    answers = {index: tile[..., 0] for index, tile in enumerate(tiles)}
    assert np.array_equal(stitch(answers, plan), picture)


def test_each_pixel_comes_from_the_tile_in_which_it_lies_deepest() -> None:
    """The seam runs through the middle of what two tiles share."""
    plan = plan_tiles(1, 14, 1, 8, 2)
    whole = stitch({0: np.full((1, 8), 1, np.uint8), 1: np.full((1, 8), 2, np.uint8)}, plan)
    assert plan.origins == ((0, 0), (0, 6))
    assert whole.tolist() == [[1] * 7 + [2] * 7]


def test_tile_that_was_not_run_is_good() -> None:
    """Only suspect tiles are segmented; the rest of the frame is background."""
    plan = plan_tiles(8, 16, 8, 8, 0)
    whole = stitch({1: np.full((8, 8), 3, np.uint8)}, plan)
    assert not whole[:, :8].any()
    assert (whole[:, 8:] == 3).all()


def test_tiles_are_views_where_the_picture_is_large_enough() -> None:
    """Cutting copies nothing; a defect-free line spends no time on it."""
    picture = numbered(64, 96)
    assert all(np.shares_memory(tile, picture) for tile in cut_tiles(picture, plan_tiles(64, 96, 32, 32, 8)))


def test_small_picture_is_continued_at_its_edge() -> None:
    """By its own last row and column, so that no edge appears that is not on the part."""
    picture = numbered(3, 5)
    (tile,) = cut_tiles(picture, plan_tiles(3, 5, 6, 8, 0))
    assert np.array_equal(tile[:3, :5, 0], picture)
    assert (tile[3:, :5, 0] == picture[2]).all()
    assert (tile[:3, 5:, 0] == picture[:, 4:5]).all()
    assert (tile[3:, 5:, 0] == picture[2, 4]).all()


def test_colour_tiles_keep_their_channels() -> None:
    """A BGR picture is cut into tiles of three channels."""
    picture = np.dstack([numbered(20, 20)] * 3)
    assert {tile.shape for tile in cut_tiles(picture, plan_tiles(20, 20, 16, 16, 4))} == {(16, 16, 3)}


def test_plain_recipe_touches_nothing() -> None:
    """Without any step the working image is the frame's own pixels, also where they may not be written."""
    image = np.frombuffer(numbered(30, 40).tobytes(), np.uint8).reshape(30, 40)
    working = working_image(image, recipe_with(), 1)
    assert np.shares_memory(working, image)
    assert np.array_equal(working, image)


def test_channels_are_the_networks() -> None:
    """Grey for a grey network, three equal channels for a colour one; colour weights are the usual ones."""
    gray = numbered(6, 7)
    assert np.array_equal(working_image(gray, recipe_with(), 3), np.dstack([gray] * 3))
    red = np.zeros((6, 7, 3), np.uint8)
    red[..., 2] = 255
    assert np.array_equal(working_image(red, recipe_with(), 1), np.full((6, 7), 76))


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_samples_lose_their_lower_bits(bits: int) -> None:
    """The largest sample of the camera's depth becomes white, black stays black, half is half."""
    top = (1 << bits) - 1
    image = np.array([[0, top // 2, top]], np.uint16)
    assert np.abs(working_image(image, recipe_with(bit_depth=bits), 1).astype(int) - [[0, 127, 255]]).max() <= 1


@pytest.mark.parametrize(("bits", "sample"), [(8, 256), (8, 3000), (12, 4096), (12, 65535)])
def test_samples_deeper_than_the_recipe_says_are_refused(bits: int, sample: int) -> None:
    """They would all turn white, and what is white looks good."""
    image = np.full((4, 4), 100, np.uint16)
    image[2, 2] = sample
    with pytest.raises(WireError, match=f"wrong bit depth: a sample of {sample} .*bit_depth = {bits}"):
        working_image(image, recipe_with(bit_depth=bits), 1)
    image[2, 2] = (1 << bits) - 1
    assert working_image(image, recipe_with(bit_depth=bits), 1).dtype == np.uint8


def test_region_of_interest_is_cut_out() -> None:
    """[x, y, width, height], exactly."""
    image = numbered(40, 60)
    assert np.array_equal(working_image(image, recipe_with({"roi": [10, 5, 20, 30]}), 1), image[5:35, 10:30])
    assert working_image(image, recipe_with({"roi": [0, 0, 60, 40]}), 1).shape == (40, 60)


@pytest.mark.parametrize("roi", [[10, 5, 51, 30], [10, 5, 20, 36], [60, 0, 1, 1], [0, 0, 0, 5], [0, 0, 5, 0]])
def test_region_of_interest_that_leaves_the_frame_is_refused(roi: list[int]) -> None:
    """A frame of another size than the recipe's is not inspected in part."""
    with pytest.raises(WireError, match="region of interest"):
        working_image(numbered(40, 60), recipe_with({"roi": roi}), 1)


@pytest.mark.parametrize("step", ["equalize", "clahe"])
@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_step_spreads_the_grey_levels(step: str, channels: int) -> None:
    """A faint structure stands out more than before, in grey and in colour, and the frame itself is unchanged."""
    image = (numbered(64, 64) // 16 + 100).astype(np.uint8)
    image = np.dstack([image] * 3) if channels == 3 else image
    before = image.copy()
    working = working_image(image, recipe_with({"contrast": step}), channels)
    assert working.shape == image.shape
    assert working.std() > 2 * image.std()
    assert np.array_equal(image, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3, 5), (2, 2, 3)])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("step", ["none", "equalize", "clahe"])
def test_tiny_frames_are_pictures_too(shape: tuple[int, ...], scale: float, step: str) -> None:
    """One pixel is left of a frame however small; no shape stops the worker."""
    image = np.full(shape, 90, np.uint8)
    working = working_image(image, recipe_with({"scale": scale, "contrast": step}), 1)
    assert working.shape == tuple(max(1, round(side * scale)) for side in shape[:2])
    assert len(cut_tiles(working, plan_tiles(*working.shape, 16, 16, 4))) >= 1


@given(sides, sides, st.sampled_from([0.3, 0.5, 1.0, 1.7, 4.0]), st.booleans())
def test_mask_is_laid_back_onto_the_frame(height: int, width: int, scale: float, cropped: bool) -> None:
    """A mask of the working image gets the frame's size, at the region's place and nothing outside of it."""
    x, y = (width // 3, height // 4) if cropped else (0, 0)
    roi = [x, y, width - x, height - y] if cropped else []
    recipe = recipe_with({"scale": scale, "roi": roi})
    working = working_image(np.zeros((height, width), np.uint8), recipe, 1)
    whole = to_frame(np.full(working.shape, 5, np.uint8), (height, width), recipe)
    expected = np.zeros((height, width), np.uint8)
    expected[y:, x:] = 5
    assert np.array_equal(whole, expected)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_defect_keeps_its_place_through_scaling(scale: float) -> None:
    """What lies somewhere in the frame comes back there to the pixel of the coarser of both pictures."""
    image = np.zeros((80, 120), np.uint8)
    image[20:40, 60:80] = 200
    recipe = recipe_with({"scale": scale, "roi": [20, 10, 90, 60]})
    labels = (working_image(image, recipe, 1) > 100).astype(np.uint8)
    found = cv2.boundingRect(to_frame(labels, image.shape, recipe))
    assert np.abs(np.array(found) - [60, 20, 20, 20]).max() <= 1


def test_frame_smaller_than_the_recipe_says_is_refused() -> None:
    """A cut-off acquisition is not a small good part; at the limit it is inspected."""
    recipe = recipe_with({"min_size": [20, 10]})
    assert working_image(np.zeros((10, 20), np.uint8), recipe, 1).shape == (10, 20)
    for shape in ((9, 20), (10, 19)):
        with pytest.raises(WireError, match="wrong size"):
            working_image(np.zeros(shape, np.uint8), recipe, 1)
