"""Sizes are read from a file's own header, and bounded, before a decoder takes memory or time for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import cv2
import hostile_images as hostile
import numpy as np
import pytest
from conftest import make_frame
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import WireError
from pipeline.image_header import MAX_PIXELS, MAX_SIDE, Kind, declared_size, kind_of
from pipeline.messages import Encoding, Frame
from pipeline.sources.directory import Directory
from pipeline.sources.stamp import Stamp

COSTLY = hostile.costly()
SHARE = 48 << 20  # bytes: what refusing all of them may take; one of them would take gigabytes
CHILD = """
import json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import hostile_images
from pipeline.errors import WireError
from pipeline.messages import Frame

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

files, said = hostile_images.costly(), {}
before = peak()
for name, (encoding, data) in files.items():
    try:
        Frame(frame_id="x", source="s", session="s", sequence=0, encoding=encoding, pixels=data).image()
        said[name] = "decoded"
    except WireError as error:
        said[name] = str(error)
print(json.dumps({"grew": peak() - before, "said": said}))
"""


def frame_of(data: bytes, encoding: str, **facts: Any) -> Frame:
    named = {"frame_id": "cam-s-0", "source": "cam", "session": "s", "sequence": 0}
    return Frame(**named, encoding=cast(Encoding, encoding), pixels=data, **facts)


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that must not be asked."""

    def decode(*_: object) -> None:
        pytest.fail("these bytes reached the decoder")

    monkeypatch.setattr("cv2.imdecode", decode)


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.usefixtures("no_decoder")
def test_costly_file_does_not_reach_the_decoder(name: str) -> None:
    """Whatever it would cost, it is refused by its header, in one line."""
    encoding, data = COSTLY[name]
    with pytest.raises(WireError) as refused:
        frame_of(data, encoding).image()
    assert "\n" not in str(refused.value)


def test_refusing_takes_no_memory() -> None:
    """A process that is offered all of them stays as small as it was."""
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert "decoded" not in told["said"].values(), told
    assert told["grew"] < SHARE


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize(("encoding", "extension"), [("png", ".png"), ("jpeg", ".jpg")])
@pytest.mark.parametrize("said", [(24, 41), (0, 40), (1 << 19, 1)])
def test_header_that_disagrees_with_its_file_is_told_before_decoding(
    encoding: str, extension: str, said: tuple[int, int]
) -> None:
    """Both sizes stand in the message."""
    data = bytes(cv2.imencode(extension, np.zeros((24, 40), np.uint8))[1])
    with pytest.raises(WireError, match="24×40"):
        frame_of(data, encoding, height=said[0], width=said[1]).image()


@given(
    st.sampled_from([".png", ".jpg", ".bmp", ".tif", ".pgm", ".webp"]),
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
)
def test_declared_size_is_the_decoded_one(extension: str, height: int, width: int, colour: bool) -> None:
    """For every format as OpenCV writes it; shapes are [H, W] and [H, W, 3]."""
    image = np.zeros((height, width, 3) if colour and extension != ".pgm" else (height, width), np.uint8)
    data = bytes(cv2.imencode(extension, image)[1])
    kind = kind_of(data)
    assert kind
    assert declared_size(data, kind) == (height, width)


@pytest.mark.parametrize("side", [1, 64, 4096])
@pytest.mark.parametrize(
    ("extension", "options"),
    [
        (".png", [cv2.IMWRITE_PNG_COMPRESSION, 9]),
        (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 1]),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 1]),
    ],
)
def test_picture_without_anything_on_it_is_no_bomb(side: int, extension: str, options: list[int]) -> None:
    """What a compressor makes as small as it can is still believed."""
    data = bytes(cv2.imencode(extension, np.full((side, side), 128, np.uint8), options)[1])
    assert frame_of(data, "png" if extension == ".png" else "jpeg").image().shape == (side, side)


def test_metadata_and_trailing_bytes_of_real_cameras_are_read() -> None:
    """Some texts in a PNG, fill bytes and comments before a JPEG's frame header: ordinary."""
    texts = hostile.chunk(b"zTXt", b"a\0\0" + hostile.zeros(1000)) * 4
    assert frame_of(hostile.png(8, 8, 72, extra=texts) + b"trailing", "png").image().shape == (8, 8)
    data = hostile.jpeg(16)
    assert frame_of(data[:2] + b"\xff\xff\xfe\0\4ab" + data[2:], "jpeg").image().shape == (16, 16)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (hostile.bmp(16_000, 17_000), "bmp"),
        (hostile.bmp(-16_000, 17_000), "bmp"),
        (hostile.bmp(10, -10), "bmp"),
        (hostile.tiff(16_000, 17_000), "tiff"),
        (hostile.tiff(16_000, 17_000, big_endian=True), "tiff"),
        (hostile.tiff(10, 10, tile=1 << 16), "tiff"),
        (hostile.tiff(0, 10), "tiff"),
        (b"II*\0\xff\xff\xff\xff", "tiff"),
        (hostile.pgm(17_000, 16_000), "pnm"),
        (hostile.pgm(1, MAX_SIDE + 1), "pnm"),
        (b"P5\n" + b"9" * 40 + b" 1\n255\n", "pnm"),
        (hostile.webp(1 << 14)[:24], "webp"),
        (hostile.jpeg(16)[:20], "jpeg"),
        (b"\xff\xd8" + b"\xff" * 1000, "jpeg"),
        (b"\xff\xd8\xff\xc3" + hostile.jpeg(16)[4:], "jpeg"),
    ],
)
def test_size_that_cannot_be_is_refused_in_every_format(data: bytes, kind: str) -> None:
    """Too large, nothing at all, cut off, or of a kind no camera writes."""
    with pytest.raises(ValueError, match=r"pixels|no image|cut off|header|SOF"):
        declared_size(data, cast(Kind, kind))


@given(st.sampled_from(["png", "jpeg", "bmp", "tiff", "pnm", "webp"]), st.binary(max_size=120))
def test_any_bytes_have_a_size_or_are_refused(kind: str, tail: bytes) -> None:
    """After a right beginning, anything: a size within bounds, or ValueError."""
    starts = {"png": hostile.PNG, "jpeg": b"\xff\xd8", "bmp": b"BM", "tiff": b"II*\0", "pnm": b"P5 ", "webp": b"RIFF"}
    start = starts[kind] + (b"1234WEBPVP8 " if kind == "webp" else b"")
    try:
        height, width = declared_size(start + tail, cast(Kind, kind))
    except ValueError:
        return
    assert 0 < height * width <= MAX_PIXELS


def offered(folder: Path) -> list[Frame]:
    return list(Directory(folder, Stamp("cam", "s")))


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.bmp", hostile.bmp(16_000, 17_000)),
        ("x.tif", hostile.tiff(16_000, 17_000)),
        ("x.pgm", hostile.pgm(17_000, 16_000)),
        ("x.bmp", hostile.gif(30_000)),
    ],
)
def test_folder_does_not_decode_what_lies_about_its_size(tmp_path: Path, name: str, data: bytes) -> None:
    """A source that decodes a file itself looks at its header first; the file becomes a frame with a fault."""
    (tmp_path / name).write_bytes(data)
    (frame,) = offered(tmp_path)
    assert "decode" in frame.fault


def test_folder_does_not_read_a_file_larger_than_any_image(tmp_path: Path) -> None:
    """A hole of 100 GB with the name of an image costs nothing."""
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(100 << 30)
    (frame,) = offered(tmp_path)
    assert "more than an image has" in frame.fault


def test_folder_goes_by_content_not_by_name(tmp_path: Path) -> None:
    """A JPEG called .png and a BMP called .jpg are read all the same."""
    image = np.full((8, 9), 77, np.uint8)
    (tmp_path / "1.png").write_bytes(bytes(cv2.imencode(".jpg", image)[1]))
    (tmp_path / "2.jpg").write_bytes(bytes(cv2.imencode(".bmp", image)[1]))
    jpeg, bmp = offered(tmp_path)
    assert (jpeg.encoding, bmp.encoding) == ("jpeg", "raw")
    assert all(frame.image().shape == (8, 9) for frame in (jpeg, bmp))


@pytest.mark.parametrize(("height", "width"), [(1, MAX_SIDE + 1), (MAX_SIDE + 1, 1), (1 << 14, (1 << 14) + 1)])
def test_raw_frame_is_bounded_too(height: int, width: int) -> None:
    """One row of a billion pixels would be a billion rows of tiles."""
    facts = {"height": height, "width": width, "pixels": b""}
    header = make_frame(0).without_pixels()
    changed = Frame(**{name: getattr(header, name) for name in ("frame_id", "source", "session", "sequence")}, **facts)
    with pytest.raises(WireError, match="more than"):
        Frame.from_wire(changed.header())
