"""Pictures of judged frames: marks where the defect is, and no disk that could stop a verdict."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import make_frame, wait_until

from engines import rle
from pipeline.errors import DiskError
from pipeline.messages import Defect, Frame, Judgement, Verdict
from pipeline.overlay import LONGEST_SIDE, SHORTEST_SIDE, OverlayFolder, draw
from pipeline.stream import Delivery


def ng(frame: Frame, judgement: Judgement = "NG", shape: tuple[int, int] = (64, 64)) -> Verdict:
    """A verdict with a scratch of 8 × 6 px at (30, 20), its mask included."""
    mask = np.zeros(shape, bool)
    mask[20:26, 30:38] = True
    scratch = Defect(class_name="scratch", score=0.9, bbox=(30, 20, 8, 6), area_px=48, centroid=(33.5, 22.5))
    masks = {"scratch": rle.encode(mask)}
    return Verdict(frame=frame, judgement=judgement, reason="x", defects=(scratch,), masks=masks, mask_shape=shape)


def shown(sequence: int = 0, judgement: Judgement = "NG", **facts: object) -> tuple[Delivery, Verdict]:
    frame = replace(make_frame(sequence), **facts)  # type: ignore[arg-type]
    return Delivery(frame, str(sequence), b"", 0, 0), ng(frame.without_pixels(), judgement)


def marked(picture: np.ndarray) -> np.ndarray:
    """Pixels [H, W] with a colour: the frames here are grey."""
    return np.ptp(picture.astype(int), axis=2) > 60


@pytest.mark.parametrize(
    "image",
    [
        np.full((64, 64), 100, np.uint8),
        np.full((64, 64), 3000, np.uint16),
        np.full((64, 64, 3), 100, np.uint8),
        np.zeros((64, 64), np.uint16),
    ],
    ids=["mono8", "mono16", "bgr8", "black mono16"],
)
def test_defect_is_marked_where_it_is(image: np.ndarray) -> None:
    """The outline lies on the mask's edge, enlarged with the frame; far from the defect nothing is drawn."""
    before = image.copy()
    picture = draw(image, ng(make_frame(0)))
    assert picture.dtype == np.uint8
    zoom = picture.shape[1] // 64
    assert zoom * 64 >= SHORTEST_SIDE
    assert picture.shape == (64 * zoom + 30, 64 * zoom, 3)
    marks = marked(picture)
    edge = marks[20 * zoom, 30 * zoom : 38 * zoom]
    assert edge.mean() > 0.9, "the mask's upper edge is outlined"
    assert marks[22 * zoom, 38 * zoom - 1], "and its right one"
    inside = marks[22 * zoom : 24 * zoom, 32 * zoom : 36 * zoom]
    assert not inside.any(), "the defect itself can be seen"
    assert not marks[40 * zoom : 64 * zoom].any()
    assert not marks[:, : 20 * zoom][: 64 * zoom].any()
    assert marks[64 * zoom :].any(), "the judgement stands below"
    assert np.array_equal(image, before), "the frame itself is not drawn on"


def test_frame_without_defects_is_shown_as_it_is() -> None:
    """Only the caption is added."""
    image = np.random.default_rng(0).integers(0, 256, (600, 700), np.uint8)
    verdict = Verdict(frame=make_frame(0), judgement="OK")
    picture = draw(image, verdict)
    assert picture.shape == (630, 700, 3)
    assert np.array_equal(picture[:600], np.dstack([image] * 3))


@pytest.mark.parametrize("shape", [(1, 1), (2, 9000), (9000, 2), (1, 16384)])
def test_narrow_frame_is_not_blown_up(shape: tuple[int, int]) -> None:
    """A line camera's frame must not become gigabytes because its short side is to be readable."""
    picture = draw(np.full(shape, 90, np.uint8), Verdict(frame=make_frame(0), judgement="NG"))
    assert max(picture.shape) <= max(LONGEST_SIDE, *shape) + 30
    assert picture.shape[0] - 30 >= shape[0]


def test_defect_at_the_frame_s_edge_and_a_long_name() -> None:
    """Boxes and texts that leave the picture, and names in another script, are drawn as far as they fit."""
    frame = replace(make_frame(0), name="検査" * 200 + ".png")
    corner = Defect(class_name="é" * 90, score=1, bbox=(62, 62, 2, 2), area_px=4, centroid=(63, 63))
    verdict = replace(ng(frame), defects=(corner,), masks={})
    assert marked(draw(np.full((64, 64), 100, np.uint8), verdict))[: 64 * 8].any()


def test_pictures_of_the_chosen_judgements_are_written(tmp_path: Path) -> None:
    """Named by judgement, source and sequence; the file is the drawn picture; others are not written."""
    folder = OverlayFolder(tmp_path / "new" / "ng", ("NG", "REVIEW"))
    for number, judgement in enumerate(("NG", "OK", "REVIEW", "UNINSPECTED")):
        folder.show(*shown(number, judgement))  # type: ignore[arg-type]
    folder.close()
    assert sorted(p.name for p in folder.folder.iterdir()) == ["NG_cam-s-0.png", "REVIEW_cam-s-2.png"]
    assert (folder.written, folder.left_out) == (2, 0)
    delivery, verdict = shown(0)
    written = cv2.imread(str(folder.folder / "NG_cam-s-0.png"))
    assert np.array_equal(written, draw(delivery.frame.image(), verdict))


def test_no_more_than_the_limit(tmp_path: Path) -> None:
    """A bad lot does not fill the disk, and what is beyond the limit is not a failure."""
    folder = OverlayFolder(tmp_path, limit=2)
    for number in range(6):
        folder.show(*shown(number))
    folder.close()
    assert len(list(tmp_path.iterdir())) == folder.written == 2
    assert folder.left_out == 0


@pytest.mark.parametrize("source", ["../../etc/x", "a/b", "/abs", "..", "a\nb", "a b"])
def test_source_name_from_a_message_is_no_path(tmp_path: Path, source: str) -> None:
    """Whatever a frame calls its source, the picture lies in the folder."""
    folder = OverlayFolder(tmp_path / "in")
    folder.show(*shown(0, source=source))
    folder.close()
    (written,) = tmp_path.rglob("*.png")
    assert written.parent == tmp_path / "in"
    assert set(written.name) <= set("abcdefghijklmnopqrstuvwxyzNG_.-0")


def test_folder_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    """Before the line starts, with what to do."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="choose another"):
        OverlayFolder(tmp_path / "file" / "sub")
    with pytest.raises(DiskError, match="choose another"):
        OverlayFolder(tmp_path / "file")


def test_folder_that_goes_away_costs_pictures_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Replaced by a file while running: each picture is counted as left out, told once, nothing raised."""
    folder = OverlayFolder(tmp_path / "ng")
    (tmp_path / "ng").rmdir()
    (tmp_path / "ng").write_text("x")
    for number in range(3):
        folder.show(*shown(number))
    folder.close()
    assert (folder.written, folder.left_out) == (0, 3)
    assert sum("not written" in record.message for record in caplog.records) == 1
    assert sum("3 overlays were left out" in record.message for record in caplog.records) == 1


def test_full_disk_costs_pictures_only(tmp_path: Path) -> None:
    """The kernel's own full device in the picture's place; the next picture is written again."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "NG_cam-s-0.png").symlink_to("/dev/full")
    folder = OverlayFolder(tmp_path)
    folder.show(*shown(0))
    folder.show(*shown(1))
    folder.close()
    assert (folder.written, folder.left_out) == (1, 1)
    assert (tmp_path / "NG_cam-s-1.png").stat().st_size > 0


def test_frame_that_cannot_be_drawn_costs_its_picture_only(tmp_path: Path) -> None:
    """Undecodable pixels, or a mask that does not fit: left out, and the next one is drawn."""
    folder = OverlayFolder(tmp_path)
    folder.show(*shown(0, pixels=b"short"))
    delivery, verdict = shown(1)
    folder.show(delivery, replace(verdict, mask_shape=(2, 2)))
    folder.show(*shown(2))
    folder.close()
    assert (folder.written, folder.left_out) == (1, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["NG_cam-s-2.png"]


class Gate:
    """A frame's image that is not ready before the test says so."""

    def __init__(self) -> None:
        self.asked, self.opened = threading.Event(), threading.Event()

    def image(self) -> np.ndarray:
        self.asked.set()
        self.opened.wait(10)
        return np.zeros((8, 8), np.uint8)


def test_slow_disk_never_holds_up_the_worker(tmp_path: Path) -> None:
    """While one picture takes its time the others queue up, then are left out and counted; `show` returns."""
    folder, gate = OverlayFolder(tmp_path), Gate()
    delivery, verdict = shown(0)
    folder.show(replace(delivery, frame=gate), verdict)  # type: ignore[arg-type]
    wait_until(gate.asked.is_set)
    for number in range(1, 101):
        folder.show(*shown(number))
    left_out = folder.left_out
    assert 0 < left_out < 100
    gate.opened.set()
    folder.close()
    assert folder.written + folder.left_out == 101
    assert folder.left_out == left_out
