"""The plot beside a report, where matplotlib is installed; without it, what to install."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from rich.console import Console


def draw_beside(module: str, subject: object, path: Path, console: Console) -> None:
    """`module` draws `subject` into a PNG beside its report; said on the console, or why not."""
    try:
        plot = import_module(module)
    except ImportError as error:
        console.print(f"no plot ({error}); pip install 'inline-aoi\\[plots]'", soft_wrap=True)
        return
    plot.draw(subject, path.with_suffix(".png"))
    console.print(f"plot: {path.with_suffix('.png')}", soft_wrap=True)
