"""A shift file gives back what was put into it, and of a broken one all that is still whole."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from mcap.reader import make_reader
from mcap.writer import Writer
from shift_files import START_NS, STEP_NS, recorded, write_shift

from pipeline.errors import DiskError, ShiftError
from pipeline.shift_reader import open_shift
from pipeline.shift_repair import repair

FORTY = [recorded(number) for number in range(40)]


def test_every_byte_comes_back(tmp_path: Path) -> None:
    """Headers, pixels and verdicts are the bytes that travelled, and frames come in the order they were offered."""
    shift = open_shift(write_shift(tmp_path / "a.mcap", FORTY))
    assert list(shift.recorded()) == FORTY
    assert shift.whole
    assert not shift.damage


def test_order_is_that_of_the_offers(tmp_path: Path) -> None:
    """Verdicts come in any order; a replay must not."""
    mixed = [FORTY[n ^ 3] for n in range(40)]
    assert list(open_shift(write_shift(tmp_path / "a.mcap", mixed)).recorded()) == FORTY


def test_other_readers_know_the_file(tmp_path: Path) -> None:
    """It is a plain MCAP file with schemas and an index of chunks."""
    with write_shift(tmp_path / "a.mcap", FORTY).open("rb") as file:
        summary = make_reader(file, validate_crcs=True).get_summary()
    assert summary
    assert [(c.topic, c.message_encoding) for c in summary.channels.values()] == [
        ("frames", "msgpack"), ("verdicts", "msgpack"), ("amendments", "msgpack"),
    ]  # fmt: skip
    assert [schema.name for schema in summary.schemas.values()] == ["aoi.Frame", "aoi.Verdict", "aoi.Amendment"]
    assert len(summary.chunk_indexes) >= 5
    assert {index.compression for index in summary.chunk_indexes} == {"zstd"}


def test_a_stretch_of_time(tmp_path: Path) -> None:
    """From is part of it, to is not."""
    shift = open_shift(write_shift(tmp_path / "a.mcap", FORTY))
    assert list(shift.recorded(START_NS + 7 * STEP_NS, START_NS + 19 * STEP_NS)) == FORTY[7:19]


@pytest.mark.parametrize(
    ("choose", "found"),
    [
        (lambda row: row.frame_id == "cam-s-23", [23]),
        (lambda row: row.panel == "panel7", [14, 15]),
        (lambda row: row.lot == "lot2", range(20, 30)),
        (lambda row: row.judgement == "NG" and row.lot in ("lot0", "lot3"), [0, 3, 6, 9, 30, 33, 36, 39]),
    ],
)
def test_seeking_reads_only_the_chunks_it_must(tmp_path: Path, choose: object, found: object) -> None:
    """A frame is found through the index: with every other chunk overwritten it still comes whole."""
    path = write_shift(tmp_path / "a.mcap", FORTY)
    shift = open_shift(path)
    chosen = [FORTY[number] for number in found]  # type: ignore[attr-defined]
    needed = [
        p for p in shift._places if any(p.start_ns <= row.time_ns <= p.end_ns for row in shift.rows() if choose(row))
    ]  # type: ignore[operator]
    assert len(needed) < len(shift._places)
    with path.open("r+b") as file:
        for place in shift._places:
            if place not in needed:
                file.seek(place.offset + 60)
                file.write(b"\xff" * 40)
    shift = open_shift(path)
    assert list(shift.chosen(choose)) == chosen  # type: ignore[arg-type]
    assert not shift.damage


def test_cut_at_any_byte_it_opens_up_to_the_last_full_chunk(tmp_path: Path) -> None:
    """And nothing that was whole is lost; `repair` makes it a whole file of just that."""
    path = write_shift(tmp_path / "a.mcap", FORTY)
    data, ends = path.read_bytes(), _chunk_ends(path.read_bytes())
    first = open_shift(path)
    firsts = [place.offset for place in first._places]
    counts = [len(list(_only(path, offset))) for offset in firsts]
    cut_file = tmp_path / "cut.mcap"
    for cut in sorted({*range(60, len(data) - 1, 97), *(end + step for end in ends for step in (-1, 0, 1))}):
        cut_file.write_bytes(data[:cut])
        shift = open_shift(cut_file)
        whole = sum(end <= cut for end in ends)
        assert list(shift.recorded()) == FORTY[: sum(counts[:whole])], cut
        assert not shift.whole
        assert shift.damage


def test_repair_makes_a_cut_file_whole_and_keeps_the_broken_one(tmp_path: Path) -> None:
    path = write_shift(tmp_path / "a.mcap", FORTY)
    path.write_bytes(cut := path.read_bytes()[:20000])
    before = list(open_shift(path).recorded())
    done = repair(path)
    assert done.frames == len(before) > 5
    assert done.kept == tmp_path / "a.mcap.damaged"
    assert done.kept.read_bytes() == cut
    shift = open_shift(path)
    assert shift.whole
    assert not shift.damage
    assert list(shift.recorded()) == before
    assert [row.frame_id for row in shift.rows()] == [f"cam-s-{n}" for n in range(len(before))]


def test_repair_leaves_a_whole_file_alone(tmp_path: Path) -> None:
    path = write_shift(tmp_path / "a.mcap", FORTY)
    before = path.read_bytes()
    assert repair(path).kept is None
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.mcap"]


def test_a_flipped_bit_in_a_chunk_costs_this_chunk_and_is_told(tmp_path: Path) -> None:
    path = write_shift(tmp_path / "a.mcap", FORTY)
    place = open_shift(path)._places[2]
    lost = list(_only(path, place.offset))
    _flip(path, place.offset + 9 + 40 + 100)
    shift = open_shift(path)
    assert list(shift.recorded()) == [each for each in FORTY if each not in lost]
    assert len(shift.damage) == 1
    assert f"byte {place.offset} is damaged" in shift.damage[0]
    assert repair(path).frames == 40 - len(lost)
    assert not open_shift(path).damage


def test_a_flipped_bit_anywhere_is_never_taken_for_data(tmp_path: Path) -> None:
    """Wherever it is, every frame that comes back is one that was recorded; the rest is told."""
    path = write_shift(tmp_path / "a.mcap", FORTY)
    data = path.read_bytes()
    for at in range(60, len(data) - 8, 211):
        path.write_bytes(data)
        _flip(path, at)
        shift = open_shift(path)
        came = list(shift.recorded())
        assert all(each in FORTY for each in came), at
        assert len(came) == 40 or shift.damage, at


def test_a_broken_footer_or_index_costs_nothing(tmp_path: Path) -> None:
    path = write_shift(tmp_path / "a.mcap", FORTY)
    for back in (12, 30, 300):
        data = bytearray(path.read_bytes())
        data[-back] ^= 1
        other = tmp_path / f"{back}.mcap"
        other.write_bytes(data)
        shift = open_shift(other)
        assert list(shift.recorded()) == FORTY
        assert shift.damage, back


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "x.mcap"
    other.write_bytes(b"PNG and nothing else, but long enough to be read")
    with pytest.raises(ShiftError, match="is no MCAP file"):
        open_shift(other)
    with pytest.raises(ShiftError, match="cannot be read: No such file"):
        open_shift(tmp_path / "y.mcap")


@pytest.mark.parametrize(
    ("profile", "said"), [("ros2", "of something else"), ("aoi-shift/9", "has schema 9, this software reads up to 1")]
)
def test_another_profile_is_refused(tmp_path: Path, profile: str, said: str) -> None:
    """A bag of a robot, and a shift of a software that is newer than this one."""
    with (tmp_path / "x.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start(profile)
        writer.finish()
    with pytest.raises(ShiftError, match=said):
        open_shift(tmp_path / "x.mcap")


def test_a_full_disk_is_told_and_what_was_written_is_kept(tmp_path: Path) -> None:
    """A real limit on the file's size, as a quota sets it."""
    code = (
        "import sys; from pathlib import Path; from shift_files import *; "
        "write_shift(Path(sys.argv[1]), [recorded(n) for n in range(40)])"
    )
    path = tmp_path / "a.mcap"
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": f"{tests}:{tests.parent}", "PYTHONDONTWRITEBYTECODE": "1"},  # or CPython cuts .pyc files off
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000)),
    )  # fmt: skip
    assert "DiskError" in done.stderr
    assert "make room; what lies in it is kept: aoi shift repair" in done.stderr
    kept = list(open_shift(path).recorded())
    assert len(kept) > 5
    assert kept == FORTY[: len(kept)]
    assert repair(path).frames == len(kept)


def test_a_shift_is_never_written_over(tmp_path: Path) -> None:
    path = write_shift(tmp_path / "a.mcap", FORTY[:1])
    with pytest.raises(DiskError, match="cannot be made: File exists"):
        write_shift(path, FORTY[:1])


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def _only(path: Path, offset: int) -> list[object]:
    """The frames of one chunk."""
    shift = open_shift(path)
    shift._places = [place for place in shift._places if place.offset == offset]
    return list(shift.recorded())


def _chunk_ends(data: bytes) -> list[int]:
    """Where each chunk ends, found without the reader under test."""
    ends, offset = [], 8
    while offset < len(data) - 9:
        opcode, (length,) = data[offset], struct.unpack_from("<Q", data, offset + 1)
        offset += 9 + length
        if opcode == 6:
            ends.append(offset)
    return ends
