"""What of `aoi` may stand in other people's files: a command with its options, and the names of settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from unittest.mock import patch

import click

from pipeline.cli import aoi


def check_command(words: Sequence[str], settings: Mapping[str, str] | None = None) -> click.Context:
    """Parse the words after `aoi` with these AOI_… settings; click's UsageError where `aoi` would refuse them."""
    command = aoi.commands[words[0]]
    name = f"AOI_{words[0].upper()}"
    others = {key: value for key, value in os.environ.items() if not key.startswith("AOI_")}
    with patch.dict(os.environ, {**others, **(settings or {})}, clear=True):
        return command.make_context(words[0], list(words[1:]), auto_envvar_prefix=name)


def settings_of(*names: str) -> set[str]:
    """The environment variables that these commands read; without a name those of every command."""
    return {setting for name in names or aoi.commands for setting in _settings(name, aoi.commands[name])}


def _settings(name: str, command: click.Command) -> Iterator[str]:
    for param in command.params:
        yield f"AOI_{name.upper()}_{str(param.name).upper()}"
        if isinstance(param.envvar, str):
            yield param.envvar


def env_file(text: str) -> dict[str, str]:
    """Of systemd or compose: NAME=value lines and comments; the commented-out settings are taken too."""
    rows = [row.removeprefix("#") for row in text.splitlines() if "=" in row and " " not in row.partition("=")[0]]
    return dict(row.split("=", 1) for row in rows)
