"""Escape against overkill as a picture; imports matplotlib, and so is loaded when a report is asked for."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # bytes, on machines without a display too

from matplotlib import pyplot as plt

from pipeline.evaluation import Evaluation, Tried
from pipeline.operating_point import Rate

INK, SOFT, GRID, CURVE, CHOSEN, PRESENT = "#1f2933", "#616e7c", "#e4e7eb", "#1d6fa3", "#d1495b", "#2a9d8f"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": GRID,
    "legend.frameon": False,
}


def curve_png(evaluation: Evaluation, tried: Tried) -> bytes:
    """PNG of the curve with the chosen and the present point; bars are 95 % intervals of pictures."""
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.6, 4.8))
        xs, ys = [], []
        for point in tried.curve:
            xs.append(_percent(point.overkill))
            ys.append(_percent(point.escape))
        if xs:  # to the right of the last point nothing gets worse
            ax.plot(xs, ys, drawstyle="steps-post", color=CURVE, linewidth=2, zorder=2)
            ax.plot(xs, ys, "o", color=CURVE, markersize=6, markeredgecolor="white", zorder=3, label="best rules")
        target = 100 * evaluation.settings.escape_target
        ax.axhline(target, color=SOFT, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        ax.text(1, target, f"target {target:g} %", color=SOFT, fontsize=8.5, ha="right", va="bottom",
                transform=ax.get_yaxis_transform())  # fmt: skip
        _mark(ax, evaluation.overkill, evaluation.escape, "s", PRESENT, "recipe as it is")
        if tried.chosen:
            _mark(ax, tried.chosen.overkill, tried.chosen.escape, "D", CHOSEN, "chosen")
        _furnish(ax, evaluation)
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        plt.close(figure)
    return buffer.getvalue()


def _percent(rate: Rate) -> float:
    return 100 * (rate.share or 0.0)


def _mark(ax: Any, overkill: Rate, escape: Rate, marker: str, colour: str, label: str) -> None:
    if overkill.interval is None or escape.interval is None:
        return
    x, y = _percent(overkill), _percent(escape)
    across, up = ([[value - 100 * low], [100 * high - value]] for value, (low, high) in
                  ((x, overkill.interval), (y, escape.interval)))  # fmt: skip
    ax.errorbar([x], [y], xerr=across, yerr=up, fmt=marker, color=colour, markersize=8, markeredgecolor="white",
                elinewidth=1.2, capsize=3, alpha=0.95, zorder=4, label=label)  # fmt: skip


def _furnish(ax: Any, evaluation: Evaluation) -> None:
    ax.set_xlabel(f"overkill, % of {evaluation.overkill.total:,} good pictures")
    ax.set_ylabel(f"escape, % of {evaluation.escape.total:,} defective pictures")
    right, top = (max(limit[1], 1.0) for limit in (ax.get_xlim(), ax.get_ylim()))
    ax.set_xlim(-0.02 * right, right)
    ax.set_ylim(-0.02 * top, top)
    ax.grid(True, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=9)
