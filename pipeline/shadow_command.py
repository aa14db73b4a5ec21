"""`aoi shadow`: a second recipe beside the line's own, on live frames."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console

from pipeline.connected import broker_url, on_signal
from pipeline.crew import Crew
from pipeline.diff_output import Bounds, both_pictures, comparison, write_page
from pipeline.diff_tables import show_diff
from pipeline.errors import AoiError
from pipeline.messages import Frame, Verdict
from pipeline.options import MIB, as_json, connection, option
from pipeline.recipe import load_recipe
from pipeline.shadow import Shadow, ShadowCounts
from pipeline.shown import counted
from pipeline.stream import Limits, open_stream
from pipeline.verdict_diff import VerdictDiff

MOST_PICTURES = 60


class LivePictures:
    """Both pictures of the first flips, drawn while their pixels are at hand."""

    def __init__(self, diff: VerdictDiff) -> None:
        self.diff, self.pictures = diff, dict[str, tuple[str, str]]()

    def add(self, before: Verdict, after: Verdict, frame: Frame | None) -> None:
        self.diff.add(before, after)
        if before.judgement != after.judgement and frame and len(self.pictures) < MOST_PICTURES:
            with suppress(AoiError):
                self.pictures[frame.frame_id] = both_pictures(frame, before, after)


@click.command()
@connection
@option("--recipe", envvar="AOI_SHADOW_RECIPE", required=True, help="What judges beside the line's own.")
@option("--workers", type=click.IntRange(1, 64), default=1, help="Workers started for it.")
@option("--max-mib", type=click.IntRange(1), default=64, help="Byte budget of its copies, in MiB; beyond it they go.")
@comparison
@as_json
def shadow(
    line: str,
    url: str,
    broker_dir: Path | None,
    recipe: str,
    workers: int,
    max_mib: int,
    report: Path | None,
    bounds: Bounds,
    as_json: bool,
) -> int:
    """Judge a line's frames by a second recipe too, until told to stop; then say where the two differ.

    Frames are copied onto line LINE.shadow, which has a ledger and verdicts of its own; the line's own judgement
    cannot change by it, and nothing waits for it.

    \b
    aoi shadow --recipe ./new-model --report diff.html
    aoi shadow --line press4 --url redis://line-pc:6379 --recipe ./new-model --max-escapes 0
    """
    load_recipe(recipe)
    seen, beside = LivePictures(VerdictDiff()), f"{line}.shadow"
    with tempfile.TemporaryDirectory(prefix="aoi-shadow-") as folder, broker_url(url, broker_dir) as where:
        own, onto = open_stream(where, line), open_stream(where, beside, limits=Limits(max_mib * MIB))
        names = [f"worker {number + 1}" for number in range(workers)]
        command = ["work", "--recipe", recipe, "--line", beside]
        crew = Crew(dict.fromkeys(names, command), Path(folder) / "workers.log", {"AOI_URL": where})
        shadow = Shadow(own, onto, seen.add)
        on_signal(shadow.stop)
        try:
            for name in names:
                crew.start(name)
            click.echo(f"{recipe} judges beside {line}, on {beside}", err=True)
            counts = shadow.run(crew.look)
        finally:
            crew.stop()
            own.close()
            onto.close()
    if report:
        write_page(report, seen.diff, f"{line}: {recipe} beside it", seen.pictures, True)
    if as_json:
        click.echo(json.dumps({**vars(counts), "diff": seen.diff.as_json()}))
    else:
        _tell(counts)
        show_diff(Console(), seen.diff)
    return int(bounds.gate(seen.diff))


def _tell(counts: ShadowCounts) -> None:
    click.echo(f"{counted(counts.copied, 'frame')} copied, {counts.paired} judged by both")
    if counts.shed:
        click.echo(f"{counted(counts.shed, 'frame')} not judged by it: its workers were too slow")
