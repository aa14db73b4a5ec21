"""The tutorial: what the software does, from a folder of images to verdicts, step by step, with nothing faked.

Read it from top to bottom. Every line here could be yours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import wait_until

from pipeline.broker import Broker
from pipeline.inspector import Inspector
from pipeline.opening import open_engines
from pipeline.producer import produce
from pipeline.recipe import load_recipe
from pipeline.results import Summary, kept
from pipeline.scoring import PanelTruths, Score
from pipeline.sources.directory import Directory
from pipeline.sources.panel import PanelSimulator
from pipeline.sources.panel_frames import PanelFrames
from pipeline.sources.stamp import Stamp
from pipeline.stream import open_stream
from pipeline.worker import Worker

pytest.importorskip("openvino", reason="the shipped recipes run on engine cpu, which needs openvino")


def test_from_panels_to_verdicts(redis_url: str, line: str) -> None:
    """A source yields frames, a producer puts them on a stream, a worker turns each into one verdict."""
    # A source yields frames. This one draws panels, so we know the truth about each.
    simulator = PanelSimulator(seed=7, defect_rate=0.4)
    source = PanelFrames(simulator, Stamp("panels"), count=60)

    # A producer puts them on a stream. What is offered is on the ledger from now on.
    stream = open_stream(redis_url, line, worker="tutorial")
    assert produce(source, stream, gather=8).frames == 60
    assert stream.audit().outstanding == 60

    # A recipe says what to inspect and what makes a part good; it names the engines.
    recipe = load_recipe("panel")
    with open_engines(recipe) as engines:
        # A worker takes frames in batches, inspects them, and settles their verdicts.
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), name="tutorial")
        stop_when_settled(worker, line, redis_url, 60)
        counts = worker.run()
    assert (counts.taken, counts.settled, counts.late) == (60, 60, 0)

    # The promise: every frame that was offered has exactly one verdict.
    reader = open_stream(redis_url, line)
    audit = reader.audit()
    assert audit.holds
    assert (audit.offered, audit.settled, audit.outstanding) == (60, 60, 0)
    verdicts = list(kept(reader))
    assert sorted(verdict.frame.sequence for verdict in verdicts) == list(range(60))

    # A verdict says what was found, where, by which recipe, and when each step of its way was.
    ng = next(verdict for verdict in verdicts if verdict.judgement == "NG")
    assert ng.defects[0].class_name in recipe.defect_classes
    assert ng.mask().sum() == sum(defect.area_px for defect in ng.defects)
    way = [ng.frame.triggered_ns, ng.frame.offered_ns, ng.received_ns, ng.batched_ns, ng.inferred_ns, ng.settled_ns]
    assert way == sorted(way)

    # And since the truth is known, so is how good the verdicts are.
    score, summary = Score(), Summary()
    for verdict in verdicts:
        truth = PanelTruths(simulator).of(verdict.frame.sequence)
        assert truth is not None
        score.add(verdict, truth)
        summary.add(verdict)
    assert score.recall is not None
    assert score.recall > 0.8
    assert score.precision is not None
    assert score.precision > 0.8
    assert summary.frames == 60
    assert summary.fps > 0


def stop_when_settled(worker: Worker, line: str, url: str, total: int) -> None:
    """Stop the worker from beside, as SIGTERM would."""

    def watch() -> None:
        reader = open_stream(url, line)
        wait_until(lambda: reader.audit().settled == total)
        worker.stop()

    threading.Thread(target=watch, daemon=True).start()


def test_folder_with_a_broken_image(redis_url: str, line: str, tmp_path: Path) -> None:
    """Your own images: what cannot be read has its verdict too, and it says why."""
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"part{i}.png"), PanelSimulator().panel(i).image)
    (tmp_path / "part3.png").write_bytes(b"\x89PNG\r\n\x1a\n and then the camera lost power")
    (tmp_path / "part4.bmp").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "part5.png"), np.zeros((64, 64), np.uint16))

    stream = open_stream(redis_url, line, worker="folder")
    offered = produce(Directory(tmp_path, Stamp("folder")), stream)
    assert (offered.frames, offered.faulty) == (6, 1)

    recipe = load_recipe("panel")
    with open_engines(recipe) as engines:
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), name="folder")
        stop_when_settled(worker, line, redis_url, 6)
        worker.run()

    verdicts = {verdict.frame.name: verdict for verdict in kept(open_stream(redis_url, line))}
    broken = ["part3.png", "part4.bmp", "part5.png"]
    assert [verdicts[name].judgement for name in broken] == ["UNINSPECTED"] * 3
    assert [verdicts[name].reason for name in broken] == ["undecodable"] * 3
    assert "wrong bit depth" in verdicts["part5.png"].detail
    assert all(verdicts[f"part{i}.png"].judgement != "UNINSPECTED" for i in range(3))


def test_the_commands_do_the_same(tmp_path: Path) -> None:
    """The same from a shell: offer, look, work, read; the embedded Redis keeps the backlog between commands."""
    aoi = [sys.executable, "-m", "pipeline.cli"]
    here = ["--broker-dir", str(tmp_path / "broker"), "--line", "press4"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*aoi, *words], capture_output=True, text=True, timeout=60, check=True)

    run("produce", "panel:", "--frames", "20", "--seed", "3", *here)
    status = json.loads(run("status", "--json", *here).stdout)
    assert (status["lines"]["press4"]["offered"], status["lines"]["press4"]["outstanding"]) == (20, 20)

    with Broker(tmp_path / "broker") as broker:
        worker = subprocess.Popen([*aoi, "work", "--recipe", "panel", *here], stderr=subprocess.PIPE)
        stream = open_stream(broker.url, "press4")
        wait_until(lambda: stream.audit().settled == 20)
        worker.terminate()
        worker.communicate(timeout=30)
        assert worker.returncode == 0

    lines = run("results", *here).stdout.splitlines()
    verdicts = [json.loads(line) for line in lines]
    assert len(verdicts) == 20
    assert {verdict["judgement"] for verdict in verdicts} <= {"OK", "NG", "REVIEW"}
    assert json.loads(run("status", "--json", *here).stdout)["holds"] is True
