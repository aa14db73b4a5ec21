"""Reports as a person reads them in a terminal of 100 columns; computes nothing but sums and units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.compare import Difference, Row
from bench.report import STAGES, LineRun, Report

WIDTH = 100  # columns a report takes; a narrower terminal breaks its lines, which is better than cut figures
NOTABLE = 0.05  # of a figure: smaller changes are drawn without colour
LATENCY = ("p50", "p90", "p99", "p99_9", "max")


def show_report(report: Report) -> RenderableType:
    """Everything measured."""
    parts: list[RenderableType] = [_head(report)]
    if report.engine_runs:
        parts.append(_engines(report))
    if report.line_runs:
        parts += [_lines(report), _stages(report), _costs(report)]
    if any(run.in_time for run in report.line_runs):
        parts.append(_in_time(report))
    return Group(*parts, *_remarks(report))


def show_comparison(
    rows: Sequence[Row], machines: Sequence[Difference], others: Sequence[Difference]
) -> RenderableType:
    """The figures side by side, beneath what else differs."""
    table = _table("", ["run", "figure"], ["A", "B", "B ÷ A"])
    last = ""
    for row in rows:
        if last and row.run != last:
            table.add_section()
        table.add_row(
            "" if row.run == last else row.run, row.figure, three_digits(row.a), three_digits(row.b), _ratio(row)
        )
        last = row.run
    warnings = [Text(f"! different machines: {difference}", "red") for difference in machines]
    notes = [Text(f"  differs: {difference}", "dim") for difference in others]
    return Group(*warnings, *notes, table)


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for word in words:
        table.add_column(word, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def _head(report: Report) -> Text:
    machine, settings = report.machine, report.settings
    height, width = settings["pictures"]["size"]
    shown = settings["pictures"]["images"] or f"simulated panels {height}×{width} px"
    tiles = f"{settings['tiles_per_frame']:g}"
    cut = "1 tile" if tiles == "1" else f"{tiles} tiles"
    return Text.assemble(
        (f"bench {report.kind}", "bold"),
        f"   recipe {report.recipe}, {settings['mode']}   engine {report.engine}\n",
        (
            f"{machine['cpu']}, {machine['usable_threads']} threads, {machine['memory_gib']:g} GiB\n"
            f"{shown}, {settings['frame_bytes'] / 1000:.3g} kB, {cut} a frame\n",
            "dim",
        ),
    )


def _engines(report: Report) -> Table:
    in_flight = report.engine_runs[0].in_flight
    title = f"Engine alone   one batch at a time; tiles/s with {in_flight} in flight"
    table = _table(title, ["stage"], ["batch", "p50 ms", "p99 ms", "max ms", "tiles/s", "CPU µs/tile"])
    last = ""
    for run in report.engine_runs:
        if last and run.stage != last:
            table.add_section()
        times = [_ms(value) for value in (run.batch_ms.p50, run.batch_ms.p99, run.batch_ms.max)]
        stage = "" if run.stage == last else run.stage
        table.add_row(stage, str(run.batch), *times, three_digits(run.tiles_per_s), three_digits(run.cpu_us))
        last = run.stage
    return table


def _lines(report: Report) -> Table:
    title = "Whole line   latency in ms, from the scheduled trigger to the settlement"
    numbers = ["offered/s", "settled/s", "p50", "p90", "p99", "p99.9", "max", "mean\nbatch", "frames\ncounted"]
    table = _table(title, ["batch", "load"], numbers)
    for batch, runs in _by_batch(report):
        for number, run in enumerate(runs):
            offered = three_digits(run.rate) if run.rate else "–"
            latency = [_ms(getattr(run.latency_ms, name)) for name in LATENCY]
            settled = Text(three_digits(run.frames_per_s), "" if run.keeps_up else "red")
            counted = f"{run.frames - run.warmup:,}"
            first = "" if number else str(batch)
            style = "" if run.rate else "dim"
            table.add_row(first, run.offered, offered, settled, *latency, f"{run.mean_batch:.1f}", counted, style=style)
        table.add_section()
    return table


def _stages(report: Report) -> Table:
    title = "Where a frame's time goes   open loop, mean ms"
    table = _table(title, ["batch", "load"], [*(name.replace("→", "\n→ ") for name in STAGES), "captured\n→ settled"])
    for batch, runs in _by_batch(report):
        for number, run in enumerate(run for run in runs if run.loop == "open"):
            means = [run.stages_ms[name].mean for name in STAGES]
            total = None if None in means else sum(mean for mean in means if mean is not None)
            table.add_row("" if number else str(batch), run.offered, *[_ms(mean) for mean in means], _ms(total))
    return table


def _costs(report: Report) -> Table:
    title = "What it costs   CPU µs a frame; memory at its peak, MiB"
    names = list(dict.fromkeys(name for run in report.line_runs for name in run.costs))
    names.sort(key=["producer", "redis", "worker", "reader"].index)
    table = _table(title, ["batch", "load"], [*(f"{n}\nµs" for n in names), "sum\nµs", *(f"{n}\nMiB" for n in names)])
    for batch, runs in _by_batch(report):
        for number, run in enumerate(runs):
            costs = [run.costs.get(name) for name in names]
            cpu = [three_digits(cost.cpu_us) if cost else "–" for cost in costs]
            memory = [three_digits(cost.rss_peak / 2**20) if cost else "–" for cost in costs]
            total = three_digits(sum(cost.cpu_us for cost in costs if cost))
            table.add_row("" if number else str(batch), run.offered, *cpu, total, *memory)
    return table


def _in_time(report: Report) -> Table:
    title = f"In time?   verdicts before a deadline of {report.settings['deadline_ms']:g} ms, per cent of the frames"
    numbers = ["offered/s", "judged", "fail-safe", "missed", "offered\ntoo late", "judged\nin time/s", "frames"]
    table = _table(title, ["batch", "load"], numbers)
    for batch, runs in _by_batch(report):
        for number, run in enumerate(run for run in runs if run.in_time):
            shares = [run.in_time[name] / run.frames for name in ("judged", "fail_safe", "missed", "offered_late")]
            percent = [f"{100 * share:.1f}" for share in shares]
            rate = [three_digits(run.rate), *percent, three_digits(run.rate * shares[0]), f"{run.frames:,}"]
            table.add_row("" if number else str(batch), run.offered, *rate)
        table.add_section()
    return table


def _by_batch(report: Report) -> Iterator[tuple[int, list[LineRun]]]:
    for batch in dict.fromkeys(run.batch for run in report.line_runs):
        yield batch, [run for run in report.line_runs if run.batch == batch]


def _remarks(report: Report) -> Iterator[Text]:
    """What a reader must know before believing the figures."""
    busy, threads = report.conditions["load_average_before"], report.machine["usable_threads"]
    if busy > 0.5 * threads:
        yield Text(f"! {busy:g} processes were busy on {threads} threads before the start: not to be trusted", "yellow")
    for run in report.line_runs:
        if not run.keeps_up:
            yield Text(f"! {run.label}: not all that was scheduled could be settled in time", "yellow")
        if run.producer_limited:
            yield Text(
                f"! {run.label}: the producer could not offer at this rate; most of the latency is its", "yellow"
            )
        if missed := run.judgements.get("UNINSPECTED", 0):
            yield Text(f"! {run.label}: {missed} frames are UNINSPECTED; the line did less than its work", "yellow")
    few = [run for run in report.line_runs if run.loop == "open" and run.latency_ms.p99_9 is None]
    if few:
        yield Text("– where there are too few frames to say: p99.9 takes 1,000, p99 takes 100", "dim")


def _ratio(row: Row) -> Text:
    if row.ratio is None:
        return Text("–")
    gain = row.ratio - 1 if row.more_is_better else 1 - row.ratio
    style = "" if abs(gain) < NOTABLE else ("green" if gain > 0 else "red")
    return Text(f"{row.ratio:.3f}", style)


def _ms(value: float | None) -> str:
    """Milliseconds with three significant digits, none lost to scientific notation."""
    return "–" if value is None else three_digits(value)


def three_digits(value: float) -> str:
    """Three significant digits, thousands with a comma.

    >>> [three_digits(v) for v in (0.01234, 1.234, 56.78, 901.2, 34567.8)]
    ['0.012', '1.23', '56.8', '901', '34,568']
    """
    size = abs(value)
    digits = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{digits}f}"
