"""What several test files share: a real Redis, frames, models of the fake engine, and a leak check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from metrics_scrapes import Said, get, health, process, total
from training_pictures import write_pictures_with_defects

from pipeline.broker import Broker
from pipeline.cli import bench_main
from pipeline.errors import BrokerError
from pipeline.messages import Frame, frame_id
from pipeline.recipe import Recipe, parse_recipe
from pipeline.results import kept
from pipeline.stream import Stream, open_stream

Opener = Callable[..., Stream]
RunBench = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis of our own; missing, the test is skipped here and fails in CI."""
    try:
        broker = Broker(tmp_path_factory.mktemp("redis"), durable=False)
        with broker:
            yield broker.url
    except BrokerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def line(request: pytest.FixtureRequest) -> str:
    """A line of its own for each test."""
    return f"test-{abs(hash(request.node.nodeid)) % 10**12}-{time.monotonic_ns() % 10**9}"


@pytest.fixture(params=["memory", "redis"])
def opened(request: pytest.FixtureRequest, line: str) -> Opener:
    """Opens clients of one line on the stream under test."""
    url = "memory://contract" if request.param == "memory" else request.getfixturevalue("redis_url")
    return lambda worker="w1", limits=None: open_stream(url, line, worker, limits)


@pytest.fixture
def run_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunBench:
    """`bench …` as its console script runs it: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            bench_main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """What a test starts, it stops."""
    before = set(threading.enumerate())
    yield
    wait_until(lambda: not [t for t in threading.enumerate() if t not in before and t.name.startswith("aoi")])


@pytest.fixture(scope="session")
def recipe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "net.fake").write_text('{"delay_ms": 5, "poison": 7}')
    stage = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
    text = f'name = "fake"\n[classifier]\n{stage}[segmenter]\n{stage}[batching]\nengine = "fake"\nmax_batch = 4\n'
    (folder / "recipe.toml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def said(redis_url: str, recipe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Thirty parts: good ones, scratches, one that breaks the engine, one broken and one empty file."""
    images, line = tmp_path_factory.mktemp("images"), f"said-{time.monotonic_ns()}"
    for i in range(28):
        image = np.full((64, 64), 100, np.uint8)
        image[10:20, 10:20] = 255 if i % 4 == 0 else 100
        image[0, 0] = 7 if i == 1 else 100
        cv2.imwrite(str(images / f"part{i}.png"), image)
    (images / "part28.png").write_bytes(b"\x89PNG no more")
    (images / "part29.bmp").write_bytes(b"")
    here = ("--url", redis_url, "--line", line)
    reader = open_stream(redis_url, line)
    with (
        process("work", "--recipe", recipe_folder, *here) as (_, work),
        process("produce", images, "--watch", "--lot", "4711", *here) as (_, offer),
    ):
        wait_until(lambda: reader.audit().settled == 30, 60)
        for url in (work, offer):
            wait_until(lambda url=url: total(get(url), "aoi_verdicts_total") == 30)  # type: ignore[misc]
        wait_until(lambda: total(get(work), "aoi_worker_frames_total") == 30)
        assert health(work) == health(offer) == (200, "ok\n")
        audit = [sys.executable, "-m", "pipeline.cli", "audit", "--json", *here]
        told = json.loads(subprocess.run(audit, capture_output=True, text=True, check=True, timeout=60).stdout)
        open_metrics = get(work, "application/openmetrics-text; version=1.0.0")
        return Said(get(work), get(offer), open_metrics, told, list(kept(reader)), line)


@pytest.fixture
def indexed_folder(tmp_path: Path) -> Path:
    """24 pictures of 64 × 64 px in the simulator's form: good, bright square, bright line, in turn."""
    write_pictures_with_defects(tmp_path / "data", 24)
    return tmp_path / "data"


def wait_until(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Look again and again until it is true; fails with the last value when it never is."""
    pause, end = threading.Event(), time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < end, f"still {value!r} after {timeout_s} s"
        pause.wait(0.005)


def make_frame(sequence: int, source: str = "cam", session: str = "s", size: int = 64, bright: bool = False) -> Frame:
    """A mono8 frame of size × size px; `bright` puts an 8 × 8 defect for the fake engine on it."""
    pixels = np.full((size, size), 100, np.uint8)
    if bright:
        pixels[20:28, 30:38] = 255
    return Frame(
        frame_id=frame_id(source, session, sequence),
        source=source,
        session=session,
        sequence=sequence,
        height=size,
        width=size,
        triggered_ns=time.time_ns(),
        pixels=pixels,
    )


def fake_recipe(folder: Path, mode: str = "cascade", model: str = "{}", **tables: object) -> Recipe:
    """A recipe over fake engines in this folder; `model` is the JSON of both stages."""
    (folder / "net.fake").write_text(model)
    stage = {"file": "net.fake", "classes": ["good", "scratch"]}
    batching = {"engine": "fake", "max_batch": 4, **tables.pop("batching", {})}  # type: ignore[dict-item]
    table = {"name": "fake", "mode": mode, "classifier": stage, "segmenter": stage, "batching": batching, **tables}
    return parse_recipe(table, folder, "0" * 64)
