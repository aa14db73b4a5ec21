"""Where Prometheus finds this process: `/metrics` and `/healthz` by HTTP GET; must not know what the numbers mean.

Its threads are daemons and few, so that neither a scrape nor a hostile client holds up or starves the line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socket import AF_INET, AF_INET6, socket
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

MOST_CLIENTS = 8  # at once; whoever comes on top is hung up on
CLIENT_TIMEOUT_S = 5.0  # for a client that says nothing, or takes nothing
POLL_S = 0.05  # how soon the server sees that it should end


class MetricsServer:
    """Inside `with MetricsServer(host, port) as server:` the address answers. Port 0 is any free one.

    `server.registry` takes collectors at any time; `server.trouble` says in a line why this process makes no
    progress, or nothing while it does. OSError when the address cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.registry = CollectorRegistry()
        self.trouble: Callable[[], str] = lambda: "starting"
        ProcessCollector(registry=self.registry)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def __enter__(self) -> MetricsServer:
        self._listener = _Listener((self.host, self.port), self)
        self.port = int(self._listener.server_address[1])
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(POLL_S,), name="aoi-metrics", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()


class _Listener(ThreadingMixIn, TCPServer):
    """A thread for each client, up to MOST_CLIENTS. Not `HTTPServer`: that asks DNS for its own name first."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], owner: MetricsServer) -> None:
        self.owner = owner
        self._room = threading.BoundedSemaphore(MOST_CLIENTS)
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        super().__init__(address, _Answer)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """A client that hung up, or never asked: its own affair."""


class _Answer(BaseHTTPRequestHandler):
    """One request; every method but GET is refused by the base class."""

    server: _Listener
    timeout = CLIENT_TIMEOUT_S
    server_version, sys_version = "aoi", ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._send(HTTPStatus.OK, kind, encode(self.server.owner.registry))
        elif path == "/healthz":
            trouble = self.server.owner.trouble()
            status = HTTPStatus.SERVICE_UNAVAILABLE if trouble else HTTPStatus.OK
            self._send(status, "text/plain; charset=utf-8", f"{trouble or 'ok'}\n".encode())
        else:
            self.send_error(HTTPStatus.NOT_FOUND, explain="Here are /metrics and /healthz.")

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A scrape is no event."""
