"""A camera or a video as a source, with real videos; and which source an address means."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources import SourceOptions, default_name, kind_of, open_source
from pipeline.sources.panel import PanelSimulator
from pipeline.sources.stamp import Stamp, new_session, pixel_format

BRIGHTNESS = (20, 60, 100, 140, 180)  # of the video's frames: far enough apart for JPEG


def write_video(path: Path) -> Path:
    """A motion JPEG video of five frames 64 × 48, each brighter than the last."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no motion JPEG")
    for value in BRIGHTNESS:
        writer.write(np.full((48, 64, 3), (value, value, value // 2), np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "shift.avi")


def source(address: object, **options: Any) -> Any:
    return open_source(str(address), Stamp("cam", "s"), SourceOptions(**options))


def test_every_frame_of_a_video_in_order(video: Path) -> None:
    """In colour as recorded, numbered from 0; then the source ends."""
    frames = list(source(video))
    assert [f.sequence for f in frames] == [0, 1, 2, 3, 4]
    assert {(f.pixel_format, f.encoding, f.height, f.width) for f in frames} == {("bgr8", "raw", 48, 64)}
    for frame, value in zip(frames, BRIGHTNESS, strict=True):
        assert np.abs(frame.image()[24, 32].astype(int) - (value, value, value // 2)).max() < 12
    assert all(a.triggered_ns <= b.triggered_ns for a, b in itertools.pairwise(frames))


def test_frames_stay_what_they_were(video: Path) -> None:
    """A frame that is kept is not overwritten by the next one."""
    frames = list(source(video))
    assert len({f.image()[0, 0, 0] for f in frames}) == 5


def test_grey_when_asked_for(video: Path) -> None:
    """One channel, with the usual weights of the colours."""
    frames = list(source(video, form="mono8"))
    assert {(f.pixel_format, f.image().shape) for f in frames} == {("mono8", (48, 64))}
    expected = [0.114 * v + 0.587 * v + 0.299 * (v // 2) for v in BRIGHTNESS]
    assert np.abs([f.image()[24, 32] for f in frames] - np.array(expected)).max() < 6


def test_prefix_may_name_a_file_too(video: Path) -> None:
    """`camera:` in front of a path means the same video."""
    assert len(list(source(f"camera:{video}"))) == 5


def test_stop_ends_it_between_two_frames(video: Path) -> None:
    """Nothing is read after the signal."""
    stop = threading.Event()
    frames = iter(source(video, stop=stop))
    next(frames)
    stop.set()
    assert list(frames) == []


@pytest.mark.parametrize("content", [b"", b"not a video", b"RIFF\0\0\0\0AVI "])
def test_file_that_is_no_video_is_told(tmp_path: Path, content: bytes) -> None:
    """With what to check."""
    path = tmp_path / "x.avi"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="does not open"):
        list(source(path))


@pytest.mark.parametrize("address", ["camera:", "camera:99", "camera:/dev/no-such-video", "camera:no such", "camera:²"])
def test_camera_that_is_not_there_is_told_at_once(address: str) -> None:
    """The first opening must succeed; only later does it wait for one that fell silent."""
    with pytest.raises(SourceError, match="does not open"):
        list(source(address))


@dataclass
class Served:
    """What a network camera of the test sends to each next caller; None: it is out of order."""

    answers: list[bytes | None]
    url: str = ""
    asked: int = field(default=0)


@pytest.fixture
def camera() -> Iterator[Served]:
    """A network camera: an HTTP server that plays a video once to each caller."""
    served = Served([])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked += 1
            data = served.answers.pop(0) if served.answers else None
            self.send_response(200 if data else 503)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/stream.mjpg"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def play(served: Served, stop: threading.Event, frames: int) -> list[Any]:
    """That many frames of the network camera; fewer when it is given up."""
    stream = iter(source(served.url, stop=stop))
    return list(itertools.islice(stream, frames))


@pytest.fixture
def jpegs() -> bytes:
    """Five motion JPEG frames, as a network camera sends them."""
    images = [np.full((48, 64, 3), value, np.uint8) for value in BRIGHTNESS]
    return b"".join(cv2.imencode(".jpg", image)[1].tobytes() for image in images)


def opens(served: Served, data: bytes) -> bool:
    """Can this OpenCV read a camera over HTTP at all?"""
    served.answers[:] = [data] * 3
    capture = cv2.VideoCapture(served.url)
    good = capture.isOpened() and capture.read()[0]
    capture.release()
    return good


def test_camera_that_falls_silent_is_opened_again(
    camera: Served, jpegs: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebooting, it does not even open for a while; its frames go on in the same numbering."""
    monkeypatch.setattr("pipeline.sources.camera.REOPEN_PAUSE_S", 0.01)
    if not opens(camera, jpegs):
        pytest.skip("this OpenCV reads no camera over HTTP")
    camera.answers[:] = [jpegs, None, None, jpegs, jpegs]
    frames = play(camera, threading.Event(), 7)
    assert [f.sequence for f in frames] == list(range(7))


def test_camera_that_stays_silent_is_an_error(camera: Served, jpegs: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few tries, so that somebody looks at it."""
    monkeypatch.setattr("pipeline.sources.camera.REOPEN_PAUSE_S", 0.01)
    if not opens(camera, jpegs):
        pytest.skip("this OpenCV reads no camera over HTTP")
    camera.answers[:] = [jpegs]
    with pytest.raises(SourceError, match="no more images; check cable"):
        play(camera, threading.Event(), 1000)
    assert camera.asked > 3


# -------------------------------------------------------------------- addresses


def test_address_tells_the_kind_of_source(tmp_path: Path, video: Path) -> None:
    """Prefixes first, then files as videos, anything else is a folder."""
    kinds = {
        "panel:": "panel",
        "camera:0": "camera",
        "rtsp://cam/1": "camera",
        "http://cam/1": "camera",
        "/dev/video0": "camera",
        str(video): "camera",
        str(tmp_path): "directory",
        str(tmp_path / "not there"): "directory",
    }
    assert {address: kind_of(address) for address in kinds} == kinds
    assert default_name("camera:0") == "camera"
    assert default_name("rtsp://user:secret@cam/1") == "camera", "no password in a name"


def test_panel_source_is_the_simulator() -> None:
    """Panel n is frame n, as many as asked for."""
    frames = list(source("panel:", count=3, simulator=PanelSimulator(seed=1, size=(64, 80))))
    assert [(f.sequence, f.panel, f.image().shape) for f in frames] == [(n, str(n), (64, 80)) for n in range(3)]


# ----------------------------------------------------------------------- stamps


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", "x" * 49, "a:b", "a\n"])
def test_source_name_for_ids_is_checked(name: str) -> None:
    """It stands in frame ids, keys and file names."""
    with pytest.raises(SourceError, match="source name"):
        Stamp(name)


def test_sessions_never_meet() -> None:
    """Two runs of one source give different ids for the same sequence."""
    assert len({new_session() for _ in range(50)}) > 1
    one, two = Stamp("cam", "a"), Stamp("cam", "b")
    image = np.zeros((2, 2), np.uint8)
    assert one.raw(image).frame_id != two.raw(image).frame_id


def test_deadline_counts_from_the_trigger() -> None:
    """The camera's own trigger time where it is known; without a budget there is no deadline."""
    image = np.zeros((2, 2), np.uint8)
    frame = Stamp("cam", "s", deadline_ns=50).raw(image, triggered_ns=1000)
    assert (frame.triggered_ns, frame.deadline_ns) == (1000, 1050)
    assert Stamp("cam", "s").raw(image).deadline_ns == 0


def test_facts_are_on_every_frame_and_numbers_go_on() -> None:
    """Also on one that could not be read: it takes part in the same numbering."""
    stamp = Stamp("cam", "s", facts={"lot": "4711", "station": "3"})
    made = [stamp.raw(np.zeros((2, 2), np.uint8)), stamp.faulty("broken"), stamp.encoded(b"x", "png", "mono8")]
    assert [(f.sequence, f.lot, f.station) for f in made] == [(n, "4711", "3") for n in range(3)]


@pytest.mark.parametrize(
    "image",
    [np.zeros((2, 2), float), np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3), np.uint16), np.zeros(4, np.uint8)],
)
def test_image_that_cannot_travel_is_told(image: np.ndarray) -> None:
    """Floats, four channels, deep colour, a row: with what can."""
    with pytest.raises(SourceError, match="mono8, mono16 and BGR8"):
        pixel_format(image)
