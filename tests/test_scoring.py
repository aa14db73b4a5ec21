"""Figures against truth, each computed by hand."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import make_frame

from engines import rle
from pipeline.messages import Defect, Judgement, Verdict
from pipeline.scoring import MaskTruths, PanelTruths, Score, Truth
from pipeline.sources.directory import list_images
from pipeline.sources.panel import PanelSimulator

DATA = Path(os.environ.get("AOI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SHAPE = (4, 8)


def mask_of(*columns: int) -> np.ndarray:
    """A mask [4, 8] with these columns set: 4 px each."""
    mask = np.zeros(SHAPE, bool)
    mask[:, list(columns)] = True
    return mask


def said(judgement: Judgement, shape: tuple[int, int] = SHAPE, reason: str = "", **masks: np.ndarray) -> Verdict:
    """A verdict with one defect for each mask."""
    box = {"score": 1.0, "bbox": (0, 0, 1, 1), "area_px": 1, "centroid": (0.0, 0.0)}
    defects = tuple(Defect(class_name=name, **box) for name in masks)  # type: ignore[arg-type]
    runs = {name: rle.encode(mask) for name, mask in masks.items()}
    frame = make_frame(0).without_pixels()
    return Verdict(frame=frame, judgement=judgement, reason=reason, defects=defects, masks=runs, mask_shape=shape)


def scored(*pairs: tuple[Verdict, Truth]) -> Score:
    score = Score()
    for verdict, truth in pairs:
        score.add(verdict, truth)
    return score


GOOD = Truth("", mask_of())
PIT = Truth("pit", mask_of(0, 1))
SCRATCH = Truth("scratch", mask_of(4))


def test_nothing_counted_is_none() -> None:
    """A share of nothing is not 0 and not 1."""
    score = Score()
    assert (score.precision, score.recall, score.escape, score.overkill, score.dice()) == (None,) * 5
    assert score.by_class() == {}
    only_good = scored((said("OK"), GOOD))
    assert (only_good.precision, only_good.recall, only_good.escape, only_good.overkill) == (None, None, None, 0.0)
    assert only_good.dice() is None
    only_bad = scored((said("OK"), PIT))
    assert (only_bad.precision, only_bad.recall, only_bad.escape, only_bad.overkill) == (None, 0.0, 1.0, None)


def test_escape_overkill_precision_and_recall_of_frames() -> None:
    """REVIEW and UNINSPECTED are neither escape nor overkill, but they are frames that were there."""
    bad: list[Judgement] = ["NG", "NG", "NG", "OK", "REVIEW"]
    good: list[Judgement] = ["OK", "OK", "NG", "UNINSPECTED"]
    score = scored(*[(said(j), PIT) for j in bad], *[(said(j), GOOD) for j in good])
    assert score.precision == pytest.approx(3 / 4)
    assert score.recall == pytest.approx(3 / 5)
    assert score.escape == pytest.approx(1 / 5)
    assert score.overkill == pytest.approx(1 / 4)


def test_dice_is_pooled_over_all_frames() -> None:
    """2·|both| / (|said| + |true|) of all pixels together: not the mean of the frames' own."""
    score = scored(
        (said("NG", pit=mask_of(1, 2)), PIT),  # 8 said, 8 true, 4 both
        (said("NG", pit=mask_of(0, 1, 2)), GOOD),  # 12 said
        (said("OK"), SCRATCH),  # 4 true
        (said("OK"), GOOD),
    )
    assert score.dice() == pytest.approx(2 * 4 / (8 + 8 + 12 + 4))
    assert score.dice("pit") == pytest.approx(2 * 4 / (8 + 8 + 12))
    assert score.dice("scratch") == 0.0
    assert score.dice("dent") is None


def test_right_pixels_of_the_wrong_class() -> None:
    """Count for defective against good, not for either class."""
    score = scored((said("NG", scratch=mask_of(0, 1)), PIT))
    assert score.dice() == 1.0
    assert (score.dice("pit"), score.dice("scratch")) == (0.0, 0.0)
    figures = score.by_class()
    assert figures["pit"] == {"frames": 1, "found": 1.0, "precision": None, "recall": 0.0, "dice": 0.0}
    assert figures["scratch"] == {"frames": 0, "found": None, "precision": 0.0, "recall": None, "dice": 0.0}


def test_figures_by_class() -> None:
    """Found at all, named rightly, and how much of what was named so was it."""
    score = scored(
        (said("NG", pit=mask_of(0, 1)), PIT),
        (said("NG", scratch=mask_of(0), pit=mask_of(1)), PIT),
        (said("OK"), PIT),
        (said("NG", pit=mask_of(4)), SCRATCH),
        (said("NG", pit=mask_of(7)), GOOD),
    )
    figures = score.by_class()
    assert list(figures) == ["pit", "scratch"]
    assert figures["pit"]["frames"] == 3
    assert figures["pit"]["found"] == pytest.approx(2 / 3)
    assert figures["pit"]["recall"] == pytest.approx(2 / 3)
    assert figures["pit"]["precision"] == pytest.approx(2 / 4)
    assert figures["pit"]["dice"] == pytest.approx(2 * 12 / (20 + 24))
    assert (figures["scratch"]["found"], figures["scratch"]["recall"], figures["scratch"]["precision"]) == (1, 0, 0)


def test_classifier_alone_names_its_class_by_the_reason() -> None:
    """Without defects an NG's reason is its class; another judgement's reason is none."""
    score = scored((said("NG", (0, 0), "pit"), PIT), (said("REVIEW", (0, 0), "no_region"), PIT))
    figures = score.by_class()
    assert list(figures) == ["pit"]
    assert (figures["pit"]["recall"], figures["pit"]["precision"]) == (0.5, 1.0)


def test_frame_without_a_mask_says_nothing_of_pixels() -> None:
    """What was never looked at pixel by pixel neither adds to Dice nor takes from it."""
    alone = scored((said("NG", pit=mask_of(0)), PIT))
    with_others = scored(
        (said("NG", pit=mask_of(0)), PIT),
        (said("NG", (0, 0), "pit"), PIT),
        (said("UNINSPECTED", (0, 0), "undecodable"), PIT),
    )
    assert with_others.dice() == alone.dice() == pytest.approx(2 * 4 / (4 + 8))


def test_panel_truth_is_the_simulators() -> None:
    """Panel n again: its class, empty for a good one, and its defective pixels."""
    simulator = PanelSimulator(seed=3, size=(64, 64), defect_rate=0.5)
    truths = PanelTruths(simulator)
    kinds = set()
    for number in range(12):
        panel, truth = simulator.panel(number), truths.of(number)
        assert truth.class_name == ("" if panel.class_name == "normal" else panel.class_name)
        assert np.array_equal(truth.mask, panel.truth > 0)
        kinds.add(bool(truth.class_name))
    assert kinds == {True, False}


def test_mask_beside_the_image_is_its_truth(tmp_path: Path) -> None:
    """Pixels defective from 128 on; the class is the one in the folders' names, also where the mask is empty."""
    folder = tmp_path / "MT_Pit" / "Imgs"
    folder.mkdir(parents=True)
    mask = np.zeros((4, 8), np.uint8)
    mask[0, :3] = (127, 128, 255)
    names = ["a.jpg", "b.jpg", "c.jpg", "d.png"]
    for name, truth in (("a", mask), ("b", mask // 3)):
        cv2.imwrite(str(folder / f"{name}.png"), truth)
    (folder / "c.png").write_bytes(b"not an image")
    truths = MaskTruths(tmp_path, [folder / name for name in names], ["scratch", "pit"])
    first, second = truths.of(0), truths.of(1)
    assert first is not None
    assert second is not None
    assert first.class_name == "pit"
    assert np.argwhere(first.mask).tolist() == [[0, 1], [0, 2]]
    assert (second.class_name, second.mask.any()) == ("pit", False)
    assert truths.of(2) is None, "a mask that cannot be read is no truth"
    assert truths.of(3) is None, "a .png is not its own mask"
    assert truths.of(4) is None, "beyond the list nothing is known"


@pytest.mark.parametrize(("gray", "class_name"), [(255, "defect"), (127, "")])
def test_class_of_a_folder_no_recipe_knows(tmp_path: Path, gray: int, class_name: str) -> None:
    """Its mask decides: defective, and never good, where it marks anything."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((2, 2), gray, np.uint8))
    truth = MaskTruths(tmp_path, [tmp_path / "a.jpg"], ["pit"]).of(0)
    assert truth is not None
    assert truth.class_name == class_name


def test_truth_of_the_magnetic_tiles() -> None:
    """Every image has its mask; those of the free tiles are empty, all others are not."""
    folder = DATA / "magnetic-tile"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; set AOI_DATA to the folder with magnetic-tile/")
    images, _ = list_images(folder)
    truths = MaskTruths(folder, images, ["blowhole", "break", "crack", "fray", "uneven"])
    for sequence in range(0, len(images), 23):
        truth = truths.of(sequence)
        assert truth is not None
        place = images[sequence].relative_to(folder).parts[0].lower()
        assert truth.class_name == ("" if place == "mt_free" else place.removeprefix("mt_"))
