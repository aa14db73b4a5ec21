"""Command-line options that several commands share; each can be given as an environment variable too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from pipeline.sources.panel import PanelSimulator
from pipeline.stream import Limits

Command = TypeVar("Command", bound=Callable[..., Any])
MIB = 1024 * 1024
LIMITS = Limits()


def option(*names: str, **facts: Any) -> Callable[[Command], Command]:
    """A click option whose help names its default, where it has one, and its environment variable."""
    facts.setdefault("show_default", facts.get("default", "") not in ("", None))
    return click.option(*names, show_envvar=True, **facts)


def connection(command: Command) -> Command:
    """Which line on which Redis."""
    return server(option("--line", envvar="AOI_LINE", default="line1", help="Name of the line.")(command))


def server(command: Command) -> Command:
    """Which Redis."""
    for decorate in (
        option(
            "--url",
            envvar="AOI_URL",
            default="",
            help="redis://, rediss:// or unix:// URL, redis+cluster:// or redis+sentinel:// with several hosts; "
            "without one a Redis of our own is started. "
            "With a password give it as AOI_URL: other users see a process's arguments, not its environment.",
        ),
        option(
            "--broker-dir",
            envvar="AOI_BROKER_DIR",
            type=click.Path(path_type=Path),
            help="Data folder of our own Redis [default: ~/.local/state/aoi/broker].",
        ),
    ):
        command = decorate(command)
    return command


def budget(command: Command) -> Command:
    """What the line's stream may hold; the command is given `limits`."""

    @wraps(command)
    def with_limits(max_mib: int, max_frames: int, max_deliveries: int, keep_verdicts: int, **others: Any) -> Any:
        return command(limits=Limits(max_mib * MIB, max_frames, max_deliveries, keep_verdicts), **others)

    decorated: Any = with_limits
    for decorate in (
        option(
            "--max-mib",
            envvar="AOI_MAX_MIB",
            type=click.IntRange(1),
            default=LIMITS.max_bytes // MIB,
            help="Byte budget of frames without a verdict, in MiB.",
        ),
        option(
            "--max-frames",
            envvar="AOI_MAX_FRAMES",
            type=click.IntRange(1),
            default=LIMITS.max_frames,
            help="Frames without a verdict at most.",
        ),
        option(
            "--max-deliveries",
            envvar="AOI_MAX_DELIVERIES",
            type=click.IntRange(1),
            default=LIMITS.max_deliveries,
            help="Workers a frame may take with it before it is put aside as poison.",
        ),
        option(
            "--keep-verdicts",
            envvar="AOI_KEEP_VERDICTS",
            type=click.IntRange(1),
            default=LIMITS.keep_verdicts,
            help="Settled verdicts that stay readable.",
        ),
    ):
        decorated = decorate(decorated)
    return cast(Command, decorated)


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")


def _address(context: click.Context, option: click.Parameter, value: str) -> tuple[str, int] | None:
    host, _, port = value.rpartition(":")
    try:
        if value and not 0 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{value!r}: give [HOST:]PORT, such as 9108 or 0.0.0.0:9108") from None
    return (host.strip("[]") or "127.0.0.1", int(port)) if value else None


metrics_option = option(
    "--metrics",
    default="",
    callback=_address,
    metavar="[HOST:]PORT",
    help="Serve /metrics for Prometheus, and /healthz, on 127.0.0.1 or HOST; port 0: any free one.",
)


def _size(context: click.Context, option: click.Parameter, value: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in value.lower().replace("×", "x").split("x"))
        return height, width
    except ValueError:
        raise click.BadParameter(f"{value!r}: give HEIGHTxWIDTH in px, such as 256x256") from None


def simulator_options(command: Command) -> Command:
    """The panel simulator's parameters; the command is given `simulator`."""

    @wraps(command)
    def with_simulator(
        seed: int, size: tuple[int, int], defect_rate: float, contrast: float, noise: float, **others: Any
    ) -> Any:
        return command(simulator=PanelSimulator(seed, size, defect_rate, contrast, noise), **others)

    decorated: Any = with_simulator
    for decorate in (
        option("--noise", type=float, default=3.0, help="Simulator: noise σ in grey levels."),
        option("--contrast", type=float, default=1.0, help="Simulator: how clearly defects show; 0.3 is hard."),
        option("--defect-rate", type=float, default=0.3, help="Simulator: share of defective panels."),
        option("--size", default="256x256", callback=_size, help="Simulator: height×width in px."),
        option("--seed", type=click.IntRange(0), default=0, help="Simulator: which panels."),
    ):
        decorated = decorate(decorated)
    return cast(Command, decorated)
