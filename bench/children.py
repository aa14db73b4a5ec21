"""A process of the measured line, started and ended by us; what it says on stderr is kept for when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from pipeline.errors import AoiError, Exit

STOP_S = 30.0


class Child:
    """`with Child("worker", ["-m", …]) as child:` runs Python with these arguments until the block is left."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
        self.name, self._arguments, self._environment = name, arguments, environment or {}

    def __enter__(self) -> Child:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **self._environment},
            text=True,
        )
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, line: str) -> None:
        """One line to its stdin."""
        with suppress(BrokenPipeError):  # why it is gone is told when it is asked for
            assert self._process.stdin
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def hear(self) -> str:
        """The next line of its stdout; AoiError when it ended without one."""
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise self._failed(self._process.wait())
        return line.strip()

    def ended(self) -> bool:
        """Has it done its work? AoiError when it ended by failing."""
        code = self._process.poll()
        if code:
            raise self._failed(code)
        return code == 0

    def must_live(self) -> None:
        """AoiError when it ended, in whatever way."""
        if (code := self._process.poll()) is not None:
            raise self._failed(code)

    def _failed(self, code: int) -> AoiError:
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        said = lines[-1].strip().removeprefix("Error: ") if lines else "it said nothing"
        error = AoiError(f"the {self.name} of the measured line ended with code {code}: {said}")
        error.exit_code = Exit(code) if code and code in set(Exit) else Exit.BUG
        return error

    def __exit__(self, *_: object) -> None:
        """SIGTERM and a closed stdin, so that it ends in order; SIGKILL when it does not listen."""
        with suppress(BrokenPipeError):
            assert self._process.stdin
            self._process.stdin.close()
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()
        self._stderr.close()
