"""What every command on a line needs around its work: a stream that is closed again, and a way to be told to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.broker import Broker, default_folder
from pipeline.stream import Limits, Stream, open_stream


@contextmanager
def broker_url(url: str, folder: Path | None) -> Iterator[str]:
    """The URL given, or that of our own Redis while it is needed."""
    if url:
        yield url
    else:
        with Broker(folder or default_folder()) as broker:
            yield broker.url


@contextmanager
def opened(
    url: str, broker_dir: Path | None, line: str, worker: str = "", limits: Limits | None = None
) -> Iterator[Stream]:
    """A client of the line, closed on leaving."""
    with broker_url(url, broker_dir) as where:
        stream = open_stream(where, line, worker, limits)
        try:
            yield stream
        finally:
            stream.close()


def on_signal(act: Callable[[], None]) -> None:
    """SIGTERM and the first Ctrl-C end the work in order; a second Ctrl-C ends it at once."""

    def handle(number: int, _: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        act()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
