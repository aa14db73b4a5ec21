"""Options of every command that reads labelled images, and what they name once they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from engines.datasets import FORMS, open_dataset
from engines.datasets.labelled import Dataset, DatasetError, Options
from pipeline.errors import SourceError
from pipeline.options import Command, option


@dataclass(frozen=True)
class LabelledFolder:
    """A folder as the command line names it."""

    folder: Path
    form: str
    options: Options

    def open(self) -> Dataset:
        """List it. Raises SourceError when it cannot be used as it is."""
        try:
            return open_dataset(self.folder, self.options, self.form)
        except DatasetError as error:
            raise SourceError(str(error)) from error


def data_options(command: Command) -> Command:
    """Which folder of labelled images, in which form; the command is given `data`, or None without --data."""
    return _with_data(command, option("--data", type=click.Path(path_type=Path), help="Folder of labelled images."))


def data_argument(command: Command) -> Command:
    """The same, with the folder as the command's argument."""
    return _with_data(command, click.argument("data", metavar="DIR", type=click.Path(path_type=Path)))


def _with_data(command: Command, folder: Callable[[Any], Any]) -> Command:
    @wraps(command)
    def with_data(
        data: Path | None, form: str | None, good: str, classes: str, groups: Path | None, smooth: str, **others: Any
    ) -> Any:
        names = tuple(name.strip() for name in classes.split(",") if name.strip())
        named = None if data is None else LabelledFolder(data, form or "", Options(good, names, groups, smooth))
        return command(data=named, **others)

    decorated: Any = with_data
    decorate: Callable[[Any], Any]
    for decorate in (
        option(
            "--smooth", type=click.Choice(["", "open", "close"]), default="", help="5×5 step on masks drawn by hand."
        ),
        option("--groups", type=click.Path(path_type=Path), help="CSV with image and group: pictures of one part."),
        option("--classes", default="", help="Class names by index, the good one first, with commas between."),
        option("--good", default="", help="Name of the good class, where no folder says so itself."),
        option("--form", type=click.Choice(list(FORMS)), help="Form of the folder [default: it is recognised]."),
        folder,
    ):
        decorated = decorate(decorated)
    named_command: Command = decorated
    return named_command
