"""Run-length codes: checked against a loop over single pixels, and against Kaggle's own rows."""

from __future__ import annotations

import csv
import os
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import rle

DATA = Path(os.environ.get("AOI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Small masks of any shape, also without a pixel, all clear and all set."""
    height, width = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    pixels = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return np.array(pixels, bool).reshape(height, width)


def column_by_column(mask: np.ndarray) -> list[bool]:
    height, width = mask.shape
    return [bool(mask[y, x]) for x in range(width) for y in range(height)]


def by_hand(mask: np.ndarray) -> list[int]:
    """The code as Kaggle describes it, pixel by pixel."""
    code: list[int] = []
    before = False
    for number, pixel in enumerate(column_by_column(mask), 1):
        if pixel and not before:
            code += [number, 0]
        if pixel:
            code[-1] += 1
        before = pixel
    return code


@given(masks())
def test_encoding_is_what_a_loop_over_the_pixels_finds(mask: np.ndarray) -> None:
    """Starts count from 1, down the first column first, and a run goes on into the next column."""
    assert rle.encode(mask).tolist() == by_hand(mask)


@given(masks())
def test_decoding_gives_the_mask_back(mask: np.ndarray) -> None:
    """No pixel is lost or moved, whatever the shape."""
    decoded = rle.decode(rle.encode(mask), mask.shape)
    assert decoded.dtype == bool
    assert np.array_equal(decoded, mask)


@given(masks())
def test_text_goes_there_and_back(mask: np.ndarray) -> None:
    """Kaggle's text form holds everything the code does."""
    runs = rle.encode(mask)
    assert rle.from_text(rle.to_text(runs)).tolist() == runs.tolist()
    assert rle.to_text(runs) == " ".join(str(number) for number in by_hand(mask))


@given(masks())
def test_coco_counts_are_the_lengths_of_alternating_runs(mask: np.ndarray) -> None:
    """As pycocotools has them: zeros first, no empty run but that one, filling the image to the pixel."""
    pixels = column_by_column(mask)
    lengths = [len(list(run)) for _, run in groupby(pixels)] or [0]
    expected = [0, *lengths] if pixels and pixels[0] else lengths
    counts = rle.to_counts(rle.encode(mask), mask.shape)
    assert counts == expected
    assert rle.from_counts(counts).tolist() == rle.encode(mask).tolist()


def test_any_value_but_zero_is_in_the_mask() -> None:
    """Label images and 0/255 masks are encoded as they are."""
    labels = np.array([[0, 3], [255, 0]], np.uint8)
    assert rle.encode(labels).tolist() == [2, 2]


def test_example_of_the_competition() -> None:
    """`1 3 10 5`, as Kaggle explains it: pixels 1, 2, 3 and 10 to 14, numbered down the columns."""
    mask = rle.decode(rle.from_text("1 3 10 5"), (4, 4))
    assert np.flatnonzero(mask.ravel(order="F")).tolist() == [0, 1, 2, 9, 10, 11, 12, 13]


def test_touching_runs_are_one_region() -> None:
    """Foreign code may split a run; it is read as it is and becomes one in COCO's counts and on encoding."""
    mask = rle.decode([1, 2, 3, 2], (3, 3))
    assert rle.encode(mask).tolist() == [1, 4]
    assert rle.from_counts([0, 2, 0, 2, 5]).tolist() == [1, 2, 3, 2]


@pytest.mark.parametrize(
    "runs",
    [
        [1],
        [0, 1],
        [1, 0],
        [-1, 2],
        [10, 1],
        [9, 2],
        [3, 3, 1, 1],
        [1, 3, 3, 1],
        [1, 2**62, 5, 2**62],
        [2**63 - 1, 1],
    ],
)
def test_code_that_does_not_fit_is_refused(runs: list[int]) -> None:
    """Odd, zero, negative, beyond the image, out of order, overlapping, overflowing: ValueError, not a wrong mask."""
    with pytest.raises(ValueError, match="run-length code"):
        rle.decode(runs, (3, 3))
    if min(runs) >= 0 and max(runs) < 1 << 32:
        with pytest.raises(ValueError, match="run-length code"):
            rle.to_counts(np.array(runs, np.uint32), (3, 3))


@pytest.mark.parametrize("text", ["1 x", "1.5 2", "-1 5", "0 3", "4294967296 1", "99999999999999999999 5"])
def test_text_that_is_no_code_is_refused(text: str) -> None:
    """Words, fractions, signs and numbers that would wrap around are told, not turned into other numbers."""
    with pytest.raises(ValueError, match=r"run-length|invalid literal"):
        rle.from_text(text)


def test_negative_counts_are_refused() -> None:
    """COCO counts with a negative run would silently move every later run."""
    with pytest.raises(ValueError, match="negative"):
        rle.from_counts([5, -1, 3])


def test_severstal_rows_come_back_to_the_letter() -> None:
    """All 638 rows of a real competition: decode, encode, and the same text comes out."""
    path = DATA / "severstal-rle" / "train_rows.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here; set AOI_DATA to the folder with severstal-rle/")
    with path.open(newline="") as file:
        texts = [row["EncodedPixels"] for row in csv.DictReader(file)]
    assert len(texts) == 638
    for text in texts:
        mask = rle.decode(rle.from_text(text), (256, 1600))
        assert mask.shape == (256, 1600)
        assert rle.to_text(rle.encode(mask)) == text


@given(masks())
def test_cocos_string_holds_the_counts(mask: np.ndarray) -> None:
    """Packed and unpacked, as text or as bytes, the counts are the same."""
    counts = rle.to_counts(rle.encode(mask), mask.shape)
    text = rle.counts_to_text(counts)
    assert rle.counts_from_text(text) == rle.counts_from_text(text.encode()) == counts


@given(st.lists(st.integers(0, 1 << 34)))
def test_cocos_string_holds_counts_of_any_size(counts: list[int]) -> None:
    """Differences of either sign and of several characters come back."""
    assert rle.counts_from_text(rle.counts_to_text(counts)) == counts


def test_cocos_string_worked_by_hand() -> None:
    """40 is 8 and more, then 1: `X1`; from the fourth on differences: 4-1=3, 5-40=-35 is 29 and more, then -2: `mN`."""
    counts = [6, 1, 40, 4, 5, 4, 5, 4, 21]
    assert rle.counts_to_text(counts) == "61X13mN000`0"
    assert rle.counts_from_text("61X13mN000`0") == counts
    assert rle.counts_from_text("") == []


@pytest.mark.parametrize("text", ["X", "1~", "1 2", "ü", "o" * 50 + "0", "O", "123P", b"\xff"])
def test_a_string_that_is_no_code_is_refused(text: str | bytes) -> None:
    """Cut off, foreign characters, a number without end, a negative count: ValueError."""
    with pytest.raises(ValueError, match="COCO"):
        rle.counts_from_text(text)
