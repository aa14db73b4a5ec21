"""`aoi build`: a model in the precision of an engine, and for a GPU its compiled plan; judges it by the parity gate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console

from engines import ENGINES, extra_of
from engines.base import EngineError, Kind, Pixels
from engines.calibration import balanced
from engines.datasets.labelled import Dataset, DatasetError, Problem, Sample
from engines.precision import FLOAT, precision_of, variant_path
from pipeline.data_options import LabelledFolder, data_options
from pipeline.errors import DiskError, SourceError
from pipeline.examine import prepared
from pipeline.opening import open_engines
from pipeline.options import option
from pipeline.parity import Allowed
from pipeline.parity_command import SIDES, pictures_of
from pipeline.parity_run import on, open_all, run_parity
from pipeline.recipe import Recipe, load_recipe
from pipeline.sensitivity import search

RANKED_ON = 24  # tiles that say which layers are sensitive
BUILT = [name for name in ENGINES if precision_of(name) != FLOAT or name.startswith("trt")]


@click.command("build")
@click.argument("model")
@option("--engine", type=click.Choice(BUILT), default="cpu-int8", help="What to build for.")
@option("--device", default="", help="Number of the GPU, or OpenVINO's name of a device.")
@option("--max-batch", type=click.IntRange(1, 1024), default=None, help="Instead of the recipe's.")
@data_options
@option("--side", type=click.Choice(SIDES), default="all", help="Pictures of a split that tell the range of values.")
@option("--check-side", type=click.Choice(SIDES), default=None, help="… and those of the gate [default: the same].")
@option("--split", type=click.Path(path_type=Path), help="Folder of the split [default: the model folder].")
@option("--tiles", type=click.IntRange(1), default=128, help="Tiles to calibrate with.")
@option("--check", type=click.IntRange(20), default=200, help="Pictures of the gate at most.")
@option("--max-flips", type=click.FloatRange(0, 1), default=0.0, help="Share of pictures that may be judged otherwise.")
@option("--max-to-ok", type=click.IntRange(0), default=0, help="Pictures that may be let through among those.")
@option("--max-score", type=click.FloatRange(0, 1), default=0.5, help="Difference of a probability at most.")
@option("--all-layers", is_flag=True, help="Quantise every layer, whatever the gate says.")
def build(
    model: str,
    engine: str,
    device: str,
    max_batch: int | None,
    data: LabelledFolder | None,
    side: str,
    check_side: str | None,
    split: Path | None,
    tiles: int,
    check: int,
    max_flips: float,
    max_to_ok: int,
    max_score: float,
    all_layers: bool,
) -> None:
    """Make what an engine runs out of a model: FP16 or INT8 beside it, and on a GPU the compiled plan.

    INT8 is calibrated with real frames, and layers stay in float as long as the gate finds a picture that is judged
    otherwise. `aoi parity` on other pictures then promotes it.

    \b
    aoi build ./my-part --engine cpu-int8 --data ./tiles --side training --check-side validation
    aoi build ./my-part --engine trt-fp16
    """
    console, recipe = Console(stderr=True), load_recipe(model)
    recipe = on(recipe, f"{engine}@{device}" if device else engine, max_batch or recipe.batching.max_batch)
    precision = precision_of(engine)
    if precision == "fp16":
        half = _module("engines.half", engine).half
        for kind, content in _models(recipe).items():
            _write(recipe, kind, precision, half(content), console)
    elif precision != FLOAT:
        if data is None:
            raise click.UsageError(f"{precision} is calibrated with real frames: give their folder with --data")
        allowed = None if all_layers else Allowed(max_flips, max_to_ok, max_score)
        try:
            calibration = pictures_of(data, recipe, side, split)
            checked = pictures_of(data, recipe, check_side or side, split, check)
        except DatasetError as error:
            raise SourceError(str(error)) from error
        _quantise(recipe, engine, calibration, checked, tiles, allowed, console)
    if engine.startswith("trt"):
        with open_engines(recipe, unpromoted=True) as engines:  # builds what is not in the cache
            console.print(f"runs on {next(iter(engines.values())).spec.device}", highlight=False)


def _module(path: str, engine: str) -> Any:
    try:
        return import_module(path)
    except ImportError as error:
        mend = f"pip install 'inline-aoi\\[int8,{extra_of(engine)}]'".replace("\\", "")
        raise EngineError(f"building needs {error.name}; {mend}", "missing") from error


def _models(recipe: Recipe) -> dict[Kind, bytes]:
    return {cast(Kind, stage): recipe.model_path(getattr(recipe, stage)).read_bytes() for stage in recipe.stages}


def _quantise(
    recipe: Recipe,
    engine: str,
    calibration: tuple[Dataset, Sequence[Sample]],
    checked: tuple[Dataset, Sequence[Sample]],
    most: int,
    allowed: Allowed | None,
    console: Console,
) -> None:
    precision = precision_of(engine)
    quantizer = _module("engines.quantize", engine).Quantizer
    tried_on = _judge_engine(recipe, engine, console)
    with open_engines(on(recipe, "cpu", 1)) as engines:
        taken = _tiles(recipe, engines, *calibration, most)
    console.print(f"calibrating with {len(taken)} tiles …", highlight=False)
    quantisers = {kind: quantizer(content, taken, precision) for kind, content in _models(recipe).items()}
    if allowed is None or not tried_on:
        for kind, each in quantisers.items():
            _write(recipe, kind, precision, each.quantized(), console)
        return

    def gate(trial: Recipe) -> Sequence[str]:
        with ExitStack() as stack:
            opened = open_all(trial, ("cpu", tried_on), trial.batching.max_batch, stack)
            return run_parity(trial, opened, (trial.batching.max_batch,), *checked).refusals(tried_on, allowed)

    ranked_on = taken[:: max(1, len(taken) // RANKED_ON)][:RANKED_ON]
    found, refusals = search(recipe, tried_on, quantisers, ranked_on, gate, _teller(console))
    for kind, each in found.items():
        _write(recipe, kind, precision, each.content, console)
        done = f"{len(each.layers) - len(each.in_float)} of {len(each.layers)} layers in {precision}"
        kept = f"; in float: {', '.join(each.in_float)}" if each.in_float else ""
        console.print(f"  {done}{kept}", highlight=False, markup=False, soft_wrap=True)
    if refusals:
        raise EngineError(f"the gate refuses it even so: {'; '.join(refusals)}", "unfit")


def _judge_engine(recipe: Recipe, engine: str, console: Console) -> str:
    """The engine that tries the quantised model: its own, or where it does not run here, the CPU's."""
    if not engine.startswith("trt"):
        return engine
    if not import_module("engines.trt").lacks():
        return engine
    if precision_of(engine) != "int8":
        console.print(f"! {engine} does not run here and is not judged: run `aoi parity` where it does", style="yellow")
        return ""
    console.print(f"! {engine} does not run here: cpu-int8 judges in its place", style="yellow", highlight=False)
    return "cpu-int8"


def _teller(console: Console) -> Any:
    return lambda said: console.print(said, highlight=False, markup=False, soft_wrap=True)


def _tiles(
    recipe: Recipe, engines: Mapping[Kind, Any], dataset: Dataset, samples: Sequence[Sample], most: int
) -> list[Pixels]:
    """Tiles as the line cuts them, of every class of the data alike. Raises SourceError when no picture is good."""
    spec = next(iter(engines.values())).spec
    by_class: dict[int, list[Pixels]] = {}
    for sample in samples:
        cut = prepared(recipe, spec, dataset, sample)
        if isinstance(cut, Problem):
            continue
        mine = by_class.setdefault(cut.picture.class_index, [])
        if len(mine) < 4 * most:  # enough to choose from, and no more memory than that
            mine += [np_tile.reshape(spec.tile_shape) for np_tile in cut.tiles]
    if not by_class:
        raise SourceError("none of these pictures can be read; see `aoi dataset explore`")
    return balanced([by_class[index] for index in sorted(by_class)], most)


def _write(recipe: Recipe, kind: Kind, precision: str, content: bytes, console: Console) -> None:
    path = variant_path(recipe.model_path(getattr(recipe, kind)), precision)
    try:
        path.write_bytes(content)
    except OSError as error:
        mend = "copy the model folder to where you may write, and name that"
        raise DiskError(f"{path} cannot be written: {error.strerror}; {mend}") from error
    digest = hashlib.sha256(content).hexdigest()
    console.print(f"{path}: {len(content) / 2**20:.2f} MiB, sha256 {digest[:12]}…", highlight=False, soft_wrap=True)
