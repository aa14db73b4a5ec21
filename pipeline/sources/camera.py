"""A camera or a video as a source, by OpenCV index, device, stream URL or file.

A file ends; a camera does not: when it falls silent it is opened again a few times before that is an error.
Real trigger times need the camera's own driver; here a frame is timed when it has been read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2

from pipeline.errors import SourceError
from pipeline.messages import Frame, PixelFormat
from pipeline.sources import SourceOptions
from pipeline.sources.stamp import Stamp

REOPEN_TRIES = 5
REOPEN_PAUSE_S = 1.0


@dataclass
class Camera:
    """`address`: `0` for the first camera, `/dev/video0`, `rtsp://…`, or a video file."""

    address: str
    stamp: Stamp
    form: PixelFormat = "bgr8"
    stop: threading.Event | None = None

    def __iter__(self) -> Iterator[Frame]:
        stop = self.stop or threading.Event()
        silent, worked = 0, False
        while not stop.is_set():
            for image in self._images(stop, must_open=not worked):
                silent, worked = 0, True
                yield self.stamp.raw(image)
            if self._is_file:
                return
            silent += 1
            if silent > REOPEN_TRIES:
                raise SourceError(f"camera {self.address} gives no more images; check cable and power")
            stop.wait(REOPEN_PAUSE_S)

    @property
    def _is_file(self) -> bool:
        return Path(self.address).is_file()

    def _images(self, stop: threading.Event, must_open: bool) -> Iterator[cv2.typing.MatLike]:
        capture = cv2.VideoCapture(int(self.address) if self.address.isdecimal() else self.address)
        try:
            if not capture.isOpened() and must_open:
                raise SourceError(f"camera or video {self.address!r} does not open; check index, URL and rights")
            while not stop.is_set():
                ok, image = capture.read()
                if not ok:
                    return
                yield cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if self.form == "mono8" else image
        finally:
            capture.release()


def open_camera(address: str, stamp: Stamp, options: SourceOptions) -> Camera:
    """`camera:0`, `camera:/dev/video0`, a stream URL or a video file."""
    return Camera(address.removeprefix("camera:"), stamp, options.form or "bgr8", options.stop)
