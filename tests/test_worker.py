"""The worker as a process on a real Redis: it overlaps, stops in order, loses nothing when killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import redis
from conftest import fake_recipe, make_frame, wait_until

from engines.base import EngineError
from pipeline.broker import Broker
from pipeline.errors import Exit, StreamDown
from pipeline.inspector import Inspector
from pipeline.messages import Verdict
from pipeline.opening import open_engines
from pipeline.results import kept
from pipeline.stream import Delivery, Limits, Stream, open_stream
from pipeline.worker import Held, Worker

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(redis_url: str, line: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `aoi work` processes over a fake engine on this test's line; none outlives the test."""
    started: list[subprocess.Popen[str]] = []
    write_recipe(tmp_path)

    def run(*options: str, url: str = redis_url) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline.cli", "work", "--recipe", str(tmp_path), "--line", line]
        process = subprocess.Popen([*command, "--url", url, *options], stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def write_recipe(folder: Path, model: str = '{"delay_ms": 5}') -> None:
    (folder / "net.fake").write_text(model)
    stage = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
    text = f'name = "fake"\n[classifier]\n{stage}[segmenter]\n{stage}[batching]\nengine = "fake"\nmax_batch = 4\n'
    (folder / "recipe.toml").write_text(text)


@contextmanager
def running(stream: Stream, folder: Path, **tables: object) -> Iterator[Worker]:
    """A worker in this process."""
    recipe = fake_recipe(folder, **tables)  # type: ignore[arg-type]
    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), stream_worker(stream), grace_s=1.0)
        thread = threading.Thread(target=lambda: catch(worker), daemon=True)
        thread.start()
        yield worker
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()


def stream_worker(stream: Stream) -> str:
    return str(getattr(stream, "worker", ""))


def catch(worker: Worker) -> None:
    try:
        worker.run()
    except Exception as error:
        worker.caught = error  # type: ignore[attr-defined]


def settled_once(stream: Stream, total: int) -> list[Verdict]:
    """All verdicts; fails unless every one of `total` frames has exactly one and the ledger agrees."""
    verdicts = list(kept(stream))
    ids = [verdict.frame.frame_id for verdict in verdicts]
    assert len(ids) == len(set(ids)) == total
    audit = stream.audit()
    assert (audit.offered, audit.settled, audit.outstanding, audit.outstanding_bytes) == (total, total, 0, 0)
    return verdicts


def test_killed_worker_loses_nothing_and_nothing_is_judged_twice(redis_url: str, line: str, start: Start) -> None:
    """kill -9 in the middle, another worker started: offered = settled, no verdict twice."""
    total = 800
    stream = open_stream(redis_url, line)
    stream.offer([make_frame(i, bright=i % 5 == 0) for i in range(total)])
    first = start()
    wait_until(lambda: stream.audit().settled > 20)
    first.send_signal(signal.SIGKILL)
    assert 0 < stream.audit().settled < total, "the kill must come in the middle"
    start()
    wait_until(lambda: not stream.audit().outstanding)
    verdicts = settled_once(stream, total)
    assert sum(verdict.judgement == "NG" for verdict in verdicts) == total / 5
    assert any(verdict.deliveries == 2 for verdict in verdicts), "no frame was in the killed worker's hands"
    assert len({verdict.worker for verdict in verdicts}) == 2


def test_sigterm_finishes_and_settles_what_is_held(redis_url: str, line: str, start: Start) -> None:
    """After SIGTERM the worker exits with 0, holds nothing, and what it had not taken waits for others."""
    total = 800
    stream = open_stream(redis_url, line, "looker")
    stream.offer([make_frame(i) for i in range(total)])
    worker = start()
    wait_until(lambda: stream.audit().settled > 20)
    worker.send_signal(signal.SIGTERM)
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == Exit.OK, said
    audit = stream.audit()
    assert 0 < audit.settled < total
    assert stream.reclaim(total) == [], "it left frames behind that it had taken"
    assert len(stream.take(total)) == total - audit.settled


def test_redis_killed_and_back(tmp_path: Path, line: str) -> None:
    """Redis dies under producer and worker and comes back with its data: every frame has one verdict."""
    total = 200
    with Broker(tmp_path / "redis", check_s=0.1) as broker:
        stream, reader = open_stream(broker.url, line, "w"), open_stream(broker.url, line)
        reader.offer([make_frame(i) for i in range(total)])
        with running(stream, tmp_path, model='{"delay_ms": 5}'):
            wait_until(lambda: reader.audit().settled > 20)
            (pid,) = redis_pids(tmp_path / "redis")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not outstanding(reader))
        audit = reader.audit()
        assert audit.holds
        assert audit.offered == audit.settled
        ids = [verdict.frame.frame_id for verdict in kept(reader)]
        assert len(ids) == len(set(ids)) == audit.settled


def redis_pids(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                here = os.readlink(entry / "cwd")
            except OSError:
                continue
            if b"-server" in command and here == str(folder):
                found.append(int(entry.name))
    return found


def outstanding(stream: Stream) -> int:
    try:
        return stream.audit().outstanding
    except StreamDown:
        return -1


def test_worker_starts_before_redis_is_there(tmp_path: Path, line: str) -> None:
    """Start-up order does not matter: a worker waits for its Redis and then works."""
    broker = Broker(tmp_path / "redis", durable=False)
    stream = open_stream(broker.url, line, "w")
    with running(stream, tmp_path) as worker:
        wait_until(lambda: worker.counts.taken == 0)
        with broker:
            reader = open_stream(broker.url, line)
            reader.offer([make_frame(0)])
            wait_until(lambda: reader.audit().settled == 1)
            worker.stop()
            wait_until(lambda: worker.counts.settled == 1)


def test_engine_that_is_gone_ends_the_worker_with_its_own_code(redis_url: str, line: str, start: Start) -> None:
    """A missing engine file: one line that says what to do, exit code ENGINE, no frame touched."""
    stream = open_stream(redis_url, line)
    stream.offer([make_frame(0)])
    worker = start("--engine", "cpu")
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == Exit.ENGINE
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert stream.audit().outstanding == 1


def test_engine_that_breaks_while_working_hands_its_frames_to_others(tmp_path: Path, line: str, redis_url: str) -> None:
    """The worker ends with the engine's error; the frames it held are reclaimed and judged by another."""
    stream = open_stream(redis_url, line, "breaks")
    stream.offer([make_frame(i) for i in range(6)])

    class Broken(Inspector):
        def step(self, now: int) -> list[tuple[Delivery, Verdict]]:
            raise EngineError("the device is gone", "broken")

    recipe = fake_recipe(tmp_path)
    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Broken(recipe, engines, wake), "breaks")
        with pytest.raises(EngineError, match="device is gone"):
            worker.run()
    reader = open_stream(redis_url, line, "heir")
    with running(reader, tmp_path):
        wait_until(lambda: not reader.audit().outstanding)
    settled_once(reader, 6)


def test_two_workers_share_the_work(redis_url: str, line: str, start: Start) -> None:
    """Neither hoards: with two workers on one line both judge frames, each frame once."""
    stream = open_stream(redis_url, line)
    one, two = start(), start()
    wait_until(lambda: len(stream.audit().workers) == 2)
    stream.offer([make_frame(i) for i in range(200)])
    wait_until(lambda: not stream.audit().outstanding)
    by_worker = [verdict.worker for verdict in settled_once(stream, 200)]
    assert min(by_worker.count(name) for name in set(by_worker)) > 20
    assert len(set(by_worker)) == 2
    assert one.poll() is None
    assert two.poll() is None


def test_frames_of_every_kind_get_their_verdict(tmp_path: Path, line: str, redis_url: str) -> None:
    """Raw, PNG, JPEG, 16 bit, colour, broken: whatever arrives on the line leaves it with a verdict."""
    image = np.full((64, 64), 100, np.uint8)
    png, jpeg = (cv2.imencode(suffix, image)[1].tobytes() for suffix in (".png", ".jpg"))
    colour = np.full((64, 64, 3), 100, np.uint8)
    frames = [
        make_frame(0),
        replace(make_frame(1), encoding="png", pixels=png),
        replace(make_frame(2), encoding="jpeg", pixels=jpeg),
        replace(make_frame(3), pixel_format="mono16", pixels=image.astype(np.uint16)),
        replace(make_frame(4), pixel_format="bgr8", pixels=colour),
        replace(make_frame(5), pixels=b"short"),
        replace(make_frame(6), encoding="png", pixels=png[:40]),
    ]
    stream = open_stream(redis_url, line, "w")
    stream.offer(frames)
    with running(stream, tmp_path):
        wait_until(lambda: not stream.audit().outstanding)
    judged = {verdict.frame.sequence: verdict.judgement for verdict in settled_once(stream, len(frames))}
    assert judged == {**dict.fromkeys(range(5), "OK"), 5: "UNINSPECTED", 6: "UNINSPECTED"}


def test_verdicts_are_kept_while_the_stream_is_away(tmp_path: Path, line: str) -> None:
    """Settling fails for a while: the worker keeps its verdicts, tries again and settles each once."""
    stream = open_stream(f"memory://{line}", line, "w", Limits())
    real, calls = stream.settle, []

    def settle(settled: list[tuple[Delivery, Verdict]]) -> list[bool]:
        calls.append(len(settled))
        if len(calls) < 3:
            raise StreamDown("away")
        return real(settled)

    stream.settle = settle  # type: ignore[method-assign, assignment]
    stream.offer([make_frame(i) for i in range(10)])
    with running(stream, tmp_path):
        wait_until(lambda: stream.audit().settled == 10)
    assert len(calls) >= 3
    settled_once(stream, 10)


def test_bug_in_a_thread_ends_the_worker(tmp_path: Path, line: str) -> None:
    """A receiver that dies takes the worker with it; it never only looks alive."""
    stream = open_stream(f"memory://{line}", line, "w")
    stream.take = lambda n, wait_s=0.0: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    recipe = fake_recipe(tmp_path)
    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), "w")
        with pytest.raises(ZeroDivisionError):
            worker.run()


def test_worker_takes_no_more_than_it_will_work_on_soon() -> None:
    """Room is counted in tiles and bytes, refilled by whole batches; frames of many tiles still come two at a time."""
    held = Held(max_batch=4, in_flight=2)
    frames = [Delivery(make_frame(i), str(i), b"", 10, time.time_ns()) for i in range(20)]
    tile = np.zeros((4, 4), np.uint8)
    assert held.wait_for_room(0) == 1, "how many tiles a frame has is not known yet"
    for delivery in frames[:14]:
        held.add(delivery, [tile])
    assert held.wait_for_room(0) == 0, "two tiles free are less than a batch"
    held.release(frames[:2])
    assert held.wait_for_room(0) == 4
    held.release(frames[2:14])
    held.add(frames[14], [])
    assert held.wait_for_room(0) == 16, "a frame without pixels says nothing about the next"
    held.release(frames[14:15])
    held.add(frames[14], [tile] * 100)
    assert held.wait_for_room(0) == 1
    held.add(frames[15], [tile] * 100)
    assert held.wait_for_room(0) == 0


def test_engine_that_never_answers_is_taken_for_broken(tmp_path: Path, line: str, redis_url: str) -> None:
    """The worker ends with its own error after its patience, and another one judges the frames."""
    stream = open_stream(redis_url, line, "hangs")
    stream.offer([make_frame(i) for i in range(3)])
    recipe = fake_recipe(tmp_path, model='{"delay_ms": 1e7}')
    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), "hangs", stall_s=0.2)
        with pytest.raises(EngineError, match="has not answered"):
            worker.run()
    heir = open_stream(redis_url, line, "heir")
    with running(heir, tmp_path):
        wait_until(lambda: not heir.audit().outstanding)
    settled_once(heir, 3)


def test_wall_clock_that_jumps_back_stops_nothing(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody sets the clock back by an hour while frames are in hand: they are judged all the same."""
    stream = open_stream(f"memory://{line}", line, "w")
    real = time.time_ns
    stream.offer([make_frame(i) for i in range(40)])
    with running(stream, tmp_path, model='{"delay_ms": 5}'):
        wait_until(lambda: stream.audit().settled > 4)
        monkeypatch.setattr(time, "time_ns", lambda: real() - 3_600_000_000_000)
        wait_until(lambda: not stream.audit().outstanding)


def test_frame_that_comes_back_is_held_once() -> None:
    """Reclaimed from somebody who had reclaimed it from us, while we still had it: it takes its room once."""
    held, delivery = Held(max_batch=4, in_flight=2), Delivery(make_frame(0), "1-1", b"", 100, 0)
    other = Delivery(make_frame(1), "2-1", b"", 100, 0)
    held.add(delivery, [np.zeros((8, 8), np.uint8)])
    held.add(other, [np.zeros((8, 8), np.uint8)])
    before = held.wait_for_room(0)
    held.add(delivery, [np.zeros((8, 8), np.uint8)])
    assert held.wait_for_room(0) == before


def test_worker_that_decodes_for_long_lives(tmp_path: Path, line: str, redis_url: str) -> None:
    """Its life sign does not depend on its receiving thread: nobody reclaims from it meanwhile."""
    stream, looker = open_stream(redis_url, line, "slow"), open_stream(redis_url, line, "looker")
    take, go_on = stream.take, threading.Event()

    def slow_take(n: int, wait_s: float = 0.0) -> list[Delivery]:
        taken = take(n, wait_s)
        if taken:
            go_on.wait(20)  # as long as it takes to decode the largest frames
        return taken

    stream.take = slow_take  # type: ignore[method-assign]
    stream.offer([make_frame(0)])
    with running(stream, tmp_path):
        wait_until(lambda: looker.audit().workers == ["slow"])
        signs = redis.Redis.from_url(redis_url)
        key = f"aoi:{{{line}}}:alive:slow"
        signs.pexpire(key, 1)
        wait_until(lambda: signs.pttl(key) > 1000)
        assert looker.reclaim(9) == []
        go_on.set()
        wait_until(lambda: looker.audit().settled == 1)


def test_same_name_after_a_kill_gets_the_frames_back(redis_url: str, line: str, start: Start) -> None:
    """A worker with a fixed name, killed and started again by its supervisor, loses nothing."""
    stream = open_stream(redis_url, line)
    stream.offer([make_frame(i) for i in range(100)])
    first = start("--name", "press4")
    wait_until(lambda: stream.audit().settled > 5)
    first.kill()
    first.wait()
    start("--name", "press4")
    wait_until(lambda: not stream.audit().outstanding, 40)
    assert {verdict.worker for verdict in settled_once(stream, 100)} == {"press4"}
