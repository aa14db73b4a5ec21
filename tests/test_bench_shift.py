"""A recorded shift as the load of a measurement: its own frames, at the times they were offered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RunBench
from line_processes import write_recipe
from shift_files import recorded, write_shift
from test_bench import MS, Moved

from bench.load import Load, Pictures, at_recorded_times
from bench.report import Report
from pipeline.errors import Exit


def test_a_recorded_shift_is_a_load(redis_url: str, tmp_path: Path, run_bench: RunBench) -> None:
    """Its own pictures through the engines and the line, then all its frames at the times they were offered."""
    recipe = write_recipe(tmp_path / "recipe", 0, 4)
    shift = write_shift(tmp_path / "shift.mcap", [recorded(number) for number in range(60)])
    bounds = ["--max-batch", 1, "--frames", 50, "--seconds", 0.1, "--url", redis_url, "--out", tmp_path / "out"]
    code, out, err = run_bench("batch", "--recipe", recipe, "--load", shift, *bounds, "--json")
    assert code == Exit.OK, err
    report = Report.from_json(json.loads(out))
    assert report.settings["pictures"]["shift"] == "shift.mcap"
    closed, as_recorded = report.line_runs
    assert (closed.loop, as_recorded.loop) == ("closed", "open")
    assert (as_recorded.rate, as_recorded.frames) == (100.0, 50)
    assert as_recorded.frames_per_s == pytest.approx(100, rel=0.2)


def test_frames_of_a_shift_are_new_ones_at_their_old_times() -> None:
    """Triggered when they were due, however late they are handed on; with names of this run and its deadline."""
    clock = Moved()
    plan = Load("memory://x", "bench", "run1", Pictures(), deadline_ms=50, recorded=True)
    frames = [recorded(number).frame() for number in (0, 1, 2, 7)]
    found = []
    for frame in at_recorded_times(frames, plan, "s", clock, clock, clock):  # type: ignore[arg-type]
        found.append(frame)
        clock.now += 15 * MS  # longer than the 10 ms between the first
    assert [frame.triggered_ns for frame in found] == [0, 10 * MS, 20 * MS, 70 * MS]
    assert {frame.deadline_ns - frame.triggered_ns for frame in found} == {50 * MS}
    assert [frame.frame_id for frame in found] == [f"run1-s-{n}" for n in range(4)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--load", "0.5"), "give 1 to 200, or a recorded shift"),
        (("--load", "nowhere.mcap"), "neither a percentage nor a recorded shift"),
        (("--load", "{shift}", "--images", "{folder}"), "one source of pictures"),
    ],
)
def test_a_load_that_is_none_is_told(words: tuple[str, ...], said: str, tmp_path: Path, run_bench: RunBench) -> None:
    """Before anything is measured."""
    shift = write_shift(tmp_path / "shift.mcap", [recorded(0), recorded(1)])
    code, _, err = run_bench("batch", *(word.format(shift=shift, folder=tmp_path) for word in words))
    assert (code, said in err) == (Exit.USAGE, True), err


def test_a_shift_of_one_frame_has_no_rhythm(tmp_path: Path, run_bench: RunBench) -> None:
    """Nor one without pixels."""
    for number, frames in enumerate(([recorded(0)], [replace(recorded(n), pixels=None) for n in range(5)])):
        shift = write_shift(tmp_path / f"{number}.mcap", frames)
        code, _, err = run_bench("batch", "--load", shift)
        assert (code, "too few for a rhythm" in err) == (Exit.SOURCE, True), err
