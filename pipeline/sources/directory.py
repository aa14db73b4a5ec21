"""A folder of images as a source: what is there in natural order, and with `watch` whatever is added.

Files travel as they are when they are PNG or JPEG, by their content and not by their name; others are decoded here,
after a look at the size they say they have. A file that cannot be read becomes a frame with a fault, and so a
verdict, never a crash and never silence. A `.png` beside an image of the same
name in another format is that image's mask and is not offered. While watching, a file counts as complete when
its size and time have stood still between two looks, and its format's end mark is there (or never comes).
"""

from __future__ import annotations

import fnmatch
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import SourceError
from pipeline.image_header import declared_size, kind_of
from pipeline.messages import Encoding, Frame, PixelFormat
from pipeline.sources import SourceOptions
from pipeline.sources.stamp import Stamp

ENCODED: dict[str, Encoding] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
DECODED = (".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp")
SUFFIXES = (*ENCODED, *DECODED)
END_MARKS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
State = tuple[int, int]  # size in bytes, time of the last change in ns
LARGEST_FILE = 1 << 30  # bytes; twice what one frame on the stream may be
LOOK_EVERY_S = 0.2
PATIENCE_S = 5.0  # with a file that stands still without its end mark


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts image 9 before image 10, in every part of the path."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts]


def list_images(folder: Path, pattern: str = "", names: Sequence[str] = ()) -> tuple[list[Path], int]:
    """Images below a folder in natural order, and how many masks were left out.

    `pattern` (shell style, against the file's name) or `names` (paths relative to the folder) choose exactly
    what is offered; then nothing is left out as a mask.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; give one with images, a video file, or camera:INDEX")
    if names:
        if outside := [name for name in names if not _is_below(name)]:
            raise SourceError(f"{outside[0]!r} is not below {folder}; list paths relative to the folder")
        return [folder / name for name in names], 0
    files = _walk(folder)
    if pattern:
        return [path for path in files if fnmatch.fnmatch(path.name, pattern)], 0
    others = {path.with_suffix("") for path in files if path.suffix.lower() != ".png"}
    images = [p for p in files if p.suffix.lower() != ".png" or p.with_suffix("") not in others]
    return images, len(files) - len(images)


def _is_below(name: str) -> bool:
    return not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] != ".."


def _walk(folder: Path) -> list[Path]:
    found = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    images = [path for path in found if path.suffix.lower() in SUFFIXES]
    files = [path for path in images if path.is_file() or not path.exists()]  # a link to nowhere is told, a pipe blocks
    return sorted(files, key=lambda path: natural(path.relative_to(folder)))


def read_names(path: Path) -> list[str]:
    """Relative paths of a list file, one a line; empty lines and `#` comments are skipped."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"list {path} cannot be read: {error}") from error
    return [line for line in lines if line and not line.startswith("#")]


@dataclass
class Directory:
    """An iterator of frames over a folder's images."""

    folder: Path
    stamp: Stamp
    pattern: str = ""
    names: Sequence[str] = ()
    form: PixelFormat = "mono8"
    watch: bool = False
    stop: threading.Event | None = None
    left_out: int = 0  # masks, not offered; known once it is iterated

    def __iter__(self) -> Iterator[Frame]:
        images, self.left_out = list_images(self.folder, self.pattern, self.names)
        if not images and not self.watch:
            raise SourceError(f"no images in {self.folder} ({', '.join(SUFFIXES)}); check the folder or --pattern")
        if not self.watch:
            for path in images:
                yield self.frame(path)
        else:
            yield from self._watched()

    def frame(self, path: Path) -> Frame:
        """One image as a frame; with a fault when it cannot be read."""
        name = str(path.relative_to(self.folder))
        try:
            if (size := path.stat().st_size) > LARGEST_FILE:
                return self.stamp.faulty(f"{size} bytes are more than an image has ({LARGEST_FILE})", name=name)
            data = path.read_bytes()
        except OSError as error:
            return self.stamp.faulty(f"cannot be read: {error.strerror}", name=name)
        if not data:
            return self.stamp.faulty("the file is empty", name=name)
        kind = kind_of(data) or ENCODED.get(path.suffix.lower())
        if kind in ("png", "jpeg"):
            return self.stamp.encoded(data, kind, self.form, name=name)
        return self._decoded(data, name)

    def _decoded(self, data: bytes, name: str) -> Frame:
        depth = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION  # as it is, and refused where it does not fit
        flags = depth | (cv2.IMREAD_COLOR if self.form == "bgr8" else cv2.IMREAD_GRAYSCALE)
        try:
            kind = kind_of(data)
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if kind and declared_size(data, kind) else None
            if image is None:
                return self.stamp.faulty(f"{len(data)} bytes do not decode to an image", name=name)
            return self.stamp.raw(image, name=name)
        except (cv2.error, SourceError, ValueError) as error:
            return self.stamp.faulty(f"does not decode: {str(error).splitlines()[0]}", name=name)

    def _watched(self) -> Iterator[Frame]:
        """Looks at the folder again and again: works on network shares too, where no event tells of new files."""
        stop = self.stop or threading.Event()
        offered: dict[Path, State] = {}
        seen: dict[Path, tuple[State, float]] = {}  # path → its state, and since when it stands still
        while not stop.is_set():
            images, _ = list_images(self.folder, self.pattern)
            states = {path: _state(path) for path in images}
            offered = {path: state for path, state in offered.items() if path in states}
            fresh = [path for path in images if offered.get(path) != states[path]]  # new, or written over
            seen = {path: _standing(states[path], seen.get(path)) for path in fresh}
            for path in fresh:
                if self._complete(path, seen[path][1]):
                    offered[path] = states[path]
                    yield self.frame(path)
            stop.wait(LOOK_EVERY_S)

    @staticmethod
    def _complete(path: Path, since: float) -> bool:
        still_s = time.monotonic() - since
        if still_s < LOOK_EVERY_S:
            return False
        mark = END_MARKS.get(path.suffix.lower(), b"")
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 64))
                return mark in file.read() or still_s >= PATIENCE_S
        except OSError:
            return still_s >= PATIENCE_S


def _state(path: Path) -> State:
    """What changes when a file is written to."""
    try:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    except OSError:
        return -1, 0


def _standing(state: State, before: tuple[State, float] | None) -> tuple[State, float]:
    return before if before and before[0] == state else (state, time.monotonic())


def open_directory(address: str, stamp: Stamp, options: SourceOptions) -> Directory:
    """The folder at this path."""
    folder, form = Path(address), options.form or "mono8"
    if options.watch and options.names:
        raise SourceError("watching a folder and a list of its files exclude each other; give one of them")
    list_images(folder, options.pattern, options.names)  # a wrong folder is told now, not at the first frame
    return Directory(folder, stamp, options.pattern, options.names, form, options.watch, options.stop)
