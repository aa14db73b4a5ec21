"""Model folders of networks that were never taught, to compare speeds with; no accuracy is ever theirs.

The training package is named by path and loaded when it is wanted, because only a machine that trains has torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from engines.datasets.labelled import DatasetError
from pipeline.errors import SourceError
from pipeline.model_folder import Contents, Engine, recipe_text, write_text

CLASSES = ("good", "defect")
CHANNELS = 1


def write_untaught(names: Sequence[str], tile: tuple[int, int], folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and model folder of each network, written one at a time; tiles have this height and width, px.

    Raises SourceError for a name that is none (before anything is written), for tiles that do not suit a network,
    and where torch is missing.
    """
    try:
        maker: Any = import_module("engines.training.untrained")
    except ImportError as error:
        raise SourceError(f"--untrained needs {error.name}; install it: pip install 'inline-aoi[train]'") from error
    try:
        for name in names:
            maker.lesson_of(name)
        for name in names:
            made = maker.write_untrained(folder / name, name, tile, CHANNELS, CLASSES)
            engines = [Engine(each.kind, each.name, each.sha256, CLASSES) for each in made]
            write_text(folder / name / "recipe.toml", recipe_text(_contents(name, engines)))
            yield name, folder / name
    except DatasetError as error:
        raise SourceError(f"--untrained {name}: {error}") from error


def _contents(name: str, engines: Sequence[Engine]) -> Contents:
    kinds = [engine.kind for engine in engines]
    mode = "cascade" if len(kinds) > 1 else {"classifier": "classify", "segmenter": "segment"}[kinds[0]]
    return Contents(f"{name}-untaught", mode, engines, 1.0, 0, "none", template=False, threshold=0.01)
