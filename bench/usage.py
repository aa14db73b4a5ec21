"""CPU time and memory of processes, as the kernel accounts for them (CPU in steps of 10 ms)."""

from __future__ import annotations

import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil


@dataclass(frozen=True)
class Usage:
    """User and system time in seconds so far, and the most memory resident at any time so far, in bytes."""

    cpu_s: float
    rss_peak: int


def usage_of(pid: int) -> Usage:
    """Of a living process; psutil.NoSuchProcess when it is gone."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    return Usage(times.user + times.system, _rss_peak(pid) or process.memory_info().rss)


def _rss_peak(pid: int) -> int:
    """The kernel's own high-water mark in bytes; 0 where it tells none."""
    with suppress(OSError):
        if told := re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            return int(told[1]) * 1024
    return 0


def server_pid(url: str) -> int:
    """The process behind a unix:// URL, as the kernel tells it; 0 for any other URL or when it is unknown."""
    where = urlsplit(url)
    if where.scheme == "unix":
        with suppress(OSError), socket.socket(socket.AF_UNIX) as server:
            server.settimeout(1.0)
            server.connect(unquote(where.path))
            told = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", told)[0])
    return 0
