"""How to wait for a stream that is away: ever longer pauses, and a word about it now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

FIRST_S, LONGEST_S = 0.1, 2.0
SAY_EVERY_S = 30.0


class Patience:
    """One place that tries again. `back` when it worked, `wait` when it did not."""

    def __init__(
        self, log: logging.Logger, clock: Callable[[], float] = time.monotonic, longest_s: float | None = None
    ) -> None:
        self._log, self._clock, self._longest_s = log, clock, longest_s
        self._pause, self._since, self._said = FIRST_S, 0.0, 0.0

    @property
    def waited_s(self) -> float:
        """How long it has not worked; 0 while it does."""
        return self._clock() - self._since if self._since else 0.0

    def back(self) -> None:
        """It worked."""
        if self._since:
            self._log.warning("the stream is back after %.1f s", self.waited_s)
        self._pause, self._since, self._said = FIRST_S, 0.0, 0.0

    def wait(self, error: Exception, kept: str, stop: threading.Event) -> None:
        """It did not: say so the first time and every half minute, then pause (cut short by `stop`)."""
        now = self._clock()
        self._since = self._since or now
        if not self._said or now - self._said >= SAY_EVERY_S:
            self._log.warning("%s; %s, trying again", error, kept)
            self._said = now
        stop.wait(self._pause)
        self._pause = min(2 * self._pause, self._longest_s or LONGEST_S)
