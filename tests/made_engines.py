"""The shipped panel model with what is made from it beside it, in a folder of its own, for several test files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from training_pictures import MODELS

from engines.base import Kind
from engines.precision import variant_path
from pipeline.sources.panel import PanelSimulator, render_folder

KINDS: tuple[Kind, ...] = ("classifier", "segmenter")


def panel_copy(folder: Path) -> Path:
    """Recipe, models and card, free to be written beside; nothing that was made from the models."""
    shutil.copytree(MODELS / "panel", folder, ignore=shutil.ignore_patterns("*.int8.onnx"))
    return folder


def panel_tiles(count: int, seed: int = 5) -> list[np.ndarray]:
    """uint8 [256, 256, 1] each, good and defective."""
    simulator = PanelSimulator(seed=seed, defect_rate=0.6)
    return [simulator.panel(i).image[..., None] for i in range(count)]


def panel_pictures(folder: Path, count: int, seed: int = 12) -> Path:
    """Simulated panels with their truth, half of them defective."""
    render_folder(PanelSimulator(seed=seed, defect_rate=0.5), folder, count)
    return folder


def quantised_panel(folder: Path, in_float: Sequence[str] = ()) -> Path:
    """A copy with both files in INT8, calibrated with a few panels; some layers may stay in float."""
    pytest.importorskip("onnxruntime", reason="quantising needs onnxruntime: pip install 'inline-aoi[int8]'")
    from engines.quantize import Quantizer  # noqa: PLC0415 - an extra

    panel_copy(folder)
    for kind in KINDS:
        model = folder / f"{kind}.onnx"
        quantizer = Quantizer(model.read_bytes(), panel_tiles(16))
        chosen = [name for name in quantizer.layers if name not in in_float]
        variant_path(model, "int8").write_bytes(quantizer.quantized(chosen))
    return folder
