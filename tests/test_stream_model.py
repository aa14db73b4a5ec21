"""Random histories of one line: the memory twin and a real Redis against the simplest model of a stream."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from conftest import make_frame
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pipeline.deadlines import fail_safe
from pipeline.messages import JUDGEMENTS, Verdict
from pipeline.stream import POLICIES, Delivery, Limits, Settlement, Stream, open_stream

WORKERS = ("w1", "w2", "w3")
SOURCES = ("a", "b")
LIMITS = Limits(max_frames=6, keep_verdicts=10_000)
numbers = itertools.count()


@dataclass
class Model:
    """What should be true, in the plainest words."""

    waiting: list[str] = field(default_factory=list)  # in order of offering
    held: dict[str, tuple[str, int]] = field(default_factory=dict)  # frame → worker, deliveries
    judged: dict[str, str] = field(default_factory=dict)  # frame → judgement
    dated: set[str] = field(default_factory=set)  # frames whose deadline has passed when they were offered
    late: set[str] = field(default_factory=set)  # frames with a fail-safe verdict whose worker may still answer
    amended: list[tuple[str, str]] = field(default_factory=list)
    offered: int = 0
    alive: set[str] = field(default_factory=set)


class Histories(RuleBasedStateMachine):
    """Producers, workers, deaths and returns in any order."""

    url = "memory://model"
    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.line = f"model{next(numbers)}-{id(self)}"
        self.clients: dict[str, Stream] = {name: self.client(name) for name in WORKERS}
        self.reader = self.client("")
        self.next = dict.fromkeys(SOURCES, 0)
        self.hands: dict[str, dict[str, Delivery]] = {name: {} for name in WORKERS}  # what a worker believes it holds
        self.last: dict[str, set[str]] = {name: set() for name in WORKERS}  # … on its last delivery, in this life
        self.model = Model()

    def client(self, name: str) -> Stream:
        return open_stream(self.url, self.line, name, self.limits)

    @rule(
        source=st.sampled_from(SOURCES),
        count=st.integers(1, 4),
        policy=st.sampled_from(POLICIES),
        deadline_ns=st.sampled_from([0, 0, 1000, 1 << 61]),
    )
    def offer(self, source: str, count: int, policy: str, deadline_ns: int) -> None:
        model = self.model
        frames = [make_frame(self.next[source] + i, source, size=2) for i in range(count)]
        frames = [replace(frame, deadline_ns=deadline_ns) for frame in frames]
        dealt = self.reader.offer(frames, policy)  # type: ignore[arg-type]
        expected = 0
        for frame in frames:
            if len(model.waiting) + len(model.held) >= LIMITS.max_frames:
                if policy == "wait":
                    break
                if policy == "shed-oldest" and model.waiting:
                    model.judged[model.waiting.pop(0)] = "UNINSPECTED"
                    model.waiting.append(frame.frame_id)
                else:
                    model.judged[frame.frame_id] = "UNINSPECTED"
            else:
                model.waiting.append(frame.frame_id)
            model.offered += 1
            expected += 1
        assert dealt == expected
        if deadline_ns == 1000:
            model.dated.update(frame.frame_id for frame in frames[:dealt])
        self.next[source] += dealt

    @rule(source=st.sampled_from(SOURCES))
    def offer_again(self, source: str) -> None:
        """An answer got lost: the last frames are offered once more, and nothing changes."""
        again = [make_frame(i, source, size=2) for i in range(max(0, self.next[source] - 3), self.next[source])]
        assert self.reader.offer(again, "wait") == len(again)

    @rule(name=st.sampled_from(WORKERS), n=st.integers(1, 4))
    def take(self, name: str, n: int) -> None:
        self.model.alive.add(name)
        taken = self.clients[name].take(n)
        expected, self.model.waiting = self.model.waiting[:n], self.model.waiting[n:]
        assert [delivery.frame.frame_id for delivery in taken] == expected
        self._hand(name, taken, dict.fromkeys(expected, 1))

    def _hand(self, name: str, deliveries: list[Delivery], counts: dict[str, int]) -> None:
        for delivery in deliveries:
            frame = delivery.frame.frame_id
            assert delivery.deliveries == counts[frame]
            self.model.held[frame] = (name, counts[frame])
            self.hands[name][frame] = delivery

    @rule(name=st.sampled_from(WORKERS))
    def die(self, name: str) -> None:
        """The worker is gone; what it held stays outstanding. It may come back with its old frames in hand."""
        self.model.alive.discard(name)
        self.clients[name].close()
        self.clients[name] = self.client(name)
        self.last[name].clear()

    @rule(names=st.permutations(WORKERS))
    def die_one_after_the_other(self, names: list[str]) -> None:
        """Each inherits what the last one left, and dies of it: the way to poison."""
        self.take(names[0], 2)
        for name in names:
            self.reclaim(name)
            self.die(name)

    @rule(name=st.sampled_from(WORKERS))
    def reclaim(self, name: str) -> None:
        model = self.model
        model.alive.add(name)  # by reclaiming it says that it lives
        orphans = {frame: k for frame, (holder, k) in model.held.items() if holder not in model.alive}
        for frame, deliveries in orphans.items():
            if deliveries >= self.limits.max_deliveries:
                del model.held[frame]
                model.judged[frame] = "UNINSPECTED"
        counts = {frame: k + 1 for frame, k in orphans.items() if frame in model.held}
        found = self.clients[name].reclaim(100)
        got = {delivery.frame.frame_id for delivery in found}
        last = {frame for frame, k in counts.items() if k >= self.limits.max_deliveries}
        assert counts.keys() - last <= got <= counts.keys()
        assert len(got & last) == (1 if last and not self.last[name] else 0), "one on its last delivery at a time"
        self.last[name] |= got & last
        self._hand(name, found, counts)

    @rule(
        name=st.sampled_from(WORKERS),
        judgement=st.sampled_from(JUDGEMENTS),
        reason=st.sampled_from(["", "", "deadline"]),
        data=st.data(),
    )
    def settle(self, name: str, judgement: str, reason: str, data: st.DataObject) -> None:
        """Whatever the worker believes to hold; what is not its own any more changes nothing."""
        hand = self.hands[name]
        if not hand:
            return
        chosen = data.draw(st.lists(st.sampled_from(sorted(hand)), unique=True, min_size=1))
        facts: Any = {"judgement": judgement, "reason": reason}
        pairs = [(hand[f], Verdict(frame=hand[f].frame, **facts)) for f in chosen]
        mine = [self.model.held.get(frame, ("", 0))[0] == name for frame in chosen]
        amends = [not own and not reason and f in self.model.late for f, own in zip(chosen, mine, strict=True)]
        became = [Settlement.AMENDED if late else Settlement(own) for late, own in zip(amends, mine, strict=True)]
        assert self.clients[name].settle(pairs) == became
        answered = {frame for frame, late in zip(chosen, amends, strict=True) if late}
        self.model.late -= answered
        self.model.amended += [(frame, judgement) for frame in chosen if frame in answered]
        self.last[name].difference_update(chosen)
        for frame, own in zip(chosen, mine, strict=True):
            if own:
                del self.model.held[frame]
                self.model.judged[frame] = judgement
                if reason:
                    self.model.late.add(frame)

    @rule(judgement=st.sampled_from(["REVIEW", "NG"]))
    def expire(self, judgement: str) -> None:
        """Every frame past its deadline, waiting or held, has its fail-safe verdict; only a holder may answer yet."""
        model = self.model
        for frame in model.dated & model.held.keys():
            del model.held[frame]
            model.judged[frame] = judgement
            model.late.add(frame)
        for frame in model.dated & set(model.waiting):
            model.waiting.remove(frame)
            model.judged[frame] = judgement
        self.reader.expire(fail_safe(judgement))  # type: ignore[arg-type]

    @invariant()
    def ledger_agrees(self) -> None:
        """The identity, every counter, and one verdict a frame: after every single step."""
        audit, model = self.reader.audit(), self.model
        assert audit.holds
        assert audit.offered == model.offered
        assert audit.outstanding == len(model.waiting) + len(model.held)
        for judgement in JUDGEMENTS:
            assert audit.judged[judgement] == list(model.judged.values()).count(judgement)
        published = [(v.frame.frame_id, v.judgement) for _, v in self.reader.read("0", 10_000)]
        assert len(published) == len(model.judged)
        assert dict(published) == model.judged
        amendments = [(v.frame.frame_id, v.judgement) for _, v in self.reader.read("0", 10_000, 0.0, "amendments")]
        assert amendments == model.amended
        assert sum(audit.amended.values()) == len(amendments)
        if not audit.outstanding:
            assert audit.outstanding_bytes == 0

    def teardown(self) -> None:
        for client in (*self.clients.values(), self.reader):
            client.close()


@pytest.mark.timeout(600)  # a failing history is made small before it is shown
@pytest.mark.parametrize("max_deliveries", [2, 3])
@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_any_history_keeps_the_promise(kind: str, max_deliveries: int, request: pytest.FixtureRequest) -> None:
    """Offers, takes, deaths, returns and settlements in any order: stream and model agree after every step."""
    machine = type("OnThisStream", (Histories,), {"limits": replace(LIMITS, max_deliveries=max_deliveries)})
    if kind == "redis":
        machine.url = request.getfixturevalue("redis_url")  # type: ignore[attr-defined]
    chosen = settings(
        max_examples=60 if kind == "memory" else 30,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run_state_machine_as_test(machine, settings=chosen)
