"""The reader's side: every verdict once and in order, and figures that add up."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_frame
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StreamDown
from pipeline.messages import Defect, Judgement, Verdict, unreadable_frame
from pipeline.results import Summary, follow, kept, latency_ms, percentiles
from pipeline.stream import Entry, Stream, Watched, open_stream


def judged(line: str, *sequences: int) -> Stream:
    """A stream on which these frames have been judged OK."""
    stream = open_stream("memory://results", line, "w")
    settle(stream, *sequences)
    return stream


def settle(stream: Stream, *sequences: int) -> None:
    for number in sequences:
        stream.offer([make_frame(number, size=2)])
        (delivery,) = stream.take(1)
        stream.settle([(delivery, Verdict(frame=delivery.frame.without_pixels(), judgement="OK"))])


def said(
    judgement: Judgement = "OK", offered: int = 0, triggered: int = 0, settled: int = 0, **facts: object
) -> Verdict:
    """A verdict with times in ms."""
    frame = replace(make_frame(0), triggered_ns=triggered * 10**6, offered_ns=offered * 10**6)
    return Verdict(frame=frame.without_pixels(), judgement=judgement, settled_ns=settled * 10**6, **facts)  # type: ignore[arg-type]


class Shaky:
    """A real stream that is away at every second reading."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.calls = stream, itertools.count()

    def watch(self, log: Watched, after: str, n: int, wait_s: float = 0.0) -> list[Entry]:
        if next(self.calls) % 2 == 0:
            raise StreamDown("cannot be reached")
        return self.stream.watch(log, after, n, wait_s)


class Impatient(threading.Event):
    """A stop signal on which waiting takes no time."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


def sequences(verdicts: Sequence[Verdict]) -> list[int]:
    return [v.frame.sequence for v in verdicts]


def test_kept_verdicts_are_read_to_the_end(line: str) -> None:
    """Oldest first, each once, more than one answer holds; a stream without any has none."""
    assert list(kept(open_stream("memory://results", line))) == []
    stream = judged(line, *range(600))
    assert sequences(list(kept(stream))) == list(range(600))


def test_following_goes_on_with_what_comes(line: str) -> None:
    """First what is kept, then each new one, until stopped."""
    stream, stop = judged(line, 0, 1), threading.Event()
    verdicts = follow(stream, stop=stop)
    assert sequences([next(verdicts), next(verdicts)]) == [0, 1]
    settle(stream, 2)
    assert next(verdicts).frame.sequence == 2
    settle(stream, 3, 4)
    assert sequences([next(verdicts), next(verdicts)]) == [3, 4]
    stop.set()
    assert list(verdicts) == []


def test_following_from_a_place(line: str) -> None:
    """A reader that remembers its place goes on behind it."""
    stream = judged(line, 0, 1, 2)
    (place, _), *_ = stream.read("0", 1)
    assert sequences(list(itertools.islice(follow(stream, place), 2))) == [1, 2]


def test_following_a_reader_that_waits_is_woken(line: str) -> None:
    """A verdict that is published while nothing is there yet arrives."""
    stream = judged(line)
    got: list[Verdict] = []
    thread = threading.Thread(target=lambda: got.append(next(follow(stream))), daemon=True)
    thread.start()
    settle(stream, 0)
    thread.join(20)
    assert sequences(got) == [0]


def test_following_waits_out_a_stream_that_is_away(line: str) -> None:
    """Nothing is lost or doubled by it."""
    stream = judged(line, *range(5))
    verdicts = follow(Shaky(stream), stop=Impatient())  # type: ignore[arg-type]
    assert sequences(list(itertools.islice(verdicts, 5))) == list(range(5))
    settle(stream, 5)
    assert next(verdicts).frame.sequence == 5


def test_stop_ends_following_a_stream_that_is_away(line: str) -> None:
    """It does not try for ever."""

    class Gone(Shaky):
        def watch(self, log: Watched, after: str, n: int, wait_s: float = 0.0) -> list[Entry]:
            if next(self.calls) == 3:
                stop.set()
            raise StreamDown("cannot be reached")

    stop = Impatient()
    assert list(follow(Gone(judged(line)), stop=stop)) == []  # type: ignore[arg-type]


# ----------------------------------------------------------------------- figures


def test_latency_is_from_trigger_to_settlement() -> None:
    """In milliseconds."""
    assert latency_ms(said(triggered=1000, settled=1042)) == 42.0


def test_percentiles_by_hand() -> None:
    """Linear interpolation between the ordered values; nothing of nothing."""
    figures = percentiles([40, 10, 30, 20, 50])
    assert figures == pytest.approx({"p50": 30, "p90": 46, "p95": 48, "p99": 49.6, "max": 50})
    assert percentiles([7.0]) == {"p50": 7, "p90": 7, "p95": 7, "p99": 7, "max": 7}
    assert percentiles([]) == percentiles(np.array([])) == {}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_lie_between_the_values(values: list[float]) -> None:
    """Whatever the order of the values; rounding aside."""
    figures = list(percentiles(values).values())
    assert figures == pytest.approx(sorted(figures))
    assert figures[-1] == max(values)
    assert min(values) <= figures[0] * (1 + 1e-9) + 1e-9
    assert percentiles(values[::-1]) == pytest.approx(percentiles(values))


def summary_of(*verdicts: Verdict) -> Summary:
    summary = Summary()
    for verdict in verdicts:
        summary.add(verdict)
    return summary


def test_summary_counts_what_it_was_given() -> None:
    """Judgements, all four always there; reasons of what was not decided; defects by class; batch sizes."""
    pit = Defect(class_name="pit", score=1, bbox=(0, 0, 1, 1), area_px=1, centroid=(0, 0))
    summary = summary_of(
        said("OK", batch_size=4),
        said("NG", reason="pit", defects=(pit, pit), batch_size=8),
        said("REVIEW", reason="no_region", batch_size=8),
        said("UNINSPECTED", reason="shed"),
        said("UNINSPECTED", reason="shed"),
    )
    assert summary.judgements == {"OK": 1, "NG": 1, "REVIEW": 1, "UNINSPECTED": 2}
    assert summary.reasons == {"REVIEW: no_region": 1, "UNINSPECTED: shed": 2}
    assert summary.defects == {"pit": 2}
    assert summary.frames == 5
    assert summary.mean_batch == pytest.approx(20 / 3)
    assert dict(Summary().judgements) == {"OK": 0, "NG": 0, "REVIEW": 0, "UNINSPECTED": 0}


def test_rate_is_from_the_first_offer_to_the_last_settlement() -> None:
    """In whatever order the verdicts come."""
    verdicts = [said(offered=n, triggered=n, settled=n + 500) for n in (2000, 1000, 1500)]
    for order in itertools.permutations(verdicts):
        assert summary_of(*order).fps == pytest.approx(3 / 1.5)
    assert (Summary().fps, Summary().mean_batch) == (0.0, 0.0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_frame_without_times_does_not_spoil_the_figures(place: int) -> None:
    """One unreadable header among the verdicts: it is counted, and neither rate nor latency start in 1970."""
    verdicts = [said(offered=n, triggered=n, settled=n + 500) for n in (1000, 1500)]
    unreadable = Verdict(frame=unreadable_frame("cam", "x"), judgement="UNINSPECTED", settled_ns=1_600 * 10**6)
    verdicts.insert(place, unreadable)
    summary = summary_of(*verdicts)
    assert summary.frames == 3
    assert summary.fps == pytest.approx(3 / 1.0)
    assert percentiles(summary.latencies_ms)["max"] == 500.0
