"""The stream on Redis ≥ 6.2 or Valkey; the only file that imports redis. Its scripts lie beside it.

Keys of a line share a hash tag, so that a cluster keeps them on one node: `aoi:{LINE}:frames` (stream, consumer
group `workers`), `:verdicts` (stream), `:dead` (stream), `:ledger` (hash), `:gaps` (list), `:alive:WORKER`.
Every verb is one round trip. Whoever takes frames says with the same call that it lives; the server forgets it
after a few seconds of silence, and only then are its frames anyone's to reclaim.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import StreamDown, StreamError
from pipeline.messages import Frame, Verdict
from pipeline.stream import (
    POISON,
    SHED,
    TOO_LARGE,
    Audit,
    Delivery,
    Limits,
    Policy,
    SourceCount,
    parse_gaps,
    read_delivery,
    uninspected,
)

GROUP = "workers"
ALIVE_MS = 5000
LONGEST_WAIT_S = 1.0  # of one blocking read: well below ALIVE_MS, so that waiting is not silence
SOCKET_TIMEOUT_S = 10.0
MIN_VERSION = (6, 2)
PASSING = (  # the client turns some of the server's words into classes of their own …
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
PASSING_WORDS = (
    "OOM",
    "READONLY",
    "MISCONF",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "BUSY ",
)  # … or not
OFFER_BYTES = 4 * 1024 * 1024  # of one script call: the server serves nobody else meanwhile


def open_redis(url: str, line: str, worker: str, limits: Limits) -> RedisStream:
    """A client of this line; nothing is sent before the first verb, so start-up order does not matter."""
    return RedisStream(_client(url, f"aoi-{worker}" if worker else "aoi"), line, worker, limits)


def list_lines(url: str) -> list[str]:
    """Names of the lines that have a ledger here, sorted."""
    client = _client(url, "aoi")
    with _translated():
        keys = [key.decode() for key in client.scan_iter(match="aoi:{*}:ledger", count=1000)]
        client.close()
    return sorted(key[len("aoi:{") : -len("}:ledger")] for key in keys)


def _client(url: str, name: str) -> redis.Redis:
    name = re.sub(r"[^!-~]", "-", name)  # CLIENT SETNAME takes no spaces
    waits: dict[str, Any] = {"socket_timeout": SOCKET_TIMEOUT_S, "socket_connect_timeout": SOCKET_TIMEOUT_S}
    # The client must not repeat a read by itself: frames of an answer that got lost would be nobody's.
    waits["retry"] = Retry(NoBackoff(), 0)
    try:
        return redis.Redis.from_url(url, health_check_interval=0, client_name=name, **waits)
    except ValueError as error:
        raise StreamError(f"stream URL {url!r} is not understood: {error}") from error


@contextmanager
def _translated() -> Iterator[None]:
    """Redis' errors as ours: what may pass by itself is StreamDown, the rest StreamError."""
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise StreamError(f"Redis refuses this user: {error}; check user and password in the URL") from error
    except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError) as error:
        raise StreamDown(f"Redis cannot be reached: {error}") from error
    except PASSING as error:
        raise StreamDown(f"Redis cannot take this now: {error}") from error
    except redis.ResponseError as error:
        text = str(error)
        if any(word in text for word in PASSING_WORDS):
            raise StreamDown(f"Redis cannot take this now: {text}") from error
        raise StreamError(f"Redis refuses: {text}") from error


def _script(client: redis.Redis, name: str) -> Any:
    return client.register_script((Path(__file__).parent / f"{name}.lua").read_text())


class RedisStream:
    """The Stream protocol on a Redis server."""

    def __init__(self, client: redis.Redis, line: str, worker: str, limits: Limits) -> None:
        self.line, self.worker, self.forgets_s = line, worker, ALIVE_MS / 1000
        self._redis, self._limits = client, limits
        base = f"aoi:{{{line}}}:"
        self._frames, self._verdicts, self._dead = base + "frames", base + "verdicts", base + "dead"
        self._ledger, self._gaps, self._alive = base + "ledger", base + "gaps", base + "alive:"
        self._offer, self._settle = _script(client, "offer"), _script(client, "settle")
        self._reclaim, self._audit = _script(client, "reclaim"), _script(client, "audit")
        self._held: set[str] = set()
        self._last_chance: set[str] = set()  # of those, on their last delivery
        self._held_lock = threading.Lock()
        self._reply_lost = False  # a delivery may have got lost on the way; reclaim looks for it
        self._version_known = self._joined = False

    # -------------------------------------------------------------- the five verbs

    def offer(self, frames: Sequence[Frame], policy: Policy = "wait") -> int:
        self._check_version()
        dealt = 0
        for chunk in _chunks(frames, OFFER_BYTES):
            count = self._offer_chunk(chunk, policy)
            dealt += count
            if count < len(chunk):
                break
        return dealt

    def _offer_chunk(self, frames: Sequence[Frame], policy: Policy) -> int:
        limits, now = self._limits, time.time_ns()
        bodies = [uninspected("shed", SHED), uninspected("too_large", TOO_LARGE)]
        args: list[Any] = [policy, limits.max_bytes, limits.max_frames, limits.keep_verdicts, *bodies, GROUP]
        for frame in frames:
            header = replace(frame, line=self.line, offered_ns=now).header()
            args += [frame.source, frame.session, frame.sequence, header, frame.payload()]
        with _translated():
            return int(self._offer(keys=[self._frames, self._ledger, self._verdicts, self._gaps], args=args))

    def take(self, n: int, wait_s: float = 0.0) -> list[Delivery]:
        self._check_version()
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
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(self._alive + self.worker, "1", px=ALIVE_MS)
        if not self._joined:  # so that an idle worker is seen too
            pipe.xgroup_createconsumer(self._frames, GROUP, self.worker)
        if n > 0:
            pipe.xreadgroup(GROUP, self.worker, {self._frames: ">"}, count=n, block=block)
        with _translated():
            replies = pipe.execute()
        self._joined = True
        return replies[-1] if n > 0 else []

    def reclaim(self, n: int) -> list[Delivery]:
        self._check_version()
        with self._held_lock:
            lost, held = self._reply_lost, list(self._held) if self._reply_lost else []
        limits = self._limits
        chance = not self._last_chance
        args = [GROUP, self.worker, self._alive, ALIVE_MS, n, limits.max_deliveries, limits.keep_verdicts]
        args += [uninspected("poison", POISON), int(chance), int(lost), *held]
        keys = [self._frames, self._ledger, self._verdicts, self._dead]
        try:
            rows = self._with_group(lambda: self._call(self._reclaim, keys, args))
        except StreamDown:
            self._reply_lost = True
            raise
        if lost and len(rows) < n:
            self._reply_lost = False
        found = [read_delivery(t.decode(), s.decode(errors="replace"), h, p, int(k)) for t, k, s, h, p in rows]
        with self._held_lock:
            self._last_chance.update(d.token for d in found if d.deliveries >= limits.max_deliveries)
        return self._hold(found)

    def settle(self, settled: Sequence[tuple[Delivery, Verdict]]) -> list[bool]:
        if not settled:
            return []
        args: list[Any] = [GROUP, self.worker, self._limits.keep_verdicts]
        now = time.time_ns()
        for delivery, verdict in settled:
            body = replace(verdict, settled_ns=now).body()
            args += [delivery.token, delivery.frame.source, delivery.size, verdict.judgement, verdict.reason]
            args += [delivery.header, body]
        keys = [self._frames, self._ledger, self._verdicts]
        answers = self._with_group(lambda: self._call(self._settle, keys, args))
        with self._held_lock:
            for delivery, _ in settled:
                self._held.discard(delivery.token)
                self._last_chance.discard(delivery.token)
        return [bool(answer) for answer in answers]

    def audit(self) -> Audit:
        self._check_version()
        keys = [self._frames, self._ledger, self._gaps, self._dead]
        flat, outstanding, gaps, dead, alive = self._call(self._audit, keys, [GROUP, self._alive])
        facts = {k.decode(): int(v) for k, v in zip(flat[0::2], flat[1::2], strict=True)}
        workers = [name.decode() for name in alive]
        reasons = {key.partition("|")[2]: n for key, n in facts.items() if key.startswith("reason|")}
        rows = parse_gaps(row.decode() for row in gaps)
        return Audit(outstanding, facts.get("bytes", 0), _sources(facts), reasons, rows, workers, dead)

    # -------------------------------------------------------------- reading verdicts

    def read(self, after: str, n: int, wait_s: float = 0.0) -> list[tuple[str, Verdict]]:
        self._check_version()
        block = max(1, int(min(wait_s, LONGEST_WAIT_S) * 1000)) if wait_s > 0 else None
        with _translated():
            replies = cast(Any, self._redis.xread({self._verdicts: after}, count=n, block=block))
        rows = [row for _, entries in _pairs(replies) for row in entries]
        return [(token.decode(), Verdict.from_wire(f[b"h"], f[b"v"])) for token, f in rows]

    def newest(self) -> str:
        with _translated():
            rows = cast(Any, self._redis.xrevrange(self._verdicts, count=1))
        return str(rows[0][0].decode()) if rows else "0"

    def close(self) -> None:
        try:
            with _translated():
                if self.worker:
                    self._redis.delete(self._alive + self.worker)
                self._redis.close()
        except StreamError:  # it forgets us by itself
            pass

    # -------------------------------------------------------------- beneath

    def _hold(self, deliveries: list[Delivery]) -> list[Delivery]:
        with self._held_lock:
            self._held.update(delivery.token for delivery in deliveries)
        return deliveries

    def _call(self, script: Any, keys: list[str], args: list[Any]) -> Any:
        with _translated():
            return script(keys=keys, args=args)

    def _with_group(self, call: Callable[[], Any]) -> Any:
        """Run; where the consumer group does not exist yet (or any more), make it and run again."""
        try:
            return call()
        except StreamError as error:
            missing = ("NOGROUP", "no such key", "requires the key to exist")
            if not any(words in str(error) for words in missing):
                raise
        with _translated():
            try:
                self._redis.xgroup_create(self._frames, GROUP, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
        return call()

    def _check_version(self) -> None:
        """Once, on the first verb: is this a server whose streams can do what we need?"""
        if self._version_known:
            return
        with _translated():
            version = str(cast(Any, self._redis.info("server"))["redis_version"])
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


def _sources(facts: dict[str, int]) -> dict[str, SourceCount]:
    judged: dict[str, dict[str, int]] = {}
    for key, n in facts.items():
        if key.startswith("judged|"):
            _, judgement, source = key.split("|", 2)
            judged.setdefault(source, {})[judgement] = n
    offered = {key.partition("|")[2]: n for key, n in facts.items() if key.startswith("offered|")}
    return {source: SourceCount(n, judged.get(source, {})) for source, n in offered.items()}
