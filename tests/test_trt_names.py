"""TensorRT names that the code uses exist in old and new releases; shipped models become plans without a GPU.

`trt_names.json`: class → releases (10.13, 10.16, 11.4 of TensorRT, rtx: TensorRT-RTX 1.7; `all` of them) → its members,
read from the bindings' own classes.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from made_engines import KINDS, panel_tiles
from training_pictures import MODELS

from engines.base import EngineError
from engines.batch_profiles import Profile, profiles
from engines.plan_build import build_plan
from pipeline.recipe import shipped

ENGINES = Path(__file__).resolve().parent.parent / "engines"
RELEASES = {"10.13", "10.16", "11.4", "rtx"}
LISTED = json.loads((Path(__file__).parent / "trt_names.json").read_text())
ONLY_RTX = {"DynamicShapesKernelSpecializationStrategy", "EAGER"}  # asked for before they are used
ONLY_RTX |= {"dynamic_shapes_kernel_specialization_strategy"}
# What is called on TensorRT's objects; the rest of an expression like `builder.create_network` cannot be seen by name.
OBJECTS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "runtime": "Runtime", "engine": "ICudaEngine", "_engine": "ICudaEngine",
    "context": "IExecutionContext", "_context": "IExecutionContext", "kept": "ITimingCache",
}  # fmt: skip


def releases_of(class_name: str, member: str) -> set[str]:
    """The releases that have it."""
    found: set[str] = set()
    for releases, members in LISTED.get(class_name, {}).items():
        if member in members.split():
            found |= RELEASES if releases == "all" else set(releases.split())
    return found


def used() -> set[tuple[str, str, str]]:
    """(file, class, member) of every `trt.A.b` and every member of the objects above."""
    found = set()
    for name in ("trt.py", "plan_build.py"):
        for node in ast.walk(ast.parse((ENGINES / name).read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            base = ast.unparse(node.value)
            last = base.rpartition(".")[2]
            if base in ("trt", "self._trt") and node.attr[0].isupper():
                found.add((name, node.attr, node.attr))
            elif base.startswith(("trt.", "self._trt.")) and base.count(".") - base.startswith("self") == 1:
                found.add((name, last, node.attr))
            elif last in OBJECTS and base in (last, f"self.{last}") and not (name == "trt.py" and base == "config"):
                found.add((name, OBJECTS[last], node.attr))
    return found


def test_names_are_those_of_old_and_new_releases() -> None:
    """Of 10.13, 10.16, 11.4 and TensorRT-RTX, but for what is asked for before it is used."""
    seen = {each for each in used() if each[2] not in ("__name__", "__version__", "__init__", *CUDA)}
    assert len(seen) > 25, "the search itself has broken"
    missing = {each: releases_of(*each[1:]) for each in seen if each[2] not in ONLY_RTX}
    assert {each: found for each, found in missing.items() if found != RELEASES} == {}


CUDA = ("push", "detach")  # on pycuda's context, which is called so too


def test_the_list_knows_what_went_away() -> None:
    """The half-precision flag is gone in 11: the list would tell."""
    assert releases_of("BuilderFlag", "FP16") == {"10.13", "10.16"}
    assert releases_of("BuilderFlag", "NO_SUCH") == set()


def test_the_installed_release_has_them_too() -> None:
    """Where one is installed, its own classes are asked."""
    trt = rtx()
    for _, class_name, member in used():
        if member in (class_name, "__name__", "__version__", "__init__", *CUDA):
            continue
        assert hasattr(getattr(trt, class_name), member), f"{class_name}.{member}"


def rtx() -> Any:
    """TensorRT-RTX, which builds without a GPU."""
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64: pip install 'inline-aoi[rtx]'")


def made(name: str, kind: str, precision: str) -> bytes:
    """A shipped model in this precision, in TensorRT's words."""
    onnx_words = pytest.importorskip("engines.trt_graph", reason="needs onnx: pip install 'inline-aoi[int8]'")
    model = (MODELS / name / f"{kind}.onnx").read_bytes()
    if precision == "fp16":
        model = pytest.importorskip("engines.half", reason="needs the extra int8").half(model)
    if precision in ("int8", "fp8"):
        quantize = pytest.importorskip("engines.quantize", reason="needs the extra int8")
        model = quantize.Quantizer(model, panel_tiles(8), precision).quantized()
    words: bytes = onnx_words.for_tensorrt(model)
    return words


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", shipped())
def test_every_shipped_model_becomes_a_plan(name: str, precision: str) -> None:
    """Parsed, given its profiles and built, without a GPU; half precision is half the size of the weights."""
    trt, said = rtx(), list[str]()
    for kind in KINDS:
        plan, _ = build_plan(trt, made(name, kind, precision), profiles(8), said.append)
        assert len(plan) > 100_000
    assert said, "no progress was told"


def test_pixels_enter_as_uint8_in_the_same_order() -> None:
    """The cast that TensorRT wants first changes no answer, bit for bit."""
    ort = pytest.importorskip("onnxruntime", reason="compares with onnxruntime: pip install 'inline-aoi[int8]'")
    import numpy as np  # noqa: PLC0415 - only here

    pixels = np.stack(panel_tiles(2))
    for kind in KINDS:
        before = ort.InferenceSession((MODELS / "panel" / f"{kind}.onnx").read_bytes()).run(None, {"pixels": pixels})
        after = ort.InferenceSession(made("panel", kind, "fp32")).run(None, {"pixels": pixels})
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_profile_that_makes_no_sense_is_refused() -> None:
    """set_shape takes it; the builder's own word is heeded."""
    with pytest.raises(EngineError, match="refuses batches of 4 to 2"):
        build_plan(rtx(), made("panel", "classifier", "fp32"), [Profile(4, 3, 2)])


def test_a_model_that_it_does_not_take_is_told_with_the_node() -> None:
    """In one line with the parser's words."""
    trt = rtx()
    raw = (MODELS / "panel" / "classifier.onnx").read_bytes()  # uint8 goes through a transposition first
    with pytest.raises(EngineError, match="Transpose") as refused:
        build_plan(trt, raw, profiles(2))
    assert refused.value.kind == "unfit"
    assert "\n" not in str(refused.value)


def test_only_one_file_reaches_for_the_gpu() -> None:
    """TensorRT, pycuda and cuda-bindings are named in engines/trt.py alone, and nowhere imported on loading."""
    for path in ENGINES.parent.rglob("*.py"):
        if path.relative_to(ENGINES.parent).parts[0] not in ("engines", "pipeline", "bench"):
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] not in ("tensorrt", "tensorrt_rtx", "pycuda", "cuda"), path
            if isinstance(node, ast.Constant) and node.value in (
                "pycuda.driver",
                "tensorrt_rtx",
                "cuda.bindings.driver",
            ):
                assert path.name == "trt.py", path
