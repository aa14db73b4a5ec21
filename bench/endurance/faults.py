"""What can be done to a running line, by kind: each fault really strikes, or says that it could not just now.

A fault that lasts books its own end with `line.later`. Which one strikes when is decided by `chaos.py`.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.endurance.processes import Kept
from bench.endurance.server import Server

FORGOTTEN_S = (6.0, 15.0)  # a worker is forgotten after 5 s of silence; its frames go to others some time later
AWAY_S = (0.0, 1.0)  # of a Redis that is dead
SHORTLY_S = (0.1, 0.7)
MIN_WORKERS = 2  # that run, so that something goes on


class Line(Protocol):
    """What is struck."""

    server: Server
    server_busy: bool  # in the hands of a fault: leave it alone

    @property
    def workers(self) -> Sequence[Kept]: ...  # that have judged frames in this life and still run

    @property
    def feeders(self) -> Sequence[Kept]: ...  # that have offered frames in this life and still run

    def join(self) -> bool: ...  # one more worker; False: enough of them

    def leave(self, worker: Kept) -> bool: ...  # one worker less; False: too few of them

    def later(self, in_s: float, act: Callable[[], None]) -> None: ...


Strike = Callable[[Line, random.Random], bool]


def _signal(role: str, number: signal.Signals) -> Strike:
    """Send it to any one of them."""

    def strike(line: Line, rng: random.Random) -> bool:
        victims = line.workers if role == "worker" else line.feeders
        if not victims:
            return False
        rng.choice(victims).send(number)
        return True

    return strike


def _stop_for(role: str, shortest_s: float, longest_s: float) -> Strike:
    """SIGSTOP, and SIGCONT after a while."""

    def strike(line: Line, rng: random.Random) -> bool:
        victims = line.workers if role == "worker" else line.feeders
        if not victims or (role == "worker" and len(victims) < MIN_WORKERS):
            return False
        victim = rng.choice(victims)
        victim.send(signal.SIGSTOP)
        line.later(rng.uniform(shortest_s, longest_s), lambda: victim.send(signal.SIGCONT))
        return True

    return strike


def _worker_joins(line: Line, rng: random.Random) -> bool:
    return line.join()


def _worker_leaves(line: Line, rng: random.Random) -> bool:
    return bool(line.workers) and line.leave(rng.choice(line.workers))


def _on_server(begin: Strike, *, lasts_s: tuple[float, float] = (0.0, 0.0)) -> Strike:
    """One thing at a time is done to Redis; what `begin` does not book itself ends with a start after `lasts_s`."""

    def strike(line: Line, rng: random.Random) -> bool:
        if line.server_busy or not line.server.pid:
            return False
        line.server_busy = True
        struck = begin(line, rng)
        if lasts_s[1]:
            line.later(rng.uniform(*lasts_s), lambda: _restart(line))
        return struck

    return strike


def _restart(line: Line) -> None:
    """Again on its data; until it serves, nothing else is done to it."""
    if not line.server.pid:
        line.server.start()
    _free_when(line, lambda: line.server.ask("PING", wait_s=0.2).startswith("+PONG"))


def _free_when(line: Line, ready: Callable[[], bool]) -> None:
    """Let other faults at Redis again once this is so; a Redis that ended meanwhile is started again."""
    if ready():
        line.server_busy = False
    elif not line.server.pid:
        line.later(0.1, lambda: _restart(line))
    else:
        line.later(0.1, lambda: _free_when(line, ready))


def _ask_and_free(line: Line, *words: str) -> None:
    _free_when(line, lambda: line.server.ask(*words, wait_s=0.5).startswith(("+", ":")))


def _kill_server(line: Line, rng: random.Random) -> bool:
    line.server.signal(signal.SIGKILL)
    return True


def _kill_everything(line: Line, rng: random.Random) -> bool:
    """A power cut: all at once; they come back in any order."""
    for kept in [*line.workers, *line.feeders]:
        kept.send(signal.SIGKILL)
    line.server.signal(signal.SIGKILL)
    return True


def _stop_server(line: Line, rng: random.Random) -> bool:
    """Mostly for a moment; now and then for longer than a client waits for its answer (10 s)."""
    line.server.signal(signal.SIGSTOP)
    stopped_s = rng.uniform(10.5, 12.0) if rng.random() < 0.04 else rng.uniform(0.2, 2.0)

    def go_on() -> None:
        line.server.signal(signal.SIGCONT)
        _restart(line)

    line.later(stopped_s, go_on)
    return True


def _cut_connections(line: Line, rng: random.Random) -> bool:
    _ask_and_free(line, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    return True


def _forget_scripts(line: Line, rng: random.Random) -> bool:
    _ask_and_free(line, "SCRIPT", "FLUSH")
    return True


def _no_memory(line: Line, rng: random.Random) -> bool:
    struck = line.server.ask("CONFIG", "SET", "maxmemory", "1").startswith("+")
    line.later(rng.uniform(*SHORTLY_S), lambda: _ask_and_free(line, "CONFIG", "SET", "maxmemory", "0"))
    return struck


def _read_only(line: Line, rng: random.Random) -> bool:
    """A replica of a master that is not there, as after a failover that went wrong."""
    struck = line.server.ask("REPLICAOF", "127.0.0.1", "1").startswith("+")
    line.later(rng.uniform(*SHORTLY_S), lambda: _ask_and_free(line, "REPLICAOF", "NO", "ONE"))
    return struck


def _disk_full(line: Line, rng: random.Random) -> bool:
    """With `everysec` Redis refuses writes (MISCONF) until it has written what it still holds."""
    struck = line.server.ask("CONFIG", "SET", "appendfsync", "everysec").startswith("+")
    line.server.fill_disk()

    def written() -> bool:
        if line.server.fact("aof_last_write_status") != "ok":
            return False
        return line.server.ask("CONFIG", "SET", "appendfsync", line.server.fsync).startswith("+")

    def free() -> None:
        line.server.free_disk()
        _free_when(line, written)

    line.later(rng.uniform(*SHORTLY_S), free)
    return struck


def _disk_full_ends_server(line: Line, rng: random.Random) -> bool:
    """With `always` Redis ends rather than answer for what it cannot keep; the disk has room when it starts again."""
    struck = line.server.ask("CONFIG", "SET", "appendfsync", "always").startswith("+")
    line.server.fill_disk()

    def free() -> None:
        line.server.free_disk()
        _restart(line)

    line.later(rng.uniform(*SHORTLY_S), free)
    return struck


FAULTS: dict[str, tuple[int, Strike]] = {  # how often of all of them, and how
    "kill -9 worker": (5, _signal("worker", signal.SIGKILL)),
    "kill -9 producer": (4, _signal("producer", signal.SIGKILL)),
    "kill -9 Redis": (3, _on_server(_kill_server, lasts_s=AWAY_S)),
    "kill -9 everything at once": (1, _on_server(_kill_everything, lasts_s=AWAY_S)),
    "SIGTERM worker": (2, _signal("worker", signal.SIGTERM)),
    "SIGTERM producer": (2, _signal("producer", signal.SIGTERM)),
    "SIGSTOP worker, briefly": (1, _stop_for("worker", 0.2, 3.0)),
    "SIGSTOP worker until forgotten": (2, _stop_for("worker", *FORGOTTEN_S)),
    "SIGSTOP producer": (1, _stop_for("producer", 0.2, 3.0)),
    "SIGSTOP Redis": (1, _on_server(_stop_server)),
    "all connections cut": (3, _on_server(_cut_connections)),
    "OOM: Redis out of memory": (2, _on_server(_no_memory)),
    "READONLY: Redis a replica": (2, _on_server(_read_only)),
    "SCRIPT FLUSH": (1, _on_server(_forget_scripts)),
    "MISCONF: disk full": (1, _on_server(_disk_full)),
    "disk full, Redis ends": (1, _on_server(_disk_full_ends_server)),
    "worker joins": (1, _worker_joins),
    "worker leaves": (1, _worker_leaves),
}


@dataclass
class Deck:
    """Kinds of faults in random order, each as often as it should be: like cards, first one of each kind."""

    rng: random.Random
    _cards: list[str] = field(default_factory=list)

    def strike(self, line: Line) -> str:
        """Let the next fault that can strike now do so; its kind, or nothing."""
        if not self._cards:
            first, more = list(FAULTS), [name for name, (weight, _) in FAULTS.items() for _ in range(weight - 1)]
            self.rng.shuffle(first)
            self.rng.shuffle(more)
            self._cards = first + more
        for place, name in enumerate(self._cards):
            if FAULTS[name][1](line, self.rng):
                return self._cards.pop(place)
        return ""
