"""Makes a shift file whole again: everything that can still be read, into a new file that takes its place."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AoiError, DiskError
from pipeline.shift_reader import open_shift
from pipeline.shift_writer import ShiftWriter


@dataclass(frozen=True)
class Repaired:
    """What a repair found. `kept`: where the broken file lies now; None: it was whole, and was left alone."""

    frames: int
    damage: list[str]
    kept: Path | None


def repair(path: Path) -> Repaired:
    """Replace a broken file by a whole one with all that could be read; the broken one stays beside it.

    Raises ShiftError when the file is no shift, DiskError when there is no room for the new one; then nothing changed.
    """
    shift, frames = open_shift(path), 0
    new, kept = path.with_name(path.name + ".new"), path.with_name(path.name + ".damaged")
    if kept.exists():
        raise DiskError(f"{kept} is there already, from an earlier repair; move it away and repair again")
    new.unlink(missing_ok=True)  # of a repair that was killed
    try:
        with ShiftWriter(new) as writer:
            for recorded in shift.recorded():
                verdict = None
                with suppress(AoiError):
                    verdict = recorded.judged() or recorded.amended()
                writer.add(recorded, verdict.judgement if verdict else "", verdict.settled_ns if verdict else 0)
                frames += recorded.amendment is None or recorded.verdict is not None
        if shift.whole and not shift.damage:
            new.unlink()
            return Repaired(frames, [], None)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        os.link(path, kept)
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise DiskError(f"shift {path} cannot be repaired: {error.strerror}; make room beside it") from error
    except AoiError:
        new.unlink(missing_ok=True)
        raise
    return Repaired(frames, shift.damage, kept)
