"""Dice against contrast-to-noise ratio as a picture; imports matplotlib, so loaded when asked for."""

from __future__ import annotations

from itertools import cycle, pairwise
from pathlib import Path

from bench.cnr import BOX_FILTER, CnrReport
from bench.models_plot import COLOURS
from bench.plot import SOFT, STYLE, plt
from pipeline.errors import DiskError


def draw(report: CnrReport, path: Path) -> None:
    """Write the PNG: one line a model, the box filter dashed."""
    middles = [(low + high) / 2 for low, high in pairwise(report.edges)]
    colours = cycle(COLOURS)
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8.2, 5.2))
        for curve in report.curves:
            mark = curve.name == BOX_FILTER
            points = [(x, y) for x, y in zip(middles, curve.by_step, strict=True) if y is not None]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            colour, line = (SOFT, "--") if mark else (next(colours), "-")
            label = f"{curve.name} ({curve.dice:.3f})"
            ax.plot(xs, ys, color=colour, linestyle=line, marker="o", markersize=5, linewidth=2, label=label)
        ax.set_xlabel("contrast ÷ deviation of the noise")
        ax.set_ylabel("Dice of defects of that contrast")
        ax.set_ylim(0, 1)
        ax.grid(True, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.legend(loc="lower right", title="model (Dice of all)")
        drawn = report.generator
        ax.set_title(f"How faint a defect may be: {report.pictures} pictures, Gaussian σ {drawn['noise_sigma']:g}",
                     loc="left", fontsize=13, fontweight="bold")  # fmt: skip
        figure.tight_layout()
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise DiskError(f"plot cannot be written to {path}: {error.strerror}; choose another --out") from error
        finally:
            plt.close(figure)
