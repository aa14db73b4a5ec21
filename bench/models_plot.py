"""Accuracy against speed as a picture; imports matplotlib, so loaded when asked for.

Above: models whose accuracy is known, up and left is better. Below: those that have none, on the same axis of speed.
Each is a line from batch 1 (ring) to its fastest batch (dot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from bench.models_report import Model, ModelsReport, Speed, best
from bench.models_table import LABELS
from bench.plot import INK, SOFT, STYLE, plt
from pipeline.errors import DiskError

COLOURS = ("#d1495b", "#1d6fa3", "#2a9d8f", "#8e6bbf", "#e08e45", "#5b7553", "#a23b72", "#3d5a80")
LESS_IS_BETTER = ("escape",)
ROW_INCHES, PANEL_INCHES, REST_INCHES = 0.28, 4.4, 1.6
NEAR = 9  # points from a dot to its name, and steps of it where there is no room
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
HALO = [withStroke(linewidth=3, foreground="white")]  # so that no line runs through the words


@dataclass(frozen=True)
class Line:
    """From batch 1 to the fastest batch."""

    name: str
    first: Speed
    best: Speed
    accuracy: float | None = None
    n: int | None = None


def draw(report: ModelsReport, path: Path) -> None:
    """Write the PNG."""
    above, below = _lines_above(report), _lines_below(report)
    heights = [PANEL_INCHES] * bool(above) + [ROW_INCHES * (len(below) + 1)] * bool(below)
    with plt.rc_context(STYLE):
        size = (9.4, sum(heights) + REST_INCHES)
        figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, sharex=True, squeeze=False)
        if below:
            _draw_below(axes[-1, 0], below, bool(above))
        if above:
            _draw_above(axes[0, 0], above, report.settings["accuracy"])
        _axis_of_speed(axes[-1, 0], [*above, *below])
        _title(figure, report)
        if above:
            _name_lines(axes[0, 0], above)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise DiskError(f"plot cannot be written to {path}: {error.strerror}; choose another --out") from error
        finally:
            plt.close(figure)


def _lines_above(report: ModelsReport) -> list[Line]:
    """Models with an accuracy, each with everything a tile may have to go through."""
    known = [model for model in report.models if model.accuracy is not None]
    return [_line(model.name, report.whole(model.name), model) for model in known]


def _lines_below(report: ModelsReport) -> list[Line]:
    """Every stage of the models without, the fastest first."""
    lines = []
    for model in report.models:
        stages = report.stages(model.name) if model.accuracy is None else []
        for stage in stages:
            name = model.name if len(stages) == 1 else f"{model.name}, {stage}"
            lines.append(_line(name, report.speeds(model.name, stage), model))
    return sorted(lines, key=lambda line: line.best.ms_per_usual_tile)


def _line(name: str, speeds: Sequence[Speed], model: Model) -> Line:
    return Line(name, speeds[0], best(speeds), model.accuracy, model.n)


def _draw_above(ax: Any, lines: Sequence[Line], key: str) -> None:
    for line, colour in zip(lines, cycle(COLOURS), strict=False):
        assert line.accuracy is not None
        _draw_line(ax, line, line.accuracy, colour)
    worths = [line.accuracy for line in lines if line.accuracy is not None]
    room = max(0.02, (max(worths) - min(worths)) * 0.25)
    low, high = min(worths) - room, max(worths) + room
    ax.set_ylim((high, low) if key in LESS_IS_BETTER else (low, high))
    ax.set_ylabel(LABELS[key])
    ax.grid(True, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_title("accuracy against speed of a whole model; up and left is better", loc="left", fontsize=11)


def _draw_below(ax: Any, lines: Sequence[Line], beneath: bool) -> None:
    for height, line in enumerate(lines):
        _draw_line(ax, line, height, INK if not beneath else SOFT)
    ax.set_yticks(range(len(lines)), [line.name for line in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.grid(True, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_title("accuracy not known; left is better" if beneath else "left is better", loc="left", fontsize=11)


def _draw_line(ax: Any, line: Line, y: float, colour: str) -> None:
    xs = [line.first.ms_per_usual_tile, line.best.ms_per_usual_tile]
    ax.plot(xs, [y, y], color=colour, linewidth=2, zorder=2)
    ax.plot(xs[:1], [y], "o", color=colour, markerfacecolor="white", markeredgewidth=1.6, markersize=9, zorder=3)
    ax.plot(xs[1:], [y], "o", color=colour, markeredgewidth=0, markersize=5.5, zorder=4)


def _axis_of_speed(ax: Any, lines: Sequence[Line]) -> None:
    """Powers of ten with plain numbers between them."""
    xs = [speed.ms_per_usual_tile for line in lines for speed in (line.first, line.best)]
    ax.set_xscale("log")
    ax.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
    wide = max(xs) > 10 * min(xs)
    ax.xaxis.set_major_locator(LogLocator(10, (1, 2, 5) if wide else (1, 1.5, 2, 3, 4, 5, 7)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("ms for 256×256 px, engine kept busy")
    batches = sorted({line.best.batch for line in lines})
    told = str(batches[0]) if len(batches) == 1 else f"{batches[0]} … {batches[-1]}"
    handles = [
        Line2D([], [], marker="o", color=SOFT, markerfacecolor="white", markeredgewidth=1.6, markersize=9, linewidth=0),
        Line2D([], [], marker="o", color=SOFT, markeredgewidth=0, markersize=5.5, linewidth=0),
    ]
    words = [f"batch {lines[0].first.batch}", f"fastest batch ({told})"]
    ax.figure.legend(handles, words, loc="upper right", bbox_to_anchor=(0.99, 0.995), ncols=2, fontsize=9)


def _title(figure: Any, report: ModelsReport) -> None:
    threads = report.machine["usable_threads"]
    where = f"{report.device}, {threads} threads" if report.device != "none" else report.machine["cpu"]
    height = figure.get_figheight()
    title = f"{len(report.models)} models on {report.engine}"
    figure.text(0.02, 1 - 0.12 / height, title, fontsize=14, fontweight="bold", ha="left", va="top")
    day, commit = report.created.partition("T")[0], report.project["commit"][:8]
    told = "   ".join(filter(None, (where, f"median of {report.settings['rounds']} rounds", day, commit)))
    figure.text(0.02, 1 - 0.42 / height, told, color=SOFT, fontsize=9, ha="left", va="top")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.65 / height), h_pad=1.5)


def _name_lines(ax: Any, lines: Sequence[Line]) -> None:
    """Each name beside its dot, where it covers neither a dot nor another name nor the edge."""
    figure = ax.figure
    figure.canvas.draw()
    inside, scale = ax.get_window_extent(), figure.dpi / 72
    taken = [_around(ax, speed, line, 6 * scale) for line in lines for speed in (line.first, line.best)]
    for line, colour in zip(lines, cycle(COLOURS), strict=False):
        words = ax.annotate(
            f"{line.name} ({line.accuracy:.3f}, n = {line.n:,})",
            (line.best.ms_per_usual_tile, line.accuracy),
            xytext=(0, NEAR),
            textcoords="offset points",
            fontsize=9,
            color=colour,
            path_effects=HALO,
            zorder=5,
        )
        taken.append(_placed(words, taken, inside))


def _placed(words: Any, taken: Sequence[Bbox], inside: Bbox) -> Bbox:
    """Move the words to the nearest free place, to the first where none is free; what they cover there."""
    covered = []
    for distance, (right, up) in product(range(1, 9), DIRECTIONS):
        words.set(
            position=(right * NEAR * distance, up * NEAR * distance),
            horizontalalignment=("center", "left", "right")[right],
            verticalalignment=("center", "bottom", "top")[up],
        )
        box = words.get_window_extent()
        covered.append((words.get_position(), words.get_ha(), words.get_va(), box))
        within = inside.count_contains(box.corners()) == 4
        if within and not any(box.overlaps(other) for other in taken):
            return box
    position, across, along, box = covered[0]
    words.set(position=position, horizontalalignment=across, verticalalignment=along)
    return box


def _around(ax: Any, speed: Speed, line: Line, reach: float) -> Bbox:
    """The dot's square on the picture, in its pixels."""
    x, y = ax.transData.transform((speed.ms_per_usual_tile, line.accuracy))
    return Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)
