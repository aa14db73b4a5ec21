"""A chaos run: a line of real processes on a real Redis, faults one after another, and a judge who counts.

Decides when the next fault strikes: by progress, so that the faults are spread over all frames on any machine.
Which one it is `faults.py` draws, what is right `judge.py` says.
"""

from __future__ import annotations

import heapq
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.endurance.content import Content, write_model
from bench.endurance.faults import Deck
from bench.endurance.judge import EXAMPLES, Judge
from bench.endurance.processes import Kept
from bench.endurance.server import Server
from pipeline.stream import Stream, open_stream

LINE = "chaos"
WINDOW = 10_000  # frames outstanding at most
KEEP_VERDICTS = 200_000  # a judge that is further behind cannot judge
FRAMES_A_DEADLY, LEAST_WITH_DEADLY = 100_000, 10_000
SPREAD = 0.9  # of the frames, over which the faults are spread; the last ones are offered after the last fault
GAP_S = 0.1  # between two faults …
BURST = 0.25  # … but for so many, which come together with the one before
TICK_S = 0.02
RESTART_S = (0.0, 0.5)
LAST_VERDICTS_S = 20.0  # for the judge to read what is settled
MORE_WORKERS = 2  # that may join
TELL_EVERY_S = 1.0
WORK = ("-m", "bench.endurance.deadly_engine", "work")

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is offered, how much is broken, and for how long at most."""

    frames: int
    faults: int
    seed: int = 0
    minutes: float = 30.0
    workers: int = 3
    producers: int = 2
    work: Sequence[str] = WORK  # what a worker is started with

    @property
    def deadly(self) -> int:
        """How many frames kill whoever inspects them."""
        return -(-self.frames // FRAMES_A_DEADLY) if self.frames >= LEAST_WITH_DEADLY else 0

    @property
    def contents(self) -> list[Content]:
        """What each producer offers."""
        each, rest = divmod(self.frames, self.producers)
        deadly, odd = divmod(self.deadly, self.producers)
        return [
            Content(f"producer{i}", self.seed + i, each + (i < rest), deadly + (i < odd)) for i in range(self.producers)
        ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out."""

    plan: Plan
    seconds: float
    offered: int
    verdicts: int
    judgements: dict[str, int]
    faults: dict[str, int]
    duplicates: int
    losses: int
    wrong: int
    innocent: int
    late: int  # verdicts of workers that had been forgotten: they changed nothing
    audits: int
    behind: int  # verdicts the judge had not read yet, at most; KEEP_VERDICTS stay readable
    starts: int  # of processes, Redis not counted
    complete: bool  # all was offered, broken and judged in time
    broken: list[str]  # what is wrong with the promise; empty when it was kept
    ended: list[str]  # processes that ended without a fault


class ChaosLine:
    """The processes of the run; the Line that faults strike."""

    def __init__(self, plan: Plan, folder: Path, server: Server) -> None:
        self.plan, self.folder, self.server, self.server_busy = plan, folder, server, False
        self.rng = random.Random(f"{plan.seed} line")
        self.gate = folder / "all-faults-have-struck"
        self.judge = Judge(self._open, plan.contents)
        write_model(folder / "model")
        self.feeding = [Kept(c.source, self._feed(c), folder, self._pause) for c in plan.contents]
        self.working = [self._worker(i) for i in range(plan.workers)]
        self._numbers = itertools.count(plan.workers)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._offered_before: dict[str, int] = {}  # this life of a feeder

    @property
    def workers(self) -> list[Kept]:
        return [kept for kept in self.working if kept.running and kept.name in self.judge.tally.workers]

    @property
    def feeders(self) -> list[Kept]:
        return [kept for kept in self.feeding if kept.running and self._offered(kept) > self._offered_before[kept.name]]

    def join(self) -> bool:
        if sum(not kept.done for kept in self.working) >= self.plan.workers + MORE_WORKERS:
            return False
        self.working.append(self._worker(next(self._numbers)))
        return True

    def leave(self, worker: Kept) -> bool:
        if sum(not (kept.done or kept.leaving) for kept in self.working) <= max(1, self.plan.workers - 1):
            return False
        worker.leave()
        return True

    def later(self, in_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + in_s, next(self._order), act))

    def tick(self) -> None:
        """Start what should run, end what a fault began, notice what ended."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        for kept in [*self.feeding, *self.working]:
            kept.tick(now)
        for kept in self.feeding:
            self._offered_before.setdefault(kept.name, self._offered(kept))

    @property
    def healed(self) -> bool:
        """Has every fault ended?"""
        return not self._later and not self.server_busy

    def end(self) -> None:
        for kept in [*self.feeding, *self.working]:
            kept.end()

    def _open(self) -> Stream:
        return open_stream(self.server.url, LINE)

    def _pause(self) -> float:
        return self.rng.uniform(*RESTART_S)

    def _offered(self, kept: Kept) -> int:
        newest = self.judge.books.newest
        count = newest.sources.get(kept.role) if newest else None
        return count.offered if count else 0

    def _feed(self, content: Content) -> Callable[[str], list[str]]:
        words = ["-m", "bench.endurance.feeder", "--url", self.server.url, "--line", LINE, "--source", content.source]
        words += ["--gate", str(self.gate)]
        facts = {"seed": content.seed, "frames": content.frames, "deadly": content.deadly, "window": WINDOW}
        return lambda _: [*words, *(word for name, value in facts.items() for word in (f"--{name}", str(value)))]

    def _worker(self, number: int) -> Kept:
        words = [*self.plan.work, "--recipe", str(self.folder / "model"), "--url", self.server.url, "--line", LINE]
        words += ["--keep-verdicts", str(KEEP_VERDICTS)]
        return Kept(f"worker{number}", lambda name: [*words, "--name", name], self.folder, self._pause, dies=True)


def run_chaos(plan: Plan, folder: Path, tell: Tell) -> Outcome:
    """Offer, break and judge until all is offered, broken and judged, the time is over, or the promise is broken."""
    begun = time.monotonic()
    server = Server(folder / "redis")
    server.start()
    try:
        server.wait_until_up()
        line = ChaosLine(plan, folder, server)
        run = _Run(plan, line, begun)
        with line.judge, _ended(line):
            complete = run.until_done(tell)
            run.read_the_last()
            run.let_workers_leave()
    finally:
        server.end()
    return run.outcome(complete)


@contextmanager
def _ended(line: ChaosLine) -> Iterator[None]:
    try:
        yield
    finally:
        line.end()


@dataclass
class _Run:
    plan: Plan
    line: ChaosLine
    begun: float
    struck: Counter[str] = field(default_factory=Counter)
    server_ended: int = 0

    def until_done(self, tell: Tell) -> bool:
        """False when the time was over first, or the promise was broken."""
        deck, judge = Deck(random.Random(f"{self.plan.seed} faults")), self.line.judge
        next_fault = next_word = 0.0
        while not self._done():
            now = time.monotonic()
            if now - self.begun > self.plan.minutes * 60 or judge.tally.duplicates or judge.books.violations:
                return False
            judge.check()
            self.line.tick()
            self._keep_server()
            if self.struck.total() >= self.plan.faults:
                self.line.gate.touch()
            elif self._due() and now >= next_fault:
                if name := deck.strike(self.line):
                    self.struck[name] += 1
                next_fault = now + (0.0 if deck.rng.random() < BURST else GAP_S)
            if now >= next_word:
                next_word = now + TELL_EVERY_S
                tell(self._word())
            time.sleep(TICK_S)
        return True

    def _due(self) -> bool:
        """Is it time for the next fault?"""
        share = (self.struck.total() + 1) / (self.plan.faults + 1)
        return self.line.judge.tally.verdicts >= SPREAD * self.plan.frames * share

    def _done(self) -> bool:
        newest = self.line.judge.books.newest
        if newest is None or not all(kept.done for kept in self.line.feeding):
            return False
        return newest.settled == newest.offered >= self.plan.frames and not newest.outstanding and self.line.healed

    def _keep_server(self) -> None:
        """A Redis that ends without a fault is a finding; the run goes on."""
        if not self.line.server_busy and not self.line.server.pid:
            self.server_ended += 1
            self.line.server.start()

    def _word(self) -> str:
        tally, struck = self.line.judge.tally, self.struck.total()
        return f"{tally.verdicts:,} of {self.plan.frames:,} verdicts, {struck:,} of {self.plan.faults:,} faults"

    def read_the_last(self) -> None:
        """Until the judge has read what the ledger counts; what does not come is lost."""
        end = time.monotonic() + LAST_VERDICTS_S
        while self.line.judge.lagging and time.monotonic() < end and not self.line.judge.tally.duplicates:
            time.sleep(TICK_S)

    def let_workers_leave(self) -> None:
        """In order, so that they say what they did."""
        end = time.monotonic() + LAST_VERDICTS_S
        for kept in self.line.working:
            kept.leave()
        while any(kept.alive for kept in self.line.working) and time.monotonic() < end:
            time.sleep(TICK_S)

    def outcome(self, complete: bool) -> Outcome:
        judge, line = self.line.judge, self.line
        tally, newest = judge.tally, judge.books.newest
        complete = complete and judge.behind <= KEEP_VERDICTS
        missing = tally.missing() if complete else []
        return Outcome(
            plan=self.plan,
            seconds=time.monotonic() - self.begun,
            offered=newest.offered if newest else 0,
            verdicts=tally.verdicts,
            judgements=dict(sorted(tally.judgements.items())),
            faults=dict(sorted(self.struck.items())),
            duplicates=tally.duplicates,
            losses=len(missing),
            wrong=tally.wrong + tally.strangers,
            innocent=tally.innocent,
            late=sum(map(_late, {kept.log for kept in line.working})),
            audits=judge.books.looks,
            behind=judge.behind,
            starts=sum(kept.life for kept in [*line.feeding, *line.working]),
            complete=complete,
            broken=self._broken(missing),
            ended=self._ended(),
        )

    def _broken(self, missing: list[str]) -> list[str]:
        judge = self.line.judge
        lost = [f"no verdict: {', '.join(missing[:EXAMPLES])}"] if missing else []
        return [*judge.books.violations[:EXAMPLES], *judge.tally.examples, *lost]

    def _ended(self) -> list[str]:
        ended: Counter[str] = Counter({"Redis": self.server_ended} if self.server_ended else {})
        for kept in [*self.line.feeding, *self.line.working]:
            ended += kept.ended_by_itself
        return [f"{who}, {count} times" for who, count in ended.items()]


def _late(log: Path) -> int:
    """What workers that ended in order said of their late verdicts."""
    if not log.exists():
        return 0
    return sum(map(int, re.findall(r"(\d+) verdicts came late", log.read_text(errors="replace"))))
