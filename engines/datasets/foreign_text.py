"""Text as other people's tools write it: any encoding, CSV with any separator, JSON of any content; no file's meaning.

Whatever is in the file, the outcome is a value or a DatasetError of one line that names the file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any

from engines.datasets.labelled import DatasetError

Row = dict[str, str]  # by column name in lower case; what a short row lacks is ""


def read_text(path: Path) -> str:
    """The text of a file: UTF-8 with or without BOM, UTF-16 with one, else byte for byte as Latin-1."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    return _decoded(content)


def read_table(path: Path, *needed: str) -> list[Row]:
    """Rows of a CSV file, separated by comma, semicolon or tab; blank ones are left out.

    Raises DatasetError when it is no CSV or lacks a column of `needed`, given in lower case.
    """
    text = read_text(path)
    try:
        rows = csv.reader(io.StringIO(text, newline=None), delimiter=_separator(text))
        cells = [row for row in rows if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DatasetError(f"{path} is no CSV that can be read: {error}") from error
    names = [name.strip().lower() for name in (cells[0] if cells else [])]
    missing = [name for name in needed if name not in names]
    if missing:
        raise DatasetError(f"{path} has no column {', '.join(missing)}; it needs {', '.join(needed)}")
    width = len(names)
    return [
        dict(zip(names, (cell.strip() for cell in [*row, *[""] * width][:width]), strict=True)) for row in cells[1:]
    ]


def columns(path: Path) -> set[str]:
    """Names in the first line of a CSV file, in lower case; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            line = _decoded(file.readline(4096)).strip("\r\n\0\ufffd ")
    except OSError:
        return set()
    return {name.strip().strip('"').lower() for name in line.split(_separator(line))}


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises DatasetError when it is none, or nested too deeply."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"is no JSON: {error}"
        raise DatasetError(f"{path.name} {reason}") from error


def _separator(text: str) -> str:
    first = text.lstrip().partition("\n")[0]
    return "," if "," in first else next((mark for mark in ";\t" if mark in first), ",")


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
