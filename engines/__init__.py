"""How an engine is run, and how it is made; imports nothing of pipeline/ or bench/."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from engines.base import Engine, EngineError, EngineOptions, Kind
from engines.onnx_file import read_model_file
from engines.precision import precision_of, variant_path

ENGINES = {
    "fake": "engines.fake:FakeEngine",
    "cpu": "engines.cpu:CpuEngine",
    "cpu-int8": "engines.cpu:CpuEngine",
    "trt-fp32": "engines.trt:TrtEngine",
    "trt-fp16": "engines.trt:TrtEngine",
    "trt-int8": "engines.trt:TrtEngine",
    "trt-fp8": "engines.trt:TrtEngine",
    "ort": "engines.ort:OrtEngine",
    "ort-int8": "engines.ort:OrtEngine",
    "torch": "engines.training.torch_engine:TorchEngine",
}
EXTRAS = {"cpu": "cpu", "ort": "int8", "torch": "train", "trt": "rtx"}  # what to install, by an engine's first word


def open_engine(
    name: str, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions | None = None
) -> Engine:
    """The engine called `name` for this model file, or for the one made from it in the engine's precision.

    Enter it before use. Raises EngineError when the name is unknown, its package is not installed, or a file is
    missing. `options.sha256` is that of the model; which file was made from it, and is good, says a promotion
    (pipeline/promotion.py).
    """
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are: {', '.join(ENGINES)}", "missing")
    if not model.is_file():
        raise EngineError(f"{kind} file {model} does not exist; correct `file` in the recipe", "missing")
    precision = precision_of(name)
    if not (file := variant_path(model, precision)).is_file():
        mend = f"make it: aoi build {model.parent} --engine {name}"
        raise EngineError(f"{kind} file {file} does not exist; {mend}", "missing")
    module, attribute = ENGINES[name].split(":")
    try:
        factory = getattr(import_module(module), attribute)
    except ImportError as error:
        hint = f"pip install 'inline-aoi[{extra_of(name)}]'"
        raise EngineError(f"engine {name!r} cannot be loaded ({error}); {hint}", "missing") from error
    options = replace(options or EngineOptions(), precision=precision)
    if file != model:
        read_model_file(model, options.sha256)
        options = replace(options, sha256="")
    engine: Engine = factory(file, kind, classes, options)
    return engine


def extra_of(name: str) -> str:
    """The extra of this package that brings what an engine needs."""
    return EXTRAS.get(name.partition("-")[0], name)
