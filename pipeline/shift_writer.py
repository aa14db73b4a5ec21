"""Writes one shift file; decides when a chunk is closed, not what is kept nor when the file is.

Chunks are compressed with zstd and carry a CRC; what lies in a closed chunk survives whatever comes later.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mcap.writer import CompressionType, Writer

from pipeline.errors import DiskError
from pipeline.shift_format import (
    FRAMES,
    INDEX_NAME,
    PROFILE,
    SCHEMAS,
    TOPICS,
    VERDICTS,
    VERSION,
    Recorded,
    Row,
    identity,
    pack_index,
    pack_message,
)

CHUNK_BYTES = 2 * 1024 * 1024  # as written, before compression
NEVER_BYTES = 1 << 40


class ShiftWriter:
    """Appends frames to a new file; whole only after `close`. Raises DiskError, and then writes no more."""

    def __init__(self, path: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.path, self.rows = path, list[Row]()
        self._failed = self._closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb")
        except OSError as error:
            raise DiskError(f"shift {path} cannot be made: {error.strerror}; choose another folder") from error
        self._chunk_bytes, self._open_bytes = chunk_bytes, 0
        # chunks are closed by us, between frames: one and its verdict share a chunk
        self._mcap = Writer(self._file, NEVER_BYTES, CompressionType.ZSTD)
        try:
            self._mcap.start(f"{PROFILE}{VERSION}")
            for channel, (name, schema) in SCHEMAS.items():
                self._mcap.register_schema(name, "jsonschema", schema)
                self._mcap.register_channel(TOPICS[channel], "msgpack", channel)
        except OSError as error:
            raise self._full(error) from error

    @property
    def size(self) -> int:
        """Bytes written so far; those of the open chunk are not among them."""
        return self._file.tell()

    def add(self, recorded: Recorded, judgement: str = "", settled_ns: int = 0) -> None:
        """Append a frame and what was said of it; what is None is left out."""
        frame_id, lot, panel, at = identity(recorded.header)
        number = len(self.rows)
        parts = ((FRAMES, "p", recorded.pixels), (VERDICTS, "v", recorded.verdict), (3, "v", recorded.amendment))
        try:
            for channel, name, value in parts:
                if value is not None:
                    data = pack_message(recorded.header, name, value)
                    self._mcap.add_message(channel, at, data, at if channel == FRAMES else settled_ns or at, number)
            self._open_bytes += recorded.size
            if self._open_bytes >= self._chunk_bytes:
                self.flush()
        except OSError as error:
            raise self._full(error) from error
        if recorded.pixels is not None or recorded.verdict is not None:
            self.rows.append(Row(at, frame_id, lot, panel, judgement, recorded.pixels is not None))

    def flush(self) -> None:
        """Close the chunk, so that what was added survives a kill."""
        try:
            self._mcap.flush()
            self._open_bytes = 0
        except OSError as error:
            raise self._full(error) from error

    def close(self) -> None:
        """Write the index; the file is whole then. Safe to call twice."""
        if self._closed or self._failed:
            return
        try:
            self._mcap.add_attachment(0, 0, INDEX_NAME, "application/msgpack", pack_index(self.rows))
            self._mcap.finish()
            self._file.close()
        except OSError as error:
            raise self._full(error) from error
        self._closed = True

    def _full(self, error: OSError) -> DiskError:
        self._failed = True
        with suppress(OSError):  # it tries once more to write what it holds
            self._file.close()
        said = f"shift {self.path} cannot be written further ({error.strerror}): make room"
        return DiskError(f"{said}; what lies in it is kept: aoi shift repair {self.path}")

    def __enter__(self) -> ShiftWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
