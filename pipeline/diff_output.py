"""What commands that compare two runs share: their options, the page, and the bounds that refuse a change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline.diff_page import Pictures, diff_page
from pipeline.errors import DiskError, Exit
from pipeline.messages import Frame, Verdict
from pipeline.options import option
from pipeline.overlay import draw
from pipeline.page_frame import picture
from pipeline.shown import counted
from pipeline.verdict_diff import VerdictDiff


@dataclass(frozen=True)
class Bounds:
    """How much may change; None: as much as it will."""

    escapes: int | None = None  # from NG to OK
    overkill: int | None = None  # from OK to NG
    flipped: int | None = None

    def gate(self, diff: VerdictDiff) -> Exit:
        """REFUSED where one is exceeded; each such is told on stderr."""
        allowed = {"escapes": self.escapes, "overkill": self.overkill, "flipped": self.flipped}
        exceeded = {name: most for name, most in allowed.items() if most is not None and getattr(diff, name) > most}
        for name, most in exceeded.items():
            click.echo(f"refused: {getattr(diff, name)} {name}, at most {most} allowed", err=True)
        return Exit.REFUSED if exceeded else Exit.OK


def comparison(command: Any) -> Any:
    """The command is given `report` and `bounds`."""

    @wraps(command)
    def with_bounds(max_escapes: int | None, max_overkill: int | None, max_flips: int | None, **others: Any) -> Any:
        return command(bounds=Bounds(max_escapes, max_overkill, max_flips), **others)

    decorated: Any = with_bounds
    for decorate in (
        option("--max-flips", type=click.IntRange(0), help="More changed judgements: exit with 12."),
        option("--max-overkill", type=click.IntRange(0), help="More from OK to NG: exit with 12."),
        option("--max-escapes", type=click.IntRange(0), help="More from NG to OK: exit with 12."),
        option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the comparison as a page."),
    ):
        decorated = decorate(decorated)
    return decorated


def both_pictures(frame: Frame, before: Verdict, after: Verdict) -> tuple[str, str]:
    """Elements with what was marked before and after. Raises WireError when the frame cannot be decoded."""
    image = frame.image()
    return picture(draw(image, before)), picture(draw(image, after))


def write_page(report: Path, diff: VerdictDiff, title: str, pictures: Pictures, in_rhythm: bool) -> None:
    """Raises DiskError."""
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(diff_page(diff, title, pictures, in_rhythm), encoding="utf-8")
    except OSError as error:
        raise DiskError(f"report {report} cannot be written: {error.strerror}; name another file") from error
    click.echo(f"{counted(diff.flipped, 'flip')} in {report}", err=True)
