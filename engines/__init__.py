"""How an engine is run, and how it is made; imports nothing of pipeline/ or bench/."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from engines.base import Engine, EngineError, EngineOptions, Kind

ENGINES = {
    "fake": "engines.fake:FakeEngine",
    "cpu": "engines.cpu:CpuEngine",
}


def open_engine(
    name: str, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions | None = None
) -> Engine:
    """The engine called `name` for this model file; enter it before use.

    Raises EngineError when the name is unknown, its package is not installed, or the file is missing.
    """
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are: {', '.join(ENGINES)}", "missing")
    if not model.is_file():
        raise EngineError(f"{kind} file {model} does not exist; correct `file` in the recipe", "missing")
    module, attribute = ENGINES[name].split(":")
    try:
        factory = getattr(import_module(module), attribute)
    except ImportError as error:
        hint = f"pip install 'inline-aoi[{name}]'"
        raise EngineError(f"engine {name!r} cannot be loaded ({error}); {hint}", "missing") from error
    engine: Engine = factory(model, kind, classes, options or EngineOptions())
    return engine
