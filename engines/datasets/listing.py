"""Which files of a data folder may be read, and which one a name in somebody's table means; it opens none of them.

Hidden files and `__MACOSX` are no data. A link that leads out of the folder, and a name such as `../x.png` that does,
are refused: a data folder from elsewhere must not decide what else of this machine is read.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engines.datasets.labelled import PICTURE_SUFFIXES, Problem, UnreadablePictureError

LEADS_OUT = "leads out of the data folder, which is not followed; copy it in"


@dataclass(frozen=True)
class Listing:
    """The files below a data folder, as paths with forward slashes in order, and what was refused."""

    folder: Path
    files: tuple[str, ...]
    problems: tuple[Problem, ...]

    def pictures(self) -> list[str]:
        """Every image file."""
        return [path for path in self.files if is_picture(path)]

    def with_suffix(self, suffix: str, root_only: bool = False) -> list[str]:
        """Every file of this suffix in lower case, as `.csv`."""
        found = (path for path in self.files if path.lower().endswith(suffix))
        return [path for path in found if not root_only or "/" not in path]

    def find(self, name: str, beside: str = "") -> str:
        """The file that `name` (either slash, any case) means, read from the folder `beside` or from the top.

        Raises UnreadablePictureError when it is missing or would lie outside the data folder.
        """
        wanted = name.strip().replace("\\", "/")
        places = [posixpath.normpath(posixpath.join(place, wanted)) for place in dict.fromkeys((beside, ""))]
        for place in places:
            same = self._by_lower_path.get(place.lower(), [])
            if same:
                return place if place in same else same[0]
        if all(_is_outside(place) for place in places):
            raise UnreadablePictureError(f"{name!r} {LEADS_OUT}")
        raise UnreadablePictureError(f"{wanted or 'a file without a name'} is missing")

    def find_anywhere(self, name: str, beside: str = "", among: Container[str] | None = None) -> str:
        """The picture that `name` means wherever it lies, with its suffix or without; `among` says what are pictures.

        Raises UnreadablePictureError when there is none, or more than one.
        """
        try:
            return self.find(name, beside)
        except UnreadablePictureError:
            wanted = name.strip().replace("\\", "/")
            if _is_outside(posixpath.normpath(posixpath.join(beside, wanted))) and _is_outside(wanted):
                raise
            found = self._named(wanted, among)
            if not found:
                raise
        if len(found) > 1:
            raise UnreadablePictureError(f"{name} lies in {len(found)} places: {', '.join(found[:3])}")
        return found[0]

    @cached_property
    def _by_lower_path(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.files:
            found.setdefault(path.lower(), []).append(path)
        return found

    @cached_property
    def _by_lower_name(self) -> dict[str, list[str]]:
        """By name with its suffix, and without."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            name = posixpath.basename(path).lower()
            for key in {name, posixpath.splitext(name)[0]}:
                found.setdefault(key, []).append(path)
        return found

    def _named(self, wanted: str, among: Container[str] | None) -> list[str]:
        """Pictures of this name, only those in its folder where there are such."""
        same_name = self._by_lower_name.get(posixpath.basename(wanted).lower(), [])
        found = [path for path in same_name if is_picture(path) and (among is None or path in among)]
        tail = f"/{wanted.lower()}"
        return [path for path in found if f"/{path.lower()}".endswith(tail) or _ends_in_stem(path, tail)] or found


def list_files(folder: Path) -> Listing:
    """Look through a data folder, hidden files left out. The order is that of the paths."""
    files, problems = [], []
    for path, reason in sorted(_walk(os.path.realpath(folder))):
        if reason:
            problems.append(Problem(path, reason))
        else:
            files.append(path)
    return Listing(folder, tuple(files), tuple(problems))


def is_picture(path: str) -> bool:
    """Whether a file is an image by its name."""
    return posixpath.splitext(path)[1].lower() in PICTURE_SUFFIXES


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """Each visible file as (path below root, "" or the reason why it is refused)."""
    waiting = [(root, "")]
    while waiting:
        place, below = waiting.pop()
        try:
            entries = [entry for entry in os.scandir(place) if _is_visible(entry.name)]
        except OSError as error:
            yield below.rstrip("/") or ".", f"cannot be listed: {error.strerror}"
            continue
        for entry in entries:
            path = f"{below}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, f"{path}/"))
            else:
                yield path, _refusal(entry, path, root)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_unicode(path: str) -> bool:
    return path == path.encode("utf-8", "ignore").decode("utf-8")


def _refusal(entry: os.DirEntry[str], path: str, root: str) -> str:
    if not _is_unicode(path):
        return "has a name in an unknown encoding; rename it"
    if not entry.is_symlink():
        return "" if entry.is_file() else "is no file that can be read"
    if not os.path.realpath(entry.path).startswith(root.rstrip(os.sep) + os.sep):
        return LEADS_OUT
    if os.path.isdir(entry.path):
        return "is a link to a folder, which is not followed; copy it in"
    return "" if os.path.isfile(entry.path) else "is a link to nothing"


def _ends_in_stem(path: str, tail: str) -> bool:
    return f"/{posixpath.splitext(path)[0].lower()}".endswith(tail)


def _is_outside(place: str) -> bool:
    return place.startswith(("/", "../")) or place == ".." or place[1:2] == ":"
