"""Pictures of judged frames with their defects drawn on; a full disk costs pictures, never a verdict.

Frames are handed over by reference and drawn in a thread of its own; when it cannot keep up, pictures are left
out, and how many is told at the end.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import DiskError
from pipeline.messages import Defect, Image, Judgement, Verdict
from pipeline.stream import Delivery

log = logging.getLogger("aoi.overlay")

COLOURS = ((60, 60, 255), (0, 200, 255), (255, 120, 40), (80, 220, 80), (255, 60, 220), (220, 220, 60))  # BGR
INK = {"OK": (80, 200, 80), "NG": (60, 60, 255), "REVIEW": (0, 200, 255), "UNINSPECTED": (200, 200, 200)}
SHORTEST_SIDE = 512  # px; smaller frames are enlarged, so that text and outlines can be read
LONGEST_SIDE = 8192  # px; and not enlarged beyond this: a line camera's frame may be 1 px high
LONGEST_ID = 128  # signs of a frame's id in a file's name
BACKLOG = 16


def draw(image: Image, verdict: Verdict) -> npt.NDArray[np.uint8]:
    """BGR picture of a frame [H, W] or [H, W, 3]: outlines and boxes per class, a caption bar below."""
    gray = cv2.convertScaleAbs(image, alpha=255.0 / max(1, int(image.max()))) if image.dtype != np.uint8 else image
    picture = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR) if gray.ndim == 2 else gray.copy()
    zoom = max(1, min(-(-SHORTEST_SIDE // min(picture.shape[:2])), LONGEST_SIDE // max(picture.shape[:2])))
    picture = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    names = sorted(verdict.masks)
    for name in names:
        _outline(picture, verdict.mask(name), zoom, _colour(names, name))
    written: list[tuple[int, int, int, int]] = []
    for defect in sorted(verdict.defects, key=lambda defect: -defect.area_px):
        _box(picture, defect, zoom, _colour(names, defect.class_name), written)
    return _captioned(picture, verdict)


def _colour(names: Sequence[str], name: str) -> tuple[int, int, int]:
    return COLOURS[names.index(name) % len(COLOURS)] if name in names else COLOURS[0]


def _outline(picture: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], zoom: int, colour: Sequence[int]) -> None:
    large = cv2.resize(mask.astype(np.uint8), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, 1, cv2.LINE_AA)


def _box(
    picture: npt.NDArray[np.uint8],
    defect: Defect,
    zoom: int,
    colour: Sequence[int],
    written: list[tuple[int, int, int, int]],
) -> None:
    """A box, and its class and score where no larger defect's text stands already."""
    margin, (x, y, width, height) = 6, (value * zoom for value in defect.bbox)
    cv2.rectangle(picture, (x - margin, y - margin), (x + width + margin, y + height + margin), colour, 1, cv2.LINE_AA)
    text = f"{defect.class_name} {defect.score:.2f}"
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    left = min(max(2, x - margin), picture.shape[1] - text_width - 2)
    above = y - margin - 5
    bottom = above if above > text_height + 2 else min(y + height + margin + text_height + 5, picture.shape[0] - 3)
    place = (left, bottom - text_height, left + text_width, bottom)
    if any(_overlap(place, other) for other in written):
        return
    written.append(place)
    cv2.rectangle(picture, (left - 3, bottom - text_height - 3), (left + text_width + 2, bottom + 4), (24, 24, 24), -1)
    cv2.putText(picture, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _captioned(picture: npt.NDArray[np.uint8], verdict: Verdict) -> npt.NDArray[np.uint8]:
    bar = np.full((30, picture.shape[1], 3), 32, np.uint8)
    judged = f"{verdict.judgement} {verdict.reason}".strip()
    cv2.putText(bar, judged, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, INK[verdict.judgement], 1, cv2.LINE_AA)
    (used, _), _ = cv2.getTextSize(judged, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)
    name = (
        (verdict.frame.name or f"{verdict.frame.source} {verdict.frame.sequence}").encode("ascii", "replace").decode()
    )
    fits = name[-max(4, (picture.shape[1] - used - 32) // 8) :]
    (width, _), _ = cv2.getTextSize(fits, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
    cv2.putText(
        bar, fits, (picture.shape[1] - width - 8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (220, 220, 220), 1, cv2.LINE_AA
    )
    return np.vstack([picture, bar])


def file_name(judgement: str, frame_id: str) -> str:
    """`JUDGEMENT_FRAMEID.png`; an id that is no plain name is written as far as it is one, and told apart by `~hash`.

    An id comes from a message: it may hold path separators, be longer than a file's name, or differ from another
    only in what cannot be written. No two ids share a name, for no plain one holds a `~`.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", frame_id[:LONGEST_ID])
    if plain != frame_id:
        plain += f"~{hashlib.blake2b(frame_id.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"
    return f"{judgement}_{plain}.png"


class OverlayFolder:
    """Writes `JUDGEMENT_FRAMEID.png` for frames of these judgements, at most `limit` of them."""

    def __init__(self, folder: Path, judgements: Sequence[Judgement] = ("NG",), limit: int = 1000) -> None:
        self.folder, self.judgements, self.limit = folder, judgements, limit
        self.written = self.left_out = 0
        self._waiting: queue.Queue[tuple[Delivery, Verdict] | None] = queue.Queue(BACKLOG)
        self._warned = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise DiskError(f"overlay folder {folder} is no folder; choose another") from error
        except OSError as error:
            raise DiskError(f"overlay folder {folder} cannot be made: {error.strerror}; choose another") from error
        self._thread = threading.Thread(target=self._write_all, name="aoi-overlay", daemon=True)
        self._thread.start()

    def show(self, delivery: Delivery, verdict: Verdict) -> None:
        """Called by the worker for each frame; neither blocks nor raises."""
        if verdict.judgement not in self.judgements or self.written >= self.limit:
            return
        try:
            self._waiting.put_nowait((delivery, verdict))
        except queue.Full:
            self.left_out += 1

    def close(self) -> None:
        """Write what waits, then stop."""
        self._waiting.put(None)
        self._thread.join()
        if self.left_out:
            log.warning("%d overlays were left out; every verdict was given", self.left_out)

    def _write_all(self) -> None:
        while (shown := self._waiting.get()) is not None:
            self._write(*shown)

    def _write(self, delivery: Delivery, verdict: Verdict) -> None:
        if self.written >= self.limit:
            return
        try:
            _, data = cv2.imencode(".png", draw(delivery.frame.image(), verdict))
            (self.folder / file_name(verdict.judgement, verdict.frame.frame_id)).write_bytes(data.tobytes())
            self.written += 1
        except Exception as error:  # whatever it is: without this thread `close` would wait for ever
            self.left_out += 1
            if not self._warned:
                log.warning("overlay not written (%s); verdicts go on without: make room in %s", error, self.folder)
                self._warned = True
