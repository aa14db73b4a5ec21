"""Deadlines: a verdict before each of them, the real one if it can be had, else the recipe's fail-safe."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import fake_recipe, make_frame, wait_until

from engines.base import Kind, Outputs, Pixels
from pipeline.deadlines import OFTEN_S, DeadlineKeeper, before, fail_safe, kept_deadlines, pause_s
from pipeline.errors import StreamDown
from pipeline.inspector import MARGIN_NS, Done, Inspector, open_engines, prepare
from pipeline.messages import Frame
from pipeline.recipe import Recipe
from pipeline.results import kept
from pipeline.stream import Delivery, Stream, open_stream
from pipeline.worker import Worker

MS = 1_000_000
WALL = 1_700_000_000_000_000_000  # the wall clock of these tests, standing still


class HeldTicket:
    """Done when the test says so."""

    def __init__(self, answer: Callable[[], Outputs]) -> None:
        self._answer, self.ready = answer, False

    def done(self) -> bool:
        return self.ready

    def result(self) -> Outputs:
        return self._answer()


class Line:
    """An inspector on a clock that the test holds, over fake engines that answer when they are let."""

    def __init__(self, recipe: Recipe, stack: ExitStack) -> None:
        engines = stack.enter_context(open_engines(recipe))
        self.inspector = Inspector(recipe, engines, wall=lambda: WALL + self.now)
        self.now = 0
        self.tickets: dict[Kind, list[HeldTicket]] = {kind: [] for kind in engines}
        for kind, engine in engines.items():
            self._hold(kind, engine)
        self.done: list[Done] = []

    def _hold(self, kind: Kind, engine: object) -> None:
        real = engine.submit  # type: ignore[attr-defined]

        def submit(batch: Pixels, notify: object = None) -> HeldTicket:
            pixels = batch.copy()
            self.tickets[kind].append(HeldTicket(lambda: real(pixels).result()))
            return self.tickets[kind][-1]

        engine.submit = submit  # type: ignore[attr-defined]

    def add(self, sequence: int, budget_ms: float, bright: bool = False, **facts: object) -> Frame:
        """A frame triggered now."""
        frame = make_frame(sequence, bright=bright, **facts)  # type: ignore[arg-type]
        deadline = WALL + self.now + int(budget_ms * MS) if budget_ms else 0
        frame = replace(frame, triggered_ns=WALL + self.now, deadline_ns=deadline)
        delivery = Delivery(frame, frame.frame_id, b"", frame.payload_bytes, WALL + self.now)
        self.inspector.add(prepare(delivery, self.inspector.recipe, self.inspector.spec), self.now)
        return frame

    def step(self, to_ms: float) -> list[tuple[int, str, str]]:
        """Go on to this time; the verdicts that came: sequence, judgement, reason."""
        self.now = int(to_ms * MS)
        done = self.inspector.step(self.now)
        self.done += done
        return [(verdict.frame.sequence, verdict.judgement, verdict.reason) for _, verdict in done]

    def answer(self, kind: Kind) -> None:
        """The engine's oldest batch is done."""
        self.tickets[kind].pop(0).ready = True


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Line]]:
    with ExitStack() as stack:

        def open_line(mode: str = "cascade", **tables: object) -> Line:
            tables.setdefault("batching", {"in_flight": 1, "max_batch": 2})
            return Line(fake_recipe(tmp_path, mode, **tables), stack)

        yield open_line


def test_frame_judged_in_time_has_its_own_verdict(opened: Callable[..., Line]) -> None:
    """The deadline passes later without any effect."""
    line = opened()
    line.add(0, 50)
    assert line.step(0) == []
    line.answer("classifier")
    assert line.step(30) == [(0, "OK", "")]
    assert line.step(100) == []
    assert line.inspector.due_at(line.now) is None


def test_engine_too_slow_fail_safe_first_then_the_answer(opened: Callable[..., Line]) -> None:
    """The verdict is out a margin before the deadline; the answer follows, to be published as an amendment."""
    line = opened()
    line.add(0, 50)
    line.step(0)
    at = line.inspector.due_at(line.now)
    assert at == 50 * MS - MARGIN_NS, "the worker is told when to come back"
    assert line.step(at / MS - 1) == []
    assert line.step(at / MS) == [(0, "REVIEW", "deadline")]
    assert line.step(60) == []
    line.answer("classifier")
    assert line.step(70) == [(0, "OK", "")]
    assert not line.inspector.busy


def test_fail_safe_judgement_is_the_recipes(opened: Callable[..., Line]) -> None:
    """A line may prefer to reject what was not judged in time."""
    line = opened(judge={"fail_safe": "NG"})
    line.add(0, 50)
    assert line.step(46) == [(0, "NG", "deadline")]


def test_frame_that_waits_for_the_engine_is_not_inspected_any_more(opened: Callable[..., Line]) -> None:
    """Its tiles leave the queue with its fail-safe verdict, so that those behind it can make it."""
    line = opened()
    for sequence in range(2):
        line.add(sequence, 1000)
    line.step(0)
    line.add(2, 40)
    line.add(3, 1000)
    assert line.step(36) == [(2, "REVIEW", "deadline")]
    line.answer("classifier")
    assert line.step(37) == [(0, "OK", ""), (1, "OK", "")]
    line.answer("classifier")
    assert line.step(40) == [(3, "OK", "")]
    assert not line.inspector.busy
    assert [verdict.batch_size for _, verdict in line.done][-1] == 1


def test_frame_that_cannot_make_it_does_not_cost_the_engine(opened: Callable[..., Line]) -> None:
    """Known from the measured cost: its verdict comes at once, well before its deadline."""
    line = opened()
    line.add(0, 1000)
    line.step(0)
    line.answer("classifier")
    line.step(30)  # so a batch takes 30 ms
    line.add(1, 1000)
    line.step(30)
    line.add(2, 30)
    assert line.step(31) == [(2, "REVIEW", "deadline")]


def test_cost_once_measured_too_high_is_measured_again(opened: Callable[..., Line]) -> None:
    """With an idle engine the frame is tried all the same, and may make it."""
    line = opened()
    line.add(0, 0)
    line.step(0)
    line.answer("classifier")
    line.step(900)  # somebody had stopped the machine for a while
    line.add(1, 50)
    assert line.step(900) == []
    line.answer("classifier")
    assert line.step(910) == [(1, "OK", "")]


def test_busy_segmenter_degrades_by_name(opened: Callable[..., Line]) -> None:
    """A suspect that the segmenter cannot look at in time is REVIEW: segmenter_busy, with the classifier's scores."""
    line = opened()
    line.add(0, 50, bright=True)
    line.step(0)
    line.answer("classifier")
    line.step(10)
    assert line.step(45) == [(0, "REVIEW", "segmenter_busy")]
    assert line.done[0][1].scores == {"good": 0.0, "scratch": 1.0}
    line.answer("segmenter")
    assert line.step(60) == [(0, "NG", "scratch")]


def test_good_frame_chosen_for_audit_stays_good(opened: Callable[..., Line]) -> None:
    """No time for a second look is no reason to doubt the first; and it has one verdict only."""
    line = opened(judge={"audit_share": 1.0})
    line.add(0, 50)
    line.step(0)
    line.answer("classifier")
    assert line.step(10) == []
    assert line.step(45) == [(0, "OK", "")]
    line.answer("segmenter")
    assert line.step(60) == []
    assert not line.inspector.busy


def test_late_suspect_does_not_take_the_segmenter_from_others(opened: Callable[..., Line]) -> None:
    """A suspect whose fail-safe verdict is out is looked at only by an idle segmenter."""
    line = opened()
    line.add(0, 30, bright=True)
    line.step(0)
    line.step(26)
    line.answer("classifier")
    assert line.step(30) == []
    assert len(line.tickets["segmenter"]) == 1, "idle: it may as well look"
    line.add(1, 20, bright=True)
    line.step(31)
    assert line.step(47) == [(1, "REVIEW", "deadline")]
    line.answer("classifier")
    line.step(50)
    line.answer("segmenter")
    assert line.step(60) == [(0, "NG", "scratch")]
    assert not line.inspector.busy, "the other was left"


def test_frame_of_many_tiles_has_one_fail_safe_verdict(opened: Callable[..., Line]) -> None:
    """Some tiles in the engine, some waiting: one verdict, no half answer as an amendment."""
    line = opened()
    line.add(0, 50, size=150)
    line.step(0)
    assert line.step(46) == [(0, "REVIEW", "deadline")]
    line.answer("classifier")
    assert line.step(50) == []
    assert not line.inspector.busy


def test_hopeless_tiles_of_one_frame_are_one_verdict(opened: Callable[..., Line]) -> None:
    """Every tile of it is found hopeless by itself; the frame has its verdict once."""
    line = opened(judge={"audit_share": 1.0})
    line.add(0, 0)
    line.step(0)
    line.answer("classifier")
    line.step(30)
    line.add(1, 0)
    line.step(30)
    line.add(2, 20, size=150)
    assert line.step(31) == [(2, "REVIEW", "deadline")]
    assert len(line.inspector.first.batcher) == 0


def test_deadline_past_on_arrival(opened: Callable[..., Line]) -> None:
    """A frame that comes too late has its fail-safe verdict with the first step."""
    line = opened()
    line.step(100)
    line.add(0, -20)
    assert line.step(100) == [(0, "REVIEW", "deadline")]


def test_wall_clock_jumps(opened: Callable[..., Line]) -> None:
    """Once a frame is here its deadline runs on the monotonic clock, whatever is done to the other."""
    line = opened()
    line.add(0, 50)
    line.step(0)
    for jump_s in (3600, -3600):
        line.inspector._wall = lambda jump_s=jump_s: WALL + line.now + jump_s * 10**9
        assert line.step(20) == []
    assert line.step(46) == [(0, "REVIEW", "deadline")]


def test_undecodable_frame_is_not_late(opened: Callable[..., Line]) -> None:
    """Its reason is its own."""
    line = opened()
    frame = replace(make_frame(0), pixels=b"", fault="the file is empty", deadline_ns=1)
    delivery = Delivery(frame, "t", b"", 0, 0)
    line.inspector.add(prepare(delivery, line.inspector.recipe, line.inspector.spec), 0)
    assert line.step(100) == [(0, "UNINSPECTED", "undecodable")]


# ------------------------------------------------------------------ who calls `expire`


def test_pause_until_the_next_look() -> None:
    """In time for what is known and for what may come; never a busy loop."""
    assert pause_s(None, 0.0) == 0.25
    assert pause_s(None, 0.2) == pytest.approx(0.05)
    assert pause_s(0.5, 0.2) == pytest.approx(0.05)
    assert pause_s(0.02, 0.2) == pytest.approx(0.02)
    assert pause_s(0.0, 0.2) == OFTEN_S[0]
    assert pause_s(None, 100.0) == OFTEN_S[1]
    assert pause_s(None, 0.001) == OFTEN_S[0]


def test_shortest_budget_of_late_rules_and_nothing_absurd() -> None:
    """One frame with no time at all must not make a worker take frame by frame, or rule for ever."""
    keeper = DeadlineKeeper(open_stream("memory://budgets", "b"), fail_safe("REVIEW"), 0.5)

    def saw(at_s: float, budget_ms: float) -> float:
        at = int(at_s * 1e9)
        keeper.saw(replace(make_frame(0), triggered_ns=at, deadline_ns=at + int(budget_ms * MS)))
        return keeper.budget_s

    assert saw(1000, 150) == 0.15
    assert saw(1001, 50) == 0.05
    assert saw(1030, 150) == 0.05
    assert saw(1062, 150) == 0.15, "nobody has had less for a minute"
    assert saw(1063, -5) == 0.02
    keeper.saw(make_frame(0))
    assert keeper.budget_s == 0.02, "a frame without a deadline says nothing"


def test_producer_that_ends_sees_to_its_last_frames(stream_for: Callable[..., Stream]) -> None:
    """No worker is there, the source has ended: its frames have their fail-safe verdicts before it leaves."""
    stream = stream_for()
    with kept_deadlines(stream, fail_safe("REVIEW"), 0.1):
        frame = make_frame(0)
        stream.offer([replace(frame, deadline_ns=frame.triggered_ns + 100 * MS)])
    audit = stream.audit()
    assert (audit.settled, audit.outstanding) == (1, 0)
    stream.close()


def test_frame_nobody_took_is_given_up_when_nobody_could_make_it() -> None:
    """As long before its deadline as a worker needs, but never in the first half of its time."""
    assert before(0.0, 0.1) == 0.010
    assert before(0.030, 0.1) == 0.030
    assert before(0.090, 0.1) == 0.050
    assert before(0.5, 0.0) == 0.010


def test_need_is_measured(opened: Callable[..., Line]) -> None:
    """Nothing is assumed of an engine that has not run; then it is what the stages take and the margin."""
    line = opened()
    assert line.inspector.need_ns == MARGIN_NS
    line.add(0, 0)
    line.step(0)
    line.answer("classifier")
    line.step(20)
    assert line.inspector.need_ns == MARGIN_NS + 20 * MS


@pytest.fixture(params=["memory", "redis"])
def stream_for(request: pytest.FixtureRequest, line: str) -> Callable[..., Stream]:
    url = "memory://deadlines" if request.param == "memory" else request.getfixturevalue("redis_url")
    return lambda worker="": open_stream(url, line, worker)


def test_producer_alone_keeps_deadlines(stream_for: Callable[..., Stream]) -> None:
    """No worker was ever started: each frame has its fail-safe verdict all the same."""
    stream = stream_for()
    with kept_deadlines(stream, fail_safe("REVIEW"), 0.15):
        for sequence in range(5):
            frame = make_frame(sequence)
            stream.offer([replace(frame, deadline_ns=frame.triggered_ns + 150 * MS)])
        wait_until(lambda: stream.audit().settled == 5)
    verdicts = list(kept(stream))
    assert {(v.judgement, v.reason) for v in verdicts} == {("REVIEW", "deadline")}
    stream.close()


def test_keeper_waits_for_a_stream_that_is_away(line: str) -> None:
    """An outage ends nothing: it goes on when the stream is back."""
    stream = open_stream("memory://deadlines", line)
    calls, real = itertools.count(), stream.expire

    def shaky(verdict: object, before_s: float) -> float | None:
        if next(calls) < 2:
            raise StreamDown("cannot be reached")
        return real(verdict, before_s)  # type: ignore[arg-type]

    stream.expire = shaky  # type: ignore[method-assign, assignment]
    frame = make_frame(0)
    stream.offer([replace(frame, deadline_ns=frame.triggered_ns + MS)])
    with kept_deadlines(stream, fail_safe("REVIEW"), 0.05):
        wait_until(lambda: stream.audit().settled)


def test_new_budget_is_noticed_at_once(line: str) -> None:
    """The first frame with a deadline ends the long pause of a line that had none."""
    stream = open_stream("memory://deadlines", line)
    keeper = DeadlineKeeper(stream, fail_safe("REVIEW"))
    thread = threading.Thread(target=keeper.run, name="aoi-keeper")
    thread.start()
    frame = replace(make_frame(0), deadline_ns=time.time_ns() + 20 * MS)
    stream.offer([frame])
    keeper.saw(frame)
    wait_until(lambda: stream.audit().settled)
    keeper.stop()
    thread.join()


@pytest.mark.parametrize("mode", ["cascade", "classify"])
def test_overloaded_worker_settles_every_frame_once_and_in_order_of_need(
    tmp_path: Path, stream_for: Callable[..., Stream], mode: str
) -> None:
    """Four times what the engine can do, with a deadline: one verdict each, no late one uncounted for."""
    recipe = fake_recipe(tmp_path, mode, '{"delay_ms": 20}', batching={"in_flight": 1, "max_batch": 1})
    producer, stream = stream_for(), stream_for("w")
    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), "w")
        thread = threading.Thread(target=worker.run, name="aoi-worker")
        thread.start()
        wait_until(lambda: producer.audit().workers)
        for sequence in range(80):
            frame = make_frame(sequence, bright=sequence % 2 == 0)
            producer.offer([replace(frame, deadline_ns=frame.triggered_ns + 100 * MS)])
        wait_until(lambda: producer.audit().settled == 80)
        worker.stop()
        thread.join()
    verdicts = {verdict.frame.sequence: verdict for verdict in kept(producer)}
    assert sorted(verdicts) == list(range(80))
    judgements = {verdict.judgement for verdict in verdicts.values()}
    assert "REVIEW" in judgements, "more came than could be judged"
    assert judgements & {"OK", "NG"}, "what could be judged was"
    assert producer.audit().holds
    assert producer.audit().outstanding_bytes == 0
    amended = {v.frame.frame_id for _, v in producer.read("0", 100, 0.0, "amendments")}
    by_worker = {v.frame.frame_id for v in verdicts.values() if v.reason}
    assert amended <= by_worker
    producer.close()


def test_scores_of_the_fake_engine_are_unchanged_by_the_hold(opened: Callable[..., Line]) -> None:
    """The harness answers what the engine answers."""
    line = opened("classify")
    line.add(0, 0, bright=True)
    line.step(0)
    line.answer("classifier")
    assert line.step(1) == [(0, "NG", "scratch")]
    np.testing.assert_equal(line.done[0][1].scores, {"good": 0.0, "scratch": 1.0})
