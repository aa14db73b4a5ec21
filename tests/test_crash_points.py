"""Worker and producer killed between each two of their steps, in any order with Redis, or hanging without dying.

The processes to be killed are this file too: `python test_crash_points.py worker POINT …` kills itself at a point.
The line itself has no hook for this; the points are around the verbs of its stream and the steps of its inspector.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import fake_recipe, make_frame, wait_until

from bench.endurance.server import Server
from engines import ENGINES
from engines.base import Pixels
from engines.fake import FakeEngine, FakeTicket
from pipeline import cli, patience, stream_redis
from pipeline import worker as worker_module
from pipeline.errors import Exit, StreamDown
from pipeline.inspector import Done, Inspector, Job
from pipeline.messages import Frame, Verdict
from pipeline.opening import open_engines
from pipeline.producer import Offered, produce
from pipeline.results import kept
from pipeline.stream import Delivery, Limits, Stream, open_stream
from pipeline.worker import Worker

FORGOTTEN_MS = 500  # in these tests; it is shared by all clients of a line
FRAMES = 24
BATCH = 4
MODEL = '{"delay_ms": 5}'

# ------------------------------------------------------------------ the processes that die


class Point:
    """Kills this process when `here` is called with its name for the n-th time."""

    def __init__(self, name: str) -> None:
        self.name, _, n = name.partition("/")
        self._left = int(n or 1)

    def here(self, name: str) -> None:
        self._left -= name == self.name
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


class Watched:
    """A stream that passes points: `before` a verb, `after` the server has done it and nobody knows yet."""

    def __init__(self, stream: Stream, point: Point) -> None:
        self._stream, self._point = stream, point

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._stream, name)
        if name not in ("take", "reclaim", "settle", "offer", "close"):
            return verb

        def watched(*args: object, **more: object) -> object:
            self._point.here(f"before {name}")
            answer = verb(*args, **more)
            if answer or name == "close":
                self._point.here(f"after {name}")
            return answer

        return watched


class WatchedInspector(Inspector):
    """Points within the inspection; `point` is set by whoever makes it."""

    point: Point

    def add(self, job: Job, now: int) -> None:
        super().add(job, now)
        self.point.here("added")

    def step(self, now: int) -> list[Done]:
        done = super().step(now)
        if any(stage.running for stage in self.stages.values()):
            self.point.here("in the engine")
        if done:
            self.point.here("inferred")
        return done


def work(point: str, url: str, line: str, folder: str) -> None:
    """A worker that ends in order after half of the frames where that is to be seen."""
    there, stream = Point(point), open_stream(url, line, "dies")
    recipe = fake_recipe(Path(folder), model=MODEL)

    class Keeper:
        """Sees every verdict, and so knows when it is enough."""

        seen = 0

        def show(self, delivery: Delivery, verdict: Verdict) -> None:
            self.seen += 1
            if "close" in point and self.seen >= FRAMES / 2:
                worker.stop()

    def inspector(wake: Callable[[], None]) -> Inspector:
        inspector = WatchedInspector(recipe, engines, wake)
        inspector.point = there
        return inspector

    with open_engines(recipe) as engines:
        worker = Worker(Watched(stream, there), inspector, "dies", Keeper())  # type: ignore[arg-type]
        worker.run()


def feed(point: str, url: str, line: str, _: str) -> None:
    """A producer of FRAMES frames in calls of 8, each in chunks of about 3."""
    there = Point(point)
    stream_redis.OFFER_BYTES = 3 * 64 * 64
    chunk = stream_redis.RedisStream._offer_chunk

    def watched(self: stream_redis.RedisStream, frames: Sequence[Frame], policy: Any) -> int:
        count = chunk(self, frames, policy)
        there.here("between chunks")
        return count

    stream_redis.RedisStream._offer_chunk = watched  # type: ignore[method-assign]
    stream = Watched(open_stream(url, line), there)
    produce((make_frame(i) for i in range(FRAMES)), stream, gather=8)  # type: ignore[arg-type]


class HangingEngine(FakeEngine):
    """An engine whose driver never comes back from a call with a real frame."""

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> FakeTicket:
        if batch.any():
            threading.Event().wait()
        return super().submit(batch, notify)


class SilentEngine(FakeEngine):
    """An engine that takes a real frame and never answers."""

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> FakeTicket:
        return FakeTicket(dict, 1e5, notify) if batch.any() else super().submit(batch, notify)


def command(stall_s: str, *words: str) -> None:
    """`aoi …` with the engines above, and less patience with engines."""
    ENGINES.update(hanging=f"{__name__}:HangingEngine", silent=f"{__name__}:SilentEngine")
    real = Worker.__init__

    def impatient(self: Worker, *args: Any, **more: Any) -> None:
        real(self, *args, **{**more, "stall_s": float(stall_s)})

    Worker.__init__ = impatient  # type: ignore[method-assign]
    sys.argv = ["aoi", *words]
    cli.main()


# ------------------------------------------------------------------ helpers

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def _soon_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_redis, "ALIVE_MS", FORGOTTEN_MS)
    monkeypatch.setattr(worker_module, "SIGN_EVERY_S", FORGOTTEN_MS / 5000)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python processes; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, *map(str, words)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def healthy_worker_finishes(url: str, line: str, folder: Path, total: int) -> list[Verdict]:
    """Another worker judges what is left: all verdicts, one for each frame, and a ledger that says so."""
    stream, recipe = open_stream(url, line, "healthy"), fake_recipe(folder, batching={"max_batch": BATCH})
    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), "healthy")
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        try:
            wait_until(lambda: exact(open_stream(url, line), total) is not None)
        finally:
            worker.stop()
            thread.join(20)
    verdicts = exact(open_stream(url, line), total)
    assert verdicts is not None
    return verdicts


def exact(stream: Stream, total: int) -> list[Verdict] | None:
    """Every verdict once all frames have one; fails when one has two, or the ledger does not balance."""
    audit = stream.audit()
    assert audit.holds
    verdicts = list(kept(stream)) if audit.offered == audit.settled == total else None
    if verdicts is not None:
        assert len({verdict.frame.frame_id for verdict in verdicts}) == len(verdicts) == total
        assert (audit.outstanding, audit.outstanding_bytes, list(audit.gaps)) == (0, 0, [])
    stream.close()
    return verdicts


def write_model(folder: Path, engine: str = "fake", model: str = MODEL) -> Path:
    """A model folder for `aoi work`."""
    stage = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
    text = f'name = "fake"\n[classifier]\n{stage}[segmenter]\n{stage}[batching]\nmax_batch = {BATCH}\n'
    (folder / "net.fake").write_text(model)
    (folder / "recipe.toml").write_text(f'{text}engine = "{engine}"\n')
    return folder


# ------------------------------------------------------------------ kill -9 between two steps


@pytest.mark.parametrize(
    "point",
    [
        "before take/3",
        "after take/2",
        "added/6",
        "in the engine/2",
        "inferred/2",
        "before settle/2",
        "after settle/2",
        "before reclaim",
        "after reclaim",
        "before close",
        "after close",
    ],
)
def test_worker_killed_between_two_steps(redis_url: str, line: str, tmp_path: Path, start: Start, point: str) -> None:
    """Whatever it had done and whoever knew of it: the next worker finishes, and every frame has one verdict."""
    looker, corpse = open_stream(redis_url, line), open_stream(redis_url, line, "corpse")
    looker.offer([make_frame(i) for i in range(FRAMES)])
    if "reclaim" in point:
        assert len(corpse.take(5)) == 5
    corpse.close()
    dying = start(__file__, "work", point, redis_url, line, tmp_path)
    assert dying.wait(30) == -signal.SIGKILL, dying.communicate()[1]
    settled = looker.audit().settled
    assert settled < FRAMES or "close" in point
    verdicts = healthy_worker_finishes(redis_url, line, tmp_path, FRAMES)
    by = [verdict.worker for verdict in verdicts]
    assert by.count("dies") == settled, "what was settled before the kill must stay as it is"
    if point in ("after take/2", "added/6", "in the engine/2", "inferred/2", "before settle/2", "after reclaim"):
        assert any(v.deliveries > 1 for v in verdicts), "it held no frame: the point was not where it should be"
    looker.close()


@pytest.mark.parametrize("point", ["before offer/2", "between chunks/4", "after offer/2"])
def test_producer_killed_between_two_steps(redis_url: str, line: str, tmp_path: Path, start: Start, point: str) -> None:
    """Started again from its first frame, it offers what is missing and nothing twice."""
    looker = open_stream(redis_url, line)
    dying = start(__file__, "feed", point, redis_url, line, tmp_path)
    assert dying.wait(30) == -signal.SIGKILL, dying.communicate()[1]
    assert looker.audit().offered == {"before offer/2": 8, "between chunks/4": 11, "after offer/2": 16}[point]
    again = start(__file__, "feed", "nowhere", redis_url, line, tmp_path)
    assert again.wait(30) == 0, again.communicate()[1]
    assert (looker.audit().offered, looker.audit().outstanding) == (FRAMES, FRAMES)
    looker.close()
    healthy_worker_finishes(redis_url, line, tmp_path, FRAMES)


def test_frames_on_their_last_delivery_do_not_wait_for_one_another(redis_url: str, line: str, tmp_path: Path) -> None:
    """Company of a frame that killed two workers comes one by one, but not one a second."""
    looker = open_stream(redis_url, line)
    looker.offer([make_frame(i) for i in range(60)])
    for name in ("one", "two"):
        corpse = open_stream(redis_url, line, name)
        assert len(corpse.reclaim(60) or corpse.take(60)) == 60
        corpse.close()
    verdicts = healthy_worker_finishes(redis_url, line, tmp_path, 60)
    assert {verdict.deliveries for verdict in verdicts} == {3}
    looker.close()


# ------------------------------------------------------------------ all of them, in any order


@pytest.mark.parametrize(
    "order",
    [("producer", "worker", "redis"), ("producer", "redis", "worker"), ("worker", "redis", "producer")],
    ids=" → ".join,
)
def test_everything_killed_and_started_again_in_any_order(
    tmp_path: Path, line: str, start: Start, order: Sequence[str]
) -> None:
    """A power cut in the middle of the work; who comes back before Redis waits for it."""
    total, server = 400, Server(tmp_path / "redis")
    common = ("--url", server.url, "--line", line)
    model = write_model(tmp_path, model='{"delay_ms": 10, "height": 64, "width": 64}')
    simulated = ("--frames", total, "--size", "64x64", "--session", "night", "--max-frames", 50)
    words = {
        "worker": ("-m", "pipeline.cli", "work", "--recipe", model, *common),
        "producer": ("-m", "pipeline.cli", "produce", "panel:", *common, *simulated),
    }
    server.start()
    try:
        server.wait_until_up()
        looker = open_stream(server.url, line)
        running = [start(*words[role]) for role in ("worker", "producer")]
        wait_until(lambda: looker.audit().settled > 20)
        for process in running:
            process.kill()
        server.end()
        for role in order:
            if role == "redis":
                server.start()
                server.wait_until_up()
                assert 20 < looker.audit().settled < total, "the kill must come in the middle"
            else:
                process = start(*words[role])
                if not server.pid:
                    assert process.stderr
                    assert any("trying again" in line for line in process.stderr), "it ended without a word"
        wait_until(lambda: exact(open_stream(server.url, line), total) is not None, 40)
        looker.close()
    finally:
        server.end()


# ------------------------------------------------------------------ Redis away for minutes


class Away:
    """A stream that is away while it is told to be, and counts who asked for it meanwhile."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self.away = stream, threading.Event()
        self.asked = dict.fromkeys(("offer", "take", "settle", "reclaim", "expire"), 0)

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._stream, name)
        if name not in self.asked:
            return verb

        def perhaps(*args: object, **more: object) -> object:
            if self.away.is_set():
                self.asked[name] += 1
                raise StreamDown("away")
            return verb(*args, **more)

        return perhaps


def test_redis_away_for_minutes_costs_time_and_no_more_memory(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 tries, ten minutes at a pause of 2 s: both hold a bounded number of frames and lose none.

    Only the pauses are shortened here; how often is tried, and what is held meanwhile, is not.
    """
    assert patience.LONGEST_S == 2.0
    monkeypatch.setattr(patience, "FIRST_S", 0.0005)
    monkeypatch.setattr(patience, "LONGEST_S", 0.0005)
    total, gather, drawn = 2000, 8, 0
    looker = open_stream(f"memory://{line}", line)
    stream = Away(open_stream(f"memory://{line}", line, "w", Limits(max_frames=40)))
    recipe = fake_recipe(tmp_path, model=MODEL, batching={"max_batch": BATCH, "in_flight": 2})

    def source() -> Iterator[Frame]:
        nonlocal drawn
        for i in range(total):
            drawn += 1
            yield make_frame(i)

    offered = Offered()
    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), "w")  # type: ignore[arg-type]
        threads = [
            threading.Thread(target=worker.run, daemon=True),
            threading.Thread(target=lambda: vars(offered).update(vars(produce(source(), stream, gather=gather)))),  # type: ignore[arg-type]
        ]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: looker.audit().settled > 20)
            stream.away.set()
            wait_until(lambda: min(stream.asked[verb] for verb in ("offer", "settle")) > 300)
            audit = looker.audit()
            assert 20 < audit.settled < total, "it must go away in the middle"
            assert drawn - audit.offered <= gather, "the producer took more from its source than one call's worth"
            assert worker.counts.taken - worker.counts.settled <= BATCH * 4
            stream.away.clear()
            wait_until(lambda: looker.audit().settled == total, 60)
        finally:
            stream.away.clear()
            worker.stop()
            for thread in threads:
                thread.join(20)
    assert exact(looker, total) is not None
    assert offered.frames == total
    assert worker.counts.late == 0


# ------------------------------------------------------------------ hanging without dying


def test_stopped_worker_is_forgotten_and_its_late_verdicts_change_nothing(
    redis_url: str, line: str, tmp_path: Path, start: Start
) -> None:
    """A process that stands still: others judge its frames; when it goes on, its verdicts come too late."""
    model = write_model(tmp_path, model='{"delay_ms": 50}')
    looker = open_stream(redis_url, line)
    looker.offer([make_frame(i) for i in range(100)])
    stopped = start(__file__, "command", 60, "work", "--recipe", model, "--url", redis_url, "--line", line)
    wait_until(lambda: looker.audit().settled > 5)
    stopped.send_signal(signal.SIGSTOP)
    verdicts = healthy_worker_finishes(redis_url, line, tmp_path, 100)
    assert any(verdict.deliveries == 2 for verdict in verdicts), "it held no frames when it was stopped"
    stopped.send_signal(signal.SIGCONT)
    stopped.terminate()
    _, said = stopped.communicate(timeout=30)
    assert stopped.returncode == Exit.OK
    assert ", 0 verdicts came late" not in said
    assert "verdicts came late" in said
    assert exact(looker, 100) is not None


def test_engine_that_never_answers_ends_the_process_with_its_own_code(
    redis_url: str, line: str, tmp_path: Path, start: Start
) -> None:
    """Exit code ENGINE, so that its supervisor starts it again; its frames go to others."""
    model = write_model(tmp_path, engine="silent")
    open_stream(redis_url, line).offer([make_frame(i) for i in range(10)])
    hanging = start(__file__, "command", 0.3, "work", "--recipe", model, "--url", redis_url, "--line", line)
    _, said = hanging.communicate(timeout=30)
    assert hanging.returncode == Exit.ENGINE, said
    assert "has not answered" in said
    assert open_stream(redis_url, line).audit().settled == 0
    verdicts = healthy_worker_finishes(redis_url, line, tmp_path, 10)
    assert any(verdict.deliveries == 2 for verdict in verdicts), "it held no frame when its engine failed"


def test_worker_stuck_inside_an_engine_falls_silent(redis_url: str, line: str, tmp_path: Path, start: Start) -> None:
    """A call into a driver that never returns cannot be ended from within: the worker stops saying that it lives."""
    model = write_model(tmp_path, engine="hanging")
    open_stream(redis_url, line).offer([make_frame(i) for i in range(10)])
    hanging = start(__file__, "command", 0.3, "work", "--recipe", model, "--url", redis_url, "--line", line)
    looker = open_stream(redis_url, line)
    wait_until(lambda: looker.audit().workers)
    verdicts = healthy_worker_finishes(redis_url, line, tmp_path, 10)
    assert any(verdict.deliveries == 2 for verdict in verdicts), "it held no frame when its engine failed"
    assert hanging.poll() is None, "it was to hang, not to end"
    looker.close()


if __name__ == "__main__":
    stream_redis.ALIVE_MS, worker_module.SIGN_EVERY_S = FORGOTTEN_MS, FORGOTTEN_MS / 5000
    {"work": work, "feed": feed, "command": command}[sys.argv[1]](*sys.argv[2:])
