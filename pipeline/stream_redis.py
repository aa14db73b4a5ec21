"""The stream on Redis ≥ 6.2 or Valkey, as keys, scripts and replies. The scripts lie beside it.

Keys of a line share a hash tag, so that a cluster keeps them on one node: `aoi:{LINE}:frames` (stream, consumer
group `workers`), `:verdicts`, `:amendments`, `:dead` (streams), `:ledger` (hash), `:gaps` (list), `:deadlines`,
`:late` (sorted sets), `:alive:WORKER`.
Every verb is one round trip. Whoever takes frames says with the same call that it lives; the server forgets it
after a few seconds of silence, and only then are its frames anyone's to reclaim.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pipeline.errors import StreamDown, StreamError
from pipeline.messages import Frame, Verdict
from pipeline.redis_client import Door, open_door
from pipeline.stream import (
    EXPIRE_AT_MOST,
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
    is_line_name,
    parse_gaps,
    read_delivery,
    read_verdict,
    uninspected,
)

GROUP = "workers"
ALIVE_MS = 5000
LONGEST_WAIT_S = 1.0  # of one blocking read: well below ALIVE_MS, so that waiting is not silence
SOCKET_TIMEOUT_S = 10.0
MIN_VERSION = (6, 2)
OFFER_BYTES = 4 * 1024 * 1024  # of one script call: the server serves nobody else meanwhile
TAKE_BYTES = 4 * 1024 * 1024  # of one answer: the server holds it beside the frames until it is read


def open_redis(url: str, line: str, worker: str, limits: Limits) -> RedisStream:
    """A client of this line; nothing is sent before the first verb, so start-up order does not matter."""
    door = open_door(url, f"aoi-{worker}" if worker else "aoi", _base(line))
    return RedisStream(door, line, worker, limits)


def list_lines(url: str) -> list[str]:
    """Names of the lines that have a ledger here, sorted."""
    door = open_door(url, "aoi")
    keys = door.ask_each(lambda server: list(server.scan_iter(match="aoi:{*}:ledger", count=1000)))
    door.close()
    names = {key.decode(errors="replace")[len("aoi:{") : -len("}:ledger")] for key in keys}
    return sorted(name for name in names if is_line_name(name))  # whoever may write may make any key


def _base(line: str) -> str:
    return f"aoi:{{{line}}}:"


class RedisStream:
    """The Stream protocol on a Redis server."""

    def __init__(self, door: Door, line: str, worker: str, limits: Limits) -> None:
        self.line, self.worker, self.forgets_s = line, worker, ALIVE_MS / 1000
        self._door, self._limits = door, limits
        base = _base(line)
        self._frames, self._verdicts, self._dead = base + "frames", base + "verdicts", base + "dead"
        self._ledger, self._gaps, self._alive = base + "ledger", base + "gaps", base + "alive:"
        self._deadlines, self._late, self._amendments = base + "deadlines", base + "late", base + "amendments"
        self._logs: dict[Watched, str] = {
            "frames": self._frames,
            "verdicts": self._verdicts,
            "amendments": self._amendments,
        }
        self._offer, self._settle = self._script("offer"), self._script("settle")
        self._reclaim, self._audit = self._script("reclaim"), self._script("audit", writes=False)
        self._expire = self._script("expire")
        self._held: set[str] = set()
        self._last_chance: set[str] = set()  # of those, on their last delivery
        self._large = 0  # bytes of the largest frame taken lately
        self._held_lock = threading.Lock()
        self._reply_lost = False  # a delivery may have got lost on the way; reclaim looks for it
        self._version_known = self._joined = self._was_full = False
        self._kept = KeptVerdicts(limits)

    # -------------------------------------------------------------- the six verbs

    def offer(self, frames: Sequence[Frame], policy: Policy = "wait") -> int:
        self._check_version()
        dealt = 0
        for chunk in _chunks(frames, OFFER_BYTES):
            count = self._offer_chunk(chunk, policy)
            dealt += count
            if count < len(chunk):
                break
        return dealt

    def _still_full(self, frame: Frame) -> bool:
        """Asked before a large frame is sent once more only to be refused."""
        with self._door.reached() as server:
            pipe = server.pipeline(transaction=False)
            pipe.hget(self._ledger, "bytes")
            pipe.hget(self._ledger, f"next|{frame.source}-{frame.session}")
            pipe.xlen(self._frames)
            held, expected, count = pipe.execute()
        size, limits = frame.payload_bytes, self._limits
        full = int(held or 0) + size > limits.max_bytes >= size or int(count) >= limits.max_frames
        return full and frame.sequence >= int(expected or 0)

    def _offer_chunk(self, frames: Sequence[Frame], policy: Policy) -> int:
        limits, now = self._limits, time.time_ns()
        if policy == "wait" and self._was_full and self._still_full(frames[0]):
            return 0
        bodies = [uninspected("shed", SHED), uninspected("too_large", TOO_LARGE)]
        args: list[Any] = [policy, limits.max_bytes, limits.max_frames, limits.keep_verdicts, *bodies, GROUP]
        for number, frame in enumerate(frames):
            header = replace(frame, line=self.line, offered_ns=now + number).header()  # a shift keeps their order by it
            args += [frame.source, frame.session, frame.sequence, header, frame.payload(), frame.deadline_ns // 1000]
        keys = [self._frames, self._ledger, self._verdicts, self._gaps, self._deadlines]
        dealt = int(self._offer(keys, args))
        self._was_full = dealt == 0
        return dealt

    def take(self, n: int, wait_s: float = 0.0) -> list[Delivery]:
        self._check_version()
        n = self._fitting(n)
        try:
            replies = self._with_group(lambda: self._read_group(n, wait_s))
        except StreamDown:
            self._reply_lost = True
            raise
        rows = [(token, f) for _, entries in _pairs(replies) for token, f in entries]
        return self._hold([_delivery(token, fields) for token, fields in rows])

    def _read_group(self, n: int, wait_s: float) -> Any:
        """One round trip: I live, and give me at most n new frames."""
        block = max(1, int(min(wait_s, LONGEST_WAIT_S) * 1000)) if wait_s > 0 else None
        with self._door.reached() as server:
            pipe = server.pipeline(transaction=False)
            pipe.set(self._alive + self.worker, "1", px=ALIVE_MS)
            if not self._joined:  # so that an idle worker is seen too
                pipe.xgroup_createconsumer(self._frames, GROUP, self.worker)
            if n > 0:
                pipe.xreadgroup(GROUP, self.worker, {self._frames: ">"}, count=n, block=block)
            replies = pipe.execute(raise_on_error=False)
            failed = [reply for reply in replies[-1 if n > 0 else 0 :] if isinstance(reply, Exception)]
            if failed:  # frames that did come are taken, even where the server had no room for our sign of life
                raise failed[0]
        self._joined = True
        return replies[-1] if n > 0 else []

    def reclaim(self, n: int) -> list[Delivery]:
        self._check_version()
        with self._held_lock:
            lost, held = self._reply_lost, list(self._held) if self._reply_lost else []
        n = self._fitting(n)
        limits = self._limits
        chance = not self._last_chance
        args = [GROUP, self.worker, self._alive, ALIVE_MS, n, limits.max_deliveries, limits.keep_verdicts]
        args += [uninspected("poison", POISON), int(chance), limits.keep_dead_bytes, int(lost), *held]
        keys = [self._frames, self._ledger, self._verdicts, self._dead, self._deadlines]
        try:
            rows = self._with_group(lambda: self._reclaim(keys, args))
        except StreamDown:
            self._reply_lost = True
            raise
        if lost and len(rows) < n:
            self._reply_lost = False
        found = [read_delivery(t.decode(), s.decode(errors="replace"), h, p, int(k)) for t, k, s, h, p in rows]
        with self._held_lock:
            self._last_chance.update(d.token for d in found if d.deliveries >= limits.max_deliveries)
        return self._hold(found)

    def settle(self, settled: Sequence[tuple[Delivery, Verdict]]) -> list[Settlement]:
        if not settled:
            return []
        now, keep = time.time_ns(), self._limits.keep_verdicts
        args: list[Any] = [GROUP, self.worker, keep, KEEP_LATE]
        for delivery, verdict in settled:
            body = replace(verdict, settled_ns=now).body()
            args += [delivery.token, delivery.frame.source, delivery.size, verdict.judgement, verdict.reason]
            args += [int(verdict.reason in FAIL_SAFE_REASONS), delivery.header, body]
            args[2] = self._kept.count(len(delivery.header) + len(body))
        keys = [self._frames, self._ledger, self._verdicts, self._deadlines, self._late, self._amendments]
        answers = self._with_group(lambda: self._settle(keys, args))
        with self._held_lock:
            for delivery, _ in settled:
                self._held.discard(delivery.token)
                self._last_chance.discard(delivery.token)
        return [Settlement(answer) for answer in answers]

    def expire(self, verdict: Verdict, before_s: float = EXPIRE_BEFORE_S) -> float | None:
        body = replace(verdict, settled_ns=time.time_ns()).body()
        guards = [int(1e6 * seconds) for seconds in (before_s, EXPIRE_HELD_BEFORE_S)]
        args: list[Any] = [GROUP, self._limits.keep_verdicts, KEEP_LATE, *guards, EXPIRE_AT_MOST]
        args += [verdict.judgement, verdict.reason, body]
        keys = [self._frames, self._ledger, self._verdicts, self._deadlines, self._late]
        _, due_us = self._expire(keys, args)
        return None if due_us < 0 else due_us / 1e6

    def audit(self) -> Audit:
        self._check_version()
        keys = [self._frames, self._ledger, self._gaps, self._dead]
        flat, outstanding, gaps, dead, alive = self._audit(keys, [GROUP, self._alive])
        facts = {k.decode(errors="replace"): int(v) for k, v in zip(flat[0::2], flat[1::2], strict=True)}
        workers = [name.decode(errors="replace") for name in alive]
        reasons = {key.partition("|")[2]: n for key, n in facts.items() if key.startswith("reason|")}
        rows = parse_gaps(row.decode(errors="replace") for row in gaps)
        amended = _by_judgement(facts, "amended|")
        missed, held = facts.get("missed", 0), facts.get("bytes", 0)
        return Audit(outstanding, held, _sources(facts), reasons, rows, workers, dead, amended, missed)

    # -------------------------------------------------------------- reading verdicts

    def read(self, after: str, n: int, wait_s: float = 0.0, log: Log = "verdicts") -> list[tuple[str, Verdict]]:
        return [(place, read_verdict(header, body)) for place, header, body in self.watch(log, after, n, wait_s)]

    def watch(self, log: Watched, after: str, n: int, wait_s: float = 0.0) -> list[Entry]:
        self._check_version()
        block = max(1, int(min(wait_s, LONGEST_WAIT_S) * 1000)) if wait_s > 0 else None
        n = self._fitting(n) if log == "frames" else n
        with self._door.reached() as server:
            replies = cast(Any, server.xread({self._logs[log]: after}, count=n, block=block))
        body = b"p" if log == "frames" else b"v"
        rows = [row for _, entries in _pairs(replies) for row in entries]
        found = [Entry(place.decode(), fields.get(b"h", b""), fields.get(body, b"")) for place, fields in rows]
        if log == "frames":
            self._saw([len(entry.header) + len(entry.body) for entry in found])
        return found

    def newest(self, log: Watched = "verdicts") -> str:
        with self._door.reached() as server:
            rows = cast(Any, server.xrevrange(self._logs[log], count=1))
        return str(rows[0][0].decode()) if rows else "0"

    def close(self) -> None:
        try:
            with self._door.reached() as server:
                if self.worker:
                    server.delete(self._alive + self.worker)
            self._door.close()
        except StreamError:  # it forgets us by itself
            pass

    # -------------------------------------------------------------- beneath

    def _fitting(self, n: int) -> int:
        """So many of n frames that, going by the last ones, they fit in one answer; one always does.

        A worker that has had no frame yet goes by the mean of those that wait: a full line's would otherwise come to
        it all at once.
        """
        if n > 0 and not self._large:
            self._large = self._mean_bytes()
        return min(n, max(1, TAKE_BYTES // max(1, self._large)))

    def _mean_bytes(self) -> int:
        """Of a frame on the stream; 0: there is none. By commands that every role may use (deploy/redis/users.acl)."""
        with self._door.reached() as server:
            pipe = server.pipeline(transaction=False)
            pipe.hgetall(self._ledger)
            pipe.xlen(self._frames)
            ledger, count = pipe.execute()
        return int(ledger.get(b"bytes", 0)) // max(1, count)

    def _hold(self, deliveries: list[Delivery]) -> list[Delivery]:
        with self._held_lock:
            self._held.update(delivery.token for delivery in deliveries)
        self._saw([delivery.size for delivery in deliveries])
        return deliveries

    def _saw(self, sizes: list[int]) -> None:
        """Bytes of frames that came; what comes next is likely no larger."""
        self._large = max([int(0.9 * self._large), *sizes])

    def _script(self, name: str, writes: bool = True) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        return self._door.script((Path(__file__).parent / f"{name}.lua").read_text(), writes)

    def _with_group(self, call: Callable[[], Any]) -> Any:
        """Run; where the consumer group does not exist yet (or any more), make it and run again."""
        try:
            return call()
        except StreamError as error:
            missing = ("NOGROUP", "no such key", "requires the key to exist")
            if not any(words in str(error) for words in missing):
                raise
        try:
            with self._door.reached() as server:
                server.xgroup_create(self._frames, GROUP, id="0", mkstream=True)
        except StreamError as error:
            if "BUSYGROUP" not in str(error):
                raise
        return call()

    def _check_version(self) -> None:
        """Once, on the first verb: is this a server whose streams can do what we need?"""
        if self._version_known:
            return
        with self._door.reached() as server:
            version = str(cast(Any, server.info("server"))["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
            raise StreamError(f"Redis {version} is too old: 6.2 or newer is needed, or Valkey")
        self._version_known = True


def _delivery(token: bytes, fields: dict[bytes, bytes]) -> Delivery:
    """Of a stream entry; one that is not ours has no fields we know, and becomes an unreadable frame."""
    source, header, pixels = (fields.get(name, b"") for name in (b"s", b"h", b"p"))
    return read_delivery(token.decode(), source.decode(errors="replace"), header, pixels)


def _pairs(replies: Any) -> Any:
    """XREAD answers a list of (key, entries) in RESP2 and a map of key → [entries] in RESP3."""
    if isinstance(replies, dict):
        return [(key, [row for part in parts for row in part]) for key, parts in replies.items()]
    return replies or []


def _chunks(frames: Sequence[Frame], most: int) -> Iterator[list[Frame]]:
    chunk: list[Frame] = []
    size = 0
    for frame in frames:
        if chunk and size + frame.payload_bytes > most:
            yield chunk
            chunk, size = [], 0
        chunk.append(frame)
        size += frame.payload_bytes
    if chunk:
        yield chunk


def _by_judgement(facts: dict[str, int], prefix: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, n in facts.items():
        if key.startswith(prefix):
            judgement = key.split("|", 2)[1]
            found[judgement] = found.get(judgement, 0) + n
    return found


def _sources(facts: dict[str, int]) -> dict[str, SourceCount]:
    judged: dict[str, dict[str, int]] = {}
    for key, n in facts.items():
        if key.startswith("judged|"):
            _, judgement, source = key.split("|", 2)
            judged.setdefault(source, {})[judgement] = n
    offered = {key.partition("|")[2]: n for key, n in facts.items() if key.startswith("offered|")}
    names = [*offered, *(name for name in judged if name not in offered)]  # these were never offered
    return {name: SourceCount(offered.get(name, 0), judged.get(name, {})) for name in names}
