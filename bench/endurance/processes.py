"""Processes that are kept alive as a supervisor would: started again after any end, and every end is accounted for.

Decides when to start again; who is to be killed is somebody else's decision.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import Exit

Arguments = Callable[[str], list[str]]  # name of this life → what Python is started with


@dataclass
class Kept:
    """One process and its next lives. `tick` must be called often; `delay` says how long a dead one stays dead, s."""

    role: str
    arguments: Arguments
    logs: Path
    delay: Callable[[], float]
    dies: bool = False  # may die by a SIGKILL that nobody sent: what it works on kills it
    life: int = 0
    done: bool = False  # has ended for good: its work is done, or it was told to leave
    leaving: bool = False
    ended_by_itself: Counter[str] = field(default_factory=Counter)
    _process: subprocess.Popen[bytes] | None = None
    _sent: set[signal.Signals] = field(default_factory=set)
    _start_at: float = 0.0

    @property
    def name(self) -> str:
        """Of the present life."""
        return f"{self.role}.{self.life}"

    @property
    def running(self) -> bool:
        """Alive, and not stopped or told to end."""
        return self.alive and not self._sent

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def log(self) -> Path:
        return self.logs / f"{self.role}.log"

    def tick(self, now: float) -> None:
        """Account for an end, start again when it is time."""
        if self.done or self.alive:
            return
        if self._process:
            self._ended(self._process.returncode, now)
        elif now >= self._start_at:
            self._start()

    def send(self, number: signal.Signals) -> None:
        """A signal to the living process; SIGCONT takes a SIGSTOP back."""
        if self.alive:
            self._sent.add(number)
            if number == signal.SIGCONT:
                self._sent -= {signal.SIGSTOP, signal.SIGCONT}
            os.kill(self.pid, number)

    def leave(self) -> None:
        """End in order and do not come back."""
        self.leaving = True
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)

    def end(self) -> None:
        """Kill it, now and for good."""
        self.done = True
        if self._process:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self.life += 1
        self._sent.clear()
        with self.log.open("ab") as log:
            log.write(f"--- {self.name}\n".encode())
            log.flush()
            words = [sys.executable, *self.arguments(self.name)]
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _ended(self, code: int, now: float) -> None:
        self._process = None
        self._start_at = now + self.delay()
        in_order = code == Exit.OK or (code == Exit.INTERRUPTED and signal.SIGTERM in self._sent)
        killed = code == -signal.SIGKILL and (self.dies or signal.SIGKILL in self._sent)
        terminated = code == -signal.SIGTERM and signal.SIGTERM in self._sent  # before it was ready to listen
        if not (in_order or killed or terminated):
            self.ended_by_itself[f"{self.role.rstrip('0123456789')} with code {code}"] += 1
        self.done = self.leaving or (code == Exit.OK and not self._sent)
