"""What a person is shown on a terminal, and the same facts for a machine; computes nothing of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipeline.demo import Outcome
from pipeline.doctor import Finding
from pipeline.messages import JUDGEMENTS
from pipeline.recipe import Recipe
from pipeline.results import percentiles
from pipeline.scoring import Score
from pipeline.shown import counted, printable, safe
from pipeline.stream import Audit

INK = {"OK": "green", "NG": "red", "REVIEW": "yellow", "UNINSPECTED": "magenta"}


def _table(*columns: str, title: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    table.title, table.title_justify, table.title_style = title or None, "left", "bold"
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def share(value: float | None) -> str:
    """A share in per cent with one decimal; a dash where nothing was there to be counted."""
    return "–" if value is None else f"{100 * value:.1f} %"


def show_outcome(console: Console, outcome: Outcome, recipe: Recipe) -> None:
    """The demo's summary."""
    audit, summary = outcome.audit, outcome.summary
    head = Text.assemble(
        (f"{audit.offered} frames in = {audit.settled} verdicts out", "bold green" if audit.holds else "bold red"),
        f" (the ledger's own count)\n{audit.outstanding} outstanding, {len(audit.gaps)} gaps\n",
    )
    for name in JUDGEMENTS:
        head.append(f"{name} {audit.judged[name]}   ", INK[name])
    for reason, count in summary.reasons.items():
        head.append(f"\n  {printable(reason)}: {count}")
    if outcome.left_out:
        head.append(
            f"\n{outcome.left_out} .png masks beside images of the same name were taken as truth, not inspected"
        )
    if outcome.restarts:
        head.append(f"\nprocesses killed and started again: {outcome.restarts}", "yellow")
    console.print(Panel(head, title=f"recipe {recipe.label}", title_align="left", expand=False))
    times = percentiles(summary.latencies_ms)
    console.print(
        f"{summary.fps:.0f} frames/s, mean batch {summary.mean_batch:.1f}\n"
        f"end to end p50 {times['p50']:.1f} ms, p95 {times['p95']:.1f} ms, p99 {times['p99']:.1f} ms",
        highlight=False,
    )
    console.print("(offered as fast as they are taken: waiting in a short backlog included)\n", style="dim")
    if outcome.score:
        show_score(console, outcome.score)
    console.print(f"pictures of NG frames: {outcome.overlays}", highlight=False, soft_wrap=True)


def show_score(console: Console, score: Score) -> None:
    """Figures against truth, by class and together."""
    table = _table("class", "frames", "judged NG", "precision", "recall", "Dice", title="against the truth")
    for name, row in score.by_class().items():
        shares = [share(row[key]) for key in ("found", "precision", "recall")]
        table.add_row(_plain(name), str(row["frames"]), *shares, _number(row["dice"]))
    defective, good = score.defective.total(), score.good.total()
    all_of_them = [share(score.recall), share(score.precision), share(score.recall), _number(score.dice())]
    table.add_row("any defect", str(defective), *all_of_them, style="bold")
    console.print(table)
    console.print(
        f"escape   {share(score.escape)} of {defective} defective frames were judged OK\n"
        f"overkill {share(score.overkill)} of {good} good frames were judged NG\n"
        f"REVIEW   {score.defective['REVIEW'] + score.good['REVIEW']} frames, counted as neither\n",
        highlight=False,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def status_json(audits: Mapping[str, Audit]) -> dict[str, Any]:
    """{"holds": …, "lines": {name: {...}}}"""
    return {"holds": all(a.holds for a in audits.values()), "lines": {n: audit_json(a) for n, a in audits.items()}}


def audit_json(audit: Audit) -> dict[str, Any]:
    """The whole ledger of one line."""
    return {
        "offered": audit.offered,
        "settled": audit.settled,
        "outstanding": audit.outstanding,
        "outstanding_bytes": audit.outstanding_bytes,
        "unoffered": audit.unoffered,
        "holds": audit.holds,
        "judgements": audit.judged,
        "reasons": dict(audit.reasons),
        "amended": dict(audit.amended),
        "missed": audit.missed,
        "gaps": [list(gap) for gap in audit.gaps],
        "dead": audit.dead,
        "workers": list(audit.workers),
        "sources": {n: {"offered": s.offered, "judgements": dict(s.judged)} for n, s in audit.sources.items()},
    }


def show_status(console: Console, audits: Mapping[str, Audit]) -> None:
    """A block per line; it fits into 80 columns."""
    if not audits:
        console.print("no line has seen a frame yet; offer some: aoi produce panel: --frames 100")
    for name, audit in audits.items():
        head = Text.assemble((name, "bold"), f"   {audit.offered} offered, {audit.outstanding} outstanding   ")
        console.print(head + _balance(audit), soft_wrap=True)
        judged = Text("   ")
        for judgement in JUDGEMENTS:
            judged.append(f"{judgement} {audit.judged[judgement]}   ", INK[judgement])
        console.print(judged)
        waiting = f"{audit.outstanding_bytes / 2**20:.1f} MiB waiting"
        facts = [
            waiting,
            counted(len(audit.workers), "worker"),
            counted(len(audit.gaps), "gap"),
            f"{audit.dead} kept as poison",
        ]
        console.print("   " + ", ".join(facts), highlight=False)
        for reason, count in sorted(audit.reasons.items()):
            console.print(_plain(f"   {reason}: {count}"), style="dim")
        if audit.amended:
            console.print(_plain(f"   {_amended(audit)}"), style="dim")
        if audit.missed:
            console.print(f"   {audit.missed} verdicts came after their frame's deadline", style="yellow")
        if audit.unoffered:
            console.print(f"   {_unoffered(name, audit)}", highlight=False, style="bold red", soft_wrap=True)


def _plain(text: str) -> Text:
    """A text of somebody else's: neither control characters nor rich's markup act in it."""
    return Text(printable(text))


def _unoffered(line: str, audit: Audit) -> str:
    where = f"aoi:{{{line}}}:frames"
    return f"{audit.unoffered} more than were offered: something else than `aoi produce` writes to {where}"


def _amended(audit: Audit) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in audit.amended.items())
    return f"amended after a fail-safe verdict, beside the counts above: {counts}"


def _balance(audit: Audit) -> Text:
    return Text("ledger holds", "green") if audit.holds else Text("LEDGER DOES NOT HOLD", "bold red")


def show_audit(console: Console, line: str, audit: Audit) -> None:
    """The identity of the line and of each source, then the gaps."""
    sum_ = " + ".join(f"{count} {name}" for name, count in audit.judged.items())
    identity = f"line {line}: {audit.offered} offered = {sum_} + {audit.outstanding} outstanding  "
    console.print(Text(identity) + _balance(audit), soft_wrap=True)
    table = _table("source", "offered", "OK", "NG", "REVIEW", "UNINSP.", "open", "gaps", "missing")
    for name, source in audit.sources.items():
        gaps = [gap for gap in audit.gaps if gap[0].startswith(f"{name}-")]
        missing = sum(last - first + 1 for _, first, last in gaps)
        judged = [str(source.judged.get(judgement, 0)) for judgement in JUDGEMENTS]
        rest = [source.offered - source.settled, len(gaps), missing]
        table.add_row(_plain(name or "(none)"), str(source.offered), *judged, *map(str, rest))
    console.print(table)
    if audit.unoffered:
        console.print(_unoffered(line, audit), highlight=False, style="bold red", soft_wrap=True)
    if audit.dead:
        console.print(f"{audit.dead} kept aside as poison, in aoi:{{{line}}}:dead", highlight=False, soft_wrap=True)
    if audit.amended:
        console.print(_plain(_amended(audit)), soft_wrap=True)
    if audit.missed:
        console.print(f"{audit.missed} verdicts came after their frame's deadline", style="yellow")
    for session, first, last in audit.gaps[-20:]:
        console.print(_plain(f"never offered: {session} {first}…{last}"), soft_wrap=True)


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """A line each, and how to mend what is missing."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        sign, style = ("✓", "green") if finding.ok else ("✗", "red") if finding.needed else ("–", "yellow")
        mend = "" if finding.ok or not finding.mend else f"\n→ {finding.mend}"
        table.add_row(Text(sign, style), finding.topic, Text(safe(finding.what) + mend))
    console.print(table)
