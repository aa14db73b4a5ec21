"""The daemons of a line as commands: `aoi produce` and `aoi work`, each with its metrics."""

from __future__ import annotations

import os
import socket
import threading
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from engines import ENGINES
from pipeline import doctor as doctor_
from pipeline.connected import broker_url, on_signal, opened
from pipeline.deadlines import fail_safe, kept_deadlines
from pipeline.errors import Exit
from pipeline.inspector import Inspector
from pipeline.messages import JUDGEMENTS, PIXEL_FORMATS, Judgement, PixelFormat
from pipeline.metrics import ProducerMetrics, WorkerMetrics, producer_trouble, worker_facts, worker_trouble
from pipeline.metrics_ledger import LedgerMetrics
from pipeline.metrics_server import MetricsServer
from pipeline.opening import open_engines
from pipeline.options import budget, connection, metrics_option, option, simulator_options
from pipeline.overlay import OverlayFolder
from pipeline.producer import Offered, Paced, produce
from pipeline.recipe import Recipe, load_recipe
from pipeline.sources import SourceOptions, default_name, kind_of, open_source
from pipeline.sources.directory import list_images, read_names
from pipeline.sources.panel import PanelSimulator
from pipeline.sources.stamp import Stamp, new_session
from pipeline.stream import POLICIES, Limits, Policy, Stream, open_stream
from pipeline.supervisor import Supervisor
from pipeline.worker import Worker

GATHER = {"directory": 16, "panel": 4}  # frames offered in one round trip; a frame waits for its company


@click.command("produce")
@click.argument("source", envvar="AOI_PRODUCE_FROM")
@connection
@budget
@option(
    "--source",
    "name",
    envvar="AOI_PRODUCE_SOURCE",
    default="",
    help="Name of the source in frame ids [default: from SOURCE].",
)
@option("--session", default="", help="Go on in this session: what it offered of the same images is not offered again.")
@option("--station", default="", help="Written on every frame.")
@option("--lot", default="", help="Written on every frame.")
@option(
    "--policy", type=click.Choice(POLICIES), help="When the stream is full [default: wait; shed-oldest for a camera]."
)
@option("--rate", type=click.FloatRange(0.001), help="Frames per second [default: as fast as they come].")
@option("--recipe", envvar="AOI_RECIPE", default="", help="Write this recipe's deadline_ms on every frame.")
@option("--deadline-ms", type=click.FloatRange(0), help="From trigger to verdict, instead of the recipe's; 0: none.")
@option("--watch", is_flag=True, help="Folder: go on with files as they are added.")
@option("--pattern", default="", help="Folder: take only files whose name matches.")
@option(
    "--list",
    "names",
    envvar="AOI_PRODUCE_LIST",
    type=click.Path(path_type=Path),
    help="Folder: file with the paths to take, relative to it.",
)
@option(
    "--pixel-format",
    "form",
    envvar="AOI_PRODUCE_PIXEL_FORMAT",
    type=click.Choice(list(PIXEL_FORMATS)),
    help="Of a folder [mono8] or camera [bgr8].",
)
@option("--frames", type=click.IntRange(0), default=0, help="Simulator: how many; 0: without end.")
@simulator_options
@metrics_option
def produce_(
    source: str,
    line: str,
    url: str,
    broker_dir: Path | None,
    name: str,
    session: str,
    station: str,
    lot: str,
    policy: str | None,
    rate: float | None,
    recipe: str,
    deadline_ms: float | None,
    watch: bool,
    pattern: str,
    names: Path | None,
    form: str | None,
    frames: int,
    simulator: PanelSimulator,
    metrics: tuple[str, int] | None,
    limits: Limits,
) -> int:
    """Offer the frames of SOURCE: a folder, a video file, camera:INDEX, a stream URL, or panel: (simulated).

    AOI_PRODUCE_FROM names SOURCE where a command line is the wrong place for a camera's password.

    \b
    aoi produce ./images --lot 4711
    aoi produce ./drop --watch --url redis://line-pc:6379
    aoi produce camera:0 --policy shed-oldest
    aoi produce panel: --frames 1000 --rate 50
    """
    stop = threading.Event()
    on_signal(stop.set)
    facts = {key: value for key, value in {"station": station, "lot": lot}.items() if value}
    listed = read_names(names) if names else ()
    options = SourceOptions(pattern, listed, watch, cast("PixelFormat | None", form), frames, simulator, stop)
    chosen = load_recipe(recipe) if recipe else None
    if deadline_ms is None:
        deadline_ms = chosen.batching.deadline_ms if chosen else 0.0
    judgement = cast(Judgement, chosen.judge.fail_safe if chosen else "REVIEW")
    nobody_could = fail_safe(judgement, chosen.label if chosen else "")
    session = _session(session, source, options)
    stamp = Stamp(name or default_name(source), session, int(deadline_ms * 1e6), facts)
    images = open_source(source, stamp, options)
    in_own_time = watch or kind_of(source) == "camera"
    default: Policy = "shed-oldest" if kind_of(source) == "camera" else "wait"
    offered = Offered()
    with ExitStack() as stack:
        server = _exporter(stack, metrics)
        where = stack.enter_context(broker_url(url, broker_dir))
        stream = stack.enter_context(opened(where, None, line, limits=limits))
        if server:
            own, ledger = ProducerMetrics(line, stamp.source, offered), open_stream(where, line, limits=limits)
            _expose(stack, server, ledger, limits, own, partial(producer_trouble, offered))
        frames_ = Paced(images, rate, stop) if rate else images
        gather = 1 if in_own_time else GATHER[kind_of(source)]
        stack.enter_context(kept_deadlines(stream, nobody_could, deadline_ms / 1e3))
        produce(frames_, stream, cast("Policy | None", policy) or default, gather, stop, offered=offered)
    _tell_offered(offered, line, stamp, getattr(images, "left_out", 0))
    return int(Exit.INTERRUPTED if stop.is_set() and not watch else Exit.OK)


def _session(wanted: str, source: str, options: SourceOptions) -> str:
    """A new session, or the wanted one marked with what it goes over: of other images it is another session.

    Frames are known by their number: in a folder that has changed, number 7 is another image.
    """
    if not wanted:
        return new_session()
    if options.watch or (kind_of(source) == "camera" and not Path(source).is_file()):
        raise click.UsageError("--session goes over images that come in the same order again; not --watch, no camera")
    if kind_of(source) == "directory":
        over = [str(path) for path in list_images(Path(source), options.pattern, options.names)[0]]
    else:
        over = [source, repr(options.simulator)]
    return f"{wanted}.{zlib.crc32(os.fsencode(chr(10).join(over))):08x}"


def _tell_offered(offered: Offered, line: str, stamp: Stamp, left_out: int) -> None:
    told = [f"{offered.frames} frames offered to {line} as {stamp.source}, session {stamp.session}"]
    told += [f"{offered.faulty} of them unreadable"] if offered.faulty else []
    told += [f"{left_out} .png masks beside images of the same name left out"] if left_out else []
    click.echo(", ".join(told), err=True)


@click.command()
@option(
    "--recipe",
    envvar="AOI_RECIPE",
    default="panel",
    help="Shipped name, model folder or recipe.toml.",
)
@connection
@budget
@option("--engine", type=click.Choice(list(ENGINES)), help="Instead of the recipe's.")
@option("--device", help="Instead of the recipe's: CPU, GPU, NPU; with TensorRT the number of the GPU.")
@option("--unpromoted", is_flag=True, help="Run an engine that `aoi parity` did not promote here; its verdicts say so.")
@option("--threads", type=click.IntRange(0), help="Instead of the recipe's; 0: every core.")
@option("--max-batch", type=click.IntRange(1, 256), help="Instead of the recipe's.")
@option("--name", default="", help="Of this worker, as it stands in verdicts [default: host, process].")
@option("--overlays", type=click.Path(path_type=Path), help="Folder for pictures of judged frames.")
@option(
    "--overlay-of",
    type=click.Choice(JUDGEMENTS),
    multiple=True,
    default=("NG",),
    help="Judgements to picture.",
)
@option("--overlay-limit", type=click.IntRange(0), default=1000, help="Pictures at most.")
@option(
    "--grace-s", type=click.FloatRange(0), default=30.0, help="After a stop: how long to wait for a Redis that is away."
)
@metrics_option
def work(
    recipe: str,
    line: str,
    url: str,
    broker_dir: Path | None,
    engine: str | None,
    device: str | None,
    unpromoted: bool,
    threads: int | None,
    max_batch: int | None,
    name: str,
    overlays: Path | None,
    overlay_of: tuple[str, ...],
    overlay_limit: int,
    grace_s: float,
    metrics: tuple[str, int] | None,
    limits: Limits,
) -> int:
    """Inspect the frames of a line until told to stop; SIGTERM finishes and settles what it holds.

    \b
    aoi work --recipe magnetic-tile
    aoi work --recipe ./my-model --url redis://line-pc:6379 --overlays ./ng
    """
    changes = {"engine": engine, "device": device, "threads": threads, "max_batch": max_batch}
    chosen = _changed(load_recipe(recipe), {key: value for key, value in changes.items() if value is not None})
    name = name or f"{socket.gethostname()}-{os.getpid()}"
    with ExitStack() as stack:
        server = _exporter(stack, metrics)
        keeper = None
        if overlays and overlay_limit:
            keeper = OverlayFolder(overlays, cast("tuple[Judgement, ...]", overlay_of), overlay_limit)
            stack.callback(keeper.close)
        engines = stack.enter_context(open_engines(chosen, unpromoted))
        consumer = f"{name}~{new_session()}"  # its own in each life: what the last one left is a dead worker's
        where = stack.enter_context(broker_url(url, broker_dir))
        stream = stack.enter_context(opened(where, None, line, consumer, limits))
        seen = WorkerMetrics(line, worker_facts(name, chosen, engines, doctor_.installed_version()))
        worker = Worker(
            stream,
            lambda wake: Inspector(chosen, engines, wake),
            name,
            keeper,
            grace_s,
            supervisor=Supervisor.from_environment(),
            observer=seen if server else None,
        )
        if server:
            ledger = open_stream(where, line, limits=limits)
            _expose(stack, server, ledger, limits, seen, partial(worker_trouble, worker))
        on_signal(worker.stop)
        click.echo(f"{name} inspects {line} with {chosen.label}", err=True)
        counts = worker.run()
    click.echo(f"{counts.settled} frames settled by {name}, {counts.late} verdicts came late", err=True)
    return int(Exit.OK)


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return replace(recipe, batching=replace(recipe.batching, **changes)) if changes else recipe


def _exporter(stack: ExitStack, address: tuple[str, int] | None) -> MetricsServer | None:
    """Where `--metrics` wants this process to be found, until the end."""
    if not address:
        return None
    try:
        server = stack.enter_context(MetricsServer(*address))
    except OSError as error:
        where = f"--metrics {address[0]}:{address[1]}"
        raise click.UsageError(f"{where}: {error.strerror}; name another port, or 0 for any free one") from error
    click.echo(f"metrics at {server.url}", err=True)
    return server


def _expose(
    stack: ExitStack,
    server: MetricsServer,
    ledger: Stream,
    limits: Limits,
    own: WorkerMetrics | ProducerMetrics,
    trouble: Callable[[], str],
) -> None:
    """Say the ledger, by a client of its own, and what this process says of itself."""
    stack.callback(ledger.close)
    server.registry.register(LedgerMetrics(ledger.line, ledger.audit, limits))
    server.registry.register(own)
    server.trouble = trouble
