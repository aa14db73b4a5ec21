"""Who looks after deadlines: how often, for how long, and that no frame is left without a verdict."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import fake_recipe, make_frame, wait_until

from pipeline.deadlines import OFTEN_S, DeadlineKeeper, before, fail_safe, kept_deadlines, pause_s
from pipeline.errors import StreamDown
from pipeline.inspector import Inspector
from pipeline.opening import open_engines
from pipeline.results import kept
from pipeline.stream import Stream, open_stream
from pipeline.worker import Worker

MS = 1_000_000


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
