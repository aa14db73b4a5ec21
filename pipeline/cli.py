"""`aoi …` and `bench …`: parse → build → call; the only catch-all for errors, which become named exit codes."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.commands import bench
from engines import EngineError
from engines.datasets.labelled import DatasetError
from engines.datasets.low_contrast import SHAPES, LowContrast, write_folder
from pipeline import demo as demo_
from pipeline import doctor as doctor_
from pipeline import tables
from pipeline.build_command import build
from pipeline.daemon_commands import produce_, work
from pipeline.dataset_commands import dataset
from pipeline.errors import AoiError, DiskError, Exit, SourceError
from pipeline.evaluate_command import evaluate_
from pipeline.ledger_commands import audit, results, status
from pipeline.options import as_json, option, simulator_options
from pipeline.parity_command import parity_
from pipeline.recipe import load_recipe
from pipeline.record_command import record
from pipeline.replay_command import replay
from pipeline.shadow_command import shadow
from pipeline.shift_commands import shift
from pipeline.shown import PlainFormatter, redacted, safe
from pipeline.sources.panel import PanelSimulator, render_folder
from pipeline.stream import Audit
from pipeline.training_commands import export, train

log = logging.getLogger("aoi")


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
@option("--frames", type=click.IntRange(1), default=1000, help="How many pictures.")
@option("--kind", type=click.Choice(["panel", "low-contrast"]), default="panel", help="What they show.")
@option("--faint", type=click.FloatRange(0.1, 100), default=3.0, help="low-contrast: grey levels of a defect.")
@option("--grain", type=click.FloatRange(0, 100), default=7.0, help="low-contrast: deviation of the Gaussian noise.")
@option("--shapes", default=",".join(SHAPES), help="low-contrast: what defects look like, with commas between.")
@option("--count", type=click.IntRange(0), nargs=2, default=(1, 4), help="low-contrast: fewest and most defects.")
@simulator_options
def simulate(
    folder: Path,
    frames: int,
    kind: str,
    faint: float,
    grain: float,
    shapes: str,
    count: tuple[int, int],
    simulator: PanelSimulator,
) -> None:
    """Write simulated pictures with pixel truth into FOLDER: image/, label/ and classes.txt, for training.

    \b
    aoi simulate ./panels --frames 3000 --seed 1
    aoi simulate ./faint --kind low-contrast --frames 2000 --faint 3 --grain 7
    aoi simulate ./faint --kind low-contrast --shapes rectangle --count 2 2
    """
    if kind == "panel":
        render_folder(simulator, folder, frames)
    else:
        try:
            generator = LowContrast(
                seed=simulator.seed,
                size=simulator.size,
                noise_sigma=grain,
                contrast=(faint, faint),
                shapes=tuple(shapes.split(",")),
                count=count,
            )
            write_folder(generator, folder, frames)
        except DatasetError as error:
            raise SourceError(str(error)) from error
        except OSError as error:
            raise DiskError(f"cannot write pictures under {folder}: {error}; check space and rights") from error
    click.echo(f"{frames} pictures written to {folder}", err=True)


COMMANDS = (
    *(produce_, work, results, status, audit, record, replay, shadow, shift),
    *(dataset, train, evaluate_, build, parity_, export, bench),
)
for command in COMMANDS:
    aoi.add_command(command)

if __name__ == "__main__":
    main()
