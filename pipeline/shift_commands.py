"""`aoi shift …`: what lies in a recorded shift, and how to get it out or make it whole."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import cv2

from pipeline.errors import AoiError, DiskError, Exit, WireError
from pipeline.messages import JUDGEMENTS
from pipeline.options import option
from pipeline.overlay import file_name
from pipeline.shift_choice import Wanted, frames_of, tell_damage, wanted_options
from pipeline.shift_files import files_of
from pipeline.shift_format import Recorded
from pipeline.shift_reader import Shift, open_shift
from pipeline.shift_repair import repair as repair_file
from pipeline.shown import counted, safe

CSV_FIELDS = ("frame_id", "source", "lot", "panel", "name", "judgement", "reason", "recipe", "engine", "triggered_ns")


def shown_time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


@click.group()
def shift() -> None:
    """Recorded shifts: what lies in them, and how to get it out or make it whole.

    \b
    aoi shift info ./shifts
    """


shift_argument = click.argument("path", metavar="SHIFT", type=click.Path(path_type=Path))


@shift.command()
@shift_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@option("--check", is_flag=True, help="Read every chunk, so that damage is found.")
def info(path: Path, as_json: bool, check: bool) -> int:
    """Frames, verdicts, times and recipes of SHIFT, a file or a folder; exits with 4 when something is damaged.

    \b
    aoi shift info ./shifts
    aoi shift info ./shifts/line1-20250301T220000Z.mcap --check --json
    """
    facts = [_facts(open_shift(file), check) for file in files_of(path)]
    if as_json:
        click.echo(json.dumps({"files": facts}))
    else:
        for each in facts:
            _show(each)
    return int(Exit.SOURCE if any(each["damage"] for each in facts) else Exit.OK)


def _facts(found: Shift, check: bool) -> dict[str, Any]:
    rows = found.rows()
    recipes: Counter[str] = Counter()
    engines: Counter[str] = Counter()
    if check:
        for recorded in found.recorded():
            with suppress(AoiError):
                if verdict := recorded.judged():
                    recipes[verdict.recipe] += 1
                    engines[verdict.engine] += 1
    times = [row.time_ns for row in rows]
    return {
        "file": str(found.path), "bytes": found.path.stat().st_size, "whole": found.whole, "frames": len(rows),
        "with_pixels": sum(row.has_pixels for row in rows),
        "judgements": {name: sum(row.judgement == name for row in rows) for name in JUDGEMENTS},
        "without_verdict": sum(not row.judgement for row in rows), "lots": sorted({row.lot for row in rows if row.lot}),
        "first_ns": min(times, default=0), "last_ns": max(times, default=0),
        "recipes": dict(recipes), "engines": dict(engines), "damage": found.damage,
    }  # fmt: skip


def _show(facts: dict[str, Any]) -> None:
    click.echo(safe(facts["file"]))
    said = f"{counted(facts['frames'], 'frame')}, {facts['with_pixels']} with pixels, {facts['bytes'] / 1e6:.1f} MB"
    click.echo(f"  {said}")
    if facts["frames"]:
        click.echo(f"  {shown_time(facts['first_ns'])} … {shown_time(facts['last_ns'])}")
    judged = [f"{count} {name}" for name, count in facts["judgements"].items() if count]
    judged += [f"{facts['without_verdict']} without a verdict"] if facts["without_verdict"] else []
    click.echo(f"  {', '.join(judged) or 'no verdicts'}")
    if facts["lots"]:
        more = f" and {len(facts['lots']) - 8} more" if len(facts["lots"]) > 8 else ""
        click.echo(f"  lots {safe(', '.join(facts['lots'][:8]))}{more}")
    for name, count in facts["recipes"].items():
        click.echo(f"  {count} by {safe(name or 'no recipe')}")
    for line in facts["damage"]:
        click.echo(f"  damaged: {safe(line)}")


@shift.command("list")
@shift_argument
@wanted_options
def list_(path: Path, wanted: Wanted) -> None:
    """One line per frame of SHIFT, from its index: time, judgement, lot, panel, frame id.

    \b
    aoi shift list ./shifts --lot 4711 --judgement NG
    """
    for file in files_of(path):
        found = open_shift(file)
        for row in sorted(filter(wanted.takes, found.rows()), key=lambda row: row.time_ns):
            cells = shown_time(row.time_ns), row.judgement or "–", row.lot, row.panel, row.frame_id
            click.echo("\t".join(map(safe, cells)))
        tell_damage(found)


@shift.command()
@shift_argument
@click.argument("folder", type=click.Path(path_type=Path))
@wanted_options
@option("--verdicts", type=click.Choice(["jsonl", "csv"]), default="jsonl", help="How the verdicts are written.")
@option("--pictures/--no-pictures", default=True, help="Frames as PNG, with every grey level as it was.")
def extract(path: Path, folder: Path, wanted: Wanted, verdicts: str, pictures: bool) -> None:
    """Write frames of SHIFT as PNG into FOLDER, and their verdicts as verdicts.jsonl or verdicts.csv.

    \b
    aoi shift extract ./shifts ./ng --judgement NG
    aoi shift extract ./shifts ./lot --lot 4711 --no-pictures --verdicts csv
    """
    frames = written = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"verdicts.{verdicts}").open("w", encoding="utf-8", newline="") as out:
            table = csv.writer(out)
            if verdicts == "csv":
                table.writerow(CSV_FIELDS)
            for recorded in frames_of(path, wanted):
                facts = _verdict_facts(recorded)
                if verdicts == "csv":
                    table.writerow([facts.get(name, "") for name in CSV_FIELDS])
                else:
                    out.write(json.dumps(facts) + "\n")
                frames += 1
                written += pictures and recorded.pixels is not None and _picture(recorded, facts, folder)
    except OSError as error:
        raise DiskError(f"shift cannot be written to {folder}: {error.strerror}; choose another folder") from error
    click.echo(f"{counted(frames, 'frame')}, {counted(written, 'picture')} written to {folder}", err=True)


def _verdict_facts(recorded: Recorded) -> dict[str, Any]:
    try:
        if verdict := recorded.judged():
            return verdict.as_json()
        frame = recorded.frame()
    except WireError as error:
        return {"frame_id": "", "judgement": "", "reason": "unreadable", "detail": str(error)}
    return {"frame_id": frame.frame_id, "source": frame.source, "lot": frame.lot, "panel": frame.panel, "judgement": ""}


def _picture(recorded: Recorded, facts: dict[str, Any], folder: Path) -> bool:
    try:
        done, data = cv2.imencode(".png", recorded.frame().image())
    except (WireError, cv2.error) as error:
        click.echo(f"no picture of {safe(facts['frame_id'])}: {safe(error)}", err=True)
        return False
    (folder / file_name(facts["judgement"] or "NONE", facts["frame_id"])).write_bytes(data.tobytes())
    return bool(done)


@shift.command()
@shift_argument
def repair(path: Path) -> None:
    """Make the files of SHIFT whole again after a kill or damage; a broken one stays beside as NAME.damaged.

    \b
    aoi shift repair ./shifts
    """
    for file in files_of(path):
        done = repair_file(file)
        if done.kept is None:
            click.echo(f"{safe(file)} is whole: {counted(done.frames, 'frame')}")
        else:
            click.echo(f"{safe(file)} repaired: {counted(done.frames, 'frame')} kept; as it was: {safe(done.kept)}")
            for line in done.damage:
                click.echo(f"  {safe(line)}", file=sys.stderr)
