"""An engine that takes its process with it on a certain pixel, as a driver may; and the worker that has it.

`python -m bench.endurance.deadly_engine work …` is `aoi work …` with the engine `deadly` among its engines.
Nothing of the line itself knows of it.
"""

from __future__ import annotations

import os
import runpy
import signal
from collections.abc import Callable

from bench.endurance.content import DEADLY
from engines import ENGINES
from engines.base import Pixels
from engines.fake import FakeEngine, FakeTicket


class DeadlyEngine(FakeEngine):
    """The fake engine, but no process survives a tile whose first pixel is DEADLY."""

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> FakeTicket:
        if (batch[:, 0, 0, 0] == DEADLY).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().submit(batch, notify)


if __name__ == "__main__":
    ENGINES["deadly"] = "bench.endurance.deadly_engine:DeadlyEngine"
    runpy.run_module("pipeline.cli", run_name="__main__", alter_sys=True)
