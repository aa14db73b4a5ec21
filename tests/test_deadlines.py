"""Deadlines in a worker's hands: the real verdict if it can be had in time, else the fail-safe, then an amendment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import fake_recipe, make_frame

from engines.base import Kind, Outputs, Pixels
from pipeline.inspector import MARGIN_NS, Done, Inspector, prepare
from pipeline.messages import Frame
from pipeline.opening import open_engines
from pipeline.recipe import Recipe
from pipeline.stream import Delivery

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


def test_need_is_measured(opened: Callable[..., Line]) -> None:
    """Nothing is assumed of an engine that has not run; then it is what the stages take and the margin."""
    line = opened()
    assert line.inspector.need_ns == MARGIN_NS
    line.add(0, 0)
    line.step(0)
    line.answer("classifier")
    line.step(20)
    assert line.inspector.need_ns == MARGIN_NS + 20 * MS


def test_scores_of_the_fake_engine_are_unchanged_by_the_hold(opened: Callable[..., Line]) -> None:
    """The harness answers what the engine answers."""
    line = opened("classify")
    line.add(0, 0, bright=True)
    line.step(0)
    line.answer("classifier")
    assert line.step(1) == [(0, "NG", "scratch")]
    np.testing.assert_equal(line.done[0][1].scores, {"good": 0.0, "scratch": 1.0})
