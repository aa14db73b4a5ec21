"""Tells the service manager that started us whether we are ready, alive or leaving; knows nothing of frames.

The protocol is sd_notify(3): one datagram of `NAME=value` lines to the socket named by $NOTIFY_SOCKET. Where
nobody asked for it, as on a terminal, every call does nothing; and none ever raises: whoever cannot be told is
no reason to stop inspecting.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger("aoi.supervisor")

SEND_WAIT_S = 1.0  # for a manager that is behind with reading
TELL_EVERY_S = 5.0  # without a watchdog: for the status text alone


class Supervisor:
    """Who is told. `address`: a socket's path, or @name of an abstract one; empty: nobody."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # a quarter of what the manager allows: one late turn of the caller's loop is then no death
        self._every_s = watchdog_s / 4 if watchdog_s > 0 else TELL_EVERY_S
        self._told_at = -self._every_s

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Supervisor:
        """Of the manager that started this process; a watchdog meant for another process is not ours to feed."""
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        asked = environment.get("WATCHDOG_USEC", "")
        watchdog_s = int(asked) / 1e6 if watched and asked.isdecimal() else 0.0
        return cls(environment.get("NOTIFY_SOCKET", ""), watchdog_s)

    def ready(self, status: str = "") -> None:
        """Start-up is over: whoever waits for this service may go on."""
        self._tell("READY=1", status)

    def alive(self, status: str = "") -> None:
        """The work goes on; call it at every turn of the loop that must not hang, it tells only now and then."""
        now = time.monotonic()
        if self._address and now - self._told_at >= self._every_s and self._tell("WATCHDOG=1", status):
            self._told_at = now

    def stopping(self, status: str = "") -> None:
        """No new work is taken; what is held is being finished."""
        self._tell("STOPPING=1", status)

    def _tell(self, word: str, status: str) -> bool:
        if not self._address:
            return False
        text = f"{word}\nSTATUS={status.splitlines()[0]}" if status else word
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
                manager.settimeout(SEND_WAIT_S)
                manager.sendto(text.encode("utf-8", "replace"), self._address)
        except (OSError, ValueError) as error:
            log.debug("the service manager at %r was not told %s: %s", self._address, word, error)
            return False
        return True
