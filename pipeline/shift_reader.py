"""Reads shift files in the order frames were offered; a damaged chunk is told and passed over, never guessed.

A whole file is read through its index: only the chunks of the stretch of time asked for. One without an end (its
recorder was killed) is read from the front, up to the last whole chunk. Memory holds the chunks that overlap in time.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mcap.data_stream import ReadDataStream
from mcap.exceptions import InvalidMagic
from mcap.reader import McapReader, make_reader
from mcap.records import Chunk, Header, Message
from mcap.stream_reader import StreamReader, breakup_chunk

from pipeline.errors import ShiftError, WireError
from pipeline.shift_format import (
    AMENDMENTS,
    FRAMES,
    INDEX_NAME,
    TOPICS,
    VERDICTS,
    Recorded,
    Row,
    check_profile,
    identity,
    unpack_index,
    unpack_message,
)

FOREVER = (1 << 63) - 1
LARGEST_RECORD = 1 << 30
SMALLEST_CHUNK = 9 + 8 + 8 + 8 + 4 + 4 + 8
Choose = Callable[[Row], bool]


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    start_ns: int
    end_ns: int
    offset: int


@dataclass
class Shift:
    """One file. `damage`: what was found broken so far, a line each; more may come while it is read."""

    path: Path
    whole: bool = True  # it has its end and its index
    damage: list[str] = field(default_factory=list)
    _places: list[_Place] = field(default_factory=list, repr=False)
    _indexed: bool = False  # its index of frames is there and whole

    @property
    def start_ns(self) -> int:
        """When the first of its frames was offered; 0: there is none."""
        return self._places[0].start_ns if self._places else 0

    def recorded(self, from_ns: int = 0, to_ns: int = FOREVER) -> Iterator[Recorded]:
        """Frames offered in [from_ns, to_ns), in that order, each with its verdict; later amendments come alone."""
        waiting: list[tuple[int, int, int, int, Message]] = []
        held: dict[tuple[int, int], dict[int, Message]] = {}
        wanted = [p for p in self._places if p.start_ns < to_ns and p.end_ns >= from_ns]
        with self.path.open("rb") as file:
            for number, place in enumerate(wanted):
                for message in self._messages(file, place):
                    if from_ns <= message.log_time < to_ns:
                        key = (message.log_time, message.sequence)
                        if key not in held:
                            heapq.heappush(waiting, (*key, number, message.channel_id, message))
                        held.setdefault(key, {})[message.channel_id] = message
                next_start = wanted[number + 1].start_ns if number + 1 < len(wanted) else FOREVER + 1
                while waiting and waiting[0][0] < next_start:
                    at, sequence, *_ = heapq.heappop(waiting)
                    yield from self._joined(held.pop((at, sequence)))

    def rows(self) -> list[Row]:
        """The index: one row per frame, in the order they were written; read anew each time, as it can be large."""
        if self._indexed:
            with self.path.open("rb") as file:
                return _read_rows(make_reader(file))
        return [_row(e) for e in self.recorded() if e.pixels is not None or e.verdict is not None]

    def chosen(self, choose: Choose) -> Iterator[Recorded]:
        """The frames whose row is chosen, by reading only the chunks they lie in."""
        wanted = {(row.time_ns, row.frame_id) for row in self.rows() if choose(row)}
        if not wanted:
            return
        times = sorted(at for at, _ in wanted)
        for start, end in _stretches(times, self._places):
            for each in self.recorded(start, end):
                frame_id, _, _, at = identity(each.header)
                if (at, frame_id) in wanted:
                    yield each

    def _messages(self, file: IO[bytes], place: _Place) -> list[Message]:
        """Of one chunk; none where it is damaged, and then `damage` says so."""
        try:
            file.seek(place.offset)
            stream = ReadDataStream(file)
            if stream.read1() != 0x06 or not SMALLEST_CHUNK - 9 <= stream.read8() <= LARGEST_RECORD:
                raise ValueError("there is no chunk where the index says")
            records = breakup_chunk(Chunk.read(stream), validate_crc=True)
        except Exception as error:  # zstd, lz4, struct and MCAP each have their own
            told = f"{self.path}: the chunk at byte {place.offset} is damaged ({error}); its frames are left out"
            if told not in self.damage:
                self.damage.append(told)
            return []
        return [record for record in records if isinstance(record, Message) and record.channel_id in TOPICS]

    def _joined(self, parts: dict[int, Message]) -> Iterator[Recorded]:
        try:
            pixels = unpack_message(parts[FRAMES].data, "p") if FRAMES in parts else None
            verdict = unpack_message(parts[VERDICTS].data, "v") if VERDICTS in parts else None
            amendment = unpack_message(parts[AMENDMENTS].data, "v") if AMENDMENTS in parts else None
        except ShiftError as error:
            self.damage.append(f"{self.path}: {error}")
            return
        header = next(part[0] for part in (pixels, verdict, amendment) if part)
        yield Recorded(header, *(part[1] if part else None for part in (pixels, verdict, amendment)))


def open_shift(path: Path) -> Shift:
    """A shift file, whole or not. Raises ShiftError when it is none, or of a schema that is too new."""
    try:
        with path.open("rb") as file:
            _check_header(file, path)
            shift = Shift(path)
            if not _read_summary(file, shift):
                shift.whole = False
                file.seek(0)
                _scan(file, shift)
    except OSError as error:
        raise ShiftError(f"shift {path} cannot be read: {error.strerror}") from error
    shift._places.sort()
    return shift


def _check_header(file: IO[bytes], path: Path) -> None:
    try:
        record = next(StreamReader(file, record_size_limit=LARGEST_RECORD).records)
    except InvalidMagic as error:
        raise ShiftError(f"{path} is no MCAP file; give one that `aoi record` wrote") from error
    except Exception as error:
        raise ShiftError(f"{path} ends before its first record: nothing was recorded in it") from error
    if not isinstance(record, Header):
        raise ShiftError(f"{path} is an MCAP file without a header; give one that `aoi record` wrote")
    check_profile(record.profile, path)


def _read_summary(file: IO[bytes], shift: Shift) -> bool:
    """Chunks and rows by the file's own index; False where it has none, or it is damaged."""
    try:
        _check_summary(file)
        file.seek(0)
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        if summary is None:
            raise ValueError("no summary")
        places = [_Place(c.message_start_time, c.message_end_time, c.chunk_start_offset) for c in summary.chunk_indexes]
        counted = summary.statistics.message_count if summary.statistics else 0
        if counted and not places:
            raise ValueError("no chunk index")
        shift._places = places
    except Exception as error:  # MCAP, struct and zlib each have their own
        shift.damage.append(f"{shift.path} has no end ({str(error) or type(error).__name__}): aoi shift repair")
        return False
    try:
        _read_rows(reader)
        shift._indexed = True
    except Exception as error:  # also when it is not there
        shift.damage.append(f"{shift.path}: its index of frames is lost ({error or 'missing'}): aoi shift repair")
        shift.whole = False
    return True


def _read_rows(reader: McapReader) -> list[Row]:
    attached = next(each for each in reader.iter_attachments() if each.name == INDEX_NAME)
    return unpack_index(attached.data)


def _check_summary(file: IO[bytes]) -> None:
    """ValueError where the index of chunks is not what its CRC says; MCAP's own reader does not look."""
    tail = file.seek(0, 2) - 37  # footer: opcode, length, start, start of offsets, CRC; then 8 bytes of magic
    file.seek(max(0, tail))
    footer = file.read(29)
    start, crc = int.from_bytes(footer[9:17], "little"), int.from_bytes(footer[25:29], "little")
    if footer[:1] != b"\x02" or not 0 < start <= tail:
        raise ValueError("no footer")
    file.seek(start)
    if zlib.crc32(file.read(tail + 25 - start)) != crc:
        raise ValueError("the CRC of its index is wrong")


def _scan(file: IO[bytes], shift: Shift) -> None:
    """Chunks one after the other, by their lengths, until the file ends or its records do."""
    end = file.seek(0, 2)
    offset = 8
    while offset + 9 <= end:
        file.seek(offset)
        opcode, length = file.read(1)[0], int.from_bytes(file.read(8), "little")
        if not 1 <= opcode <= 0x0F or length > LARGEST_RECORD or offset + 9 + length > end:
            break
        if opcode == 0x06 and length >= SMALLEST_CHUNK - 9:
            start, last = (int.from_bytes(file.read(8), "little") for _ in range(2))
            shift._places.append(_Place(start, last, offset))
        if opcode == 0x0F:
            return
        offset += 9 + length
    shift.damage.append(f"{shift.path}: {end - offset} bytes after byte {offset} are no whole record")


def _row(recorded: Recorded) -> Row:
    frame_id, lot, panel, at = identity(recorded.header)
    judgement = ""
    with suppress(WireError):
        verdict = recorded.judged()
        judgement = verdict.judgement if verdict else ""
    return Row(at, frame_id, lot, panel, judgement, recorded.pixels is not None)


def _stretches(times: list[int], places: list[_Place]) -> Iterator[tuple[int, int]]:
    """[start, end) of neighbouring wanted times; two are neighbours when no whole chunk lies between them."""
    start = last = times[0]
    for at in times[1:]:
        if any(last < place.start_ns and place.end_ns < at for place in places):
            yield start, last + 1
            start = at
        last = at
    yield start, last + 1
