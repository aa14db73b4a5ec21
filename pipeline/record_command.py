"""`aoi record`: keeps what passes on a line as a shift."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.connected import on_signal, opened
from pipeline.errors import Exit
from pipeline.messages import JUDGEMENTS, Judgement
from pipeline.options import connection, option
from pipeline.recorder import Recorder
from pipeline.shift_files import RollBy
from pipeline.shift_joining import Keep, RecordCounts
from pipeline.shown import counted, safe
from pipeline.supervisor import Supervisor

KEEPS: dict[str, tuple[Judgement, ...]] = {"all": JUDGEMENTS, "ng+review": ("NG", "REVIEW", "UNINSPECTED"), "none": ()}
MIB, GIB = 1024**2, 1024**3


@click.command()
@click.argument("folder", envvar="AOI_RECORD_FOLDER", type=click.Path(path_type=Path, file_okay=False))
@connection
@option(
    "--keep",
    envvar="AOI_RECORD_KEEP",
    type=click.Choice(list(KEEPS)),
    default="all",
    help="Whose pixels; ng+review has what was not inspected too. Verdicts are kept of every frame.",
)
@option("--ok-share", type=click.FloatRange(0, 1), default=0.0, help="With ng+review or none: of frames judged OK.")
@option("--roll-mib", type=click.IntRange(1), default=1024, help="Size at which the next file is begun.")
@option("--roll-min", type=click.FloatRange(0.01), default=60.0, help="Minutes after which it is begun at the latest.")
@option("--quota-gib", type=click.FloatRange(0), default=0.0, help="Of all shifts in FOLDER, oldest deleted; 0: none.")
@option("--grace-s", type=click.FloatRange(0), default=5.0, help="After a stop: how long to wait for verdicts.")
def record(
    folder: Path,
    line: str,
    url: str,
    broker_dir: Path | None,
    keep: str,
    ok_share: float,
    roll_mib: int,
    roll_min: float,
    quota_gib: float,
    grace_s: float,
) -> int:
    """Keep the frames of a line with their verdicts as a shift: MCAP files in FOLDER, until told to stop.

    It takes nothing from the workers and the line does not wait for it. What it could not keep is told at the end.

    \b
    aoi record ./shifts
    aoi record /data/shifts --keep ng+review --ok-share 0.02 --quota-gib 500
    """
    chosen = Keep(KEEPS[keep], ok_share)
    roll = RollBy(roll_mib * MIB, roll_min * 60)
    supervisor = Supervisor.from_environment()
    with opened(url, broker_dir, line) as stream:
        recorder = Recorder(stream, folder, chosen, roll, int(quota_gib * GIB), grace_s=grace_s)
        on_signal(recorder.stop)
        click.echo(f"recording {line} into {folder}", err=True)
        supervisor.ready(f"recording {line}")
        try:
            recorder.run(lambda counts: supervisor.alive(f"{counts.frames} frames recorded"))
        finally:
            _tell(recorder.counts, folder)
    return int(Exit.OK)


def _tell(counts: RecordCounts, folder: Path) -> None:
    """What is in the shift, and all that is not, by its reason."""
    kept = f"{counted(counts.frames, 'frame')} recorded into {counted(counts.files, 'file')} in {safe(folder)}"
    click.echo(f"{kept}, {counts.pixels} with pixels, {counts.bytes / 1e6:.1f} MB", err=True)
    for count, why in (
        (counts.not_wanted, "without pixels, as --keep says"),
        (counts.never_there, "without pixels: shed before they were on the stream"),
        (counts.missed, "without pixels: judged before they could be looked at"),
        (counts.no_room, "without pixels: no memory for so many frames that wait for a verdict"),
        (counts.unjudged, "without a verdict: none came until the end"),
    ):
        if count:
            click.echo(f"  {counted(count, 'frame')} {why}", err=True)
    if counts.lost_verdicts:
        said = f"{counted(counts.lost_verdicts, 'verdict')} left unread; raise --keep-verdicts of the workers"
        click.echo(f"  {said}", err=True)
