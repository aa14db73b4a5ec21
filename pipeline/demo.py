"""The main job in one go: a broker, a producer and a worker, real processes all; then what came out of it.

It watches the stream like any other reader. If the worker or the producer is killed, it is started again, and
the count is right all the same: that is what the stream promises.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.broker import Broker
from pipeline.crew import Crew
from pipeline.errors import LedgerError, SourceError, StreamDown
from pipeline.messages import Verdict
from pipeline.recipe import Recipe
from pipeline.results import Summary, kept, percentiles
from pipeline.scoring import MaskTruths, PanelTruths, Score, Truths
from pipeline.sources.directory import list_images, read_names
from pipeline.sources.panel import PanelSimulator
from pipeline.sources.stamp import new_session
from pipeline.stream import Audit, Limits, Stream, open_stream

LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Job:
    """What to run: a simulator, or a folder of images."""

    recipe: str
    overlays: Path
    frames: int = 300
    simulator: PanelSimulator = field(default_factory=PanelSimulator)
    images: Path | None = None
    names: Path | None = None  # list file: which of the images
    pattern: str = ""
    overlay_limit: int = 24


@dataclass(frozen=True)
class Outcome:
    """What came out, by the ledger's count and by the verdicts."""

    audit: Audit
    summary: Summary
    score: Score | None
    overlays: Path
    left_out: int  # masks beside the images, not offered
    restarts: int

    def as_json(self) -> dict[str, Any]:
        """One flat object; precision, recall and Dice are null where no truth is known."""
        times = percentiles(self.summary.latencies_ms)
        score = self.score
        return {
            "offered": self.audit.offered,
            "settled": self.audit.settled,
            "outstanding": self.audit.outstanding,
            "judgements": self.audit.judged,
            "reasons": dict(self.summary.reasons),
            "fps": round(self.summary.fps, 2),
            "latency_ms": {name: round(value, 3) for name, value in times.items()},
            "mean_batch": round(self.summary.mean_batch, 2),
            "precision": score and score.precision,
            "recall": score and score.recall,
            "dice": score and score.dice(),
            "escape": score and score.escape,
            "overkill": score and score.overkill,
            "by_class": score and score.by_class(),
            "overlays": str(self.overlays),
            "restarts": self.restarts,
        }


Progress = Callable[[str, int, int, Audit], None]  # phase, done, of how many, the ledger


def run_demo(job: Job, recipe: Recipe, progress: Progress) -> Outcome:
    """Run the job to its end; `progress` is called several times a second.

    Raises LedgerError if the conservation identity fails, which is the one thing that must never happen.
    """
    images, left_out = _images(job)
    expected = len(images) if job.images else job.frames
    truths: Truths = PanelTruths(job.simulator)
    if job.images:
        truths = MaskTruths(job.images, images, recipe.defect_classes)
    line = "demo"
    with tempfile.TemporaryDirectory(prefix="aoi-demo-") as folder, Broker(Path(folder)) as broker:
        limits = Limits(max_frames=_window(recipe), keep_verdicts=max(100_000, 2 * expected))
        stream = open_stream(broker.url, line, limits=limits)
        crew = Crew(_commands(job, broker.url, line, limits), Path(folder) / "crew.log")
        try:
            audit = _watch(stream, crew, expected, progress)
        finally:
            crew.stop()
        verdicts = list(kept(stream))
        stream.close()
    restarts = sum(max(0, starts - 1) for starts in crew.starts.values())
    score = _score(verdicts, truths, lambda done: progress("comparing with the truth", done, len(verdicts), audit))
    summary = Summary()
    for verdict in verdicts:
        summary.add(verdict)
    return Outcome(audit, summary, score, job.overlays, left_out, restarts)


def _window(recipe: Recipe) -> int:
    """Frames outstanding at most: enough that the engines never starve, few enough that none waits for long."""
    return 3 * recipe.batching.max_batch * recipe.batching.in_flight


def _images(job: Job) -> tuple[Sequence[Path], int]:
    if not job.images:
        return [], 0
    images, left_out = list_images(job.images, job.pattern, read_names(job.names) if job.names else ())
    if not images:
        raise SourceError(f"no images in {job.images}; check the folder, IMAGES= and --pattern")
    return images, left_out


def _commands(job: Job, url: str, line: str, limits: Limits) -> dict[str, list[str]]:
    common = ["--url", url, "--line", line, "--keep-verdicts", str(limits.keep_verdicts)]
    common += ["--max-frames", str(limits.max_frames)]
    overlays = ["--overlays", str(job.overlays), "--overlay-limit", str(job.overlay_limit)]
    session = ["--session", new_session()]  # a producer started again goes on in it, and offers nothing twice
    if job.images:
        chosen = ["--list", str(job.names)] if job.names else []
        chosen += ["--pattern", job.pattern] if job.pattern else []
        source = [str(job.images), *chosen]
    else:
        s = job.simulator
        size = f"{s.size[0]}x{s.size[1]}"
        source = ["panel:", "--frames", str(job.frames), "--seed", str(s.seed), "--size", size]
        source += ["--defect-rate", str(s.defect_rate), "--contrast", str(s.contrast), "--noise", str(s.noise)]
    return {
        "worker": ["work", *common, "--recipe", job.recipe, *overlays],
        "producer": ["produce", *source, *common, *session, "--recipe", job.recipe],
    }


def _watch(stream: Stream, crew: Crew, expected: int, progress: Progress) -> Audit:
    """Until every frame is offered and settled; the identity is checked at every look."""
    pause = threading.Event()
    crew.start("worker")
    while True:
        crew.look()
        try:
            audit = stream.audit()
        except StreamDown:  # somebody killed the server: the broker starts it again on its data
            pause.wait(LOOK_EVERY_S)
            continue
        if audit.workers and not crew.starts["producer"]:  # its engines are warm: the times are not theirs
            crew.start("producer")
        if not audit.holds:
            raise LedgerError(f"{audit.offered} frames offered, {audit.settled} settled, {audit.outstanding} left")
        progress("inspecting" if audit.settled else "engines warm up", audit.settled, expected, audit)
        if "producer" in crew.finished and not audit.outstanding:
            if audit.offered != expected:
                raise LedgerError(f"{expected} frames were to be offered, the ledger counts {audit.offered}")
            return audit
        pause.wait(LOOK_EVERY_S)


def _score(verdicts: Sequence[Verdict], truths: Truths, progress: Callable[[int], None]) -> Score | None:
    score, known = Score(), 0
    for number, verdict in enumerate(verdicts, 1):
        progress(number)
        if truth := truths.of(verdict.frame.sequence):
            score.add(verdict, truth)
            known += 1
    return score if known else None
