"""Our pair: shaped as promised, begun from photographs, exported as two small files that every engine can run."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")
pytest.importorskip("openvino", reason="an export is checked with the cpu engine: pip install 'inline-aoi[cpu]'")
onnx = pytest.importorskip("onnx", reason="training is an extra: pip install 'inline-aoi[train]'")

from engines import open_engine  # noqa: E402
from engines.base import EngineError, EngineOptions, Kind  # noqa: E402
from engines.datasets.labelled import DatasetError  # noqa: E402
from engines.training.export import HALVES_MAY_COST, TOLERANCE, check_export, export, export_small, halve  # noqa: E402
from engines.training.kept_weights import Blueprint, build, check_sides, deployed, keep, kept  # noqa: E402
from engines.training.networks import NETWORKS  # noqa: E402
from engines.training.networks.inline import DEVIATION, MEAN, PRETRAINED, Encoder, Inline  # noqa: E402
from engines.training.networks.resized import Resized  # noqa: E402
from engines.training.presets import PRESETS, ROLES, find_preset, with_loss, with_network  # noqa: E402

CLASSES = ("good", "spot", "line")
INPUTS = {"mono": (1, False), "colour": (3, False), "template": (3, True)}
each_input = pytest.mark.parametrize("kind", INPUTS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair_of(kind: str = "mono", seed: int = 1) -> Inline:
    """Untaught heads on the shipped encoder; made as loud as taught ones, so that answers vary."""
    torch.manual_seed(seed)
    pair = Inline(INPUTS[kind][0], len(CLASSES), INPUTS[kind][1]).eval()
    with torch.no_grad():
        for layer, louder in ((pair.mark, 30), (pair.cells, 30), (pair.decide, 4)):
            layer.weight.mul_(louder)
    return pair


def plan_of(kind: str = "mono") -> Blueprint:
    return Blueprint("pair", "inline", {}, "softmax", None, CLASSES, *INPUTS[kind])


def tiles_of(count: int, height: int = 64, width: int = 96, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


@each_input
def test_scores_of_tile_cells_and_pixels_have_their_shapes(kind: str) -> None:
    """[N, K], [N, K, H / 16, W / 16] and [N, K, H, W], for grey, colour, and picture with golden template."""
    with torch.no_grad():
        tile, cells, pixels = pair_of(kind)(torch.rand(2, INPUTS[kind][0], 48, 80) * 255)
    assert (tile.shape, cells.shape, pixels.shape) == ((2, 3), (2, 3, 3, 5), (2, 3, 48, 80))
    assert min(each.std() for each in (tile, cells, pixels)) > 0.01


def test_sides_must_be_multiples_of_sixteen() -> None:
    """Others are refused in one line before anything is computed; a network that resizes its tile takes any."""
    pair = Inline(1, 2)
    check_sides(pair, (16, 48))
    with pytest.raises(DatasetError, match="tiles of 64×100 px do not suit the network; give multiples of 16 px"):
        check_sides(pair, (64, 100))
    with torch.no_grad(), pytest.raises(RuntimeError):
        pair(torch.zeros(1, 1, 64, 100))
    check_sides(Resized(torch.nn.Identity(), (8, 8)), (37, 41))


def test_a_tile_is_shrunk_by_its_mean_and_stretched_to_the_size_inside() -> None:
    """Whole px are averaged; what cannot be divided is interpolated."""
    tile = torch.arange(16.0).view(1, 1, 4, 4)
    assert Resized(torch.nn.Identity(), (2, 2))(tile).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert Resized(torch.nn.Identity(), (8, 3))(tile).shape == (1, 1, 8, 3)
    assert Resized(torch.nn.Identity(), (4, 4))(tile) is tile


def test_the_pair_is_small() -> None:
    """Below three quarters of a million numbers, nearly all of them the encoder's."""
    assert sum(each.numel() for each in Encoder(1).parameters()) == 692_112
    for classes in (2, 6):
        heads = (48 * 4 + 4) * classes + (112 + 1) * classes + (2 * 112 + classes + 1) * classes
        assert sum(each.numel() for each in Inline(1, classes).parameters()) == 722_656 + heads
    colours = (sum(each.numel() for each in Inline(3, 2, template).parameters()) for template in (False, True))
    assert set(colours) == {723_728 + 2 * 32 * 9}


def test_shipped_weights_hold_numbers_only() -> None:
    """An archive of plain arrays: nothing in it is run when it is read. The licence lies beside it."""
    folder = files("engines.training") / "pretrained"
    with zipfile.ZipFile(Path(str(folder / PRETRAINED))) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                _, _, dtype = read[version](member)
            assert not dtype.hasobject, name
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert PRETRAINED in (folder / "NOTICE").read_text()


def test_the_encoder_sees_a_grey_picture_as_the_same_picture_in_colour() -> None:
    """The grey stem is the sum of the three colours'; BGR is what RGB was taught as."""
    grey = (torch.rand(1, 1, 64, 64) * 255 - MEAN) / DEVIATION
    colour = grey.expand(-1, 3, -1, -1)
    mono, bgr = Encoder(1).eval(), Encoder(3).eval()
    for encoder in (mono, bgr):
        encoder.start_from_photographs()
    assert torch.allclose(mono.stem.weight, bgr.stem.weight.sum(1, keepdim=True), atol=1e-6)
    with torch.no_grad():
        for ours, theirs in zip(mono(grey), bgr(colour), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-3)
    with np.load(Path(str(files("engines.training") / "pretrained" / PRETRAINED)), allow_pickle=False) as stored:
        rgb = torch.from_numpy(stored["stem.weight"].astype(np.float32))
    assert torch.equal(bgr.stem.weight, rgb[:, [2, 1, 0]])


def test_with_a_template_picture_and_difference_are_looked_at() -> None:
    """The stem begins as half of a grey one on the picture, nothing on the template, a whole one on the difference."""
    stem = Inline(3, 2, template=True).encoder.stem.weight
    grey = Inline(1, 2).encoder.stem.weight[:, 0]
    assert torch.allclose(stem[:, 0], grey / 2, atol=1e-6)
    assert not stem[:, 1].any()
    assert torch.allclose(stem[:, 2], grey, atol=1e-6)


@pytest.mark.parametrize("kind", ["mono", "template"])
def test_the_pair_exports_as_two_small_files_that_run_at_any_batch(kind: str, tmp_path: Path) -> None:
    """What the engines expect, below 4 MB together, with the network's own answers, alone and in company."""
    pair, (channels, _) = pair_of(kind), INPUTS[kind]
    tiles, sizes = tiles_of(2, channels=channels), []
    for name, module in deployed(plan_of(kind), pair).items():
        path = tmp_path / f"{name}.onnx"
        assert export_small(module, name, (64, 96, channels), path, tiles[:1], CLASSES) < HALVES_MAY_COST
        sizes.append(path.stat().st_size)
        with open_engine("cpu", path, name, CLASSES, EngineOptions(max_batch=2, in_flight=1)) as engine:
            assert engine.spec.tile_shape == (64, 96, channels)
            together = engine.submit(tiles).result()
            alone = [engine.submit(tiles[n : n + 1]).result() for n in range(2)]
        for output, plane in together.items():
            one_by_one = np.concatenate([each[output] for each in alone]).astype(float)
            assert np.abs(plane.astype(float) - one_by_one).max() <= (1e-5 if name == "classifier" else 1)
        if name == "classifier":
            assert together["scores"].sum(1) == pytest.approx(1, abs=1e-5)
        else:
            assert together["labels"].shape == (2, 64, 96)
            assert set(np.unique(together["labels"])) == {0, 1, 2}
            assert together["confidence"].min() >= 84  # the winner of three has at least a third
    assert sum(sizes) < 4e6


def test_a_file_tells_nothing_of_the_machine_it_was_made_on(tmp_path: Path) -> None:
    """No path of ours and no remark of the exporter; weights are halved, biases are whole."""
    module = deployed(plan_of(), pair_of())["classifier"]
    export(module, "classifier", (64, 64, 1), tmp_path / "a.onnx")
    halve(tmp_path / "a.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in content
    assert b"site-packages" not in content
    model = onnx.load(str(tmp_path / "a.onnx"))
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    kinds = {tensor.name.endswith(".half"): tensor.data_type for tensor in model.graph.initializer}
    assert kinds[True] == onnx.TensorProto.FLOAT16


def test_an_export_twice_is_the_same_file(tmp_path: Path) -> None:
    """Its hash says which weights it holds, and nothing else."""
    for name in ("a", "b"):
        export(deployed(plan_of(), pair_of())["segmenter"], "segmenter", (32, 32, 1), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_an_export_of_other_weights_is_refused(kind: Kind, tmp_path: Path) -> None:
    """The check compares answers, not only shapes."""
    ours, other = (deployed(plan_of(), pair_of(seed=seed))[kind] for seed in (1, 2))
    export(ours, kind, (64, 64, 1), tmp_path / "a.onnx")
    with pytest.raises(EngineError, match="differs from the network") as refused:
        check_export(other, kind, tmp_path / "a.onnx", tiles_of(1, 64, 64), CLASSES)
    assert refused.value.kind == "unfit"


def test_weights_stay_whole_where_halves_would_change_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing may change, no half is kept; the file is larger, and it is the network."""
    module, tiles, sizes = deployed(plan_of(), pair_of())["classifier"], tiles_of(2, 64, 64), []
    for allowed in (HALVES_MAY_COST, 0.0):
        monkeypatch.setattr("engines.training.export.HALVES_MAY_COST", allowed)
        assert export_small(module, "classifier", (64, 64, 1), tmp_path / "a.onnx", tiles, CLASSES) < HALVES_MAY_COST
        sizes.append((tmp_path / "a.onnx").stat().st_size)
    assert check_export(module, "classifier", tmp_path / "a.onnx", tiles, CLASSES) < TOLERANCE
    assert not any(each.name.endswith(".half") for each in onnx.load(str(tmp_path / "a.onnx")).graph.initializer)
    assert sizes[1] > 1.8 * sizes[0]


@each_input
def test_weights_are_kept_and_come_back(kind: str, tmp_path: Path) -> None:
    """The same network with the same answers, from a file of plain values."""
    pair = pair_of(kind)
    path = keep(plan_of(kind), pair, tmp_path)
    assert path == tmp_path / "weights" / "pair.pt"
    ((plan, again),) = kept(tmp_path)
    assert plan == plan_of(kind)
    seen = torch.rand(1, INPUTS[kind][0], 32, 32) * 255
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(pair(seen), again(seen), strict=True))


def test_options_and_input_of_a_network_are_kept_too(tmp_path: Path) -> None:
    """A gate that sees its tile at another size is built again as it was."""
    plan = Blueprint("classifier", "mobilenet-v2", {"width": 0.25}, "softmax", (32, 48), CLASSES, 3, False)
    net = build(plan).eval()
    keep(plan, net, tmp_path)
    ((again, twin),) = kept(tmp_path)
    assert again == plan
    with torch.no_grad():
        assert torch.equal(net(torch.ones(1, 3, 40, 40)), twin(torch.ones(1, 3, 40, 40)))


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_damaged_or_missing_weights_are_told(content: bytes | None, tmp_path: Path) -> None:
    """In one line, with what to do."""
    if content is not None:
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "pair.pt").write_bytes(content)
    with pytest.raises(DatasetError, match=r"train again|a folder that `aoi train` wrote"):
        kept(tmp_path)


def test_every_network_has_a_role() -> None:
    """What can be asked for with --network is what there is, and each preset's own has its lesson's role."""
    assert set(ROLES) == {*NETWORKS, "inline"}
    for preset in PRESETS.values():
        for lesson in preset.lessons:
            assert ROLES[lesson.network] == lesson.role
    segmenters = {name for name, role in ROLES.items() if role == "segmenter"}
    with torch.device("meta"):
        for name in NETWORKS:
            net = build(Blueprint(ROLES[name], name, {}, "softmax", None, CLASSES, 1, False))
            assert (net.side_step > 1) == (name in segmenters)


def test_another_network_takes_the_place_of_its_role() -> None:
    """Without the options of the one it replaces; the preset's own name changes nothing."""
    gate, marker = with_network(find_preset("steel-cascade"), "mobilenet-v2").lessons
    assert (gate.network, gate.input, marker.network) == ("mobilenet-v2", (256, 256), "res-unet")
    lcd = find_preset("lcd-unet")
    assert with_network(lcd, "res-unet").lessons[0].options == {}
    assert with_network(lcd, "lcd-unet") == lcd


@pytest.mark.parametrize(
    ("preset", "network", "said"),
    [
        ("inline", "unet", "preset inline has no place for unet, a segmenter; it can take: inline"),
        ("lcd-unet", "resnet-50", "it can take: unet, lcd-unet, res-unet, add-skip-unet"),
        ("inline", "u-net", "no network 'u-net'; there are: inline, unet"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(preset: str, network: str, said: str) -> None:
    """Never taken for another one, never silently left out."""
    with pytest.raises(DatasetError, match=said):
        with_network(find_preset(preset), network)


def test_a_loss_is_the_segmenters() -> None:
    """A preset without a segmenter of its own has none to choose."""
    gate, marker = with_loss(find_preset("steel-cascade"), "dice").lessons
    assert (gate.loss, marker.loss) == ("cross-entropy", "dice")
    with pytest.raises(DatasetError, match="preset inline has no loss to choose; these have: lcd-unet, steel-cascade"):
        with_loss(find_preset("inline"), "dice")
