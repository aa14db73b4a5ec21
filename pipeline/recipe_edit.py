"""Numbers put into a recipe's text with everything else, comments too, left as it stands; it judges no number."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DiskError, RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Values = Mapping[str, Mapping[str, float | int]]  # table → key → number


def toml_lines(values: Values) -> str:
    """The values as TOML, ready to be copied into a recipe."""
    tables = ["\n".join([f"[{name}]", *(f"{key} = {value!r}" for key, value in keys.items())])
              for name, keys in values.items()]  # fmt: skip
    return "\n".join(tables)


def with_values(text: str, values: Values) -> str:
    """The text with these values set. Raises RecipeError when it is not written in tables of plain lines."""
    try:
        wanted = _merged(tomllib.loads(text), values)
        for table, keys in values.items():
            for key, value in keys.items():
                text = _with_value(text, table, key, value)
        same = tomllib.loads(text) == wanted
    except ValueError:
        same = False
    if not same:
        raise RecipeError(f"the recipe's own form is not one that can be edited; set by hand: {_in_a_line(values)}")
    return text


def _merged(table: Mapping[str, Any], values: Values) -> dict[str, Any]:
    merged = copy.deepcopy(dict(table))
    for name, keys in values.items():
        merged.setdefault(name, {}).update(keys)
    return merged


def _with_value(text: str, table: str, key: str, value: float) -> str:
    lines = text.splitlines(keepends=True)
    end = "\r\n" if "\r\n" in text else "\n"
    headers = [i for i, line in enumerate(lines) if line.lstrip().startswith("[")]
    start = next((i for i in headers if re.match(rf"\s*\[\s*{table}\s*\]", lines[i])), None)
    if start is None:
        return f"{text.rstrip()}{end}{end}[{table}]{end}{key} = {value!r}{end}"
    stop = next((i for i in headers if i > start), len(lines))
    for i in range(start + 1, stop):
        if found := re.match(rf"(\s*{key}\s*=\s*)[^#\s]+", lines[i]):
            lines[i] = f"{found[1]}{value!r}{lines[i][found.end() :]}"
            return "".join(lines)
    last = max(i for i in range(start, stop) if lines[i].strip())
    lines[last] = lines[last].rstrip("\r\n") + end
    lines.insert(last + 1, f"{key} = {value!r}{end}")
    return "".join(lines)


def _in_a_line(values: Values) -> str:
    return ", ".join(f"{name}.{key} = {value!r}" for name, keys in values.items() for key, value in keys.items())


def write_values(path: Path, values: Values) -> None:
    """Set them in a recipe file, in one step: it is never seen half written. Raises DiskError or RecipeError."""
    try:
        text = with_values(path.read_bytes().decode("utf-8-sig"), values)
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(text.encode())
        os.replace(beside, path)
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}; set by hand: {_in_a_line(values)}") from error
