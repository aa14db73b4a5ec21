"""From a frame's image to tiles of the network's size, and from tiles' masks back to the frame; pure.

A frame larger than the network's input is covered with overlapping tiles, never shrunk below what the
recipe's smallest defect needs; a smaller one is continued at its right and lower edge (replicated, so that
no edge appears that is not on the part). On the way back each pixel is taken from the tile in which it lies
deepest, so that no seam depends on what the network said.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from engines.contrast import contrasted
from pipeline.errors import WireError
from pipeline.messages import Image
from pipeline.recipe import Recipe
from pipeline.registration import Align, TemplateError, onto, register, stacked

Gray8 = npt.NDArray[np.uint8]
Rect = tuple[int, int, int, int]


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles lie in a working image of height × width px, and which part of it each one owns."""

    height: int
    width: int
    tile_height: int
    tile_width: int
    origins: tuple[tuple[int, int], ...]  # (y, x) of each tile's upper left corner
    owned: tuple[tuple[int, int, int, int], ...]  # (y0, y1, x0, x1) in the working image; they partition it


def plan_tiles(height: int, width: int, tile_height: int, tile_width: int, overlap: int) -> TilePlan:
    """Fewest tiles that cover height × width with at least `overlap` px shared, evenly spread."""
    rows, row_ends = _positions(height, tile_height, overlap)
    columns, column_ends = _positions(width, tile_width, overlap)
    origins = tuple((y, x) for y in rows for x in columns)
    owned = tuple((*ys, *xs) for ys in row_ends for xs in column_ends)
    return TilePlan(height, width, tile_height, tile_width, origins, owned)


def _positions(length: int, tile: int, overlap: int) -> tuple[list[int], list[tuple[int, int]]]:
    if length <= tile:
        return [0], [(0, length)]
    overlap = min(overlap, tile - 1)
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    cuts = [0, *((a + tile + b) // 2 for a, b in itertools.pairwise(starts)), length]
    return starts, list(itertools.pairwise(cuts))


def working_image(image: Image, recipe: Recipe, channels: int, template: Gray8 | None = None) -> Gray8:
    """uint8 [H, W] or [H, W, 3]: region of interest, 8 bits, the network's channels, contrast step, scale.

    Without any of these it is a view of the frame's own pixels. Where the recipe has a golden template, it is
    picture, template [H, W] and difference. Raises WireError, and TemplateError where they cannot be compared.
    """
    _check_size(image, recipe.picture.min_size)
    if recipe.template.used:
        return _beside(image, template, recipe, channels)
    image = _crop(image, recipe.picture.roi)
    if image.dtype == np.uint16:
        image = _to_8_bits(image, recipe.optics.bit_depth)
    picture = _with_channels(image, channels)
    return _scaled(contrasted(picture, recipe.picture.contrast), recipe)


def _beside(image: Image, template: Gray8 | None, recipe: Recipe, channels: int) -> Gray8:
    """Picture, template and difference of the region of interest: registered by all that can be seen, then cut."""
    if template is None or channels != 3:
        raise TemplateError("the recipe's golden template needs a network of 3 channels, and to be given")
    picture = grey8(image, recipe)
    found = register(picture, template, cast(Align, recipe.template.align), recipe.template.max_shift_px)
    pair = [_crop(each, recipe.picture.roi) for each in (picture, onto(picture, template, found))]
    shown = [contrasted(cast(Gray8, np.ascontiguousarray(each)), recipe.picture.contrast) for each in pair]
    return stacked(
        *(_scaled(each, recipe) for each in shown)
    )  # the difference of what the network sees, as in training


def grey8(image: Image, recipe: Recipe) -> Gray8:
    """uint8 [H, W] of a frame's image or a template. Raises WireError for more bits than the recipe says."""
    return _with_channels(_to_8_bits(image, recipe.optics.bit_depth) if image.dtype == np.uint16 else image, 1)


def _scaled(picture: Gray8, recipe: Recipe) -> Gray8:
    if recipe.picture.scale == 1.0:
        return picture
    how = cv2.INTER_AREA if recipe.picture.scale < 1 else cv2.INTER_LINEAR
    height, width = (max(1, round(side * recipe.picture.scale)) for side in picture.shape[:2])
    return cast(Gray8, cv2.resize(picture, (width, height), interpolation=how))


def _check_size(image: Image, min_size: Sequence[int]) -> None:
    if min_size and (image.shape[1] < min_size[0] or image.shape[0] < min_size[1]):
        least = f"{min_size[0]}×{min_size[1]}"
        raise WireError(f"wrong size: {image.shape[1]}×{image.shape[0]} px, picture.min_size says at least {least}")


def _to_8_bits(image: Image, bit_depth: int) -> Gray8:
    """The upper 8 of the significant bits; a sample that has more than the recipe says would turn white unseen."""
    if (brightest := int(image.max())) >> bit_depth:
        raise WireError(f"wrong bit depth: a sample of {brightest} takes more than optics.bit_depth = {bit_depth}")
    return cast(Gray8, cv2.convertScaleAbs(image, alpha=1.0 / (1 << (bit_depth - 8))))


def _crop(image: Image, roi: Sequence[int]) -> Image:
    if not roi:
        return image
    x, y, width, height = roi
    if y + height > image.shape[0] or x + width > image.shape[1] or not width or not height:
        raise WireError(f"region of interest {list(roi)} leaves the frame of {image.shape[1]}×{image.shape[0]} px")
    return image[y : y + height, x : x + width]


def _with_channels(image: Image, channels: int) -> Gray8:
    if image.ndim == 3 and channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if image.ndim == 2 and channels == 3:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return cast(Gray8, image)


def cut_tiles(picture: Gray8, plan: TilePlan) -> list[Gray8]:
    """Views uint8 [h, w, C] of the working image, in the plan's order; continued at the edge where it ends."""
    down = max(0, plan.tile_height - picture.shape[0])
    right = max(0, plan.tile_width - picture.shape[1])
    if down or right:
        picture = cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_REPLICATE)
    picture = picture.reshape(*picture.shape[:2], -1)
    return [picture[y : y + plan.tile_height, x : x + plan.tile_width] for y, x in plan.origins]


def stitch(tiles: dict[int, Gray8], plan: TilePlan) -> Gray8:
    """One uint8 image [H, W] from tile answers [h, w] by tile index; 0 where no tile was run."""
    whole = np.zeros((plan.height, plan.width), dtype=np.uint8)
    for index, tile in tiles.items():
        (y, x), (y0, y1, x0, x1) = plan.origins[index], plan.owned[index]
        whole[y0:y1, x0:x1] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
    return whole


def to_frame(mask: Gray8, image_shape: tuple[int, ...], recipe: Recipe) -> Gray8:
    """A mask of the working image, laid back onto the whole frame [H, W] with nearest neighbour."""
    x, y, width, height = recipe.picture.roi or (0, 0, image_shape[1], image_shape[0])
    if mask.shape != (height, width):
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    if (height, width) == image_shape[:2]:
        return mask
    whole = np.zeros(image_shape[:2], dtype=np.uint8)
    whole[y : y + height, x : x + width] = mask
    return whole
