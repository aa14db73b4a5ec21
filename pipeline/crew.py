"""Processes of a line that somebody else runs: started, started again when killed, and stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import AoiError, Exit

STARTS_AT_MOST = 20  # of one process: more is not somebody trying us out but something broken
STOP_S = 60.0


class Crew:
    """Commands of `aoi` by name; one that was killed is started again, one that failed ends the whole."""

    def __init__(
        self, commands: Mapping[str, Sequence[str]], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._commands, self._log, self.starts = commands, log, dict.fromkeys(commands, 0)
        self._environment = {**os.environ, **(environment or {})}  # for a URL: other users see a process's arguments
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.finished: set[str] = set()

    def start(self, name: str) -> None:
        """Start one of the commands."""
        self.starts[name] += 1
        if self.starts[name] > STARTS_AT_MOST:
            raise AoiError(f"the {name} was killed {STARTS_AT_MOST} times; see {self._log}")
        command = [sys.executable, "-m", "pipeline.cli", *self._commands[name]]
        with self._log.open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment
            )

    def look(self) -> None:
        """Start again what was killed; raise what a failed one said."""
        for name, process in list(self._running.items()):
            code = process.poll()
            if code is None or name in self.finished:
                continue
            if code == 0 and name == "producer":
                self.finished.add(name)
            elif code <= 0 or code == Exit.INTERRUPTED:
                self.start(name)
            else:
                raise _failed(name, code, self._log)

    def stop(self) -> None:
        """SIGTERM, so that what is held is settled; SIGKILL for one that does not listen."""
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _failed(name: str, code: int, log: Path) -> AoiError:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("Error: ")), lines[-1] if lines else "nothing")
    error = AoiError(f"the {name} ended with code {code}: {said.removeprefix('Error: ')}")
    error.exit_code = Exit(code) if code in set(Exit) else Exit.BUG
    return error
