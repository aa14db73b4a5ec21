"""Who looks after deadlines: calls the stream's `expire` often enough that none passes without a verdict.

Workers and producers both do, so that frames get their fail-safe verdict in time although every worker is busy,
dead or not started. How a frame in a worker's hands is judged in time is the inspector's affair, not this one's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import AoiError, StreamDown
from pipeline.messages import Frame, Judgement, Verdict
from pipeline.patience import Patience
from pipeline.stream import EXPIRE_BEFORE_S, Stream

log = logging.getLogger("aoi.deadlines")
IDLE_S = 0.25  # between looks while no frame with a deadline has been seen
OFTEN_S = (0.002, 0.1)  # between looks otherwise: a quarter of the shortest budget, within these
REMEMBERED_NS = 60 * 10**9  # a budget that no frame has had for so long counts no more
SHORTEST_S = 0.02  # a single frame with less time than any camera leaves must not rule the line
LAST_S = 5.0  # a producer that ends stays at most so long, until its last frames' deadlines have passed


def fail_safe(judgement: Judgement, recipe: str = "", worker: str = "") -> Verdict:
    """The verdict of frames that nobody could judge in time; the stream puts each frame's own header to it."""
    nobody = Frame(frame_id="", source="", session="", sequence=0)
    detail = "no worker could judge it in time"
    return Verdict(frame=nobody, judgement=judgement, reason="deadline", detail=detail, recipe=recipe, worker=worker)


class DeadlineKeeper:
    """Looks in a thread of its own until `stop`. `budget_s`: shortest time from trigger to deadline; 0: none seen.

    `need_s`: how long a frame that is taken now would take to its verdict. Under overload the oldest frames would
    else always be taken just too late to be judged, and the line would judge hardly any.
    """

    def __init__(
        self, stream: Stream, verdict: Verdict, budget_s: float = 0.0, need_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._stream, self._verdict, self._budget_s, self._need_s = stream, verdict, budget_s, need_s
        self._seen_at, self._end_s = 0, 0.0
        self._stop, self._seen = threading.Event(), threading.Event()

    def saw(self, frame: Frame) -> None:
        """Learn a frame's budget: how often to look depends on the shortest of the last minute."""
        if not frame.deadline_ns:
            return
        budget_s = max(SHORTEST_S, (frame.deadline_ns - frame.triggered_ns) / 1e9)
        if not self._budget_s or budget_s <= self._budget_s or frame.triggered_ns - self._seen_at > REMEMBERED_NS:
            news = budget_s != self._budget_s
            self._budget_s, self._seen_at = budget_s, frame.triggered_ns
            if news:
                self._seen.set()

    @property
    def budget_s(self) -> float:
        """The shortest time from trigger to deadline of late; 0: no frame had one."""
        return self._budget_s

    def finish(self) -> None:
        """Nothing is offered any more: stop when no frame has a deadline left, or the last one must have passed."""
        self._end_s = time.monotonic() + min(self._budget_s, LAST_S) + OFTEN_S[1]
        self._seen.set()

    def stop(self) -> None:
        self._stop.set()
        self._seen.set()

    def run(self) -> None:
        """Until `stop`. Raises StreamError when the stream refuses."""
        patience = Patience(log, longest_s=OFTEN_S[1])  # frames go on ageing
        while not self._stop.is_set():
            try:
                before_s = before(self._need_s(), self._budget_s)
                due_s = self._stream.expire(self._verdict, before_s)
                patience.back()
            except StreamDown as error:
                patience.wait(error, "no fail-safe verdicts meanwhile", self._stop)
                due_s = 0.0
            if self._end_s and (due_s is None or time.monotonic() > self._end_s):
                break
            self._seen.wait(pause_s(due_s, self._budget_s))
            if not self._stop.is_set():
                self._seen.clear()


@contextmanager
def kept_deadlines(stream: Stream, verdict: Verdict, budget_s: float) -> Iterator[None]:
    """Deadlines looked after in the background, for whoever has something else to do; without a budget: not."""
    keeper = DeadlineKeeper(stream, verdict, budget_s)

    def guarded() -> None:
        try:
            keeper.run()
        except AoiError as error:
            log.warning("this process looks after no deadlines any more, workers still do: %s", error)

    thread = threading.Thread(target=guarded, name="aoi-deadlines", daemon=True)
    if budget_s:
        thread.start()
    try:
        yield
    finally:
        keeper.finish()
        if budget_s:
            thread.join()


def before(need_s: float, budget_s: float) -> float:
    """How long before its deadline a frame that nobody has taken is given up; never the first half of its budget."""
    return min(max(need_s, EXPIRE_BEFORE_S), max(budget_s / 2, EXPIRE_BEFORE_S))


def pause_s(due_s: float | None, budget_s: float) -> float:
    """Until the next look: when the next known frame is due, and in time for one offered right after this look."""
    if due_s is None and not budget_s:
        return IDLE_S
    shortest, longest = OFTEN_S
    regular = min(max(budget_s / 4, shortest), longest) if budget_s else shortest
    return regular if due_s is None else max(shortest, min(regular, due_s))
