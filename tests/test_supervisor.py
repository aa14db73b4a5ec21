"""What the service manager hears from us, on a real datagram socket and from a real worker process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import fake_recipe, make_frame, wait_until
from test_worker import write_recipe

from pipeline.errors import Exit
from pipeline.inspector import Inspector
from pipeline.messages import Verdict
from pipeline.opening import open_engines
from pipeline.stream import Delivery, open_stream
from pipeline.supervisor import Supervisor
from pipeline.worker import Worker


class Manager:
    """The other end of the protocol: a socket, and what came in on it so far."""

    def __init__(self, address: str) -> None:
        self.address, self.heard = address, []  # type: ignore[var-annotated]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def listen(self) -> list[str]:
        """Every message until now."""
        while True:
            try:
                self.heard.append(self._socket.recv(4096, socket.MSG_DONTWAIT).decode())
            except BlockingIOError:
                return self.heard

    def words(self) -> list[str]:
        return [message.splitlines()[0] for message in self.listen()]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    here = Manager(str(tmp_path / "notify") if request.param == "path" else f"@aoi-test-{uuid.uuid4().hex}")
    yield here
    here.close()


def test_says_ready_alive_and_stopping(manager: Manager) -> None:
    """One datagram each, with the status as its second line; a line break in a status ends it."""
    supervisor = Supervisor(manager.address)
    supervisor.ready("inspecting")
    supervisor.alive("7 frames settled\nREADY=0")
    supervisor.stopping()
    assert manager.listen() == ["READY=1\nSTATUS=inspecting", "WATCHDOG=1\nSTATUS=7 frames settled", "STOPPING=1"]


def test_tells_of_its_life_at_a_quarter_of_the_watchdog(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the loop turns, and not one turn later than it must."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    supervisor = Supervisor(manager.address, watchdog_s=8.0)
    for _ in range(61):
        supervisor.alive()
        now += 0.1
    assert manager.words() == ["WATCHDOG=1"] * 4, "at 0, 2, 4 and 6 s"


def test_environment_of_the_manager(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """NOTIFY_SOCKET and WATCHDOG_USEC are understood; a watchdog of another process is not fed in its stead."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    asked = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    ours = Supervisor.from_environment({**asked, "WATCHDOG_PID": str(os.getpid())})
    others = Supervisor.from_environment({**asked, "WATCHDOG_PID": "1"})
    for supervisor in (ours, others):
        supervisor.alive()
    now = 0.11
    ours.alive()
    others.alive()
    assert len(manager.listen()) == 3, "0.11 s are more than a quarter of 0.4 s; without a watchdog the status can wait"


@pytest.mark.parametrize("watchdog", ["", "nonsense", "-1", "0"])
def test_unusable_watchdog_is_none(watchdog: str) -> None:
    """Whatever stands in WATCHDOG_USEC, the worker starts."""
    Supervisor.from_environment({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": watchdog}).alive()


@pytest.mark.parametrize("address", ["", "/no/such/socket", "vsock:2:1", "@" + "x" * 200, "/a\0b", "/\ud800", "@"])
def test_nobody_to_tell_is_no_error(address: str) -> None:
    """On a terminal, with a manager that has gone, or with an address that we cannot use: never an exception."""
    supervisor = Supervisor(address)
    supervisor.ready("x")
    supervisor.alive("x")
    supervisor.stopping("x")


def test_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """Its queue is full: a message waits a second for room at most, then the work goes on."""
    manager = Manager(str(tmp_path / "notify"))
    flood = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    flood.setblocking(False)
    with suppress(BlockingIOError):
        while flood.sendto(b"x", manager.address):
            pass
    before = time.monotonic()
    Supervisor(manager.address).ready()
    assert time.monotonic() - before < 5
    flood.close()
    manager.close()


def start_worker(manager: Manager, folder: Path, url: str, line: str, watchdog_s: float) -> subprocess.Popen[str]:
    write_recipe(folder)
    asked = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
    command = [sys.executable, "-m", "pipeline.cli", "work", "--recipe", str(folder), "--line", line, "--url", url]
    return subprocess.Popen(command, env={**os.environ, **asked}, stderr=subprocess.PIPE, text=True)


def test_worker_process_tells_its_manager(manager: Manager, tmp_path: Path, redis_url: str, line: str) -> None:
    """`aoi work`: ready once it works, alive while it does, stopping after SIGTERM; in this order."""
    worker = start_worker(manager, tmp_path, redis_url, line, watchdog_s=1.0)
    try:
        wait_until(lambda: manager.words().count("WATCHDOG=1") >= 3)
        assert manager.heard[0].startswith("READY=1\nSTATUS=inspecting as ")
        open_stream(redis_url, line).offer([make_frame(i) for i in range(5)])
        wait_until(lambda: any("STATUS=5 frames settled" in message for message in manager.listen()))
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=30)
        assert worker.returncode == Exit.OK, said
        assert manager.words()[-1] == "STOPPING=1"
        assert manager.words().count("READY=1") == 1
    finally:
        worker.kill()
        worker.communicate()


def test_worker_that_never_gets_warm_is_not_ready(tmp_path: Path, redis_url: str, line: str) -> None:
    """An engine that cannot be opened: the manager hears nothing, and the exit code says why."""
    manager = Manager(str(tmp_path / "notify"))
    write_recipe(tmp_path, model="no json")
    (tmp_path / "net.fake").unlink()
    asked = {**os.environ, "NOTIFY_SOCKET": manager.address}
    command = [sys.executable, "-m", "pipeline.cli", "work", "--recipe", str(tmp_path), "--url", redis_url]
    done = subprocess.run([*command, "--line", line], env=asked, capture_output=True, timeout=60, check=False)
    assert done.returncode == Exit.ENGINE
    assert manager.listen() == []
    manager.close()


def test_worker_whose_loop_hangs_is_not_alive(tmp_path: Path, line: str) -> None:
    """An engine call that never comes back: the watchdog hears nothing more, although other threads go on."""
    manager = Manager(str(tmp_path / "notify"))
    stream = open_stream(f"memory://{line}", line, "w")
    signs, hangs, go_on = [], threading.Event(), threading.Event()
    take = stream.take
    stream.take = lambda n, wait_s=0.0: [signs.append(n), *take(n, wait_s)][1:]  # type: ignore[method-assign, func-returns-value]

    class Hanging(Inspector):
        def step(self, now: int) -> list[tuple[Delivery, Verdict]]:
            if self.busy:
                hangs.set()
                go_on.wait(20)
            return super().step(now)

    recipe = fake_recipe(tmp_path)
    with open_engines(recipe) as engines:
        told = Supervisor(manager.address, watchdog_s=0.1)
        worker = Worker(stream, lambda wake: Hanging(recipe, engines, wake), "w", supervisor=told)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        wait_until(lambda: manager.words().count("WATCHDOG=1") >= 2)
        stream.offer([make_frame(0)])
        assert hangs.wait(20)
        before, zeroes = len(manager.listen()), signs.count(0)
        wait_until(lambda: signs.count(0) >= zeroes + 2)  # its thread that says to the stream that it lives
        assert len(manager.listen()) == before
        go_on.set()
        worker.stop()
        thread.join(20)
    manager.close()
