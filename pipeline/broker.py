"""Decides when a folder's embedded Redis runs: from its first user to its last. Knows nothing of streams.

Two locks, both dropped by the kernel when their holder dies, so there is no pid file that could lie.
`users.lock` is held shared by every process inside `with Broker(folder)`: whoever can take it exclusively
on leaving was the last one, and stops the server. `server.lock` is inherited and held by the server itself:
whoever can take it knows that none is alive and may start one, so two never write the same data.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import BrokerError
from pipeline.redis_binary import find_newer, find_server

MULTI_PART_AOF = (7, 0)  # from here on the data lies in appendonlydir/, which older servers silently ignore
# Synced before it is answered: with `everysec` Redis answers what a kill or a full disk may still undo.
# Frames pass through and are deleted: at the default 64mb a busy line would rewrite every few seconds.
OPTIONS = (
    "port 0, unixsocketperm 700, daemonize no, timeout 0, loglevel notice, maxmemory-policy noeviction, "
    "appendfsync always, aof-load-truncated yes, auto-aof-rewrite-min-size 256mb"
)
SOCKET = "redis.sock"
LONGEST_SOCKET = 100  # bytes; the kernel's limit is 107
LARGEST_LOG = 16 << 20  # bytes; a line runs for months
SMALLEST_DISK = 1 << 20  # bytes; without room a server cannot even say why it ends
POLL_S = 0.01

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """The folder that commands share when the user names none."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(os.environ.get("AOI_BROKER_DIR") or Path(state) / "aoi" / "broker")
    except RuntimeError as e:
        raise BrokerError("this user has no home folder: set XDG_STATE_HOME, or give --url redis://…") from e


class Broker:
    """`with Broker(folder) as broker:` a real server answers at `broker.url`, shared by all who name it.

    `durable=False` keeps everything in memory; all users of a folder must agree on it.
    `start_s` bounds a start, `stop_s` each of three ever harder ways to stop; every `check_s` a dead server is
    noticed and started again on its data (seconds). Where all users were killed, it waits for the next.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        start_s: float = 30.0,
        stop_s: float = 10.0,
        check_s: float = 1.0,
    ) -> None:
        self.folder = Path(os.path.abspath(folder.expanduser()))
        self._durable = durable
        self._start_s, self._stop_s, self._check_s = start_s, stop_s, check_s
        self._log = self.folder / "redis.log"
        self._log_start = 0  # bytes of the log that are older than the last start
        self._users: int | None = None
        self._leaving = threading.Event()

    @property
    def url(self) -> str:
        """Where the server answers, for any Redis client of this user on this machine."""
        return f"unix://{quote(os.fsencode(self._socket()))}"

    def __enter__(self) -> Broker:
        self._leaving.clear()
        try:
            with _explained(self.folder):
                self._own_folder()
                self._users = self._join()
            self._refuse_mixed_durability(started=False)
            self.ensure()
            self._refuse_mixed_durability(started=True)
        except BaseException:
            self._leave()
            raise
        self._supervisor = threading.Thread(target=self._supervise, name="broker", daemon=True)
        self._supervisor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        try:
            self._supervisor.join()
        finally:  # also on a second Ctrl-C
            self._leave()

    def ensure(self) -> None:
        """Return once the server answers, after starting it if it is dead; cheap, from any thread."""
        if self._users is None:
            raise BrokerError(f"the server of {self.folder} is only kept up inside `with Broker(…)`")
        deadline = time.monotonic() + self._start_s
        child = None
        while not _is_up(reply := _ask(self._socket(), "PING")):
            with _explained(self.folder):
                child = child or self._start()
            if child and child.poll() is not None:
                raise BrokerError(self._why_dead(child.returncode))
            if time.monotonic() > deadline:
                raise BrokerError(self._why_late(reply))
            if self._leaving.wait(POLL_S):
                return

    def _supervise(self) -> None:
        told = ""
        while not self._leaving.wait(self._check_s):
            try:
                self.ensure()
                told = ""
                if self._log.stat().st_size > LARGEST_LOG:
                    os.truncate(self._log, 0)  # safe under a running server: it appends
            except (BrokerError, OSError) as e:
                if told != str(e):
                    logger.error("%s", told := str(e))

    def _own_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = self.folder.stat()
        if about.st_uid != os.geteuid():
            raise BrokerError(f"{self.folder} belongs to another user: name your own with AOI_BROKER_DIR")
        if about.st_mode & stat.S_IWOTH:
            raise BrokerError(f"everybody may write to {self.folder}: chmod it, or set AOI_BROKER_DIR")

    def _join(self) -> int:
        """Become a user; waits while the last one before us is still stopping the server."""
        deadline = time.monotonic() + self._start_s
        while (users := _lock(self.folder / "users.lock", fcntl.LOCK_SH)) is None:
            if time.monotonic() > deadline:
                raise BrokerError(f"the server of {self.folder} is still being stopped: try again")
            time.sleep(POLL_S)
        return users

    def _leave(self) -> None:
        if self._users is None:
            return
        try:
            with _explained(self.folder), suppress(BlockingIOError):  # others are still here
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Much data would never be loaded if every impatient user stopped the loading.
                if not _ask(self._socket(), "PING").startswith("-LOADING"):
                    self._stop()
        finally:
            os.close(self._users)
            self._users = None

    def _refuse_mixed_durability(self, *, started: bool) -> None:
        """A server in memory would neither see nor keep what one with an append-only file wrote."""
        kept = any((self.folder / name).exists() for name in ("appendonly.aof", "appendonlydir"))
        if kept and not self._durable:
            raise BrokerError(f"{self.folder} holds durable data: name another folder for data in memory")
        if started and self._durable and not kept:
            raise BrokerError(f"the server of {self.folder} only runs in memory: name another folder")

    def _start(self) -> subprocess.Popen[bytes] | None:
        """A server process, holding `server.lock`; None while another one holds it."""
        if (lock := _lock(self.folder / "server.lock", fcntl.LOCK_EX)) is None:
            return None
        try:
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                child = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,  # neither our Ctrl-C nor a kill of our group is meant for it
                    umask=0o077,
                )
        finally:
            os.close(lock)  # our copy; the server's keeps the lock
        # The server may outlive our use of it: reap it whenever it ends.
        threading.Thread(target=child.wait, name="broker-reaper", daemon=True).start()
        return child

    def _command(self) -> list[str]:
        if not (self.folder / "appendonlydir").exists():
            binary = find_server()[0]
        elif found := find_newer(MULTI_PART_AOF):
            binary = found[0]
        else:
            raise BrokerError(
                f"the data in {self.folder} was written by a Redis ≥ 7.0 that is not found now: "
                "put redis-server ≥ 7.0 on PATH, or move appendonlydir away"
            )
        # Where the socket's path is too long the server binds it relative to `dir`, where it goes first.
        path = self._socket()
        address = str(path) if path.parent == self.folder else SOCKET
        words = [str(binary), "--dir", str(self.folder), "--unixsocket", address, "--save", ""]
        for option in OPTIONS.split(", "):
            name, value = option.split()
            words += [f"--{name}", value]
        return [*words, "--appendonly", "yes" if self._durable else "no"]

    def _stop(self) -> None:
        """Ask, insist, kill; then remove what a stopped server may leave behind."""
        pid = _pid(self._socket())
        ways = iter(("SHUTDOWN", signal.SIGTERM, signal.SIGKILL))
        patience = 0.0
        while (lock := _lock(self.folder / "server.lock", fcntl.LOCK_EX)) is None:
            if time.monotonic() < patience:
                time.sleep(POLL_S)
                continue
            if (way := next(ways, None)) is None:
                logger.error("%s", self._why_late(""))
                return
            if isinstance(way, str):
                _ask(self._socket(), way)
            elif pid:
                with suppress(OSError):
                    os.kill(pid, way)
            patience = time.monotonic() + self._stop_s
        with suppress(OSError):
            (self.folder / SOCKET).unlink(missing_ok=True)
            self._short_cut().unlink(missing_ok=True)
        os.close(lock)

    def _socket(self) -> Path:
        """The socket in the folder; where that path is too long, seen through a short link of our own."""
        direct = self.folder / SOCKET
        if len(os.fsencode(direct)) <= LONGEST_SOCKET:
            return direct
        link = self._short_cut()
        with _explained(link):
            with suppress(FileExistsError):
                link.symlink_to(self.folder)
            about = link.lstat()
            if about.st_uid != os.geteuid() or not link.is_symlink() or link.readlink() != self.folder:
                raise BrokerError(f"{link} is not ours: remove it, or set AOI_BROKER_DIR to a shorter path")
        return link / SOCKET

    def _short_cut(self) -> Path:
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"aoi-{os.geteuid()}-{name}"

    def _why_dead(self, code: int) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            said = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        # Without Redis' own prefix: `1234:M 21 Nov 2025 02:37:00.123 # `
        last = re.sub(r"^\d+:\w .{20,30}? [#*.-] ", "", said[-1]) if said else f"exit code {code}"
        if not said and shutil.disk_usage(self.folder).free < SMALLEST_DISK:
            last = "its disk is full"
        if "append only file" in last:  # not every package has the tool; every server binary has it inside
            files = (self.folder / "appendonlydir" / "appendonly.aof.manifest", self.folder / "appendonly.aof")
            file = next((file for file in files if file.exists()), files[1])
            repair = shlex.join([self._command()[0], "--fix", str(file)])
            last += f"; that is: (exec -a redis-check-aof {repair})"
        return f"the Redis server of {self.folder} did not start: {last} (see {self._log})"

    def _why_late(self, reply: str) -> str:
        if reply.startswith("-LOADING"):
            return f"the server of {self.folder} is still loading its data: it goes on, try again in a moment"
        return (
            f"the server of {self.folder} is alive but does not answer: "
            f"end it with `fuser -k {self.folder / 'server.lock'}`, then try again"
        )


def _lock(path: Path, how: int) -> int | None:
    """A descriptor that holds the lock; None if somebody else holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        if isinstance(e, BlockingIOError):
            return None
        raise
    return fd


def _ask(path: Path, command: str) -> str:
    """The first line of the server's reply to an inline command; empty when nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(1.0)
            server.connect(str(path))
            server.sendall(f"{command}\r\n".encode())
            return server.makefile("rb").readline().decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _is_up(reply: str) -> bool:
    """A busy server, or one whose disk is full, is up: it answers, and tells its clients itself."""
    if reply.startswith("-NOAUTH"):
        raise BrokerError("a server with a password, so none of ours, answers in the broker folder: stop it")
    return bool(reply) and not reply.startswith("-LOADING")


def _pid(path: Path) -> int:
    """The server's process as the kernel tells it; 0 when unknown or in a container of its own."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as server:
        server.settimeout(1.0)
        server.connect(str(path))
        told = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", told)[0])
    return 0


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise BrokerError(
            f"cannot keep the broker in {path} ({e.strerror}): "
            "free space or rights there, or name another folder with AOI_BROKER_DIR"
        ) from e
