"""Which files a shift is, and who makes room for new ones; reads none of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DiskError, ShiftError

SUFFIX = ".mcap"


@dataclass(frozen=True)
class RollBy:
    """When a file is closed and the next begun: whichever comes first."""

    size: int = 1024**3  # bytes
    age_s: float = 3600.0
    frames: int = 200_000  # its index is held in memory

    def due(self, size: int, age_s: float, frames: int) -> bool:
        return size >= self.size or age_s >= self.age_s or frames >= self.frames


def files_of(path: Path) -> list[Path]:
    """A file, or all shift files of a folder, the oldest first. Raises ShiftError when there is none."""
    if not path.is_dir():
        return [path]
    if not (found := sorted(path.glob(f"*{SUFFIX}"))):
        raise ShiftError(f"no shift files (*{SUFFIX}) in {path}; record one: aoi record {path}")
    return found


def new_name(folder: Path, line: str, now_s: float) -> Path:
    """`LINE-YYYYMMDDTHHMMSS.mmmZ.mcap`, of the next millisecond that is not taken: names sort by time."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in line)
    times = (divmod(ms, 1000) for ms in itertools.count(int(now_s * 1000)))
    names = (f"{stem}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(s))}.{ms:03}Z{SUFFIX}" for s, ms in times)
    return next(path for name in names if not (path := folder / name).exists())


def over_quota(files: Sequence[tuple[Path, int]], quota: int) -> list[Path]:
    """Of files with sizes in bytes, the oldest first: those that must go until the rest fit; never the newest."""
    total, out = sum(size for _, size in files), list[Path]()
    for path, size in files[:-1]:
        if total <= quota:
            break
        out.append(path)
        total -= size
    return out


def make_room(folder: Path, quota: int) -> list[Path]:
    """Delete the oldest shift files of a folder until the rest fit into the quota; which. Raises DiskError."""
    try:
        files = sorted((path.stat().st_mtime_ns, path, path.stat().st_size) for path in folder.glob(f"*{SUFFIX}"))
        gone = over_quota([(path, size) for _, path, size in files], quota)
        for path in gone:
            path.unlink()
    except OSError as error:
        raise DiskError(f"no room can be made in {folder}: {error.strerror}; delete old shifts there") from error
    return gone
