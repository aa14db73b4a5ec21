"""A folder as a source: every image once, in order, complete; what cannot be read is a frame with a reason."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError, WireError
from pipeline.messages import Frame
from pipeline.sources import SourceOptions, default_name, open_source
from pipeline.sources.directory import Directory, list_images, natural, read_names
from pipeline.sources.stamp import Stamp

DATA = Path(os.environ.get("AOI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def write(folder: Path, *names: str, image: np.ndarray = GRAY) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)


def frames_of(folder: Path, **options: Any) -> list[Frame]:
    return list(open_source(str(folder), Stamp("cam", "s"), SourceOptions(**options)))


def listed(folder: Path, **how: Any) -> list[str]:
    images, _ = list_images(folder, **how)
    return [str(path.relative_to(folder)) for path in images]


def test_images_come_in_natural_order(tmp_path: Path) -> None:
    """Image 9 before image 10, also in the names of folders; upper and lower case alike."""
    names = ["b2/1.png", "b10/1.png", "a/img10.png", "a/img9.png", "a/IMG1.png", "10.png", "9.png"]
    write(tmp_path, *names)
    assert listed(tmp_path) == ["9.png", "10.png", "a/IMG1.png", "a/img9.png", "a/img10.png", "b2/1.png", "b10/1.png"]


@given(st.lists(st.text("019²٣aB./_-", min_size=1, max_size=8), max_size=6))
def test_any_names_have_an_order(names: list[str]) -> None:
    """Digits of other scripts, small raised digits, dots: the same order whatever it was before."""
    forward = sorted(map(Path, names), key=natural)
    backward = sorted(map(Path, names[::-1]), key=natural)
    assert [natural(p) for p in forward] == [natural(p) for p in backward]


def test_frames_are_numbered_named_and_carry_the_file(tmp_path: Path) -> None:
    """Sequence without gaps from 0, ids of their own, the relative name, and the file's very bytes."""
    write(tmp_path, "a/1.png", "a/2.jpg", "a/3.JPEG")
    frames = frames_of(tmp_path)
    assert [f.sequence for f in frames] == [0, 1, 2]
    assert [f.frame_id for f in frames] == ["cam-s-0", "cam-s-1", "cam-s-2"]
    assert [(f.name, f.encoding) for f in frames] == [("a/1.png", "png"), ("a/2.jpg", "jpeg"), ("a/3.JPEG", "jpeg")]
    assert all(f.pixels == (tmp_path / f.name).read_bytes() for f in frames)
    assert np.array_equal(frames[0].image(), GRAY)


@pytest.mark.parametrize("name", ["x.bmp", "x.tif", "x.TIFF", "x.pgm"])
def test_other_formats_are_decoded_here(tmp_path: Path, name: str) -> None:
    """They travel as raw pixels, exactly."""
    write(tmp_path, name)
    (frame,) = frames_of(tmp_path)
    assert (frame.encoding, frame.pixel_format, frame.height, frame.width) == ("raw", "mono8", 6, 8)
    assert np.array_equal(frame.image(), GRAY)


def test_form_says_how_images_travel(tmp_path: Path) -> None:
    """As colour when asked for; 16 bits stay 16 bits."""
    write(tmp_path, "a.bmp", image=np.dstack([GRAY, GRAY + 1, GRAY + 2]))
    write(tmp_path, "b.tif", image=GRAY.astype(np.uint16) * 300)
    colour, _ = frames_of(tmp_path, form="bgr8")
    gray, deep = frames_of(tmp_path, form="mono16")
    assert np.array_equal(colour.image(), np.dstack([GRAY, GRAY + 1, GRAY + 2]))
    assert gray.pixel_format == "mono8"
    assert (deep.pixel_format, int(deep.image().max())) == ("mono16", 47 * 300)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_not_cut_to_eight(tmp_path: Path, name: str) -> None:
    """Asked for as 8 bit colour, a 16 bit colour image is told, not darkened 256 times."""
    write(tmp_path, name, image=np.full((6, 8, 3), 4000, np.uint16))
    (frame,) = frames_of(tmp_path, form="bgr8")
    with pytest.raises(WireError, match=r"bit depth|uint16"):
        frame.image()


def test_masks_are_left_out_and_counted(tmp_path: Path) -> None:
    """A .png beside an image of the same name in another format, in the same folder only."""
    write(tmp_path, "a/1.jpg", "a/1.png", "a/2.png", "b/1.png", "3.BMP", "3.PNG")
    (tmp_path / "notes.txt").write_text("x")
    images, left_out = list_images(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in images] == ["3.BMP", "a/1.jpg", "a/2.png", "b/1.png"]
    assert left_out == 2


def test_pattern_chooses_exactly(tmp_path: Path) -> None:
    """By the file's name; then nothing is taken for a mask."""
    write(tmp_path, "a/1.jpg", "a/1.png", "b/2.png", "b/12.jpg")
    assert listed(tmp_path, pattern="*.png") == ["a/1.png", "b/2.png"]
    assert listed(tmp_path, pattern="1*") == ["a/1.jpg", "a/1.png", "b/12.jpg"]
    assert [f.name for f in frames_of(tmp_path, pattern="1*.jpg")] == ["a/1.jpg", "b/12.jpg"]


def test_list_of_names_chooses_exactly(tmp_path: Path) -> None:
    """In the list's own order; one that is not there has its frame with a fault."""
    write(tmp_path, "1.png", "2.png", "a/3.png")
    frames = frames_of(tmp_path, names=["a/3.png", "1.png", "gone.png"])
    assert [f.name for f in frames] == ["a/3.png", "1.png", "gone.png"]
    assert [bool(f.fault) for f in frames] == [False, False, True]
    assert [f.sequence for f in frames] == [0, 1, 2]


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.png", "a/../../x.png", ".."])
def test_list_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Absolute names too: names are relative to the folder."""
    write(tmp_path, "1.png", "..2.png")
    with pytest.raises(SourceError, match="not below"):
        frames_of(tmp_path, names=["1.png", name])
    assert len(frames_of(tmp_path, names=["a/../1.png", "..2.png"])) == 2


def test_list_file_of_any_editor(tmp_path: Path) -> None:
    """Comments, empty lines, blanks at the ends, CRLF and a byte order mark are not names."""
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa 1.png\r\n\r\n # comment\r\n#b.png\r\n  ü.png  \r\n".encode())
    assert read_names(path) == ["a 1.png", "ü.png"]


def test_list_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, or no text: one line with its name."""
    (tmp_path / "latin1").write_bytes(b"\xfc.png")
    for name in ("missing", "", "latin1"):
        with pytest.raises(SourceError, match="cannot be read"):
            read_names(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.png", b"", "empty"),
        ("x.bmp", b"", "empty"),
        ("x.png", b"not an image", "decode"),
        ("x.jpg", b"\xff\xd8\xff\xe0 not an image", "cut off"),
        ("x.jpg", b"\xff\xd8\xff\xe0 not an image \xff\xd9", "decode"),
        ("x.bmp", b"BM not an image", "decode"),
        ("x.tif", b"II*\0 not an image", "decode"),
        ("x.webp", b"RIFF not an image", "decode"),
    ],
)
def test_file_that_is_no_image_is_a_frame_with_a_reason(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    """Neither a crash nor silence, and its neighbours are offered."""
    write(tmp_path, "a.png", "z.png")
    (tmp_path / name).write_bytes(content)
    frames = frames_of(tmp_path)
    assert [f.name for f in frames] == ["a.png", name, "z.png"]
    with pytest.raises(WireError, match=told):
        Frame.from_wire(frames[1].header(), frames[1].payload()).image()
    assert np.array_equal(frames[2].image(), GRAY)


def test_file_that_cannot_be_opened_is_a_frame_with_a_reason(tmp_path: Path) -> None:
    """A link to nowhere, or to itself."""
    (tmp_path / "1.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "2.bmp").symlink_to(tmp_path / "2.bmp")
    assert ["cannot be read" in f.fault for f in frames_of(tmp_path)] == [True, True]


def test_name_that_is_not_utf8_is_offered(tmp_path: Path) -> None:
    """Old cameras write such names; the frame travels, its name with a question mark."""
    path = os.fsencode(tmp_path) + b"/bild_\xfc.png"
    with open(path, "wb") as file:
        file.write(cv2.imencode(".png", GRAY)[1].tobytes())
    (frame,) = frames_of(tmp_path)
    again = Frame.from_wire(frame.header(), frame.payload())
    assert again.name == "bild_?.png"
    assert np.array_equal(again.image(), GRAY)


def test_folder_that_is_none_is_told_on_opening(tmp_path: Path) -> None:
    """And so is one without images, unless more may come."""
    with pytest.raises(SourceError, match="not a folder"):
        open_source(str(tmp_path / "no"), Stamp("cam"))
    with pytest.raises(SourceError, match="no images"):
        frames_of(tmp_path)
    write(tmp_path, "a.png")
    with pytest.raises(SourceError, match="no images"):
        frames_of(tmp_path, pattern="*.jpg")


def test_folder_names_the_source(tmp_path: Path) -> None:
    """In letters a frame id may have, never empty."""
    assert default_name(str(tmp_path / "line 3 ü")) == "line-3--"
    assert default_name("/") == "source"
    Stamp(default_name(str(tmp_path / ("x" * 200))))


# ---------------------------------------------------------------------- watching


class Looks(threading.Event):
    """A stop signal that lets the test act between two looks at the folder; the last act is to stop."""

    def __init__(self, acts: Sequence[Callable[[], object]]) -> None:
        super().__init__()
        self.acts = list(acts)

    def wait(self, timeout: float | None = None) -> bool:
        if self.acts:
            self.acts.pop(0)()
        else:
            self.set()
        return super().wait(timeout)


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.directory.LOOK_EVERY_S", 0.005)
    monkeypatch.setattr("pipeline.sources.directory.PATIENCE_S", 60.0)


def watched(folder: Path, acts: Sequence[Callable[[], object]]) -> list[Frame]:
    return frames_of(folder, watch=True, stop=Looks(acts))


def look() -> None:
    """Nothing happens."""


@pytest.mark.usefixtures("quick_looks")
def test_watching_offers_what_is_there_and_what_comes(tmp_path: Path) -> None:
    """Each file once, however often it is looked at; an empty folder is no error."""
    acts = [
        look,
        look,
        lambda: write(tmp_path, "1.png"),
        *[look] * 4,
        lambda: write(tmp_path, "sub/0.bmp"),
        *[look] * 4,
    ]
    frames = watched(tmp_path, acts)
    assert [(f.name, f.sequence) for f in frames] == [("1.png", 0), ("sub/0.bmp", 1)]


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_watching_waits_for_the_whole_file(tmp_path: Path, extension: str) -> None:
    """A file written in two halves with a long pause is offered once, and complete."""
    data = cv2.imencode(extension, np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8))[1].tobytes()
    path = tmp_path / f"x{extension}"
    half = len(data) // 2

    def second_half() -> None:
        with path.open("ab") as file:
            file.write(data[half:])

    acts = [lambda: path.write_bytes(data[:half]), *[look] * 10, second_half, *[look] * 4]
    (frame,) = watched(tmp_path, acts)
    assert frame.pixels == data


@pytest.mark.usefixtures("quick_looks")
def test_watching_waits_while_a_file_grows(tmp_path: Path) -> None:
    """Formats without an end mark count as complete when they stand still between two looks."""
    data = cv2.imencode(".bmp", GRAY)[1].tobytes()
    path = tmp_path / "x.bmp"
    grow = [lambda n=n: path.write_bytes(data[:n]) for n in range(100, len(data), 100)]
    (frame,) = watched(tmp_path, [*grow, lambda: path.write_bytes(data), *[look] * 4])
    assert np.array_equal(frame.image(), GRAY)


@pytest.mark.usefixtures("quick_looks")
def test_watching_gives_up_on_a_file_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its patience half a file and an empty one become frames with a reason: no silence."""
    monkeypatch.setattr("pipeline.sources.directory.PATIENCE_S", 0.02)
    data = cv2.imencode(".png", GRAY)[1].tobytes()
    (tmp_path / "1.png").write_bytes(data[:40])
    (tmp_path / "2.png").write_bytes(b"")
    stop = threading.Event()
    frames = iter(open_source(str(tmp_path), Stamp("cam"), SourceOptions(watch=True, stop=stop)))
    half, empty = next(frames), next(frames)
    stop.set()
    assert list(frames) == []
    with pytest.raises(WireError, match="decode"):
        half.image()
    with pytest.raises(WireError, match="empty"):
        empty.image()


@pytest.mark.usefixtures("quick_looks")
def test_file_that_was_taken_away_may_come_again(tmp_path: Path) -> None:
    """The next part under the same name is another part."""
    acts = [*[look] * 3, (tmp_path / "x.png").unlink, look, lambda: write(tmp_path, "x.png"), *[look] * 4]
    write(tmp_path, "x.png")
    assert [f.sequence for f in watched(tmp_path, acts)] == [0, 1]


@pytest.mark.usefixtures("quick_looks")
def test_watching_leaves_masks_and_other_names_out(tmp_path: Path) -> None:
    """As without watching; the pattern chooses too."""
    write(tmp_path, "1.jpg", "1.png", "2.png")
    assert [f.name for f in watched(tmp_path, [look] * 4)] == ["1.jpg", "2.png"]
    frames = frames_of(tmp_path, watch=True, stop=Looks([look] * 4), pattern="1.*")
    assert [f.name for f in frames] == ["1.jpg", "1.png"]


def test_watching_a_list_is_refused(tmp_path: Path) -> None:
    """It would offer what is not on the list."""
    with pytest.raises(SourceError, match="exclude"):
        open_source(str(tmp_path), Stamp("cam"), SourceOptions(watch=True, names=["1.png"]))


# --------------------------------------------------------------------- real data


def test_magnetic_tiles_are_all_offered_without_their_masks() -> None:
    """1,014 images in natural order, 1,014 masks left out, and every frame decodes."""
    folder = DATA / "magnetic-tile"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; set AOI_DATA to the folder with magnetic-tile/")
    images, left_out = list_images(folder)
    assert (len(images), left_out) == (1014, 1014)
    frames = frames_of(folder)
    assert len({f.frame_id for f in frames}) == 1014
    assert all(f.encoding == "jpeg" and not f.fault for f in frames)
    for frame in frames[::50]:
        assert frame.image().ndim == 2


def test_watch_offers_a_file_that_is_written_over(tmp_path: Path):
    """A camera that always writes to the same name: each new picture is a new frame."""
    stop = threading.Event()
    source = iter(Directory(tmp_path, Stamp("cam"), watch=True, stop=stop))
    cv2.imwrite(str(tmp_path / "last.png"), np.full((4, 4), 1, np.uint8))
    assert next(source).image()[0, 0] == 1
    cv2.imwrite(str(tmp_path / "last.png"), np.full((5, 5), 2, np.uint8))
    assert next(source).image()[0, 0] == 2
    stop.set()


def test_pipe_among_the_files_is_no_image(tmp_path: Path):
    """Opening it would block the producer for ever."""
    os.mkfifo(tmp_path / "x.png")
    cv2.imwrite(str(tmp_path / "y.png"), np.zeros((4, 4), np.uint8))
    assert [path.name for path in list_images(tmp_path)[0]] == ["y.png"]
