"""The commands as a user types them: what they print, how they refuse, which code they leave."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import redis
from conftest import make_frame, wait_until

from pipeline.errors import Exit
from pipeline.sources.panel import CLASSES
from pipeline.stream import open_stream

Done = subprocess.CompletedProcess[str]


def run(*words: object, **environment: str) -> Done:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


def refused(done: Done, code: Exit, *words: str) -> None:
    """One line on stderr with these words, this exit code, nothing on stdout, no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len([line for line in lines if line.startswith("Error: ")]) == 1, lines
    for word in words:
        assert word in lines[-1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder of fake engines, 64 × 64."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "net.fake").write_text('{"delay_ms": 1}')
    stage = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
    text = f'name = "fake"\n[classifier]\n{stage}[segmenter]\n{stage}[batching]\nengine = "fake"\n'
    (folder / "recipe.toml").write_text(text)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve parts, every fourth with a defect for the fake engine, and one broken file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        image = np.full((64, 64), 100, np.uint8)
        if i % 4 == 0:
            image[10:20, 10:20] = 255
        cv2.imwrite(str(folder / f"part{i}.png"), image)
    (folder / "part12.png").write_bytes(b"\x89PNG no more")
    return folder


@pytest.fixture
def worker(redis_url: str, line: str, model: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "pipeline.cli", "work", "--recipe", str(model)]
    env = {**os.environ, "AOI_URL": redis_url, "AOI_LINE": line}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_demo_on_own_images(model: Path, images: Path, tmp_path: Path) -> None:
    """The main job on a folder: frames in = verdicts out, counted by the ledger, overlays of the NG ones."""
    done = run("demo", "--images", images, "--recipe", model, "--overlays", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["offered"], told["settled"], told["outstanding"]) == (13, 13, 0)
    assert told["judgements"] == {"OK": 9, "NG": 3, "REVIEW": 0, "UNINSPECTED": 1}
    assert told["reasons"] == {"UNINSPECTED: undecodable": 1}
    assert told["precision"] is None, "no truth is known of these images"
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p99"]
    assert told["fps"] > 0
    pictures = list((tmp_path / "out").glob("NG_*.png"))
    assert len(pictures) == 3
    assert cv2.imread(str(pictures[0])) is not None


def test_demo_survives_having_its_processes_killed(model: Path, tmp_path: Path) -> None:
    """Producer, worker and Redis killed by hand while it runs: started again, and the count is right all the same."""
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--recipe", str(model), "--frames", "1200"]
    command += ["--overlays", str(tmp_path / "out"), "--json"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for name in ("produce", "work", "redis-server"):
        wait_until(lambda name=name: child(demo.pid, name) or demo.poll() is not None)  # type: ignore[misc]
        pid = child(demo.pid, name)
        assert pid, f"the demo was over before its {name} could be killed"
        os.kill(pid, signal.SIGKILL)
    out, said = demo.communicate(timeout=100)
    assert demo.returncode == 0, said
    told = json.loads(out)
    assert (told["offered"], told["settled"], told["outstanding"]) == (1200, 1200, 0)
    assert told["restarts"] == 2


def child(parent: int, command: str) -> int:
    """The child process that runs this command of ours; 0 if there is none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                of = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            runs = Path(words[0].split(b" ")[0].decode()).name  # never the folders above it: they may be called "work"
            if of == parent and (command.encode() in words[3:4] or command == runs):
                return int(entry.name)
    return 0


def test_produce_work_results_status(redis_url: str, line: str, images: Path, worker: subprocess.Popen[str]) -> None:
    """The commands in a row, configured by environment: offered, judged, printed as JSON lines, counted."""
    env = {"AOI_URL": redis_url, "AOI_LINE": line}
    done = run("produce", images, "--lot", "4711", **env)
    assert done.returncode == 0, done.stderr
    assert "13 frames offered" in done.stderr
    stream = open_stream(redis_url, line)
    wait_until(lambda: not stream.audit().outstanding)
    verdicts = [json.loads(row) for row in run("results", **env).stdout.splitlines()]
    assert [v["name"] for v in sorted(verdicts, key=lambda v: v["sequence"])] == [f"part{i}.png" for i in range(13)]
    assert {verdict["lot"] for verdict in verdicts} == {"4711"}
    ng = [json.loads(row) for row in run("results", "--judgement", "NG", "--no-masks", **env).stdout.splitlines()]
    assert len(ng) == 3
    assert all("masks" not in verdict for verdict in ng)
    status = json.loads(run("status", "--json", **env).stdout)
    assert status["lines"][line]["judgements"]["NG"] == 3
    assert status["holds"]
    table = run("status", **env)
    assert table.returncode == 0
    assert line in table.stdout


def test_audit_by_source_with_gaps(redis_url: str, line: str) -> None:
    """The identity per source, what was never offered, and exit code LEDGER once the books are cooked."""
    stream = open_stream(redis_url, line)
    stream.offer([make_frame(0, "left"), make_frame(4, "left"), make_frame(0, "right")])
    told = json.loads(run("audit", "--json", AOI_URL=redis_url, AOI_LINE=line).stdout)
    assert told["holds"]
    assert told["sources"]["left"] == {"offered": 2, "judgements": {}}
    assert told["gaps"] == [["left-s", 1, 3]]
    table = run("audit", AOI_URL=redis_url, AOI_LINE=line)
    assert "3 offered = 0 OK + 0 NG + 0 REVIEW + 0 UNINSPECTED + 3 outstanding  ledger holds" in table.stdout
    assert "never offered: left-s 1…3" in table.stdout
    redis.Redis.from_url(redis_url).hincrby(f"aoi:{{{line}}}:ledger", "offered|right", 1)
    cooked = run("audit", AOI_URL=redis_url, AOI_LINE=line)
    assert cooked.returncode == Exit.LEDGER
    assert "LEDGER DOES NOT HOLD" in cooked.stdout


def test_produce_again_in_its_session_offers_nothing_twice(redis_url: str, line: str, images: Path) -> None:
    """A producer that was cut off goes on with --session; the ledger counts each image once.

    In a folder that has changed since, numbers mean other images: then it is another session, and none is dropped.
    """
    stream = open_stream(redis_url, line)
    for _ in range(2):
        run("produce", images, "--session", "night", AOI_URL=redis_url, AOI_LINE=line)
    assert stream.audit().offered == 13
    cv2.imwrite(str(images / "a_new_one.png"), np.zeros((64, 64), np.uint8))
    run("produce", images, "--session", "night", AOI_URL=redis_url, AOI_LINE=line)
    assert stream.audit().offered == 13 + 14
    watching = run("produce", images, "--session", "night", "--watch", AOI_URL=redis_url, AOI_LINE=line)
    assert watching.returncode == Exit.USAGE


def test_results_follow_new_verdicts(redis_url: str, line: str, images: Path, worker: subprocess.Popen[str]) -> None:
    """--follow prints each verdict as it comes and leaves in order on SIGTERM."""
    env = {**os.environ, "AOI_URL": redis_url, "AOI_LINE": line}
    command = [sys.executable, "-m", "pipeline.cli", "results", "--follow", "--limit", "13"]
    follower = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    run("produce", images, AOI_URL=redis_url, AOI_LINE=line)
    out, _ = follower.communicate(timeout=30)
    assert len(out.splitlines()) == 13


def test_watched_folder(redis_url: str, line: str, images: Path, worker: subprocess.Popen[str]) -> None:
    """produce --watch offers files as they are added, until it is stopped."""
    env = {**os.environ, "AOI_URL": redis_url, "AOI_LINE": line}
    command = [sys.executable, "-m", "pipeline.cli", "produce", str(images), "--watch", "--pattern", "part*.png"]
    producer = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    stream = open_stream(redis_url, line)
    wait_until(lambda: stream.audit().settled >= 12)
    cv2.imwrite(str(images / "part99.png"), np.full((64, 64), 100, np.uint8))
    wait_until(lambda: stream.audit().settled >= 14)
    producer.terminate()
    _, said = producer.communicate(timeout=30)
    assert producer.returncode == 0
    assert "14 frames offered" in said


def test_frame_larger_than_the_byte_budget(redis_url: str, line: str, tmp_path: Path) -> None:
    """It gets its verdict at once, and what follows is not held up."""
    folder = tmp_path / "large"
    folder.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "1.png"), rng.integers(0, 255, (1200, 1200), np.uint8))
    cv2.imwrite(str(folder / "2.png"), np.zeros((64, 64), np.uint8))
    done = run("produce", folder, "--max-mib", "1", AOI_URL=redis_url, AOI_LINE=line)
    assert done.returncode == 0
    audit = open_stream(redis_url, line).audit()
    assert (audit.offered, audit.outstanding, audit.reasons) == (2, 1, {"UNINSPECTED too_large": 1})


def test_disk_full_for_overlays_costs_pictures_not_verdicts(
    redis_url: str, line: str, model: Path, images: Path, tmp_path: Path
) -> None:
    """The overlay folder takes no more bytes: one warning, and every frame has its verdict all the same."""
    run("produce", images, AOI_URL=redis_url, AOI_LINE=line)
    words = ["work", "--recipe", model, "--url", redis_url, "--line", line, "--overlays", tmp_path / "out"]
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]

    worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, 0))  # its files can take no byte from now on
    stream = open_stream(redis_url, line)
    wait_until(lambda: not stream.audit().outstanding)
    worker.terminate()
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0, said
    assert said.count("overlay not written") == 1
    assert "make room" in said
    assert stream.audit().settled == 13


def test_simulate_writes_a_data_set(tmp_path: Path) -> None:
    """Panels with pixel truth, in the form that training reads."""
    assert run("simulate", tmp_path / "set", "--frames", "3", "--seed", "1").returncode == 0
    assert (tmp_path / "set/classes.txt").read_text().split() == list(CLASSES)
    assert len(list((tmp_path / "set/image").iterdir())) == len(list((tmp_path / "set/label").iterdir())) == 3


def test_doctor_tells_what_is_there() -> None:
    """Every topic has an answer; the machine that runs the tests is ready."""
    done = run("doctor", "--json")
    told = json.loads(done.stdout)
    assert told["ready"] is (done.returncode == 0)
    topics = {finding["topic"]: finding for finding in told["findings"]}
    assert {"python", "engine cpu", "redis", "broker folder"} <= topics.keys()
    assert all(finding["ok"] or finding["mend"] for finding in told["findings"])


def test_doctor_without_redis_says_how_to_mend_it() -> None:
    """A Redis that does not answer: exit code UNREADY and what to do."""
    done = run("doctor", "--json", "--url", "redis://127.0.0.1:1")
    assert done.returncode == Exit.UNREADY
    (finding,) = [f for f in json.loads(done.stdout)["findings"] if f["topic"] == "redis"]
    assert not finding["ok"]
    assert finding["mend"]


def test_unknown_recipe(redis_url: str) -> None:
    """The nearest shipped one is named."""
    refused(run("work", "--recipe", "pannel", "--url", redis_url), Exit.RECIPE, "no recipe 'pannel'", "panel")
    refused(run("demo", "--recipe", "pannel"), Exit.RECIPE, "did you mean panel?")


def test_unknown_key_in_a_recipe(model: Path) -> None:
    """The key, where it stands, and the nearest valid one."""
    text = (model / "recipe.toml").read_text()
    (model / "recipe.toml").write_text(text + "max_bach = 4\n")
    done = run("work", "--recipe", model, "--url", "redis://127.0.0.1:1")
    refused(done, Exit.RECIPE, "unknown key 'max_bach'", "did you mean 'max_batch'?")


def test_engine_file_missing(model: Path) -> None:
    """The file that is missing is named, and where to correct it."""
    (model / "net.fake").unlink()
    done = run("work", "--recipe", model, "--url", "redis://127.0.0.1:1")
    refused(done, Exit.ENGINE, "net.fake", "does not exist")


def test_engine_with_the_wrong_inputs(tmp_path: Path) -> None:
    """A network that does not take uint8 tiles is refused with what it takes and what it should."""
    onnx = pytest.importorskip("onnx", reason="the wrong model is made with onnx")
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])
    scores = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["image"], ["scores"])], "g", [image], [scores])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    recipe = 'mode = "classify"\n[classifier]\nfile = "net.onnx"\nclasses = ["good", "bad"]\n'
    (tmp_path / "recipe.toml").write_text(recipe)
    done = run("work", "--recipe", tmp_path, "--url", "redis://127.0.0.1:1")
    refused(done, Exit.ENGINE, "has wrong inputs (image: f32", "one input pixels: uint8 [N, H, W, 1 or 3]")


def test_redis_not_there() -> None:
    """Commands that only look say so at once."""
    for command in ("status", "results"):
        refused(run(command, "--url", "redis://127.0.0.1:1"), Exit.STREAM, "Redis cannot be reached")
    refused(run("status", "--url", "http://x"), Exit.STREAM, "use redis://")


def test_producer_waits_for_a_redis_that_is_away(images: Path) -> None:
    """A producer keeps its frames and says so; stopped, it tells how many it could not hand over."""
    command = [sys.executable, "-m", "pipeline.cli", "produce", str(images), "--url", "redis://127.0.0.1:1"]
    producer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert producer.stderr is not None
    assert "13 frames kept meanwhile, trying again" in producer.stderr.readline()
    producer.terminate()
    _, said = producer.communicate(timeout=30)
    assert producer.returncode == Exit.INTERRUPTED
    assert "stopped with 13 frames in hand" in said


def test_source_that_is_not_there(redis_url: str) -> None:
    """Folder, video, camera and simulator: each says what to check."""
    refused(run("produce", "/no/such/folder", "--url", redis_url), Exit.SOURCE, "is not a folder")
    refused(run("produce", "camera:/dev/video99", "--url", redis_url), Exit.SOURCE, "does not open")
    refused(run("produce", "panel:", "--contrast", "-1", "--url", redis_url), Exit.SOURCE, "contrast")


def test_misspelt_option_is_refused() -> None:
    """click's own usage errors keep their code."""
    done = run("work", "--recipee", "panel")
    assert done.returncode == Exit.USAGE
    assert "--recipe" in done.stderr
