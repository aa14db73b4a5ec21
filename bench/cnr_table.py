"""Curves over contrast-to-noise ratio as a person reads them in a terminal; computes nothing."""

from __future__ import annotations

from itertools import pairwise

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.cnr import CnrReport


def show_cnr(report: CnrReport) -> RenderableType:
    """Dice of each model in each step of contrast, and of all together."""
    drawn = report.generator
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("Dice by contrast ÷ noise", no_wrap=True)
    for low, high in pairwise(report.edges):
        table.add_column(f"{low:.2f}–\n{high:.2f}", justify="right", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    for curve in report.curves:
        table.add_row(curve.name, *(_figure(each) for each in curve.by_step), _figure(curve.dice))
    table.add_row("defects", *map(str, report.defects), str(sum(report.defects)), style="dim")
    shapes, count = ", ".join(drawn["shapes"]), "–".join(str(each) for each in sorted(set(drawn["count"])))
    told = f"{report.pictures} pictures, {count} defects each ({shapes}), Gaussian noise σ {drawn['noise_sigma']:g}"
    return Group(Text(told, style="dim"), table)


def _figure(dice: float | None) -> str:
    return "–" if dice is None else f"{dice:.3f}"
