"""`aoi build` and `aoi parity` on the shipped panel model, and what a worker makes of their outcome."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from made_engines import KINDS, panel_copy, panel_pictures, panel_tiles, quantised_panel
from training_pictures import MODELS

from engines.base import EngineError, EngineSpec
from pipeline.cli import aoi
from pipeline.errors import Exit
from pipeline.opening import open_engines
from pipeline.promotion import FILE, check_promoted, judging_of, needs_promotion, promotion_of, write_promotions
from pipeline.recipe import Recipe, load_recipe

pytest.importorskip("openvino", reason="the reference is the default engine: pip install 'inline-aoi[cpu]'")


def told(*arguments: object) -> Result:
    return CliRunner().invoke(aoi, [str(each) for each in arguments], standalone_mode=False)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 simulated panels."""
    return panel_pictures(tmp_path_factory.mktemp("panels") / "data", 24)


def int8(folder: Path) -> Recipe:
    recipe = load_recipe(str(folder))
    return replace(recipe, batching=replace(recipe.batching, engine="cpu-int8", max_batch=2))


@pytest.mark.timeout(600)
def test_built_promoted_and_run(tmp_path: Path, pictures: Path) -> None:
    """Quantised as far as the gate lets it, promoted on other pictures, and then a worker's engines open."""
    pytest.importorskip("onnxruntime", reason="building needs onnxruntime: pip install 'inline-aoi[int8]'")
    folder = panel_copy(tmp_path / "panel")
    with pytest.raises(EngineError, match=r"aoi build .* --engine cpu-int8"), open_engines(int8(folder)):
        pass
    calibration = panel_pictures(tmp_path / "calibration", 24, seed=3)
    built = told("build", folder, "--engine", "cpu-int8", "--data", calibration, "--max-batch", 2, "--tiles", 16)
    assert built.exception is None, built.output
    says = "was not promoted for panel; compare it here: aoi parity"
    with pytest.raises(EngineError, match=says), open_engines(int8(folder)):
        pass
    judged = told("parity", folder, "--batches", "1,2", "--data", pictures, "--json")
    assert judged.return_value == Exit.OK, judged.output
    facts = json.loads(judged.stdout)
    assert facts["promoted"] == {"cpu-int8": True}
    assert [(row["engine"], row["batch"]) for row in facts["engines"]] == [
        ("cpu", 1), ("cpu", 2), ("cpu-int8", 1), ("cpu-int8", 2),
    ]  # fmt: skip
    assert all(row["against_reference"]["pictures"] == 24 for row in facts["engines"])
    with open_engines(int8(folder)) as engines:
        assert engines["classifier"].spec.engine == "cpu-int8"
        assert engines["classifier"].spec.place == engines["classifier"].spec.device
    assert "- cpu-int8 promoted" in (folder / "card.md").read_text("utf-8")


def test_a_wrong_engine_does_not_pass(tmp_path: Path, pictures: Path) -> None:
    """Another network under the right name is refused with exit code 12, and loses the promotion it had."""
    folder = panel_copy(tmp_path / "panel")
    for kind in KINDS:
        shutil.copy(folder / f"{kind}.onnx", folder / f"{kind}.int8.onnx")
    assert told("parity", folder, "--batches", "1,2", "--data", pictures).return_value == Exit.OK
    assert json.loads((folder / FILE).read_text())["promoted"]
    shutil.copy(MODELS / "magnetic-tile" / "segmenter.onnx", folder / "segmenter.int8.onnx")
    with pytest.raises(EngineError, match="but with other files"), open_engines(int8(folder)):
        pass
    refused = told("parity", folder, "--batches", "1,2", "--data", pictures)
    assert refused.return_value == Exit.REFUSED
    assert "✗ cpu-int8 refused" in refused.stdout
    assert json.loads((folder / FILE).read_text())["promoted"] == []
    assert "cpu-int8 refused" in (folder / "card.md").read_text("utf-8")
    with open_engines(int8(folder), unpromoted=True) as engines:
        assert engines["classifier"].spec.place.endswith("(not promoted)")


def test_labels_are_not_needed(tmp_path: Path, pictures: Path) -> None:
    """A plain folder of frames will do; --dry-run leaves the model folder as it is."""
    folder = panel_copy(tmp_path / "panel")
    frames = shutil.copytree(pictures / "image", tmp_path / "frames")
    before = sorted(path.name for path in folder.iterdir())
    judged = told("parity", folder, "--engines", "cpu,cpu@CPU", "--batches", "1", "--data", frames, "--dry-run")
    assert judged.return_value == Exit.OK, judged.output
    assert "cpu@CPU judges alike" in judged.stdout
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--engines", "cpu"), "name a reference and one engine or more"),
        (("--engines", "cpu,gpu9"), "no engine 'gpu9'"),
        (("--batches", "1,two"), "give sizes such as 1,3,8,max"),
        ((), "give the folder of pictures with --data"),
    ],
)
def test_what_cannot_be_compared_is_told(arguments: tuple[str, ...], says: str) -> None:
    """In one line, before any engine is opened."""
    refused = told("parity", "panel", *arguments)
    assert says in str(refused.exception.format_message())  # type: ignore[union-attr]


def test_int8_without_frames_is_refused(tmp_path: Path) -> None:
    """What is calibrated with nothing would be wrong everywhere."""
    refused = told("build", panel_copy(tmp_path / "panel"), "--engine", "cpu-int8")
    assert "give their folder with --data" in str(refused.exception)


def spec(**changes: object) -> EngineSpec:
    plain = EngineSpec("cpu-int8", "classifier", "This CPU", 256, 256, 1, ("a", "b"), 8, 2, "f" * 64, "OpenVINO 1")
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_promotion_holds_for_what_was_compared_only(tmp_path: Path) -> None:
    """Another device, runtime, file, batch size, rule or model is another engine."""
    recipe = load_recipe(str(panel_copy(tmp_path / "panel")))
    recipe = replace(recipe, mode="classify")
    write_promotions(recipe.folder, [promotion_of(recipe, {"classifier": spec()}, "cpu", 300, 0, "now")], [])
    check_promoted(recipe, {"classifier": spec(max_batch=4)})
    for changes, says in (
        ({"device": "Another CPU"}, "on This CPU, and this is Another CPU"),
        ({"runtime": "OpenVINO 2"}, "with OpenVINO 1, and this is OpenVINO 2"),
        ({"model_hash": "0" * 64}, "with other files"),
        ({"max_batch": 16}, "for batches up to 8"),
        ({"engine": "trt-int8"}, "trt-int8 was not promoted"),
    ):
        with pytest.raises(EngineError, match=says):
            check_promoted(recipe, {"classifier": spec(**changes)})
    stricter = replace(recipe, classifier=replace(recipe.classifier, threshold=0.9))
    with pytest.raises(EngineError, match="under other rules"):
        check_promoted(stricter, {"classifier": spec()})
    (recipe.folder / "classifier.onnx").write_bytes((MODELS / "magnetic-tile/classifier.onnx").read_bytes())
    with pytest.raises(EngineError, match="for another model"):
        check_promoted(recipe, {"classifier": spec()})


def test_a_newer_promotion_takes_the_place_of_the_last(tmp_path: Path) -> None:
    """One for each engine and device; a refusal takes the old one away and leaves the others."""
    recipe = replace(load_recipe(str(panel_copy(tmp_path / "panel"))), mode="classify")
    here, there = {"classifier": spec()}, {"classifier": spec(device="Another CPU")}
    for at, specs in (("1", here), ("2", there), ("3", here)):
        write_promotions(recipe.folder, [promotion_of(recipe, specs, "cpu", 300, 0, at)], [])
    kept = json.loads((recipe.folder / FILE).read_text())["promoted"]
    assert [(each["device"], each["at"]) for each in kept] == [("Another CPU", "2"), ("This CPU", "3")]
    write_promotions(recipe.folder, [], [("cpu-int8", "This CPU")])
    check_promoted(recipe, there)
    with pytest.raises(EngineError, match="on Another CPU, and this is This CPU"):
        check_promoted(recipe, here)


def test_a_broken_list_of_promotions_is_told(tmp_path: Path) -> None:
    """Not read as none, and not as any."""
    recipe = replace(load_recipe(str(panel_copy(tmp_path / "panel"))), mode="classify")
    for text, says in (("{", "cannot be read"), ('{"schema": 9}', "another release"), ("[1]", "no list of promotions")):
        (recipe.folder / FILE).write_text(text)
        with pytest.raises(EngineError, match=says):
            check_promoted(recipe, {"classifier": spec()})


def test_which_engines_need_a_promotion() -> None:
    """Those that may compute something else than the model says; the default engine on a CPU does not."""
    assert not any(needs_promotion(name, "") for name in ("cpu", "fake", "ort", "torch"))
    assert not needs_promotion("cpu", "CPU")
    assert all(
        needs_promotion(*each) for each in (("cpu", "GPU"), ("cpu-int8", ""), ("trt-fp32", ""), ("trt-int8", "1"))
    )


def test_batching_decides_no_judgement() -> None:
    """A promotion survives another waiting time; it does not survive another limit."""
    recipe = load_recipe("panel")
    faster = replace(recipe, batching=replace(recipe.batching, max_wait_ms=5.0, threads=3))
    assert judging_of(faster) == judging_of(recipe)
    assert judging_of(replace(recipe, judge=replace(recipe.judge, min_area_px=11))) != judging_of(recipe)


def test_the_fallback_stands_on_every_verdict(tmp_path: Path) -> None:
    """An engine that cannot be opened is replaced where the recipe says so, and only there."""
    recipe = int8(panel_copy(tmp_path / "panel"))
    with pytest.raises(EngineError, match=r"int8\.onnx does not exist"), open_engines(recipe):
        pass
    allowed = replace(recipe, batching=replace(recipe.batching, fallback="cpu"))
    with open_engines(allowed) as engines:
        assert engines["segmenter"].spec.place.endswith("(in place of cpu-int8)")
        assert engines["segmenter"].spec.engine == "cpu"


def test_layers_that_stay_in_float_do(tmp_path: Path) -> None:
    """The quantiser leaves out what it is told to, and names every layer there is."""
    pytest.importorskip("onnxruntime", reason="quantising needs onnxruntime: pip install 'inline-aoi[int8]'")
    import onnx  # noqa: PLC0415 - an extra

    from engines.quantize import Quantizer  # noqa: PLC0415 - an extra

    quantizer = Quantizer((MODELS / "panel/classifier.onnx").read_bytes(), panel_tiles(8))
    assert len(quantizer.layers) == 13
    some = onnx.load_model_from_string(quantizer.quantized(quantizer.layers[1:]))
    readers = {node.name: node for node in some.graph.node}
    makers = {output: node.op_type for node in some.graph.node for output in node.output}
    assert makers.get(readers[quantizer.layers[0]].input[0]) != "DequantizeLinear"
    assert makers.get(readers[quantizer.layers[1]].input[0]) == "DequantizeLinear"
    none = onnx.load_model_from_string(quantizer.quantized([]))
    assert not [node for node in none.graph.node if node.op_type == "QuantizeLinear"]


def test_quantised_files_are_what_the_contract_tests_use(tmp_path: Path) -> None:
    """Smaller than a third, whole in themselves, and of the same inputs and outputs."""
    folder = quantised_panel(tmp_path / "panel")
    for kind in KINDS:
        made = (folder / f"{kind}.int8.onnx").stat().st_size
        assert made < (folder / f"{kind}.onnx").stat().st_size / 3
