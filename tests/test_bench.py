"""What `bench` measures, what it refuses to say, and what it leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from conftest import RunBench, make_frame

from bench.children import Child
from bench.compare import compare, differences
from bench.engine_alone import batches_of, measure_engine, rate_of
from bench.line_summary import Seen, TooShortError, frames_per_s, stages_ms, summarise
from bench.load import Load, Pictures, again_and_again, render, scheduled
from bench.measure import doubling
from bench.percentiles import Spread, spread
from bench.report import STAGES, Cost, EngineRun, LineRun, Report, ReportError, load, save
from bench.whole_line import Line, Site, check_ledger
from engines.base import EngineOptions, Pixels, Ticket
from engines.fake import FakeEngine
from pipeline.errors import AoiError, Exit, LedgerError
from pipeline.messages import Verdict
from pipeline.recipe import Batching
from pipeline.stream import Audit, SourceCount

MS = 1_000_000
RECIPE = """
mode = "cascade"
[classifier]
file = "net.fake"
classes = ["good", "scratch"]
[segmenter]
file = "net.fake"
classes = ["good", "scratch"]
[batching]
engine = "fake"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A model folder of fake engines that take a whole simulated panel of 64 × 64 px."""
    folder = tmp_path / "quick"
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "net.fake").write_text("{}")
    return folder


def a_report(**changes: object) -> Report:
    """A report with one run of each sort."""
    line_run = LineRun(
        batch=1,
        loop="open",
        load=70.0,
        rate=100.0,
        frames=2000,
        warmup=200,
        frames_per_s=99.5,
        mean_batch=1.0,
        judgements={"OK": 1999, "NG": 1},
        latency_ms=Spread(1800, 5.0, 4.5, 6.0, 9.0, 12.0, 13.0),
        stages_ms={name: Spread(1800, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0) for name in STAGES},
        costs={"producer": Cost(cpu_us=68.0, rss_peak=1 << 20), "worker": Cost(cpu_us=89.0, rss_peak=1 << 21)},
    )
    closed = replace(line_run, loop="closed", load=0.0, rate=0.0, frames_per_s=142.0, latency_ms=Spread(0))
    engine = EngineRun(
        stage="classifier", batch=1, in_flight=2, tiles_per_s=300.0, batch_ms=Spread(10, 3.0, 3.0, 3.5), cpu_us=3300.0
    )
    report = Report(
        kind="single",
        created="2025-11-21T03:00:00+00:00",
        machine={"cpu": "some", "usable_threads": 2, "memory_gib": 16.0, "versions": {"numpy": "2.0"}},
        project={"version": "0.1.0", "commit": "abc", "changed_files": False},
        conditions={"load_average_before": 0.1},
        recipe="panel@0123",
        engine="fake",
        device="none",
        settings={"mode": "cascade", "pictures": {"size": [64, 64], "images": ""}, "tiles_per_frame": 1},
        runs=(engine, closed, line_run),
    )
    return replace(report, **changes)  # type: ignore[arg-type]


# ------------------------------------------------------------------ what samples say


def test_percentiles_are_interpolated_linearly() -> None:
    """Of 1 … 1000 in any order each percentile lies where linear interpolation puts it."""
    found = spread(np.random.default_rng(0).permutation(np.arange(1, 1001)))
    assert (found.count, found.mean, found.max) == (1000, 500.5, 1000)
    named = [found.p50, found.p90, found.p99, found.p99_9]
    assert named == pytest.approx([500.5, 900.1, 990.01, 999.001], abs=1e-9)


@pytest.mark.parametrize(("count", "known"), [(0, ""), (9, "p50"), (99, "p90"), (999, "p99"), (1000, "p99_9")])
def test_percentile_without_a_sample_beyond_it_is_not_given(count: int, known: str) -> None:
    """p99.9 takes 1,000 samples, p99 100, p90 10: below that it would be the maximum under another name."""
    found = spread(range(count))
    given = [name for name in ("p50", "p90", "p99", "p99_9") if getattr(found, name) is not None]
    assert (given[-1] if given else "") == known
    assert found.count == count


def test_rate_counts_no_frame_for_no_time() -> None:
    """Frames that share a settlement are counted with the time that led to it; one settlement has no rate."""
    settled = np.array([0, 0, 0, 0, 500, 500, 500, 500, 1000, 1000, 1000, 1000], np.int64) * MS
    assert frames_per_s(settled, warmup=1) == pytest.approx(8.0)
    with pytest.raises(TooShortError, match="--seconds"):
        frames_per_s(settled[:4], warmup=0)


def test_rate_of_an_engine_leaves_out_the_warm_up() -> None:
    """The first tenth of the batches, slow ones here, does not count."""
    slow, quick = [1000 * MS], [1010 * MS + 10 * MS * i for i in range(9)]
    assert rate_of(slow + quick) == pytest.approx(100.0)


def test_stages_are_split_by_the_verdicts_own_timestamps() -> None:
    """Each stage is the difference of two neighbouring stamps; a frame that skipped a step is left out."""
    whole, skipped = [10, 11, 13, 16, 20, 25], [10, 11, 13, 0, 0, 14]
    found = stages_ms(np.array([whole, skipped], np.int64) * MS)
    assert [found[name].mean for name in STAGES] == [1, 2, 3, 4, 5]
    assert {found[name].count for name in STAGES} == {1}


# ------------------------------------------------------------------ the offered load


class Moved:
    """A clock that waiting moves; stands in for the stop event too."""

    now = 0

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += round(seconds * 1e9)
        return False

    def is_set(self) -> bool:
        return False


def test_stall_shows_in_the_latency_of_every_frame_that_was_due_meanwhile() -> None:
    """At 100 frames/s the line stands still for 1 s: a hundred frames were due and are late, not only one."""
    clock, seen = Moved(), Seen()
    plan = Load("memory://x", "bench", "run1", Pictures(), rate=100.0, frames=400)
    frames = again_and_again([make_frame(0)], "run1", "s")
    for frame in scheduled(frames, plan, clock, clock, clock):  # type: ignore[arg-type]
        clock.now += 1000 * MS if frame.sequence == 100 else MS  # sent, inspected and settled one by one
        seen.add(Verdict(frame=frame, judgement="OK", settled_ns=clock.now))
    run = summarise(seen, batch=1, costs={}, load=70.0, rate=100.0)
    late = [settled - triggered for triggered, *_, settled in seen.rows if settled - triggered > 500 * MS]
    assert len(late) == 56  # of a backlog of 1 s, worked off at 1 ms a frame while one comes each 10 ms
    assert run.latency_ms.max == pytest.approx(1000.0)
    assert run.latency_ms.p90 == pytest.approx(1000 - 9 * 35.9)  # the 36.9th largest of 360
    assert run.latency_ms.p50 == pytest.approx(1.0)


def test_frames_are_counted_as_in_time_or_not() -> None:
    """Judged before the deadline, fail-safe before it, missed, and what was offered too late for anybody."""
    seen = Seen()
    for settled, offered, reason in ((40, 0, ""), (45, 0, "deadline"), (51, 0, ""), (90, 60, "deadline"), (30, 0, "")):
        (frame,) = itertools.islice(again_and_again([make_frame(0)], "run1", "s", deadline_ms=50), 1)
        start = frame.triggered_ns
        frame = replace(frame, offered_ns=start + offered * MS)
        seen.add(Verdict(frame=frame, judgement="OK", reason=reason, settled_ns=start + settled * MS))
    run = summarise(seen, batch=1, costs={}, load=70.0, rate=100.0)
    assert run.in_time == {"judged": 2, "fail_safe": 1, "offered_late": 1, "missed": 1}


def test_load_repeats_its_pictures_under_new_identities() -> None:
    """What is offered is rendered beforehand, but every frame is a frame of its own, without gaps."""
    rendered = render(Pictures(size=(64, 64), distinct=3))
    frames = list(itertools.islice(again_and_again(rendered, "run1", "s"), 7))
    assert [frame.sequence for frame in frames] == list(range(7))
    assert len({frame.frame_id for frame in frames}) == 7
    assert frames[5].pixels is rendered[2].pixels
    assert not (frames[0].image() == frames[1].image()).all()


def test_closed_loop_ends_by_itself() -> None:
    """After its frames, or when its time is over."""
    stop = threading.Event()
    some = Load("memory://x", "bench", "run1", Pictures(), frames=5)
    frames = again_and_again([make_frame(0)], "run1", "s")
    assert len(list(scheduled(frames, some, stop))) == 5
    assert list(scheduled(frames, replace(some, frames=0, seconds=0.0), stop)) == []


# ------------------------------------------------------------------ the engine alone


class Watched:
    """A fake engine that counts what is in flight."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.spec = engine, engine.spec
        self.in_flight = self.most = self.batches = 0

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> Ticket:
        self.in_flight += 1
        self.batches += 1
        self.most = max(self.most, self.in_flight)
        ticket = self.engine.submit(batch, notify)
        answer = ticket.result

        def result() -> object:
            self.in_flight -= 1
            return answer()

        ticket.result = result  # type: ignore[assignment,method-assign]
        return ticket


def test_engine_is_kept_busy_and_collected(recipe: Path) -> None:
    """As many batches in flight as it takes, never more, and none left behind."""
    options = EngineOptions(in_flight=3, max_batch=4)
    with FakeEngine(recipe / "net.fake", "classifier", ("good", "bad"), options) as engine:
        watched = Watched(engine)
        tiles = [np.full((64, 64), shade, np.uint8) for shade in range(5)]
        batches = batches_of(tiles, engine.spec.tile_shape, 4)
        run = measure_engine(watched, batches, 0.02)  # type: ignore[arg-type]
    assert [batch.shape for batch in batches] == [(4, 64, 64, 1)] * 4
    assert (watched.most, watched.in_flight) == (3, 0)
    assert watched.batches >= 20
    assert (run.batch, run.in_flight, run.stage) == (4, 3, "classifier")
    assert run.tiles_per_s > 0


def test_sweep_doubles_up_to_the_largest_batch() -> None:
    """1, 2, 4 … and the largest itself, whether or not it is a power of two."""
    assert [doubling(most) for most in (1, 2, 8, 12)] == [(1,), (1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 12)]


# ------------------------------------------------------------------ reports


def test_report_survives_its_json() -> None:
    """What is read back is what was written, through text."""
    report = a_report()
    assert Report.from_json(json.loads(json.dumps(report.as_json()))) == report
    dated = replace(report, runs=(replace(report.line_runs[1], in_time={"judged": 3, "missed": 0}),))
    assert Report.from_json(json.loads(json.dumps(dated.as_json()))) == dated


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda table: table.update(schema=2), "schema 2, this software reads 1"),
        (lambda table: table.pop("machine"), "incomplete"),
        (lambda table: table["runs"][0].pop("what"), "incomplete"),
        (lambda table: table.pop("runs"), "not a report"),
    ],
)
def test_foreign_report_is_refused(spoil: Callable[[dict[str, object]], object], told: str, tmp_path: Path) -> None:
    """Another schema or a file of something else: one line that names the file."""
    table = a_report().as_json()
    spoil(table)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ReportError, match=told) as error:
        load(path)
    assert str(path) in str(error.value)


def test_different_machines_are_not_compared(tmp_path: Path, run_bench: RunBench) -> None:
    """Exit code 10 and what differs; `--anyway` compares and still shows it."""
    before = save(a_report(), tmp_path / "a")
    machine = {**a_report().machine, "memory_gib": 32.0, "versions": {"numpy": "2.1"}}
    after = save(a_report(machine=machine), tmp_path / "b")
    code, out, err = run_bench("compare", before, after)
    assert (code, out) == (Exit.MISMATCH, "")
    assert "memory_gib: 16.0 ≠ 32.0; versions.numpy: 2.0 ≠ 2.1" in err
    code, out, _ = run_bench("compare", before, after, "--anyway")
    assert code == Exit.OK
    assert "different machines: memory_gib: 16.0 ≠ 32.0" in out


def test_same_machine_is_compared_figure_by_figure(tmp_path: Path, run_bench: RunBench) -> None:
    """The same run in both reports gives B ÷ A; what else differs is told, and does not hinder."""
    a, b = a_report(), a_report(recipe="panel@4567")
    *others, last = b.runs
    assert isinstance(last, LineRun)
    b = replace(b, runs=(*others, replace(last, latency_ms=replace(last.latency_ms, p50=9.0))))
    code, out, _ = run_bench("compare", save(a, tmp_path / "a"), save(b, tmp_path / "b"), "--json")
    told = json.loads(out)
    assert code == Exit.OK
    assert told["differences"] == {"machine": [], "other": ["recipe: panel@0123 ≠ panel@4567"]}
    ratios = {(row["run"], row["figure"]): row["ratio"] for row in told["figures"]}
    assert ratios["line, batch 1, 70 %", "p50 ms"] == 2.0
    assert ratios["line, batch 1, closed loop", "frames/s"] == 1.0


def test_reports_without_a_common_run_are_refused() -> None:
    """Batch 1 says nothing about batch 2."""
    a = a_report()
    engine = a.engine_runs[0]
    with pytest.raises(ReportError, match="no run in common"):
        compare(replace(a, runs=(engine,)), replace(a, runs=(replace(engine, batch=2),)))


def test_differences_name_nested_facts_of_either_side() -> None:
    """Also a fact that only one side states."""
    found = differences({"a": 1, "n": {"x": 1, "y": 2}}, {"a": 1, "n": {"x": 3, "y": 2}, "z": 4})
    assert [(each.name, each.a, each.b) for each in found] == [("n.x", 1, 3), ("z", "", 4)]


# ------------------------------------------------------------------ the whole line


def test_sweep_measures_engine_and_line_and_leaves_report_and_plot(
    recipe: Path, redis_url: str, tmp_path: Path, run_bench: RunBench
) -> None:
    """`bench batch` through a real Redis: every run's ledger holds; JSON alone on stdout, the same in the file."""
    out_folder = tmp_path / "out"
    bounds = ["--max-batch", 2, "--frames", 60, "--seconds", 0.1, "--size", "64x64", "--rate", 200]
    bounds += ["--deadline-ms", 60_000]
    code, out, err = run_bench("batch", "--recipe", recipe, "--url", redis_url, *bounds, "--out", out_folder, "--json")
    assert code == Exit.OK, err
    table = json.loads(out)
    (kept,) = out_folder.glob("batch-quick-fake-*.json")
    assert json.loads(kept.read_text()) == table
    assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert redis_url not in out
    report = Report.from_json(table)
    assert [run.key[1:] for run in report.engine_runs] == [
        (stage, size) for stage in ("classifier", "segmenter") for size in "12"
    ]
    lines = report.line_runs
    assert [run.key[1:] for run in lines] == [
        ("closed", "1"), ("open", "1", "200/s"), ("closed", "2"), ("open", "2", "200/s")
    ]  # fmt: skip
    for run in lines:
        assert (run.frames, run.warmup, sum(run.judgements.values())) == (60, 6, 60)
        assert run.in_time.get("judged", 0) == (60 if run.loop == "open" else 0)
        assert set(run.costs) == {"producer", "redis", "worker", "reader"}
        assert run.frames_per_s > 0
    assert [run.latency_ms.count for run in lines] == [0, 54, 0, 54]
    assert "Whole line" in err


def test_worker_that_dies_ends_the_measurement(recipe: Path, redis_url: str) -> None:
    """No figures of half a line, and no waiting for a verdict that will not come."""
    site = Site(redis_url, str(recipe), Batching(engine="fake"), Pictures(size=(64, 64), distinct=2))
    with Line(site, max_batch=1) as line:
        os.kill(line.worker_pid, signal.SIGKILL)
        with pytest.raises(AoiError, match="worker of the measured line ended with code -9"):
            line.drive(frames=20)


def test_lost_frame_is_no_result() -> None:
    """Offered, settled and read must agree for the run's own source, with nothing outstanding."""
    sources = {"run1": SourceCount(10, {"OK": 9, "NG": 1}), "run2": SourceCount(5, {"OK": 4})}
    audit = Audit(1, 100, MappingProxyType(sources), {}, [])
    check_ledger(replace(audit, outstanding=0, sources={"run1": sources["run1"]}), "run1", 10, 10)
    for offered, read in ((10, 9), (11, 10)):
        with pytest.raises(LedgerError, match="no result"):
            check_ledger(replace(audit, outstanding=0, sources={"run1": sources["run1"]}), "run1", offered, read)
    with pytest.raises(LedgerError, match="1 outstanding"):
        check_ledger(audit, "run2", 5, 4)


def test_child_that_fails_says_why() -> None:
    """Its last words and its exit code become the error's."""
    with (
        Child("producer", ["-c", "import sys; sys.exit('Error: no camera')"]) as child,
        pytest.raises(AoiError, match=r"producer .* code 1: no camera"),
    ):
        child.hear()


# ------------------------------------------------------------------ the commands


def test_engine_alone_without_matplotlib(
    recipe: Path, tmp_path: Path, run_bench: RunBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--no-line` starts no Redis; a missing plot library is one line that says what to install, not a failure."""
    monkeypatch.setitem(sys.modules, "bench.plot", None)
    monkeypatch.setenv("PATH", "")  # no server to be found
    arguments = ["--recipe", recipe, "--no-line", "--seconds", 0.1, "--size", "64x64", "--out", tmp_path / "out"]
    code, out, err = run_bench("single", *arguments)
    assert code == Exit.OK, err
    assert "Engine alone" in out
    assert "Whole line" not in out
    assert "pip install 'inline-aoi[plots]'" in err
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".json"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["single", "--recipe", "no-such"], Exit.RECIPE, "no recipe 'no-such'"),
        (["single", "--recipe", "{recipe}", "--url", "memory://x"], Exit.USAGE, "leave --url out"),
        (["single", "--recipe", "{recipe}", "--images", "/nowhere"], Exit.SOURCE, "/nowhere"),
        (["single", "--recipe", "{recipe}", "--engine", "cpu"], Exit.ENGINE, "not an ONNX model"),
        (["single", "--recipe", "{recipe}", "--out", "/proc/no"], Exit.DISK, "choose another --out"),
        (["compare", "/nowhere/a.json", "/nowhere/b.json"], Exit.USAGE, "cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    arguments: list[str], code: Exit, told: str, recipe: Path, run_bench: RunBench
) -> None:
    """Before anything is measured where that can be known."""
    given = [word.format(recipe=recipe) for word in arguments]
    quick = ["--no-line", "--seconds", "0.1", "--size", "64x64"] if given[0] == "single" else []
    ended, out, err = run_bench(*given, *quick)
    assert (ended, out) == (code, "")
    assert told in err
    assert "Traceback" not in err
