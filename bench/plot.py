"""Latency against throughput as a picture; the only module that imports matplotlib, and so loaded when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # a file, on machines without a display too

from matplotlib import pyplot as plt
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bench.report import LineRun, Report
from pipeline.errors import DiskError

INK, SOFT, GRID, CAPACITY = "#1f2933", "#616e7c", "#e4e7eb", "#9aa5b1"
CURVES = {"p99": "#d1495b", "p50": "#1d6fa3"}
ENGINES = {"classifier": "#2a9d8f", "segmenter": "#8e6bbf"}
CAPACITY_LINE = "_capacity"  # matplotlib leaves what starts with an underscore out of the legend
FAR_APART = 10
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": CAPACITY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": GRID,
    "legend.frameon": False,
}


def draw(report: Report, path: Path) -> None:
    """Write the PNG: the whole line where it was measured, and beside it the engines alone over batch sizes."""
    sizes = {run.batch for run in report.engine_runs}
    alone = len(sizes) > 1 or not report.line_runs  # one size alone is one point: the table says it better
    panels = [_draw_line] * bool(report.line_runs) + [_draw_engines] * alone
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(1.8 + 5.2 * len(panels), 5.2), squeeze=False)
        for panel, ax in zip(panels, axes[0], strict=True):
            panel(ax, report)
        _title(figure, report)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise DiskError(f"plot cannot be written to {path}: {error.strerror}; choose another --out") from error
        finally:
            plt.close(figure)


def _title(figure: Any, report: Report) -> None:
    threads = report.machine["usable_threads"]
    where = f"{report.device}, {threads} threads" if report.device != "none" else report.machine["cpu"]
    figure.suptitle(f"{report.recipe.partition('@')[0]} on {report.engine}: latency against throughput", x=0.02,
                    ha="left", fontsize=14, fontweight="bold")  # fmt: skip
    day = report.created.partition("T")[0]
    commit = report.project["commit"][:8]
    figure.text(0.02, 0.905, "   ".join(filter(None, (where, day, commit))), color=SOFT, fontsize=9, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.91), w_pad=3)


def _draw_line(ax: Any, report: Report) -> None:
    """p50 and p99 of the open loop; joined over batch sizes, or over loads where there are several."""
    runs = [run for run in report.line_runs if run.loop == "open"]
    batches = list(dict.fromkeys(run.batch for run in runs))
    over_loads = len(runs) > len(batches)
    series = [[run for run in runs if run.batch == batch] for batch in batches] if over_loads else [runs]
    for number, some in enumerate(series):
        for name, colour in CURVES.items():
            _curve(ax, some, name, colour, label=name if not number else "")
        names = [run.offered if over_loads else f"batch {run.batch}" for run in some]
        if over_loads and len(series) > 1:
            names = ["" for _ in some[:-1]] + [f"batch {some[-1].batch}"]
        _annotate(ax, [(run.frames_per_s, _top(run)) for run in some], names)
    best = max((run for run in report.line_runs if run.loop == "closed"), key=lambda run: run.frames_per_s)
    ax.axvline(best.frames_per_s, color=CAPACITY, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1, label=CAPACITY_LINE)
    ax.text(best.frames_per_s, 0.02, f"closed loop, batch {best.batch}: {best.frames_per_s:,.0f}/s  ", color=SOFT,
            fontsize=8.5, ha="right", transform=ax.get_xaxis_transform())  # fmt: skip
    _furnish(ax, "whole line, open loop", "frames settled per second", "trigger → verdict settled, ms")


def _curve(ax: Any, runs: Sequence[LineRun], name: str, colour: str, label: str) -> None:
    points = [(run.frames_per_s, getattr(run.latency_ms, name)) for run in runs]
    known = [(x, y) for x, y in points if y is not None]
    if known:
        xs, ys = zip(*known, strict=True)
        ax.plot(xs, ys, "o-", color=colour, linewidth=2, markersize=6, markeredgecolor="white", label=label)


def _top(run: LineRun) -> float:
    """The upper of the two curves at this run."""
    latency = run.latency_ms
    return latency.p99 or latency.p50 or 0.0


def _draw_engines(ax: Any, report: Report) -> None:
    """Each network alone: what a batch takes by itself against what the engine does when kept busy."""
    for stage in dict.fromkeys(run.stage for run in report.engine_runs):
        runs = [run for run in report.engine_runs if run.stage == stage]
        xs, ys = [run.tiles_per_s for run in runs], [run.batch_ms.p50 or 0.0 for run in runs]
        ax.plot(xs, ys, "o-", color=ENGINES[stage], linewidth=2, markersize=6, markeredgecolor="white", label=stage)
        above = stage == "segmenter"  # the two may lie on one another
        _annotate(ax, list(zip(xs, ys, strict=True)), [f"batch {run.batch}" for run in runs], 9 if above else -16)
    in_flight = report.engine_runs[0].in_flight
    _furnish(ax, "engine alone", f"tiles per second, {in_flight} batches in flight", "one batch by itself, p50, ms")


def _annotate(ax: Any, points: Sequence[tuple[float, float]], names: Sequence[str], offset: int = 9) -> None:
    halo = [withStroke(linewidth=3, foreground="white")]  # so that no line runs through the words
    for (x, y), name in zip(points, names, strict=True):
        near = {"xytext": (0, offset), "textcoords": "offset points", "ha": "center"}
        ax.annotate(name, (x, y), **near, fontsize=8.5, color=SOFT, path_effects=halo, zorder=5)


def _furnish(ax: Any, title: str, across: str, up: str) -> None:
    """Upwards from zero, or in powers of ten with plain numbers where the values lie too far apart for that."""
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    ys = [y for line in ax.get_lines() if line.get_label() != CAPACITY_LINE for y in line.get_ydata()]
    if max(ys, default=1) > FAR_APART * min(ys, default=1) > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(min(ys) / 1.5, max(ys) * 1.8)
    else:
        ax.set_ylim(0, max(ys, default=1) * 1.25)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlim(0, ax.get_xlim()[1] * 1.06)
    ax.grid(True, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=2, fontsize=9)  # where no point can lie
