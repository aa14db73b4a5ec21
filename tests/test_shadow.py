"""A second recipe sees live frames, and the line does not notice."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Opener, make_frame, wait_until
from line_clients import assert_holds, verdict_for
from line_processes import AOI, LineProcesses, finished, write_recipe

from pipeline.errors import Exit
from pipeline.messages import Frame, Judgement, Verdict
from pipeline.shadow import Pairing, Shadow
from pipeline.stream import Limits, Stream, open_stream

Pairs = list[tuple[Verdict, Verdict, "Frame | None"]]


def said(number: int, judgement: Judgement = "OK", reason: str = "") -> Verdict:
    return Verdict(frame=make_frame(number).without_pixels(), judgement=judgement, reason=reason)


def test_verdicts_meet_in_any_order() -> None:
    """The line's first or the shadow's, each once, with the pixels while they are at hand."""
    pairs: Pairs = []
    pairing = Pairing(lambda *pair: pairs.append(pair), max_bytes=3 * 64 * 64)
    for number in range(4):
        pairing.frame(make_frame(number))
    for number, of_shadow in ((0, False), (1, True), (1, False), (0, True), (3, False), (3, True)):
        pairing.verdict(said(number, "NG" if of_shadow else "OK"), of_shadow)
    assert [(one.judgement, other.judgement) for one, other, _ in pairs] == 3 * [("OK", "NG")]
    assert [frame and frame.sequence for *_, frame in pairs] == [1, None, 3]  # 0 had to make room
    assert (pairing.counts.paired, pairing.waiting) == (3, 0)


def test_what_never_meets_is_given_up() -> None:
    """The line goes on for months; copies that were shed are no comparison."""
    pairs: Pairs = []
    pairing = Pairing(lambda *pair: pairs.append(pair), max_waiting=10)
    for number in range(25):
        pairing.verdict(said(number), False)
    assert (pairing.waiting, pairing.counts.unpaired) == (10, 15)
    pairing.verdict(said(24, "UNINSPECTED", "shed"), True)
    assert (pairs, pairing.counts.shed, pairing.waiting) == ([], 1, 9)


def shadowed(line: Stream, onto: Stream, pairs: Pairs) -> tuple[Shadow, threading.Thread]:
    shadow = Shadow(line, onto, lambda *pair: pairs.append(pair))
    begun = threading.Event()
    thread = threading.Thread(target=lambda: shadow.run(begun.set))
    thread.start()
    assert begun.wait(10)
    return shadow, thread


def test_the_line_does_not_notice(opened: Opener, request: pytest.FixtureRequest) -> None:
    """Its frames, ledger and workers are as without; the copies have no deadline and a line of their own."""
    url, pairs = f"memory://{request.node.name}", Pairs()
    worker, beside = opened("w"), open_stream(url, "x.shadow", "s")
    shadow, thread = shadowed(opened(""), open_stream(url, "x.shadow"), pairs)
    frames = [replace(make_frame(n), deadline_ns=(1 << 62)) for n in range(12)]
    assert worker.offer(frames) == 12
    wait_until(lambda: shadow.counts.copied == 12)
    copies = beside.take(20)
    assert {delivery.frame.deadline_ns for delivery in copies} == {0}
    beside.settle([verdict_for(delivery, "NG") for delivery in copies])
    assert worker.audit().outstanding == 12
    worker.settle([verdict_for(delivery) for delivery in worker.take(12)])
    wait_until(lambda: shadow.counts.paired == 12)
    shadow.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert [(one.judgement, other.judgement) for one, other, _ in pairs] == 12 * [("OK", "NG")]
    assert all(frame and frame.frame_id == one.frame.frame_id for one, _, frame in pairs)
    assert worker.audit().judged["OK"] == 12
    assert_holds(worker)


def test_a_shadow_that_is_too_slow_sheds_its_copies(opened: Opener, request: pytest.FixtureRequest) -> None:
    """And nothing of the line's: what it could not judge is counted."""
    worker, url = opened("w"), f"memory://{request.node.name}"
    onto = open_stream(url, "slow.shadow", limits=Limits(max_frames=3))
    shadow, thread = shadowed(opened(""), onto, [])
    for number in range(10):
        worker.offer([make_frame(number)])
        wait_until(lambda number=number: shadow.counts.copied == number + 1)  # type: ignore[misc]
        worker.settle([verdict_for(delivery) for delivery in worker.take(1)])
    wait_until(lambda: shadow.counts.shed == 7)
    slow = open_stream(url, "slow.shadow", "s")
    slow.settle([verdict_for(delivery) for delivery in slow.take(9)])
    wait_until(lambda: shadow.counts.paired == 3)
    shadow.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert worker.audit().judged == {"OK": 10, "NG": 0, "REVIEW": 0, "UNINSPECTED": 0}


def test_a_new_model_beside_a_running_line(redis_url: str, line: str, tmp_path: Path) -> None:
    """Real processes: the line's verdicts are the old model's, and the report has every flip."""
    new = write_recipe(tmp_path / "new", 0, 4)
    (new / "net.fake").write_text(json.dumps({"bright": 1}))  # all is a defect to it
    with LineProcesses(tmp_path, redis_url, line) as processes:
        words = ["--url", redis_url, "--line", line, "--recipe", str(new), "--report", str(tmp_path / "diff.html")]
        command = [*AOI, "shadow", *words, "--max-overkill", "0", "--json"]
        shadow = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            beside = open_stream(redis_url, f"{line}.shadow")
            wait_until(lambda: beside.audit().workers)
            finished(processes.produce(40, "--rate", "40"))
            wait_until(lambda: beside.audit().offered == 40)  # on a busy machine some would else be judged unseen
            processes.work(delay_ms=5)
            verdicts = processes.verdicts(40)
            wait_until(lambda: beside.audit().settled == beside.audit().offered)
            shadow.terminate()
            out, err = shadow.communicate(timeout=60)
        finally:
            shadow.kill()
            shadow.wait(20)
        beside.close()
    assert shadow.returncode == Exit.REFUSED, err
    told = json.loads(out)
    good = sum(verdict.judgement == "OK" for verdict in verdicts)
    assert told["copied"] == told["paired"] + told["shed"]
    assert told["paired"] == 40
    assert told["diff"]["overkill"] == good > 0
    assert "<div class=pair><img" in (tmp_path / "diff.html").read_text()
