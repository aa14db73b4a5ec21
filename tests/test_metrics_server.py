"""Where Prometheus and a supervisor ask: /metrics and /healthz, their errors, and who may hold them up."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from conftest import fake_recipe, make_frame, wait_until
from metrics_scrapes import get, health, names, process, total
from redis_nodes import Node

from engines.base import EngineError
from pipeline import metrics, metrics_server
from pipeline.errors import Exit
from pipeline.inspector import Inspector
from pipeline.metrics import worker_trouble
from pipeline.metrics_server import MetricsServer
from pipeline.opening import open_engines
from pipeline.stream import open_stream
from pipeline.worker import Worker


def test_says_starting_then_ok_then_what_is_wrong() -> None:
    """/healthz is 503 with the reason until there is progress; other paths and methods are refused."""
    with MetricsServer("127.0.0.1", 0) as server:
        assert health(server.url) == (503, "starting\n")
        server.trouble = lambda: ""
        assert health(server.url) == (200, "ok\n")
        server.trouble = lambda: "the stream has not answered for 12 s"
        assert health(server.url) == (503, "the stream has not answered for 12 s\n")
        assert "process_resident_memory_bytes" in get(server.url)
        assert refusal("GET", server.url.replace("/metrics", "/etc/passwd")) == 404
        assert [refusal(method, server.url) for method in ("POST", "PUT", "DELETE")] == [501, 501, 501]
    with pytest.raises(OSError, match="refused"):
        get(server.url)


def refusal(method: str, url: str) -> int:
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(url, method=method), timeout=20)
    with refused.value as answer:
        return answer.code


def test_clients_that_say_nothing_hold_up_neither_the_others_for_ever_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More of them than the server takes are hung up on; with eight still there, leaving is immediate."""
    monkeypatch.setattr(metrics_server._Answer, "timeout", 100.0)
    with MetricsServer("127.0.0.1", 0) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(metrics_server.MOST_CLIENTS)]
        with pytest.raises((OSError, http.client.HTTPException)):
            get(server.url)
        silent.pop().close()
        wait_until(lambda: answers(server.url))
        start = time.monotonic()
    assert time.monotonic() - start < 20
    for client in silent:
        client.close()


def answers(url: str) -> bool:
    try:
        return bool(get(url))
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_listens_where_it_is_told(host: str) -> None:
    """HOST:PORT, IPv6 in brackets as in URLs; alone, a port is this machine's only."""
    if "::" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    with MetricsServer(host.strip("[]"), 0) as server:
        assert server.url == f"http://{host}:{server.port}/metrics"
        assert get(server.url)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("command", [("produce", "panel:"), ("work", "--recipe", "panel")])
def test_address_that_cannot_be_had_is_refused_in_one_line(command: tuple[str, ...]) -> None:
    """A port in use, and text that is no address: before anything is started, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for address, words in ((port, f"127.0.0.1:{port}: Address already in use"), ("here:http", "give [HOST:]PORT")):
            run = [sys.executable, "-m", "pipeline.cli", *command, "--metrics", address]
            done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == Exit.USAGE, done.stderr
            errors = [row for row in done.stderr.splitlines() if row.startswith("Error: ")]
            assert len(errors) == 1
            assert words in errors[0]


def test_redis_killed_while_being_watched(recipe_folder: Path, tmp_path: Path) -> None:
    """The worker goes on and says that its stream is down, then that it is back; SIGTERM ends it all the same."""
    with Node(tmp_path / "redis", ("--appendonly", "yes", "--requirepass", "hunter2")) as node:
        here = ("--url", f"redis://:hunter2@{node.address}/0", "--line", "l")
        stream = open_stream(here[1], "l")
        stream.offer([make_frame(i) for i in range(8)])
        with process("work", "--recipe", recipe_folder, *here) as (worker, url):
            wait_until(lambda: names(get(url)) >= {"aoi_backlog_frames"} and total(get(url), "aoi_verdicts_total") == 8)
            node.kill()
            wait_until(lambda: total(get(url), "aoi_stream_up") == 0)
            text = get(url)
            ledger = {"aoi_backlog_frames", "aoi_verdicts_total", "aoi_ledger_balanced", "aoi_workers_alive"}
            assert not names(text) & ledger, "no stale number"
            assert total(text, "aoi_worker_frames_total") == 8
            assert "hunter2" not in text
            node.start()
            wait_until(lambda: total(get(url), "aoi_stream_up") == 1, 40)
            assert total(get(url), "aoi_verdicts_total") == 8
            with socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))):  # it says nothing
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(60) == Exit.OK


def test_worker_that_hears_nothing_or_stands_still_is_not_healthy(tmp_path: Path, redis_url: str, line: str) -> None:
    """It is healthy while the stream answers and its loop goes round; hanging in an engine it is not."""
    recipe = fake_recipe(tmp_path)
    with open_engines(recipe) as engines:
        stream = open_stream(redis_url, line, "w")
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), "w")
        held, hanging = threading.Event(), threading.Event()

        def hang(now: int) -> list[Any]:
            hanging.set()
            held.wait(60)
            raise EngineError("gone", "broken")

        worker.inspector.step = hang  # type: ignore[method-assign]

        def run() -> None:
            with pytest.raises(EngineError):
                worker.run()

        thread = threading.Thread(target=run, daemon=True)
        assert worker_trouble(worker) == ""
        worker.heard_at -= metrics.STILL_S + 1
        assert worker_trouble(worker).startswith("the stream has not answered for 1")
        thread.start()
        try:
            assert hanging.wait(20)
            wait_until(lambda: worker_trouble(worker) == "")
            worker.stepped_at -= metrics.STILL_S + 1
            assert worker_trouble(worker).startswith("the worker's loop has stood still for 1")
        finally:
            held.set()
            thread.join(20)
        assert not thread.is_alive()
