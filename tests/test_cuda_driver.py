"""The driver is asked before anything can die of its absence; drivers that refuse are made here in C."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from engines import trt
from engines.base import EngineError, EngineOptions
from engines.cuda_driver import driver_trouble
from pipeline.recipe import load_recipe

SOURCE = """
int cuInit(unsigned f) {{ return {init}; }}
int cuDeviceGetCount(int *n) {{ *n = {count}; return 0; }}
int cuGetErrorString(int e, const char **s) {{ *s = "as the driver says it"; return 0; }}
"""


def driver(folder: Path, init: int, count: int) -> str:
    """A library that answers so."""
    if not (compiler := shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler to make a driver with")
    source, library = folder / "driver.c", folder / f"libcuda-{init}-{count}.so"
    source.write_text(SOURCE.format(init=init, count=count))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return str(library)


@pytest.mark.parametrize(
    ("init", "count", "says"),
    [
        (100, 0, "is a card built in"),
        (0, 0, "is a card built in"),
        (802, 0, "nvidia-persistenced"),
        (803, 0, "as the driver says it, 803"),
    ],
)
def test_a_driver_that_refuses(
    tmp_path: Path, init: int, count: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reason leads to what can be done about it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert says in str(driver_trouble(driver(tmp_path, init, count)))


def test_a_driver_that_works(tmp_path: Path) -> None:
    """No trouble."""
    assert driver_trouble(driver(tmp_path, 0, 1)) is None


def test_hidden_gpus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty CUDA_VISIBLE_DEVICES is a common reason."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is ''" in str(driver_trouble(driver(tmp_path, 100, 0)))


def test_no_driver_at_all() -> None:
    """Told with its name."""
    assert "libnowhere.so.1 is not here" in str(driver_trouble("libnowhere.so.1"))


def test_an_engine_without_a_gpu_says_all_that_is_missing() -> None:
    """At its making, in one line, before TensorRT's runtime is touched."""
    if not trt.lacks():
        pytest.skip("there is a GPU here")
    recipe = load_recipe("panel")
    path = recipe.model_path(recipe.classifier)
    with pytest.raises(EngineError) as refused:
        trt.TrtEngine(path, "classifier", recipe.classifier.classes, EngineOptions())
    assert refused.value.kind == "missing"
    assert str(refused.value) == "; ".join(map(str, trt.lacks()))
