"""A shift comes back as it was: the same frames in the same order, judged the same whatever the circumstances."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Opener, make_frame, wait_until
from line_clients import verdict_for
from line_processes import AOI, LineProcesses, finished, write_recipe
from shift_files import START_NS, STEP_NS, recorded, write_shift

from pipeline.errors import Exit, ShiftError
from pipeline.judge_again import Line, Manner, VerdictFile, judge_again, with_verdicts_of
from pipeline.messages import Frame, Verdict
from pipeline.replay import AHEAD, InRhythm, ReadAhead, Replay
from pipeline.shift_choice import Wanted, frames_of
from pipeline.shift_format import Recorded
from pipeline.sources.panel import PanelSimulator
from pipeline.stream import Stream
from pipeline.verdict_diff import VerdictDiff, said_alike

FORTY = [recorded(number) for number in range(40)]


# ----------------------------------------------------------------------- rhythm


class Clock(threading.Event):
    """Time that passes only while somebody waits for it."""

    now = 1_000_000

    def __call__(self) -> int:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        self.now += int((timeout or 0) * 1e9)
        return self.is_set()


@pytest.mark.parametrize("speed", [1.0, 4.0, 0.25])
def test_frames_come_at_their_times(speed: float) -> None:
    """By the schedule of their offers, however long the user of each frame takes."""
    clock, late = Clock(), list[int]()
    frames = [each.frame() for each in FORTY[:10]]
    came = []
    for frame in InRhythm(frames, speed, clock, late.append, clock):
        came.append((frame, clock.now))
        clock.now += 100_000
    start = came[0][1]
    for frame, at in came:
        assert abs(at - start - (frame.offered_ns - START_NS) / speed) < 2_000
    assert [frame for frame, _ in came] == frames
    assert max(late) < 2_000
    assert len(late) == 10


def test_what_is_overdue_comes_at_once_and_is_told() -> None:
    """A line that stood still for 50 ms is given what came meanwhile, and the schedule does not move."""
    clock, late = Clock(), list[int]()
    rhythm = InRhythm([each.frame() for each in FORTY[:10]], 1.0, clock, late.append, clock)
    next(rhythm)
    start = clock.now
    clock.now += 5 * STEP_NS
    assert rhythm.is_due()
    for _ in range(5):
        next(rhythm)
    assert clock.now == start + 5 * STEP_NS
    assert late[1:6] == [4 * STEP_NS, 3 * STEP_NS, 2 * STEP_NS, STEP_NS, 0]
    assert not rhythm.is_due()
    clock.set()
    assert list(rhythm) == []


def test_a_frame_is_made_ready_when_it_is_handed_on() -> None:
    """Not when it was looked at: a deadline counted from then would be over before its time."""
    clock, ready = Clock(), list[int]()

    def at_hand(frame: Frame) -> Frame:
        ready.append(clock.now)
        return frame

    rhythm = InRhythm([each.frame() for each in FORTY[:3]], 1.0, clock, clock=clock, at_hand=at_hand)
    for _ in range(3):
        next(rhythm)
        rhythm.is_due()
    assert [at - ready[0] for at in ready] == [
        0,
        pytest.approx(STEP_NS, abs=2000),
        pytest.approx(2 * STEP_NS, abs=2000),
    ]


def test_reading_ahead_is_bounded_and_ends() -> None:
    """So many frames, no more; what the reader raised comes where it was raised."""
    taken = itertools.count()

    def endless() -> Iterator[int]:
        while True:
            yield next(taken)

    ahead = ReadAhead(endless(), lambda item: 1)
    assert list(itertools.islice(ahead, 3)) == [0, 1, 2]
    ahead.close()
    assert next(taken) <= AHEAD + 5

    def broken() -> Iterator[int]:
        yield 1
        raise ShiftError("gone")

    ahead = ReadAhead(broken(), lambda item: 1)
    found = iter(ahead)
    assert next(found) == 1
    with pytest.raises(ShiftError, match="gone"):
        next(found)
    ahead.close()


# ----------------------------------------------------------------------- onto a stream


def replayed(
    stream: Stream, worker: Stream, frames: Sequence[Recorded], **facts: object
) -> list[tuple[Recorded, Verdict]]:
    """All pairs of a replay that is judged OK at once."""
    pairs: list[tuple[Recorded, Verdict]] = []
    replay = Replay(stream, iter(frames), **facts)  # type: ignore[arg-type]

    def work() -> None:
        worker.settle([verdict_for(delivery) for delivery in worker.take(8)])

    replay.run(lambda recorded, verdict: pairs.append((recorded, verdict)), work)
    return pairs


def test_frames_keep_what_they_came_with(opened: Opener) -> None:
    """Ids, trigger times, lot and pixels; the deadline does not travel, and the verdict meets what was recorded."""
    frames = [recorded(n, deadline_ns=START_NS + 1) for n in range(40)]
    seen: list[Frame] = []
    worker = opened("w")
    take = worker.take

    def looked(n: int, wait_s: float = 0.0) -> object:
        deliveries = take(n, wait_s)
        seen.extend(delivery.frame for delivery in deliveries)
        return deliveries

    worker.take = looked  # type: ignore[method-assign, assignment]
    pairs = replayed(opened(""), worker, frames)
    assert len(pairs) == 40
    for each, frame in zip(frames, seen, strict=True):
        was = each.frame()
        assert bytes(frame.payload()) == each.pixels
        assert replace(frame, line="", offered_ns=was.offered_ns) == replace(was, deadline_ns=0)
    for each, verdict in pairs:
        assert each.frame().frame_id == verdict.frame.frame_id
        assert (each.pixels, each.verdict) == (None, frames[verdict.frame.sequence].verdict)


def test_deadlines_can_be_kept(opened: Opener) -> None:
    """Each frame then has as long as it had, from now on."""
    frames = [recorded(0, deadline_ns=START_NS + 30 * 10**9)]
    ((_, verdict),) = replayed(opened(""), opened("w"), frames, keep_deadlines=True)
    left = verdict.frame.deadline_ns - verdict.frame.offered_ns
    assert 29 * 10**9 < left <= 30 * 10**9


def test_what_cannot_be_judged_again_is_counted(opened: Opener) -> None:
    """Without pixels, or with a header that nobody can read."""
    frames = [FORTY[0], replace(FORTY[1], pixels=None), Recorded(b"\xc1", b"12"), FORTY[2]]
    replay = Replay(opened(""), iter(frames))
    worker = opened("w")
    counts = replay.run(lambda *_: None, lambda: bool(worker.settle([verdict_for(d) for d in worker.take(8)])))
    assert (counts.offered, counts.judged, counts.without_pixels, counts.unreadable) == (2, 2, 1, 1)


def test_a_line_takes_a_shift_once(opened: Opener) -> None:
    """A second time it knows the frames: that is told, not waited for."""
    stream, worker = opened(""), opened("w")
    assert len(replayed(stream, worker, FORTY)) == 40
    replay = Replay(stream, iter(FORTY))
    assert replay.run(lambda *_: None).not_taken == 40


def test_a_replay_that_is_stopped_ends(opened: Opener) -> None:
    """Although nobody judges."""
    stop = threading.Event()
    replay = Replay(opened(""), iter(FORTY), stop=stop)
    counts = replay.run(lambda *_: None, lambda: replay.offered.frames and stop.set())
    assert counts.judged == 0


# ----------------------------------------------------------------------- several files


def test_files_that_overlap_are_one_shift(tmp_path: Path) -> None:
    """A frame is written with its verdict: at a roll, one offered earlier can lie in the later file."""
    write_shift(tmp_path / "a.mcap", [FORTY[n] for n in (0, 1, 3, 2, 5)])
    write_shift(tmp_path / "b.mcap", [FORTY[n] for n in (4, 8, 6)])
    write_shift(tmp_path / "c.mcap", [FORTY[n] for n in (7, 9)])
    assert list(frames_of(tmp_path, Wanted())) == FORTY[:10]
    span = Wanted(START_NS + 3 * STEP_NS, START_NS + 8 * STEP_NS)
    assert list(frames_of(tmp_path, span)) == FORTY[3:8]
    assert list(frames_of(tmp_path, Wanted(judgements=("NG",)))) == FORTY[0:10:3]


def test_verdicts_of_another_run_take_the_place_of_the_recorded(tmp_path: Path) -> None:
    """By frame id; what that run did not judge has none. Frames keep their times, and verdicts how long they took."""
    kept = VerdictFile(tmp_path / "before.mcap")
    for number in (0, 1, 3, 4):
        verdict = FORTY[number].judged()
        assert verdict
        later = replace(verdict.frame, offered_ns=10**18, deadline_ns=0, line="other")
        kept.add(FORTY[number], replace(verdict, frame=later, judgement="REVIEW", settled_ns=10**18 + number))
    kept.close()
    found = list(with_verdicts_of(FORTY[:5], tmp_path / "before.mcap"))
    assert [(each.header, each.pixels) for each in found] == [(each.header, each.pixels) for each in FORTY[:5]]
    verdicts = [each.judged() for each in found]
    assert [v and v.judgement for v in verdicts] == ["REVIEW", "REVIEW", None, "REVIEW", "REVIEW"]
    assert [v and v.settled_ns - v.frame.offered_ns for v in verdicts] == [0, 1, None, 3, 4]


# ----------------------------------------------------------------------- judged again


def panel_shift(path: Path, count: int) -> list[Recorded]:
    """Simulated panels as frames without verdicts, in a file."""
    simulator, frames = PanelSimulator(seed=5, defect_rate=0.5), []
    for number in range(count):
        at = START_NS + number * STEP_NS
        image = simulator.panel(number).image
        frame = replace(make_frame(number), height=image.shape[0], width=image.shape[1], pixels=image, offered_ns=at)
        frames.append(Recorded(frame.header(), bytes(frame.payload())))
    return frames


def test_a_replay_says_the_same_to_the_last_bit(redis_url: str, line: str, tmp_path: Path) -> None:
    """On the cpu engine, in any composition of batches and with any number of workers."""
    frames = panel_shift(tmp_path / "a.mcap", 96)
    runs = []
    for number, (workers, batch) in enumerate(((1, 8), (2, 3), (1, 1))):
        options = ("--max-batch", str(batch), "--threads", "1")
        verdicts: dict[str, Verdict] = {}
        judge_again(
            Line(redis_url, f"{line}-{number}", "panel", workers, options), iter(frames), Manner(),
            lambda _, verdict, into=verdicts: into.update({verdict.frame.frame_id: verdict}),  # type: ignore[misc]
        )  # fmt: skip
        runs.append(verdicts)
    first, *others = runs
    assert len(first) == 96
    assert {verdict.judgement for verdict in first.values()} >= {"OK", "NG"}
    assert len({verdict.batch_size for verdict in first.values()}) > 1
    for other in others:
        assert other.keys() == first.keys()
        assert [name for name in first if not said_alike(first[name], other[name])] == []
        assert {v.recipe + v.engine for v in other.values()} == {v.recipe + v.engine for v in first.values()}


def test_a_killed_worker_changes_no_verdict(redis_url: str, line: str, tmp_path: Path) -> None:
    """Its frames go to the next: the comparison with an undisturbed run is empty."""
    recipe = str(write_recipe(tmp_path / "recipe", 20, 4))
    frames = [recorded(n) for n in range(60)]
    kept = VerdictFile(tmp_path / "before.mcap")
    judge_again(Line(redis_url, f"{line}-a", recipe), iter(frames), Manner(), kept.add)
    kept.close()
    diff, killed = VerdictDiff(), list[int]()

    def judged(each: Recorded, verdict: Verdict) -> None:
        diff.add(each.judged(), verdict)
        if not killed:
            killed.append(1)
            subprocess.run(["pkill", "-KILL", "-f", f"work .*--line {line}-b"], check=True, timeout=20)

    again = with_verdicts_of(frames, tmp_path / "before.mcap")
    judge_again(Line(redis_url, f"{line}-b", recipe), again, Manner(), judged)
    assert killed
    assert (diff.frames, diff.alike, diff.flipped) == (60, 60, 0)


def run_replay(*words: object) -> subprocess.CompletedProcess[str]:
    command = [*AOI, "replay", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def two_recipes(tmp_path: Path) -> tuple[Path, Path]:
    """One for which noise is a defect, and one that finds nothing."""
    strict, blind = write_recipe(tmp_path / "strict", 0, 4), write_recipe(tmp_path / "blind", 0, 4)
    (blind / "net.fake").write_text(json.dumps({"bright": 256}))
    return strict, blind


def test_a_recorded_line_is_judged_again(redis_url: str, line: str, tmp_path: Path) -> None:
    """Recorded, replayed onto a Redis of its own and compared: nothing changed; then with another model: all told."""
    with LineProcesses(tmp_path, redis_url, line) as processes:
        words = [*AOI, "record", str(tmp_path / "shift"), "--url", redis_url, "--line", line]
        recorder = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: list((tmp_path / "shift").glob("*.mcap")))
        processes.work(delay_ms=5)
        finished(processes.produce(50))
        processes.verdicts(50)
        recorder.terminate()
        finished(recorder)
    same = run_replay(tmp_path / "shift", "--recipe", tmp_path / "recipe-5-4", "--against", "recorded", "--json")
    assert same.returncode == 0, same.stderr
    diff = json.loads(same.stdout)["diff"]
    assert (diff["frames"], diff["alike"], diff["flipped"]) == (50, 50, 0)


def test_a_change_is_shown_and_can_be_refused(two_recipes: tuple[Path, Path], tmp_path: Path) -> None:
    """Two recipes over one shift: every flip is on the page with its pictures, and a bound ends with 12."""
    strict, blind = two_recipes
    path, page = write_shift(tmp_path / "a.mcap", FORTY), tmp_path / "out" / "diff.html"
    words = (path, "--recipe", blind, "--against", strict, "--report", page, "--json")
    run = run_replay(*words, "--max-escapes", 3)
    assert run.returncode == Exit.REFUSED, run.stderr
    diff = json.loads(run.stdout)["diff"]
    assert diff["escapes"] == diff["judgements"]["NG"]["OK"] > 3
    assert f"refused: {diff['escapes']} escapes, at most 3 allowed" in run.stderr
    assert page.read_text().count("<div class=pair><img") == diff["escapes"]
    assert run_replay(*words, "--max-escapes", diff["escapes"], "--max-overkill", 0).returncode == 0


def test_a_recipe_that_is_gone_is_no_reason_not_to_compare(two_recipes: tuple[Path, Path], tmp_path: Path) -> None:
    """What it said is in the shift."""
    path = write_shift(tmp_path / "a.mcap", FORTY)
    run = run_replay(path, "--recipe", two_recipes[1], "--against", "recorded", "--judgement", "NG")
    assert run.returncode == 0, run.stderr
    assert "before  panel@12" in run.stdout
    assert "14 flips: 14 from NG to OK, 0 from OK to NG" in run.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("{shift}",), Exit.USAGE, "nobody would judge: give --recipe"),
        (("{shift}", "--recipe", "{recipe}", "--max-flips", "1"), Exit.USAGE, "--against recorded"),
        (("{shift}", "--recipe", "nowhere"), Exit.RECIPE, "nowhere"),
        (("{shift}", "--recipe", "{recipe}", "--against", "nowhere"), Exit.RECIPE, "nowhere"),
        (("{folder}/none.mcap", "--recipe", "{recipe}"), Exit.SOURCE, "cannot be read"),
        (("{folder}/text.mcap", "--recipe", "{recipe}"), Exit.SOURCE, "is no MCAP file"),
        (("{folder}/empty", "--recipe", "{recipe}"), Exit.SOURCE, "no shift files"),
        (("{shift}", "--recipe", "{recipe}", "--from", "noon"), Exit.USAGE, "give a time"),
    ],
)
def test_bad_input_is_told(words: Sequence[str], code: int, said: str, tmp_path: Path) -> None:
    """In one line that says what to do."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mcap").write_text(30 * "text")
    places = {"shift": write_shift(tmp_path / "a.mcap", FORTY[:2]), "folder": tmp_path}
    places["recipe"] = write_recipe(tmp_path / "recipe", 0, 4)
    run = run_replay(*(word.format(**places) for word in words))
    assert (run.returncode, "Traceback" in run.stderr) == (code, False), run.stderr
    assert said in run.stderr


def test_damage_costs_only_what_is_damaged(two_recipes: tuple[Path, Path], tmp_path: Path) -> None:
    """A chunk with a flipped bit is left out and told; the rest is judged."""
    path = write_shift(tmp_path / "a.mcap", FORTY)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    run = run_replay(path, "--recipe", two_recipes[0], "--against", "recorded", "--json")
    assert run.returncode == 0, run.stderr
    assert "damaged" in run.stderr
    assert 20 < json.loads(run.stdout)["diff"]["frames"] < 40
