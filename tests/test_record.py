"""What passed on a line is in its shift: every byte, or told with the reason; also after a kill."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Opener, make_frame, wait_until
from line_clients import due_in, verdict_for
from line_processes import AOI, LineProcesses, finished
from redis_nodes import Node
from shift_files import recorded

from pipeline.errors import DiskError
from pipeline.recorder import Recorder
from pipeline.shift_files import RollBy, files_of
from pipeline.shift_format import Recorded
from pipeline.shift_joining import Joiner, Keep
from pipeline.shift_reader import open_shift
from pipeline.shift_repair import repair
from pipeline.stream import Limits, Stream, open_stream

ONE_FILE = RollBy()


def joiner(keep: Keep | None = None, max_bytes: int = 1 << 30) -> Joiner:
    return Joiner(keep or Keep(), max_bytes)


def say(it: Joiner, each: Recorded) -> Recorded:
    """Its verdict comes; what is to be written."""
    assert each.verdict
    return it.verdict(each.header, each.verdict).recorded


def see(it: Joiner, each: Recorded) -> None:
    assert isinstance(each.pixels, bytes)
    it.frame(each.header, each.pixels)


# ----------------------------------------------------------------------- deciding


def test_a_frame_and_its_verdict_come_together() -> None:
    """Whatever comes between them; the index is told the judgement."""
    it, frames = joiner(), [recorded(n) for n in range(3)]
    for each in frames:
        see(it, each)
    assert [say(it, frames[n]) for n in (1, 0, 2)] == [frames[1], frames[0], frames[2]]
    assert (it.counts.frames, it.counts.pixels, it.waiting) == (3, 3, 0)


def test_pixels_are_kept_by_judgement() -> None:
    """NG with pixels, OK without them but with its verdict; a share of OK is drawn by frame id, the same again."""
    frames = [recorded(n) for n in range(300)]  # every third is NG
    kept = []
    for _ in range(2):
        it = joiner(Keep(("NG", "REVIEW"), ok_share=0.25))
        for each in frames:
            see(it, each)
        found = [say(it, each) for each in frames]
        assert [each.verdict for each in found] == [each.verdict for each in frames]
        assert all(each.pixels for each in found[::3])
        kept.append([n for n, each in enumerate(found) if each.pixels is not None])
        assert it.counts.not_wanted == 300 - len(kept[-1])
    assert kept[0] == kept[1]
    assert 0.15 < (len(kept[0]) - 100) / 200 < 0.35


def test_what_could_not_be_kept_has_its_reason() -> None:
    """Missed, never on the stream, or no memory to wait: each is counted as that, and the verdict is kept."""
    missed, shed, held, crowded_out = (recorded(n) for n in range(4))
    verdict = shed.judged()
    assert verdict
    shed = replace(shed, verdict=replace(verdict, judgement="UNINSPECTED", reason="shed").body())
    it = joiner(max_bytes=held.size)
    assert say(it, missed).pixels is None
    assert say(it, shed).pixels is None
    see(it, crowded_out)
    see(it, held)
    assert say(it, crowded_out).pixels is None
    assert say(it, held) == held
    assert (it.counts.missed, it.counts.never_there, it.counts.no_room) == (1, 1, 1)
    assert (it.counts.frames, it.counts.pixels) == (4, 1)


# ----------------------------------------------------------------------- on a stream


@contextmanager
def recording(stream: Stream, folder: Path, **facts: object) -> Iterator[Recorder]:
    """A recorder at work, until the frames that it holds have their verdicts."""
    recorder = Recorder(stream, folder, facts.pop("keep", Keep()), facts.pop("roll", ONE_FILE), **facts)  # type: ignore[arg-type]
    failures: list[BaseException] = []
    begun = threading.Event()

    def run() -> None:
        try:
            recorder.run(lambda counts: begun.set())
        except BaseException as error:
            failures.append(error)
        begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(10)
    try:
        yield recorder
    finally:
        recorder.stop()
        thread.join(20)
    assert not thread.is_alive()
    for failure in failures:
        raise failure


def shift_in(folder: Path) -> list[Recorded]:
    """Everything that its files hold, all of them whole."""
    shifts = [open_shift(path) for path in files_of(folder)]
    found = [each for shift in shifts for each in shift.recorded()]
    assert all(shift.whole and not shift.damage for shift in shifts)
    return found


def judge(stream: Stream, n: int, judgement: str = "OK") -> None:
    assert stream.settle([verdict_for(delivery, judgement) for delivery in stream.take(n)]) == [True] * n


def test_every_byte_is_kept(opened: Opener, tmp_path: Path) -> None:
    """Header, pixels and verdict as they lay on the stream; frames that wait at the beginning are part of it."""
    stream = opened("w")
    stream.offer([make_frame(n) for n in range(3)])
    with recording(opened(""), tmp_path):
        stream.offer([make_frame(n) for n in range(3, 20)])
        seen = stream.watch("frames", "0", 30)
        judge(stream, 10, "NG")
        judge(stream, 10)
    verdicts = stream.watch("verdicts", "0", 30)
    found = shift_in(tmp_path)
    assert [each.header for each in found] == [entry.header for entry in seen]
    assert sorted(each.verdict or b"" for each in found) == sorted(entry.body for entry in verdicts)
    kept = [each for each in found if each.pixels is not None]
    assert [each.pixels for each in kept] == [seen[found.index(each)].body for each in kept]
    assert len(kept) >= 3  # the others may have been judged before they were looked at; they are counted
    assert [row.judgement for row in open_shift(files_of(tmp_path)[0]).rows()] == 10 * ["NG"] + 10 * ["OK"]


def test_frames_that_are_looked_at_have_their_pixels(opened: Opener, tmp_path: Path) -> None:
    """Where the line leaves the recorder time, nothing is missed."""
    stream = opened("w")
    with recording(opened(""), tmp_path) as recorder:
        for n in range(0, 40, 4):
            stream.offer([make_frame(i) for i in range(n, n + 4)])
            wait_until(lambda: recorder.waiting == 4)
            judge(stream, 4)
            wait_until(lambda: recorder.waiting == 0)
    assert (recorder.counts.pixels, recorder.counts.missed) == (40, 0)
    assert [each.frame().sequence for each in shift_in(tmp_path)] == list(range(40))


def test_amendments_are_kept(opened: Opener, tmp_path: Path) -> None:
    """The real answer after a fail-safe verdict, with the verdict it came after."""
    stream = opened("w")
    with recording(opened(""), tmp_path) as recorder:
        stream.offer([due_in(0, 30)])
        (delivery,) = stream.take(1)
        stream.settle([verdict_for(delivery, "REVIEW", "deadline")])
        stream.settle([verdict_for(delivery, "NG", "scratch")])
        wait_until(lambda: recorder.counts.amendments == 1)
    found = shift_in(tmp_path)  # together, or one after the other
    assert {each.header for each in found} == {found[0].header}
    said = [each.judged() for each in found], [each.amended() for each in found]
    assert [[each.judgement for each in some if each] for some in said] == [["REVIEW"], ["NG"]]


def test_frames_that_nobody_judged_are_kept(opened: Opener, tmp_path: Path) -> None:
    """A stop waits for their verdicts as long as it may, then keeps them without."""
    stream = opened("w")
    with recording(opened(""), tmp_path, grace_s=0.0) as recorder:
        stream.offer([make_frame(0)])
        wait_until(lambda: recorder.waiting == 1)
    (found,) = shift_in(tmp_path)
    assert (found.pixels, found.verdict) == (bytes(make_frame(0).payload()), None)
    assert recorder.counts.unjudged == 1


def test_verdicts_that_left_unread_are_counted(opened: Opener, tmp_path: Path) -> None:
    """A stream keeps so many verdicts: a recorder that was away for longer says how many it did not see."""
    stream, gate = opened("w", limits=Limits(keep_verdicts=5)), threading.Event()
    onlooker = opened("")
    watch = onlooker.watch

    def held_up(log: str, *words: object) -> object:
        if log == "verdicts":
            gate.wait(20)
        return watch(log, *words)  # type: ignore[arg-type]

    onlooker.watch = held_up  # type: ignore[method-assign, assignment]
    recorder = Recorder(onlooker, tmp_path, Keep(), ONE_FILE, grace_s=0.0)
    thread = threading.Thread(target=recorder.run)
    thread.start()
    wait_until(lambda: list(tmp_path.iterdir()))
    for start in range(0, 400, 100):
        stream.offer([make_frame(n) for n in range(start, start + 100)])
        judge(stream, 100)
    recorder.stop()
    gate.set()
    thread.join(20)
    assert not thread.is_alive()
    assert recorder.counts.lost_verdicts + len([e for e in shift_in(tmp_path) if e.verdict]) == 400
    assert recorder.counts.lost_verdicts > 100


def test_files_roll_and_the_oldest_make_room(opened: Opener, tmp_path: Path) -> None:
    """By size here; the quota holds, and what is left is the newest without a gap."""
    stream, now = opened("w"), [0.0]
    roll, quota = RollBy(size=4_000), 25_000
    with recording(opened(""), tmp_path, roll=roll, quota=quota, clock=lambda: now[0]) as recorder:
        for n in range(60):
            stream.offer([make_frame(n)])
            wait_until(lambda: recorder.waiting == 1)
            judge(stream, 1)
            wait_until(lambda n=n: recorder.counts.frames == n + 1)  # type: ignore[misc]
            now[0] += 1.5
    sizes = [path.stat().st_size for path in files_of(tmp_path)]
    assert recorder.counts.files > len(sizes) >= 2
    assert sum(sizes) <= quota + 10_000  # the newest is written to until the next look
    sequences = [each.frame().sequence for each in shift_in(tmp_path)]
    assert sequences == list(range(60 - len(sequences), 60))


def test_a_stream_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    """The shift goes on where it was; a stop while it is away ends it whole."""
    with Node(tmp_path / "node") as node:
        stream = open_stream(f"redis://{node.address}", "line", "w")
        with recording(open_stream(f"redis://{node.address}", "line"), tmp_path / "shift") as recorder:
            stream.offer([make_frame(0)])
            wait_until(lambda: recorder.waiting == 1)
            judge(stream, 1)
            wait_until(lambda: recorder.counts.frames == 1)
            node.kill()
            node.start()
            stream.offer([make_frame(1)])
            wait_until(lambda: recorder.waiting == 1)
            judge(stream, 1)
            wait_until(lambda: recorder.counts.frames == 2)
            node.kill()
    assert [each.frame().sequence for each in shift_in(tmp_path / "shift")] == [0, 1]


# ----------------------------------------------------------------------- processes


def start_recording(folder: Path, line: LineProcesses, *options: str, **facts: object) -> subprocess.Popen[str]:
    """`aoi record`, once it has begun."""
    words = [*AOI, "record", str(folder), "--url", line.url, "--line", line.line, *options]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, **facts)  # type: ignore[call-overload]
    wait_until(lambda: (folder.exists() and list(folder.glob("*.mcap"))) or process.poll() is not None)
    return process  # type: ignore[no-any-return]


def test_a_line_is_recorded_from_beginning_to_end(redis_url: str, line: str, tmp_path: Path) -> None:
    """As on a line PC: three processes, a SIGTERM, and a whole file that has every frame."""
    with LineProcesses(tmp_path, redis_url, line) as processes:
        recorder = start_recording(tmp_path / "shifts", processes)
        processes.work(delay_ms=20)
        finished(processes.produce(60))
        processes.verdicts(60)
        recorder.terminate()
        said = finished(recorder)
    assert "60 frames recorded into 1 file" in said
    found = shift_in(tmp_path / "shifts")
    assert [each.frame().sequence for each in found] == list(range(60))
    assert all(each.verdict for each in found)


@pytest.mark.parametrize("seed", range(4))
def test_a_recorder_that_is_killed_leaves_what_it_had(seed: int, redis_url: str, line: str, tmp_path: Path) -> None:
    """At any moment: its file is readable up to the last whole chunk, and repair makes it whole."""
    with LineProcesses(tmp_path, redis_url, line) as processes:
        recorder = start_recording(tmp_path / "shifts", processes)
        processes.work(delay_ms=2)
        producer = processes.produce(300, "--rate", "150")
        (path,) = (tmp_path / "shifts").glob("*.mcap")
        wanted = random.Random(seed).randrange(1_000, 700_000)
        wait_until(lambda: path.stat().st_size >= wanted or producer.poll() is not None)
        recorder.send_signal(signal.SIGKILL)
        recorder.communicate()
    shift = open_shift(path)
    before = [each.frame().sequence for each in shift.recorded()]
    assert not shift.whole
    assert before == list(range(len(before)))
    done = repair(path)
    assert done.frames == len(before)
    assert [each.frame().sequence for each in shift_in(tmp_path / "shifts")] == before


def test_a_full_disk_ends_it_with_what_is_whole(redis_url: str, line: str, tmp_path: Path) -> None:
    """Exit 7, one line that says what to do, and the file reads up to where it was full."""
    limit = 500_000
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # CPython would leave .pyc files that are cut off

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with LineProcesses(tmp_path, redis_url, line) as processes:
        recorder = start_recording(tmp_path / "shifts", processes, preexec_fn=small_disk, env=environment)
        processes.work(delay_ms=2)
        finished(processes.produce(300, "--rate", "100"))
        processes.verdicts(300)
        _, said = recorder.communicate(timeout=30)
    assert recorder.returncode == 7, said
    (told,) = [row for row in said.splitlines() if "cannot be written further" in row]
    assert "make room" in told
    (path,) = files_of(tmp_path / "shifts")
    assert path.stat().st_size <= limit
    before = [each.frame().sequence for each in open_shift(path).recorded()]
    assert before == list(range(len(before)))
    assert len(before) > 10


def test_a_folder_that_cannot_be_written(redis_url: str, line: str, tmp_path: Path) -> None:
    """Told at the start."""
    (tmp_path / "file").write_text("")
    words = [*AOI, "record", str(tmp_path / "file" / "shifts"), "--url", redis_url, "--line", line]
    run = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == DiskError.exit_code
    assert re.search(r"cannot be made: .*; choose another folder", run.stderr)
    assert os.listdir(tmp_path) == ["file"]
