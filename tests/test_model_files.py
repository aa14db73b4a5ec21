"""A model file is read once, is the one the recipe means, and is whole in itself, before any runtime sees it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import open_engine
from engines.base import EngineError, EngineOptions
from engines.onnx_file import check_self_contained, read_model_file
from pipeline.cli import main
from pipeline.errors import Exit, RecipeError
from pipeline.opening import open_engines
from pipeline.recipe import Model, Recipe, load_recipe, parse_recipe, shipped

CLASSES = ("good", "a", "b")
CONTENT = (load_recipe("panel").folder / "classifier.onnx").read_bytes()


@pytest.fixture
def ov() -> Any:
    return pytest.importorskip("openvino", reason="engine cpu needs openvino")


@pytest.fixture
def no_runtime(ov: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that must not be given anything."""

    class Core:
        def read_model(self, *_: object) -> None:
            pytest.fail("the runtime was given a file that should have been refused")

    monkeypatch.setattr("engines.cpu.ov.Core", Core)


def panel_copy(folder: Path) -> Recipe:
    """The shipped pair in a folder of its own."""
    shutil.copytree(load_recipe("panel").folder, folder)
    return load_recipe(str(folder))


# -------------------------------------------------------------- which file


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_state_what_their_files_are(name: str) -> None:
    """Every stage has the SHA-256 of the file that lies there."""
    recipe = load_recipe(name)
    for stage in recipe.stages:
        model: Model = getattr(recipe, stage)
        assert model.sha256 == hashlib.sha256(recipe.model_path(model).read_bytes()).hexdigest()


@pytest.mark.usefixtures("no_runtime")
@pytest.mark.parametrize("stage", ["classifier", "segmenter"])
def test_another_file_is_refused_before_the_runtime_reads_it(tmp_path: Path, stage: str) -> None:
    """One bit changed is another file."""
    recipe = panel_copy(tmp_path / "panel")
    recipe = replace(recipe, mode={"classifier": "classify", "segmenter": "segment"}[stage])
    path = recipe.model_path(getattr(recipe, stage))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"sha256 differs.*put the right file back") as refused, open_engines(recipe):
        pytest.fail("it was opened")
    assert refused.value.kind == "unfit"


def test_the_bytes_that_were_checked_are_the_bytes_that_are_loaded(
    ov: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is swapped right after it was read makes no difference: its path is not opened again."""
    recipe = replace(panel_copy(tmp_path / "panel"), mode="classify")
    path, given_to_runtime, read = recipe.model_path(recipe.classifier), [], Path.read_bytes

    def swapped_afterwards(self: Path) -> bytes:
        content = read(self)
        if self == path:
            self.write_bytes(b"another file")
        return content

    class Core(ov.Core):  # type: ignore[misc]
        def read_model(self, model: Any, *rest: Any) -> Any:
            given_to_runtime.append(model)
            return super().read_model(model, *rest)

    monkeypatch.setattr(Path, "read_bytes", swapped_afterwards)
    monkeypatch.setattr("engines.cpu.ov.Core", Core)
    with open_engines(recipe) as engines:
        assert engines["classifier"].spec.model_hash == recipe.classifier.sha256
    assert [hashlib.sha256(content).hexdigest() for content in given_to_runtime] == [recipe.classifier.sha256]


def test_hash_may_be_written_in_capitals_or_left_out(tmp_path: Path) -> None:
    """As other tools print it; without one any file of the name is taken."""
    (tmp_path / "net").write_bytes(b"x")
    wanted = hashlib.sha256(b"x").hexdigest()
    for stated in (wanted, wanted.upper(), ""):
        assert read_model_file(tmp_path / "net", stated) == (b"x", wanted)
    for stated in (wanted[:-1], "0" * 64, "x"):
        with pytest.raises(EngineError, match="sha256 differs"):
            read_model_file(tmp_path / "net", stated)


def test_every_engine_checks_the_hash(tmp_path: Path) -> None:
    """The engine of tests too: what opens a file checks it."""
    (tmp_path / "net.fake").write_text("{}")
    with pytest.raises(EngineError, match="sha256 differs"):
        open_engine("fake", tmp_path / "net.fake", "classifier", CLASSES, EngineOptions(sha256="0" * 64))


@pytest.mark.parametrize("file", ["../net.onnx", "/etc/hostname", "a/../../net.onnx", "link.onnx", "linked/net.onnx"])
def test_file_of_a_recipe_stays_in_its_folder(tmp_path: Path, file: str) -> None:
    """Neither up, nor absolute, nor by a link; a folder is all there is to trust."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "net.onnx").write_bytes(b"x")
    (folder / "link.onnx").symlink_to(tmp_path / "net.onnx")
    (folder / "linked").symlink_to(tmp_path)
    stage = {"file": file, "classes": list(CLASSES)}
    recipe = parse_recipe({"name": "x", "mode": "classify", "classifier": stage}, folder)
    with pytest.raises(RecipeError, match="leads out of the model folder"), open_engines(recipe):
        pytest.fail("it was opened")


# -------------------------------------------------------------- what is in it


@pytest.mark.parametrize("name", shipped())
def test_shipped_models_are_whole_in_themselves(name: str) -> None:
    """The check lets real networks through."""
    recipe = load_recipe(name)
    for stage in recipe.stages:
        check_self_contained(recipe.model_path(getattr(recipe, stage)).read_bytes(), stage)


BROKEN = {
    "nothing": b"",
    "half of it": CONTENT[: len(CONTENT) // 2],
    "all but a byte": CONTENT[:-1],
    "text": b"not a model at all",
    "noise": bytes(range(256)) * 8,
    "zeros": bytes(1000),
    "another runtime's": b"<?xml version='1.0'?><net name='a' version='11'><layers/></net>",
    "no graph": b"\x08\x08",
    "endless number": b"\x08" + b"\xff" * 20,
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}


@pytest.mark.usefixtures("no_runtime")
@pytest.mark.parametrize("name", BROKEN)
def test_file_that_is_no_model_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    """Cut off or something else altogether; the runtime's parser does not see it."""
    (tmp_path / "net.onnx").write_bytes(BROKEN[name])
    with pytest.raises(EngineError, match="is not an ONNX model") as refused:
        open_engine("cpu", tmp_path / "net.onnx", "classifier", CLASSES)
    assert "\n" not in str(refused.value)
    assert refused.value.kind == "unfit"


def test_worker_says_so_with_its_own_exit_code(ov: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`aoi work` on a model folder with half a file: one line and ENGINE, nothing is taken from the stream."""
    recipe = panel_copy(tmp_path / "panel")
    recipe.model_path(recipe.classifier).write_bytes(BROKEN["half of it"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["aoi", "work", "--recipe", str(tmp_path / "panel"), "--url", "redis://nowhere"])
        patch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == Exit.ENGINE
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert said.count("\n") == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_are_a_model_or_refused(data: st.DataObject) -> None:
    """A real one with bytes changed, and anything at all: accepted, or EngineError, and soon."""
    found = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 4))):
        found[data.draw(st.integers(0, len(found) - 1))] = data.draw(st.integers(0, 255))
    for content in (bytes(found), data.draw(st.binary(max_size=300))):
        with suppress(EngineError):
            check_self_contained(content, "net.onnx")


# -------------------------------------------------------------- weights kept elsewhere


def points_outside(onnx: Any, location: str) -> Any:
    """A tensor of four floats that lie in another file."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def in_initializer(onnx: Any, tensor: Any, model: Any) -> None:
    model.graph.initializer.append(tensor)


def in_attribute(onnx: Any, tensor: Any, model: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def in_branch(onnx: Any, tensor: Any, model: Any) -> None:
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
    branches = {"then_branch": inner, "else_branch": onnx.helper.make_graph([], "e", [], [])}
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], **branches))


def in_function(onnx: Any, tensor: Any, model: Any) -> None:
    node = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(onnx.helper.make_function("own", "F", [], ["c"], [node], []))


def in_sparse(onnx: Any, tensor: Any, model: Any) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def in_training(onnx: Any, tensor: Any, model: Any) -> None:
    model.training_info.add().algorithm.initializer.append(tensor)


@pytest.mark.usefixtures("no_runtime")
@pytest.mark.parametrize("put", [in_initializer, in_attribute, in_branch, in_function, in_sparse, in_training])
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_weights_outside_the_file_are_refused(tmp_path: Path, put: Callable[..., None], location: str) -> None:
    """Wherever in the model they are named, and wherever they lie: no hash of the model covers them."""
    onnx = pytest.importorskip("onnx", reason="makes models")
    model = onnx.load_model_from_string(CONTENT)
    put(onnx, points_outside(onnx, location), model)
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="keeps weights in other files; save it with its weights inside"):
        open_engine("cpu", tmp_path / "net.onnx", "classifier", CLASSES)
