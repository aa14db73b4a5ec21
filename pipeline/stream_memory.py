"""The stream's in-memory twin: the same promise within one process, for tests and to measure without a server."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.messages import Frame, Verdict
from pipeline.stream import (
    EXPIRE_BEFORE_S,
    EXPIRE_HELD_BEFORE_S,
    FAIL_SAFE_REASONS,
    KEEP_LATE,
    POISON,
    SHED,
    TOO_LARGE,
    Audit,
    Delivery,
    Entry,
    KeptVerdicts,
    Limits,
    Log,
    Policy,
    Settlement,
    SourceCount,
    Watched,
    read_delivery,
    read_verdict,
    uninspected,
)


@dataclass
class _Entry:
    token: str
    source: str
    header: bytes
    pixels: bytes
    holder: str = ""
    deliveries: int = 0
    deadline_ns: int = 0

    @property
    def size(self) -> int:
        return len(self.header) + len(self.pixels)


class _Line:
    """What all clients of one in-memory line share."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.entries: OrderedDict[str, _Entry] = OrderedDict()
        self.dead: list[_Entry] = []
        self.logs: dict[Log, list[tuple[int, bytes, bytes]]] = {"verdicts": [], "amendments": []}
        self.late: OrderedDict[str, None] = OrderedDict()  # tokens with a fail-safe verdict, an answer may come
        self.amended: dict[str, int] = defaultdict(int)
        self.missed = 0
        self.numbers = itertools.count(1)
        self.offered: dict[str, int] = defaultdict(int)
        self.judged: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.reasons: dict[str, int] = defaultdict(int)
        self.next_sequence: dict[str, int] = {}
        self.gaps: list[tuple[str, int, int]] = []
        self.alive: dict[str, float] = {}
        self.bytes = 0

    def put(self, entry: _Entry) -> None:
        self.entries[entry.token] = entry
        self.bytes += entry.size

    def remove(self, entry: _Entry) -> None:
        del self.entries[entry.token]
        self.bytes -= entry.size


_LINES: dict[tuple[str, str], _Line] = defaultdict(_Line)


def open_memory(url: str, line: str, worker: str, limits: Limits) -> MemoryStream:
    """Clients with the same URL and line share one stream within this process."""
    return MemoryStream(_LINES[url, line], line, worker, limits)


class MemoryStream:
    """The Stream protocol within one process: for tests, and to measure a line without a server."""

    def __init__(
        self,
        shared: _Line,
        line: str,
        worker: str,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        forgets_s: float = 5.0,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.line, self.worker, self._wall = line, worker, wall
        self._shared, self._limits, self._clock, self.forgets_s = shared, limits, clock, forgets_s
        self._kept = KeptVerdicts(limits)
        self._last_chance: set[str] = set()  # tokens in hand on their last delivery

    def offer(self, frames: Sequence[Frame], policy: Policy = "wait") -> int:
        with self._shared.changed:
            for count, frame in enumerate(frames):
                if not self._offer_one(frame, policy):
                    return count
            return len(frames)

    def _offer_one(self, frame: Frame, policy: Policy) -> bool:
        shared = self._shared
        session = f"{frame.source}-{frame.session}"
        expected = shared.next_sequence.get(session, 0)
        if frame.sequence < expected:
            return True  # offered before: an answer got lost on the way
        header = replace(frame, line=self.line, offered_ns=time.time_ns()).header()
        entry = _Entry(str(next(shared.numbers)), frame.source, header, bytes(frame.payload()))
        entry.deadline_ns = frame.deadline_ns
        fits_at_all = entry.size <= self._limits.max_bytes
        while fits_at_all and policy == "shed-oldest" and self._full(entry) and self._shed_oldest():
            pass
        if fits_at_all and policy == "wait" and self._full(entry):
            return False
        if frame.sequence > expected:
            shared.gaps.append((session, expected, frame.sequence - 1))
        shared.next_sequence[session] = frame.sequence + 1
        shared.offered[frame.source] += 1
        if not fits_at_all:
            self._publish(entry.source, header, uninspected("too_large", TOO_LARGE), "UNINSPECTED", "too_large")
        elif self._full(entry):
            self._publish(entry.source, header, uninspected("shed", SHED), "UNINSPECTED", "shed")
        else:
            shared.put(entry)
        shared.changed.notify_all()
        return True

    def _full(self, entry: _Entry) -> bool:
        held, limits = self._shared, self._limits
        return held.bytes + entry.size > limits.max_bytes or len(held.entries) >= limits.max_frames

    def _shed_oldest(self) -> bool:
        for entry in self._shared.entries.values():
            if not entry.deliveries:
                self._shared.remove(entry)
                self._publish(entry.source, entry.header, uninspected("shed", SHED), "UNINSPECTED", "shed")
                return True
        return False

    def _publish(self, source: str, header: bytes, body: bytes, judgement: str, reason: str) -> None:
        shared = self._shared
        self._append("verdicts", header, body)
        shared.judged[source][judgement] += 1
        if reason:
            shared.reasons[f"{judgement} {reason}"] += 1
        shared.changed.notify_all()

    def _append(self, log: Log, header: bytes, body: bytes) -> None:
        rows = self._shared.logs[log]
        rows.append((next(self._shared.numbers), header, body))
        del rows[: -self._kept.count(len(header) + len(body))]

    def take(self, n: int, wait_s: float = 0.0) -> list[Delivery]:
        with self._shared.changed:
            self._shared.alive[self.worker] = self._clock()
            fresh = self._fresh(n)
            if not fresh and wait_s:
                self._shared.changed.wait(wait_s)
                fresh = self._fresh(n)
            return [self._deliver(entry) for entry in fresh]

    def _fresh(self, n: int) -> list[_Entry]:
        waiting = (entry for entry in self._shared.entries.values() if not entry.deliveries)
        return list(itertools.islice(waiting, n))

    def _deliver(self, entry: _Entry) -> Delivery:
        entry.holder, entry.deliveries = self.worker, entry.deliveries + 1
        return read_delivery(entry.token, entry.source, entry.header, entry.pixels, entry.deliveries)

    def reclaim(self, n: int) -> list[Delivery]:
        with self._shared.changed:
            self._shared.alive[self.worker] = self._clock()
            orphans = [e for e in self._shared.entries.values() if e.deliveries and not self._lives(e.holder)]
            for entry in orphans:
                if entry.deliveries >= self._limits.max_deliveries:
                    self._shared.remove(entry)
                    self._keep_aside(entry)
                    body = uninspected("poison", POISON)
                    self._publish(entry.source, entry.header, body, "UNINSPECTED", "poison")
            left = [entry for entry in orphans if entry.token in self._shared.entries]
            return [self._deliver(entry) for entry in self._handed_out(left)[:n]]

    def _keep_aside(self, entry: _Entry) -> None:
        most, dead = self._limits.keep_dead_bytes, self._shared.dead
        dead.append(entry if entry.size <= most else replace(entry, pixels=b""))
        while len(dead) > 1 and sum(each.size for each in dead) > most:
            del dead[0]

    def _handed_out(self, orphans: list[_Entry]) -> list[_Entry]:
        chosen = []
        for entry in orphans:
            last = entry.deliveries + 1 >= self._limits.max_deliveries
            if last and self._last_chance:
                continue
            if last:
                self._last_chance.add(entry.token)
            chosen.append(entry)
        return chosen

    def _lives(self, worker: str) -> bool:
        seen = self._shared.alive.get(worker)
        return seen is not None and self._clock() - seen < self.forgets_s

    def settle(self, settled: Sequence[tuple[Delivery, Verdict]]) -> list[Settlement]:
        with self._shared.changed:
            self._last_chance.difference_update(delivery.token for delivery, _ in settled)
            return [self._settle_one(delivery, verdict) for delivery, verdict in settled]

    def _settle_one(self, delivery: Delivery, verdict: Verdict) -> Settlement:
        entry, fail_safe = self._shared.entries.get(delivery.token), verdict.reason in FAIL_SAFE_REASONS
        body = replace(verdict, settled_ns=time.time_ns()).body()
        if entry is None or entry.holder != self.worker:
            return Settlement.TWIN if fail_safe else self._amend(delivery, verdict, body)
        self._shared.remove(entry)
        self._shared.missed += 0 < entry.deadline_ns < self._wall()
        self._publish(entry.source, entry.header, body, verdict.judgement, verdict.reason)
        if fail_safe:
            self._await_answer(entry)
        return Settlement.PUBLISHED

    def _await_answer(self, entry: _Entry) -> None:
        self._shared.late[entry.token] = None
        while len(self._shared.late) > KEEP_LATE:
            self._shared.late.popitem(last=False)

    def _amend(self, delivery: Delivery, verdict: Verdict, body: bytes) -> Settlement:
        if delivery.token not in self._shared.late:
            return Settlement.TWIN
        del self._shared.late[delivery.token]
        self._append("amendments", delivery.header, body)
        self._shared.amended[verdict.judgement] += 1
        self._shared.changed.notify_all()
        return Settlement.AMENDED

    def expire(self, verdict: Verdict, before_s: float = EXPIRE_BEFORE_S) -> float | None:
        with self._shared.changed:
            now = self._wall()
            body = replace(verdict, settled_ns=now).body()
            dated = [entry for entry in self._shared.entries.values() if entry.deadline_ns]
            due = {e.token: e.deadline_ns - 1e9 * (EXPIRE_HELD_BEFORE_S if e.deliveries else before_s) for e in dated}
            for entry in dated:
                if due[entry.token] <= now:
                    self._shared.remove(entry)
                    self._shared.missed += entry.deadline_ns < now
                    self._publish(entry.source, entry.header, body, verdict.judgement, verdict.reason)
                    if entry.deliveries:
                        self._await_answer(entry)
            left = [due[entry.token] - now for entry in dated if entry.token in self._shared.entries]
            return min(left) / 1e9 if left else None

    def audit(self) -> Audit:
        with self._shared.changed:
            shared = self._shared
            sources = {name: SourceCount(n, dict(shared.judged[name])) for name, n in shared.offered.items()}
            alive = [worker for worker in shared.alive if worker and self._lives(worker)]
            reasons, gaps = dict(shared.reasons), list(shared.gaps)
            dead, amended = len(shared.dead), dict(shared.amended)
            missed, held = shared.missed, shared.bytes
            return Audit(len(shared.entries), held, sources, reasons, gaps, alive, dead, amended, missed)

    def read(self, after: str, n: int, wait_s: float = 0.0, log: Log = "verdicts") -> list[tuple[str, Verdict]]:
        return [(place, read_verdict(header, body)) for place, header, body in self.watch(log, after, n, wait_s)]

    def watch(self, log: Watched, after: str, n: int, wait_s: float = 0.0) -> list[Entry]:
        with self._shared.changed:
            if not (found := self._after(log, int(after), n)) and wait_s:
                self._shared.changed.wait(wait_s)
                found = self._after(log, int(after), n)
            return found

    def _after(self, log: Watched, last: int, n: int) -> list[Entry]:
        if log == "frames":
            entries = (Entry(e.token, e.header, e.pixels) for e in self._shared.entries.values())
        else:
            entries = (Entry(str(number), header, body) for number, header, body in self._shared.logs[log])
        return list(itertools.islice((entry for entry in entries if int(entry.place) > last), n))

    def newest(self, log: Watched = "verdicts") -> str:
        with self._shared.changed:
            if log == "frames":
                return next(reversed(self._shared.entries), "0")
            rows = self._shared.logs[log]
            return str(rows[-1][0]) if rows else "0"

    def close(self) -> None:
        with self._shared.changed:
            self._shared.alive.pop(self.worker, None)
