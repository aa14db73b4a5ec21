"""A Redis with an append-only file that may be killed, stopped, cut off and denied its disk; starts it, never decides.

`appendfsync always`: what was answered is in the file. With `everysec` Redis writes up to two seconds late while
the disk is busy, and a kill in these loses what it had answered.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

from pipeline.errors import BrokerError
from pipeline.redis_binary import find_server

START_S = 60.0
CALL_S = 5.0  # how long a server may take to answer a command of ours
POLL_S = 0.02
# a short file is soon read after a kill, and each start counts its growth anew
REWRITE = "--auto-aof-rewrite-min-size 16mb --auto-aof-rewrite-percentage 20"
OPTIONS = f"--port 0 --appendonly yes --maxmemory-policy noeviction {REWRITE}"


class Server:
    """One data folder and, between `start` and its end, the process on it. `fsync`: always, everysec."""

    def __init__(self, folder: Path, fsync: str = "always") -> None:
        self.folder, self.fsync = folder, fsync
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Of the living process; 0 when there is none."""
        return self.process.pid if self.process and self.process.poll() is None else 0

    def start(self) -> None:
        """Start it on its data; returns at once."""
        where = ["--dir", str(self.folder), "--unixsocket", str(self.socket), "--save", ""]
        words = [str(find_server()[0]), *where, "--appendfsync", self.fsync, *OPTIONS.split()]
        with (self.folder / "redis.log").open("ab") as log:
            # Python ignores SIGXFSZ, and so shall the server: a file that may not grow is then an error, not its death
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, restore_signals=False, start_new_session=True
            )

    def wait_until_up(self) -> None:
        """BrokerError when it ends, or does not serve in time."""
        deadline = time.monotonic() + START_S
        while not self.ask("PING").startswith("+PONG"):
            if not self.pid or time.monotonic() > deadline:
                raise BrokerError(f"the Redis server of {self.folder} did not start; see redis.log there")
            time.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        if self.pid:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it, stopped or not."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def ask(self, *words: str, wait_s: float = CALL_S) -> str:
        return ask(self.socket, *words, wait_s=wait_s)

    def fact(self, name: str) -> str:
        return fact(self.socket, name)

    def fill_disk(self) -> None:
        """From now on its append-only file cannot grow, as on a full disk (EFBIG in place of ENOSPC)."""
        if self.pid:
            files = [file.stat() for file in self.folder.rglob("appendonly*.aof")]
            size = max(files, key=lambda about: about.st_mtime_ns).st_size  # the one that grows
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def free_disk(self) -> None:
        if self.pid:
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def ask(path: Path, *words: str, wait_s: float = CALL_S) -> str:
    """What the server behind this socket answers to a command (first 64 KiB); empty when it does not."""
    packed = [word.encode() for word in words]
    request = b"*%d\r\n" % len(packed) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in packed)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(wait_s)
            client.connect(str(path))
            client.sendall(request)
            return client.recv(65536).decode(errors="replace")
    except OSError:
        return ""


def fact(path: Path, name: str) -> str:
    """One line of its INFO; empty when it does not answer."""
    lines = ask(path, "INFO", "everything").splitlines()
    return next((line.partition(":")[2] for line in lines if line.startswith(f"{name}:")), "")
