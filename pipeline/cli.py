"""`aoi …` and `bench …`: parse → build → call; the only catch-all for errors, which become named exit codes."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.commands import bench
from engines import ENGINES, EngineError
from pipeline import demo as demo_
from pipeline import doctor as doctor_
from pipeline import tables
from pipeline.broker import Broker, default_folder
from pipeline.deadlines import fail_safe, kept_deadlines
from pipeline.errors import AoiError, Exit
from pipeline.inspector import Inspector, open_engines
from pipeline.messages import JUDGEMENTS, PIXEL_FORMATS, Judgement, PixelFormat
from pipeline.metrics import ProducerMetrics, WorkerMetrics, producer_trouble, worker_facts, worker_trouble
from pipeline.metrics_ledger import LedgerMetrics
from pipeline.metrics_server import MetricsServer
from pipeline.options import as_json, budget, connection, metrics_option, option, simulator_options
from pipeline.overlay import OverlayFolder
from pipeline.producer import Offered, Paced, produce
from pipeline.recipe import Recipe, load_recipe
from pipeline.results import follow, kept
from pipeline.shown import PlainFormatter, redacted, safe
from pipeline.sources import SourceOptions, default_name, kind_of, open_source
from pipeline.sources.directory import list_images, read_names
from pipeline.sources.panel import PanelSimulator, render_folder
from pipeline.sources.stamp import Stamp, new_session
from pipeline.stream import POLICIES, Audit, Limits, Log, Policy, Stream, list_lines, open_stream
from pipeline.supervisor import Supervisor
from pipeline.worker import Worker

log = logging.getLogger("aoi")
GATHER = {"directory": 16, "panel": 4}  # frames offered in one round trip; a frame waits for its company


def main() -> None:
    """The console script `aoi`."""
    sys.exit(_guarded(aoi, "aoi", "AOI"))


def bench_main() -> None:
    """The console script `bench`."""
    sys.exit(_guarded(bench, "bench", "AOI_BENCH"))


def _guarded(command: click.Command, name: str, environment: str) -> int:
    """Run a command; whatever goes wrong becomes one line and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave in order: what was started is stopped
    if logging.lastResort:
        logging.lastResort.setFormatter(PlainFormatter())
    try:
        code = command.main(prog_name=name, standalone_mode=False, auto_envvar_prefix=environment)
        return int(code or 0)
    except click.ClickException as error:
        error.show(said := io.StringIO())  # it quotes what was typed, an address in the wrong place too
        click.echo(redacted(said.getvalue()), err=True, nl=False)
        return int(Exit.USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return int(Exit.INTERRUPTED)
    except AoiError as error:
        return _told(error, error.exit_code)
    except EngineError as error:
        return _told(error, Exit.ENGINE)
    except BrokenPipeError:  # whoever read our output has gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - so that the interpreter's last flush is silent
        return int(Exit.OK)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _told(f"disk full: {error.filename or error}; make room and start again", Exit.DISK)
        log.exception("this is a bug, please report it with the lines above")
        return int(Exit.BUG)


def _told(error: object, code: Exit) -> int:
    click.echo(f"Error: {safe(error)}", err=True)
    return int(code)


@contextmanager
def broker_url(url: str, folder: Path | None) -> Iterator[str]:
    """The URL given, or that of our own Redis while it is needed."""
    if url:
        yield url
    else:
        with Broker(folder or default_folder()) as broker:
            yield broker.url


@contextmanager
def opened(
    url: str, broker_dir: Path | None, line: str, worker: str = "", limits: Limits | None = None
) -> Iterator[Stream]:
    """A client of the line, closed on leaving."""
    with broker_url(url, broker_dir) as where:
        stream = open_stream(where, line, worker, limits)
        try:
            yield stream
        finally:
            stream.close()


def _on_signal(act: Callable[[], None]) -> None:
    """SIGTERM and the first Ctrl-C end the work in order; a second Ctrl-C ends it at once."""

    def handle(number: int, _: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        act()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


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


# ------------------------------------------------------------------ commands


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(doctor_.installed_version(), prog_name="inline-aoi")
@option("-v", "--verbose", count=True, help="Say more on stderr; twice for every step.")
def aoi(verbose: int) -> None:
    """Inline automated optical inspection: every frame offered ends in exactly one verdict.

    \b
    aoi demo                                  see it run on simulated panels
    aoi work --recipe panel &                 inspect what arrives …
    aoi produce ./images                      … offer a folder's images …
    aoi results --follow                      … and read the verdicts
    """
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


@aoi.command()
@option("--recipe", default="panel", help="Shipped name, model folder or recipe.toml.")
@option("--images", type=click.Path(path_type=Path), help="Folder of your own images instead of the simulator.")
@option(
    "--list",
    "names",
    envvar="AOI_DEMO_LIST",
    type=click.Path(path_type=Path),
    help="File with the paths to take, relative to --images.",
)
@option("--pattern", default="", help="Take only files whose name matches, such as '*.jpg'.")
@option("--frames", type=click.IntRange(1), default=300, help="Simulated frames.")
@simulator_options
@option(
    "--overlays",
    type=click.Path(path_type=Path),
    help="Folder for pictures of NG frames [default: a new one in runs/].",
)
@option("--overlay-limit", type=click.IntRange(0), default=24, help="Pictures at most.")
@as_json
def demo(
    recipe: str,
    images: Path | None,
    names: Path | None,
    pattern: str,
    frames: int,
    simulator: PanelSimulator,
    overlays: Path | None,
    overlay_limit: int,
    as_json: bool,
) -> None:
    """Run the main job once: our own Redis, a producer, a worker, and what came out.

    \b
    aoi demo
    aoi demo --frames 2000 --contrast 0.6 --seed 7
    aoi demo --images ./tiles --recipe magnetic-tile
    """
    chosen = load_recipe(recipe)
    overlays = overlays or Path("runs", time.strftime("demo-%Y%m%d-%H%M%S"))
    job = demo_.Job(recipe, overlays, frames, simulator, images, names, pattern, overlay_limit)
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    tail = (TextColumn("{task.fields[now]}"), TimeElapsedColumn())
    with Progress(*columns, *tail, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None, now="")

        def show(phase: str, done: int, total: int, audit: Audit) -> None:
            now = "  ".join(f"{name} {count}" for name, count in audit.judged.items() if count)
            bar.update(task, description=phase, completed=done, total=total, now=now)

        outcome = demo_.run_demo(job, chosen, show)
    if as_json:
        click.echo(json.dumps(outcome.as_json()))
    else:
        tables.show_outcome(Console(), outcome, chosen)


@aoi.command("produce")
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
    _on_signal(stop.set)
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


@aoi.command()
@option(
    "--recipe",
    envvar="AOI_RECIPE",
    default="panel",
    help="Shipped name, model folder or recipe.toml.",
)
@connection
@budget
@option("--engine", type=click.Choice(list(ENGINES)), help="Instead of the recipe's.")
@option("--device", help="Instead of the recipe's: CPU, GPU, NPU.")
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
        engines = stack.enter_context(open_engines(chosen))
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
        _on_signal(worker.stop)
        counts = worker.run()
    click.echo(f"{counts.settled} frames settled by {name}, {counts.late} verdicts came late", err=True)
    return int(Exit.OK)


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return replace(recipe, batching=replace(recipe.batching, **changes)) if changes else recipe


@aoi.command()
@connection
@option("-f", "--follow", "follows", is_flag=True, help="Go on with each new verdict until interrupted.")
@option("--new", "only_new", is_flag=True, help="With --follow: leave out what was settled before.")
@option("--amendments", is_flag=True, help="Instead: real answers that came after a fail-safe verdict.")
@option("--judgement", type=click.Choice(JUDGEMENTS), multiple=True, help="Only these.")
@option("--limit", type=click.IntRange(1), help="Stop after so many.")
@option("--masks/--no-masks", default=True, help="Run-length masks in Kaggle's text form.")
def results(
    line: str,
    url: str,
    broker_dir: Path | None,
    follows: bool,
    only_new: bool,
    amendments: bool,
    judgement: tuple[str, ...],
    limit: int | None,
    masks: bool,
) -> None:
    """Print verdicts as JSON lines, oldest first.

    \b
    aoi results | jq -r '[.name, .judgement, .reason] | @tsv'
    aoi results --follow --judgement NG --no-masks
    """
    stop = threading.Event()
    _on_signal(stop.set)
    with opened(url, broker_dir, line) as stream:
        log: Log = "amendments" if amendments else "verdicts"
        after = stream.newest(log) if only_new else "0"
        verdicts = follow(stream, after, stop, log) if follows else kept(stream, log)
        wanted = (v for v in verdicts if not judgement or v.judgement in judgement)
        for number, verdict in enumerate(wanted, 1):
            facts = verdict.as_json()
            if not masks:
                del facts["masks"]
            click.echo(json.dumps(facts))
            if number == limit:
                return


@aoi.command()
@connection
@as_json
def status(line: str, url: str, broker_dir: Path | None, as_json: bool) -> int:
    """The ledger of every line: offered = judged + outstanding; exits with 8 where that does not hold.

    \b
    aoi status
    aoi status --url redis://line-pc:6379 --json
    """
    with broker_url(url, broker_dir) as where:
        audits = {}
        for name in list_lines(where):
            stream = open_stream(where, name)
            audits[name] = stream.audit()
            stream.close()
    if as_json:
        click.echo(json.dumps(tables.status_json(audits)))
    else:
        tables.show_status(Console(), audits)
    return int(Exit.OK if all(audit.holds for audit in audits.values()) else Exit.LEDGER)


@aoi.command()
@connection
@as_json
def audit(line: str, url: str, broker_dir: Path | None, as_json: bool) -> int:
    """One line's ledger by source, with gaps in the sequences; exits with 8 where the identity does not hold.

    \b
    aoi audit --line press4
    aoi audit --json | jq .sources
    """
    with opened(url, broker_dir, line) as stream:
        found = stream.audit()
    if as_json:
        click.echo(json.dumps(tables.audit_json(found)))
    else:
        tables.show_audit(Console(), line, found)
    return int(Exit.OK if found.holds else Exit.LEDGER)


@aoi.command()
@option("--url", envvar="AOI_URL", default="", help="Look at this Redis instead of for our own.")
@as_json
def doctor(url: str, as_json: bool) -> int:
    """What this machine can do, what it lacks, and how to mend that; exits with 9 when the line cannot run.

    \b
    aoi doctor
    aoi doctor --url redis://line-pc:6379 --json
    """
    findings = doctor_.examine(url)
    if as_json:
        click.echo(json.dumps(doctor_.as_json(findings)))
    else:
        tables.show_findings(Console(), findings)
    return int(Exit.OK if doctor_.ready(findings) else Exit.UNREADY)


@aoi.command()
@click.argument("folder", type=click.Path(path_type=Path))
@option("--frames", type=click.IntRange(1), default=1000, help="How many panels.")
@simulator_options
def simulate(
    folder: Path,
    frames: int,
    simulator: PanelSimulator,
) -> None:
    """Write simulated panels with pixel truth into FOLDER: image/, label/ and classes.txt, for training.

    \b
    aoi simulate ./panels --frames 3000 --seed 1
    """
    render_folder(simulator, folder, frames)
    click.echo(f"{frames} panels written to {folder}", err=True)


aoi.add_command(bench)

if __name__ == "__main__":
    main()
