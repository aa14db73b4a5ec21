"""Who counts: reads every verdict as it is published, looks at the ledger all the time, and says what is wrong.

It believes neither: verdicts are held against what was to be offered, frame by frame, and the ledger must balance
at every look and never go backwards. Knows nothing of faults and processes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.endurance.content import KINDS, SESSION, Content
from pipeline.errors import StreamDown
from pipeline.messages import Verdict
from pipeline.stream import Audit, Stream

AUDIT_EVERY_S = 0.2
READ_AT_ONCE = 1000
EXAMPLES = 5  # of each sort of complaint
POISON = ("UNINSPECTED", "poison")


@dataclass
class Tally:
    """What was published, frame by frame; pure."""

    contents: Sequence[Content]
    judgements: Counter[str] = field(default_factory=Counter)
    verdicts: int = 0
    duplicates: int = 0
    innocent: int = 0  # frames judged as poison for being in the hands of workers that were killed
    strangers: int = 0  # verdicts of frames that nobody was to offer
    wrong: int = 0  # verdicts that are not what the frame shows
    examples: list[str] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)  # that have judged a frame

    def __post_init__(self) -> None:
        self._seen = {content.source: bytearray(content.frames) for content in self.contents}
        self._contents = {content.source: content for content in self.contents}

    def add(self, verdict: Verdict) -> None:
        frame, said = verdict.frame, (verdict.judgement, verdict.reason)
        self.verdicts += 1
        self.judgements[": ".join(filter(None, said)) if said[0] == "UNINSPECTED" else said[0]] += 1
        self.workers.add(verdict.worker)
        seen = self._seen.get(frame.source)
        if seen is None or frame.session != SESSION or frame.sequence >= len(seen):
            self.strangers += 1
            self._complain(f"{frame.frame_id} was never offered, but judged {said}")
            return
        seen[frame.sequence] = min(255, seen[frame.sequence] + 1)
        if seen[frame.sequence] > 1:
            self.duplicates += 1
            self._complain(f"{frame.frame_id} has verdict number {seen[frame.sequence]}: {said} by {verdict.worker}")
        self._compare(verdict, said)

    def _compare(self, verdict: Verdict, said: tuple[str, str]) -> None:
        frame = verdict.frame
        kind = self._contents[frame.source].kind(frame.sequence)
        if said == POISON and kind != "deadly":
            self.innocent += 1
        elif said != KINDS[kind]:
            self.wrong += 1
            self._complain(f"{frame.frame_id} is {kind}, but judged {said} by {verdict.worker}: {verdict.detail}")

    def _complain(self, text: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)

    def missing(self) -> list[str]:
        """Frames without a verdict."""
        return [f"{source} {n}" for source, seen in self._seen.items() for n, count in enumerate(seen) if not count]

    @property
    def distinct(self) -> int:
        """Frames that have a verdict."""
        return sum(len(seen) - seen.count(0) for seen in self._seen.values())


@dataclass
class Books:
    """The ledger at every look; pure."""

    looks: int = 0
    newest: Audit | None = None
    violations: list[str] = field(default_factory=list)

    def look(self, audit: Audit) -> None:
        """Does it balance, without gaps, and has none of its counts gone down?"""
        before, self.newest = self.newest, audit
        self.looks += 1
        if not audit.holds:
            counted = f"{audit.offered} offered, {audit.judged} + {audit.outstanding} outstanding"
            self.violations.append(f"look {self.looks}: the ledger does not balance: {counted}")
        if audit.gaps:
            self.violations.append(f"look {self.looks}: frames were passed over: {audit.gaps[:EXAMPLES]}")
        if before and (audit.offered < before.offered or audit.settled < before.settled):
            was, now = (before.offered, before.settled), (audit.offered, audit.settled)
            self.violations.append(f"look {self.looks}: offered and settled went from {was} back to {now}")


class Judge:
    """`with Judge(open_stream, contents) as judge:` two threads read and look, each with a stream of its own."""

    def __init__(self, opener: Callable[[], Stream], contents: Sequence[Content]) -> None:
        self.tally, self.books = Tally(contents), Books()
        self._opener, self._stop = opener, threading.Event()
        self.behind = 0  # verdicts the ledger counted and nobody had read yet, at most
        self._read_to = "0"
        self._failure: Exception | None = None

    def __enter__(self) -> Judge:
        self._threads = [threading.Thread(target=self._guarded, args=(w,)) for w in (self._read, self._look)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def lagging(self) -> bool:
        """Are there verdicts that the ledger counts and that were not read yet?"""
        return self.books.newest is None or self.tally.verdicts < self.books.newest.settled

    def check(self) -> None:
        """Raise what ended one of the threads, if anything did."""
        if self._failure:
            raise self._failure

    def _guarded(self, work: Callable[[Stream], None]) -> None:
        stream = self._opener()
        try:
            while not self._stop.is_set():
                try:
                    work(stream)
                except StreamDown:
                    self._stop.wait(AUDIT_EVERY_S)
        except Exception as error:
            self._failure = error
        finally:
            stream.close()

    def _read(self, stream: Stream) -> None:
        rows = stream.read(self._read_to, READ_AT_ONCE, 0.5)
        for _, verdict in rows:
            self.tally.add(verdict)
        if rows:
            self._read_to = rows[-1][0]
        self._stop.wait(0.0 if len(rows) == READ_AT_ONCE else 0.05)  # many at a time cost the line less

    def _look(self, stream: Stream) -> None:
        audit = stream.audit()
        self.books.look(audit)
        self.behind = max(self.behind, audit.settled - self.tally.verdicts)
        self._stop.wait(AUDIT_EVERY_S)
