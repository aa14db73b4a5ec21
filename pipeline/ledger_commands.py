"""Reading a line, as commands: `aoi results`, `aoi status` and `aoi audit`."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import click
from rich.console import Console

from pipeline import tables
from pipeline.connected import broker_url, on_signal, opened
from pipeline.errors import Exit
from pipeline.messages import JUDGEMENTS
from pipeline.options import as_json, connection, option, server
from pipeline.results import follow, kept
from pipeline.stream import Log, list_lines, open_stream


@click.command()
@connection
@option("-f", "--follow", "follows", is_flag=True, help="Go on with each new verdict until interrupted.")
@option("--new", "only_new", is_flag=True, help="With --follow: leave out what was settled before.")
@option("--amendments", is_flag=True, help="Instead: real answers that came after a fail-safe verdict.")
@option("--judgement", type=click.Choice(JUDGEMENTS), multiple=True, help="Only these.")
@option("--limit", type=click.IntRange(1), help="Stop after so many.")
@option("--masks/--no-masks", default=True, help="Run-length masks in Kaggle's text form.")
def results(
    line: str,
    url: str,
    broker_dir: Path | None,
    follows: bool,
    only_new: bool,
    amendments: bool,
    judgement: tuple[str, ...],
    limit: int | None,
    masks: bool,
) -> None:
    """Print verdicts as JSON lines, oldest first.

    \b
    aoi results | jq -r '[.name, .judgement, .reason] | @tsv'
    aoi results --follow --judgement NG --no-masks
    """
    stop = threading.Event()
    on_signal(stop.set)
    with opened(url, broker_dir, line) as stream:
        log: Log = "amendments" if amendments else "verdicts"
        after = stream.newest(log) if only_new else "0"
        verdicts = follow(stream, after, stop, log) if follows else kept(stream, log)
        wanted = (v for v in verdicts if not judgement or v.judgement in judgement)
        for number, verdict in enumerate(wanted, 1):
            facts = verdict.as_json()
            if not masks:
                del facts["masks"]
            click.echo(json.dumps(facts))
            if number == limit:
                return


@click.command()
@option("--line", default="", help="Only this one [default: every line].")
@server
@as_json
def status(line: str, url: str, broker_dir: Path | None, as_json: bool) -> int:
    """The ledger of every line: offered = judged + outstanding; exits with 8 where that does not hold.

    \b
    aoi status
    aoi status --url redis://line-pc:6379 --json
    """
    with broker_url(url, broker_dir) as where:
        audits = {}
        for name in [line] if line else list_lines(where):
            stream = open_stream(where, name)
            audits[name] = stream.audit()
            stream.close()
    if as_json:
        click.echo(json.dumps(tables.status_json(audits)))
    else:
        tables.show_status(Console(), audits)
    return int(Exit.OK if all(audit.holds for audit in audits.values()) else Exit.LEDGER)


@click.command()
@connection
@as_json
def audit(line: str, url: str, broker_dir: Path | None, as_json: bool) -> int:
    """One line's ledger by source, with gaps in the sequences; exits with 8 where the identity does not hold.

    \b
    aoi audit --line press4
    aoi audit --json | jq .sources
    """
    with opened(url, broker_dir, line) as stream:
        found = stream.audit()
    if not found.sources:
        click.echo(f"no frame was ever offered to {line}; `aoi status` lists the lines that have seen one", err=True)
    if as_json:
        click.echo(json.dumps(tables.audit_json(found)))
    else:
        tables.show_audit(Console(), line, found)
    return int(Exit.OK if found.holds else Exit.LEDGER)
