"""Several models as a person compares them in a terminal of 100 columns; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.models_report import Model, ModelsReport, Row
from bench.table import NOTABLE, three_digits

LABELS = {"dice": "Dice", "miou": "mIoU", "f1": "F1", "map": "mAP", "accuracy": "accuracy", "escape": "escape"}
COLUMNS = ("batch", "tiles/s", "±", "ms/\ntile", "ms/\nMpx", "times\nas fast")


def show_models(report: ModelsReport) -> RenderableType:
    """Every stage of every model, at batch 1 and at its best."""
    return Group(_head(report), _table(report), Text(), *_remarks(report))


def _head(report: ModelsReport) -> Text:
    machine, settings = report.machine, report.settings
    rounds = f"median of {settings['rounds']} rounds of {settings['seconds']:g} s, all models in turn"
    return Text.assemble(
        ("bench models", "bold"),
        f"   engine {report.engine}, {settings['in_flight']} batches in flight; {rounds}\n",
        (f"{machine['cpu']}, {machine['usable_threads']} threads, {machine['memory_gib']:g} GiB\n", "dim"),
        ("→ fastest batch; times as fast per px as ", "dim"),
        report.against,
        (": batch 1 by batch 1, fastest by fastest\n", "dim"),
    )


def _table(report: ModelsReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("model", "stage", "tile"):
        table.add_column(name, overflow="fold")
    for name in (*COLUMNS, LABELS[report.settings["accuracy"]], "n"):
        table.add_column(name, justify="right", no_wrap=True)
    models, last = {model.name: model for model in report.models}, ("", "")
    for row in report.rows():
        speed = row.speed
        if last[0] and speed.model != last[0]:
            table.add_section()
        new = speed.model != last[0]
        stage = "" if (speed.model, speed.stage) == last else speed.stage
        tile = f"{speed.tile[0]}×{speed.tile[1]}" if stage else ""
        table.add_row(
            speed.model if new else "", stage, tile, *_figures(row), *(_worth(models[speed.model]) if new else ())
        )
        last = (speed.model, speed.stage)
    return table


def _figures(row: Row) -> Iterator[Text | str]:
    speed = row.speed
    yield f"→ {speed.batch}" if row.best else str(speed.batch)
    yield three_digits(speed.tiles_per_s)
    yield "–" if speed.spread is None else f"{100 * speed.spread:.0f}%"
    yield three_digits(speed.ms_per_tile)
    yield three_digits(speed.ms_per_mpx)
    style = "" if abs(row.ratio - 1) < NOTABLE else ("green" if row.ratio > 1 else "red")
    yield Text(f"{three_digits(row.ratio)}×", style)


def _worth(model: Model) -> tuple[str, str]:
    """Accuracy and how many pictures say so."""
    return "–" if model.accuracy is None else f"{model.accuracy:.3f}", "–" if model.n is None else f"{model.n:,}"


def _remarks(report: ModelsReport) -> Iterator[Text]:
    """What a reader must know before believing the figures."""
    busy, threads = report.conditions["load_average_before"], report.machine["usable_threads"]
    if busy > 0.5 * threads:
        yield Text(
            f"! {busy:g} processes were busy on {threads} threads before the start: believe the ratios only", "yellow"
        )
    pictures = {(model.n, model.side) for model in report.models if model.accuracy is not None}
    if len(pictures) > 1:
        told = ", ".join(sorted(f"{n} {side}".strip() for n, side in pictures))
        yield Text(f"! accuracies are of different pictures ({told}): they do not compare", "yellow")
    if any(model.untaught for model in report.models):
        yield Text("(untaught): written for its speed alone, it has no accuracy", "dim")
