"""Producers and workers of a line as real processes over a fake engine; none outlives its `with`."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from conftest import wait_until

from pipeline.errors import StreamDown
from pipeline.messages import Verdict
from pipeline.results import kept
from pipeline.stream import Audit, open_stream

AOI = (sys.executable, "-m", "pipeline.cli")
Process = subprocess.Popen[str]


class LineProcesses:
    """`aoi work`, `aoi produce` and `aoi status` on one line."""

    def __init__(self, folder: Path, url: str, line: str) -> None:
        self._folder, self.url, self.line = folder, url, line
        self._stack = ExitStack()

    def __enter__(self) -> LineProcesses:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def work(self, name: str = "", delay_ms: float = 5, max_batch: int = 4) -> Process:
        """A worker whose engine takes this long for a batch."""
        folder = write_recipe(self._folder / f"recipe-{delay_ms}-{max_batch}", delay_ms, max_batch)
        return self._start("work", "--recipe", str(folder), *(["--name", name] if name else []))

    def produce(self, frames: int, *options: str) -> Process:
        """Offers so many small simulated frames."""
        return self._start("produce", "panel:", "--size", "64x64", "--frames", str(frames), *options)

    def audit(self) -> Audit:
        """The ledger; waits while the stream is away."""
        found: list[Audit] = []
        wait_until(lambda: self._look(found), 30)
        return found[0]

    def verdicts(self, total: int) -> list[Verdict]:
        """All of them, once every frame has one; fails unless each of `total` frames has exactly one."""
        wait_until(lambda: self.audit().settled == total, 60)
        audit = self.audit()
        assert (audit.offered, audit.outstanding, audit.outstanding_bytes) == (total, 0, 0), audit
        reader = open_stream(self.url, self.line)
        found = list(kept(reader))
        reader.close()
        assert len({verdict.frame.frame_id for verdict in found}) == len(found) == total
        return found

    def _look(self, found: list[Audit]) -> bool:
        stream = open_stream(self.url, self.line)
        try:
            found.append(stream.audit())
        except StreamDown:
            return False
        finally:
            stream.close()
        return True

    def _start(self, *words: str) -> Process:
        command = [*AOI, *words, "--url", self.url, "--line", self.line]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._stack.callback(_end, process)
        return process


def _end(process: Process) -> None:
    process.kill()
    process.communicate()


def finished(process: Process) -> str:
    """What it said on stderr; fails unless it ended well."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


def status(url: str) -> dict[str, dict[str, object]]:
    """`aoi status --json`, by line."""
    words = [*AOI, "status", "--json", "--url", url]
    run = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    lines: dict[str, dict[str, object]] = json.loads(run.stdout)["lines"]
    return lines


def write_recipe(folder: Path, delay_ms: float, max_batch: int) -> Path:
    """A model folder of the fake engine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.fake").write_text(json.dumps({"delay_ms": delay_ms}))
    stage = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
    batching = f'[batching]\nengine = "fake"\nmax_batch = {max_batch}\n'
    (folder / "recipe.toml").write_text(f'name = "fake"\nmode = "classify"\n[classifier]\n{stage}{batching}')
    return folder
