"""What this machine is, as far as figures depend on it; two reports may be compared only where it is the same."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("numpy", "openvino", "redis", "opencv-python-headless", "msgpack")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_machine() -> dict[str, Any]:
    """Facts that stay the same from run to run on one machine; no name of it or of its user."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False) or 0,
        "threads": psutil.cpu_count() or 0,
        "usable_threads": len(os.sched_getaffinity(0)),
        "cpu_quota": _cpu_quota(),
        "governor": _first_line(GOVERNOR),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: installed(name) for name in PACKAGES},
    }


def describe_project() -> dict[str, Any]:
    """Version and, in a git checkout, commit and whether files differ from it."""
    commit = _git("rev-parse", "HEAD")
    return {
        "version": installed("inline-aoi"),
        "commit": commit,
        "changed_files": bool(_git("status", "--porcelain")) if commit else None,
    }


def load_average() -> float:
    """Processes that ran or wanted to, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def installed(package: str) -> str:
    """Version of an installed package; empty where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    try:
        told = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        told = None
    return told[1].strip() if told else platform.processor() or platform.machine()


def _cpu_quota() -> str:
    """A container's limit as the kernel states it (µs of CPU per period); empty where there is none."""
    line = _first_line(Path("/sys/fs/cgroup/cpu.max"))
    return "" if line.startswith("max") else line


def _first_line(path: Path) -> str:
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError:
        return ""


def _git(*arguments: str) -> str:
    """What git says of this project's own checkout; empty without git or without one."""
    root = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if not git or not (root / ".git").exists():
        return ""
    run = subprocess.run(
        [git, "--no-optional-locks", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    return run.stdout.strip()
