"""What somebody else puts straight onto a line's streams, past `offer`: judged, told, and no harm to neighbours."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hostile_images as hostile
import msgpack
import pytest
import redis
from conftest import fake_recipe, make_frame, wait_until

from pipeline.cli import main
from pipeline.errors import Exit
from pipeline.inspector import Inspector
from pipeline.messages import Verdict
from pipeline.opening import open_engines
from pipeline.results import kept
from pipeline.stream import Audit, Delivery, Limits, Stream, list_lines, open_stream
from pipeline.worker import Worker

FOREIGN: dict[str, dict[bytes, bytes]] = {
    "no field of ours": {b"hello": b"world"},
    "source only": {b"s": b"cam"},
    "header of 1 MB": {b"s": b"cam", b"h": b"\xdb\0\x0f\0\0" + bytes(1 << 20), b"p": b"x"},
    "source of bytes": {b"s": b"\xff\x1b[2J|", b"h": b"", b"p": b""},
    "a bomb": {b"s": b"cam", b"h": b"", b"p": hostile.gif(30_000)},
}


@pytest.fixture(autouse=True)
def _leave_no_line_out_of_balance(redis_url: str, line: str) -> Iterator[None]:
    """Other tests ask this server for all of its lines."""
    yield
    with redis.Redis.from_url(redis_url) as client:
        client.delete(*(f"aoi:{{{line}}}:{name}" for name in ("frames", "verdicts", "ledger", "gaps", "deadlines")))


def bomb_header() -> bytes:
    return replace(make_frame(0), frame_id="bomb", encoding="png", height=0, width=0, pixels=b"").header()


@contextmanager
def at_work(stream: Stream, folder: Path) -> Iterator[Worker]:
    """A worker in this process; fails when it ends by an error."""
    recipe, failed = fake_recipe(folder), []

    def run(worker: Worker) -> None:
        try:
            worker.run()
        except Exception as error:
            failed.append(error)

    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), "w", grace_s=1.0)
        thread = threading.Thread(target=run, args=(worker,), daemon=True)
        thread.start()
        yield worker
        worker.stop()
        thread.join(20)
    assert not thread.is_alive()
    assert not failed


def put(url: str, line: str, fields: dict[bytes, bytes], stream: str = "frames") -> None:
    """An entry that nobody offered."""
    with redis.Redis.from_url(url) as client:
        client.xadd(f"aoi:{{{line}}}:{stream}", cast(Any, fields))


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_entry_harms_no_neighbour(redis_url: str, line: str, tmp_path: Path, name: str) -> None:
    """It leaves as UNINSPECTED; frames before and after are judged; the byte budget is as it was."""
    fields = {**FOREIGN[name], **({b"h": bomb_header()} if name == "a bomb" else {})}
    stream = open_stream(redis_url, line, "w")
    stream.offer([make_frame(0)])
    put(redis_url, line, fields)
    stream.offer([make_frame(1)])
    with at_work(stream, tmp_path):
        wait_until(lambda: not stream.audit().outstanding)
    verdicts = list(kept(stream))
    assert [verdict.judgement for verdict in verdicts].count("OK") == 2
    (foreign,) = [verdict for verdict in verdicts if verdict.judgement == "UNINSPECTED"]
    assert foreign.reason == "undecodable"
    with redis.Redis.from_url(redis_url) as client:
        assert client.memory_usage(f"aoi:{{{line}}}:verdicts") < 100_000, "its header is not kept with the verdict"
        source = too_many(stream.audit())
        client.hincrby(f"aoi:{{{line}}}:ledger", f"offered|{source}", 1)
    assert stream.audit().holds, "the way back that the README names"


def too_many(audit: Audit) -> str:
    """Three left the stream, two were offered: the ledger says so, and of which source, and does not balance."""
    assert (audit.offered, audit.settled, audit.unoffered) == (2, 3, 1)
    assert not audit.holds
    assert audit.outstanding_bytes == 0
    (source,) = [name for name, count in audit.sources.items() if count.settled > count.offered]
    return source


def test_audit_says_what_does_not_balance(redis_url: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code LEDGER, how many more than were offered, and where they come from; before and after they are judged."""
    stream = open_stream(redis_url, line, "w")
    stream.offer([make_frame(0)])
    put(redis_url, line, {b"s": b"evil\x1b[2J[red]\n", b"h": b"", b"p": b""})
    for _ in range(2):
        assert run_aoi("audit", redis_url, line) == Exit.LEDGER
        said = capsys.readouterr().out
        assert "1 more than were offered" in said
        assert "\x1b[2J" not in said
        stream.settle([(delivery, uninspected(delivery)) for delivery in stream.take(9)])
    assert "evil\\x1b[2J[red]" in said.replace("\n", "")
    assert run_aoi("audit", redis_url, line, "--json") == Exit.LEDGER
    assert json.loads(capsys.readouterr().out)["unoffered"] == 1


def run_aoi(command: str, url: str, line: str, *options: str) -> int:
    """An `aoi` command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["aoi", command, "--url", url, "--line", line, *options])
        patch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            main()
    return int(cast(int, ended.value.code))


def uninspected(delivery: Delivery) -> Verdict:
    return Verdict(frame=delivery.frame.without_pixels(), judgement="UNINSPECTED", reason="undecodable")


def test_foreign_entry_is_shed_as_any_other(redis_url: str, line: str) -> None:
    """A camera's producer goes on although the oldest entry has no field it knows, and nothing it offered is lost."""
    stream = open_stream(redis_url, line, limits=Limits(max_frames=2))
    put(redis_url, line, {b"hello": b"world"})
    put(redis_url, line, {b"s": b"\xff\xfe"})
    assert stream.offer([make_frame(i) for i in range(5)], "shed-oldest") == 5
    audit = stream.audit()
    assert (audit.offered, audit.outstanding, audit.judged["UNINSPECTED"]) == (5, 2, 5)


def test_foreign_verdict_does_not_stop_readers(redis_url: str, line: str) -> None:
    """It is told as UNINSPECTED: unreadable, whatever it says of itself; those after it are read."""
    stream = open_stream(redis_url, line, "w")
    header, verdict = make_frame(0).header(), Verdict(frame=make_frame(0), judgement="OK")
    newer = cast(bytes, msgpack.packb({**msgpack.unpackb(verdict.body()), "v": 9}))
    for fields in ({b"hello": b"world"}, {b"h": header, b"v": b"junk"}, {b"h": header, b"v": newer}):
        put(redis_url, line, fields, "verdicts")
    stream.offer([make_frame(0)])
    (delivery,) = stream.take(1)
    stream.settle([(delivery, verdict)])
    found = [(verdict.judgement, verdict.reason) for verdict in kept(stream)]
    assert found[:3] == [("UNINSPECTED", "unreadable")] * 3
    assert found[3][0] == "OK"


def test_foreign_keys_do_not_hide_the_lines(redis_url: str, line: str) -> None:
    """A key that only looks like a line's is left out; `aoi status` shows the others."""
    open_stream(redis_url, line).offer([make_frame(0)])
    names = [b"aoi:{a b}:ledger", b"aoi:{\xff\x1b}:ledger", b"aoi:{" + b"x" * 99 + b"}:ledger"]
    with redis.Redis.from_url(redis_url) as client:
        for name in names:
            client.hset(cast(Any, name), "offered|x", 1)
        try:
            assert line in list_lines(redis_url)
            assert all(open_stream(redis_url, name).audit() for name in list_lines(redis_url))
        finally:
            client.delete(*names)
