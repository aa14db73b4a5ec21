"""Memory and speed over a soak as a picture, with the fitted lines; imports matplotlib, so loaded when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.endurance.soak import Soaked
from bench.plot import CAPACITY, SOFT, STYLE, plt
from pipeline.errors import DiskError

COLOURS = {"worker RSS": "#d1495b", "producer RSS": "#2a9d8f", "redis RSS": "#8e6bbf", "redis used": "#1d6fa3"}


def draw(soaked: Soaked, path: Path) -> None:
    """Write the PNG: a panel for each series of memory, and one for speed."""
    names = [*COLOURS, "frames/s"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(names), 1, figsize=(9, 1.9 * len(names)), sharex=True)
        for ax, name in zip(axes, names, strict=True):
            _series(ax, soaked, name)
        axes[-1].set_xlabel("minutes")
        plan = soaked.plan
        title = f"{plan.recipe.name} on {plan.recipe.batching.engine}: {plan.minutes:g} min at {plan.load:g} % load"
        figure.suptitle(title, x=0.02, ha="left", fontsize=14, fontweight="bold")
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise DiskError(f"plot cannot be written to {path}: {error.strerror}; choose another --out") from error
        finally:
            plt.close(figure)


def _series(ax: Any, soaked: Soaked, name: str) -> None:
    minutes = [at / 60 for at in soaked.samples["seconds"]]
    values, slope = soaked.samples[name], soaked.slopes[name]
    unit = "frames/s" if name == "frames/s" else "MiB"
    ax.plot(minutes, values, color=COLOURS.get(name, "#e08e45"), linewidth=1.5)
    ax.axvspan(0, soaked.warmup_s / 60, color="#f0f2f4", zorder=0)
    ax.set_ylim(0, max(values) * 1.25 or 1)
    ax.set_ylabel(unit)
    ax.set_title(name, loc="left", fontsize=11)
    ax.grid(True, linewidth=0.8)
    if slope:
        start, end = soaked.warmup_s / 60, minutes[-1]
        half = slope.per_hour * (end - start) / 120
        ax.plot([start, end], [slope.mean - half, slope.mean + half], color=CAPACITY, linestyle="--", linewidth=1.2)
        told = f"{slope.per_hour:+.2f} {unit} per hour, 95 %: {slope.low:+.2f} … {slope.high:+.2f}"
        ax.set_title(told, loc="right", fontsize=9, color=SOFT)
