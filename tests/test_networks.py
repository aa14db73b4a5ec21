"""The field's networks have their published sizes, answer any batch, learn everywhere and run as ONNX files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")
pytest.importorskip("openvino", reason="an export is checked with the cpu engine: pip install 'inline-aoi[cpu]'")

from torch import nn  # noqa: E402

from engines import open_engine  # noqa: E402
from engines.base import OUTPUTS, EngineError, EngineOptions, Kind  # noqa: E402
from engines.training.networks import NETWORKS, load_network  # noqa: E402
from engines.training.networks.beginnings import Normalise  # noqa: E402
from engines.training.networks.deployed import (  # noqa: E402
    DeployedClassifier,
    DeployedGate,
    DeployedSegmenter,
    DeployedSigmoids,
)
from engines.training.networks.mobilenet import rounded  # noqa: E402

# Each network at its smallest, and a picture it can take.
SMALL = {
    "unet": ({"width": 4}, (32, 48)),
    "lcd-unet": ({"width": 4, "batch_norm": True}, (32, 48)),
    "res-unet": ({"width": 4}, (32, 48)),
    "add-skip-unet": ({"width": 4}, (32, 48)),
    "mobilenet-v1": ({"width": 0.25}, (64, 96)),
    "mobilenet-v2": ({"width": 0.25}, (64, 96)),
    "resnet-50": ({"width": 8}, (64, 96)),
}
PIXEL_NETWORKS = ("unet", "lcd-unet", "res-unet", "add-skip-unet")
each_network = pytest.mark.parametrize("name", NETWORKS)
TOLERANCE = 2e-3  # of a probability, as in engines.training.export


def small(name: str, channels: int, classes: int) -> nn.Module:
    """A network whose kept statistics are those of random pictures, so that its answers vary."""
    torch.manual_seed(3)
    options, _ = SMALL[name]
    net = load_network(name)(channels, classes, **options)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the first batch counts whole
    with torch.no_grad():
        net.train()(pictures(name, 6, channels))
    return net.eval()


def pictures(name: str, count: int, channels: int) -> torch.Tensor:
    """Random grey values [N, C, H, W]."""
    return torch.rand(count, channels, *SMALL[name][1], generator=torch.Generator().manual_seed(5)) * 255


COUNTS = [
    ("unet", 3, 1, {}, 31_031_745),  # the published 64 … 1024 filters
    ("unet", 1, 2, {}, 31_030_658),
    ("unet", 1, 1, {"width": 16}, 1_940_817),
    ("lcd-unet", 1, 1, {}, 1_766_257),
    ("lcd-unet", 1, 1, {"batch_norm": True}, 1_768_721),
    ("res-unet", 3, 4, {}, 1_210_564 - 4_384),  # published with the kept means and deviations
    ("res-unet", 3, 1, {}, 1_210_513 - 4_384),
    ("add-skip-unet", 1, 1, {}, 6_976_161),
    ("mobilenet-v1", 3, 1000, {}, 4_231_976),
    ("mobilenet-v2", 3, 1000, {}, 3_504_872),
    ("resnet-50", 3, 1000, {}, 25_557_032),
]


@pytest.mark.parametrize(("name", "channels", "classes", "options", "expected"), COUNTS)
def test_parameter_counts_are_the_published_ones(
    name: str, channels: int, classes: int, options: dict[str, int], expected: int
) -> None:
    """Every layer is there, of the right width, with a bias where the publication has one."""
    with torch.device("meta"):  # shapes only: nothing is drawn, nothing is stored
        net = load_network(name)(channels, classes, **options)
    assert sum(weights.numel() for weights in net.parameters()) == expected


def test_kept_statistics_of_the_res_unet_make_up_the_published_count() -> None:
    """2,192 normalised channels keep a mean and a deviation each."""
    with torch.device("meta"):
        net = load_network("res-unet")(3, 4)
    channels = sum(layer.num_features for layer in net.modules() if isinstance(layer, nn.BatchNorm2d))
    assert 2 * channels == 4_384


@each_network
@pytest.mark.parametrize(("channels", "count"), [(1, 3), (3, 1)])
def test_scores_have_the_shape_of_their_kind(name: str, channels: int, count: int) -> None:
    """Any batch, mono or colour: [N, K] of pictures, or [N, K, H, W] with every pixel answered."""
    with torch.no_grad():
        scores = small(name, channels, 4)(pictures(name, count, channels))
    expected = (count, 4, *SMALL[name][1]) if name in PIXEL_NETWORKS else (count, 4)
    assert scores.shape == expected
    assert scores.std() > 0.01


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(PIXEL_NETWORKS)))
def test_pictures_of_any_size_are_judged(name: str) -> None:
    """A classifier takes sides that are no multiple of anything."""
    with torch.no_grad():
        assert small(name, 1, 2)(torch.zeros(1, 1, 61, 75)).shape == (1, 2)


@pytest.mark.parametrize("name", PIXEL_NETWORKS)
def test_side_step_is_the_smallest_side(name: str) -> None:
    """Sides that are multiples of it are answered, the next smaller step is not enough."""
    net = small(name, 1, 2)
    step = net.side_step
    with torch.no_grad():
        assert net(torch.zeros(1, 1, step, 3 * step)).shape == (1, 2, step, 3 * step)
        with pytest.raises(RuntimeError, match="size"):
            net(torch.zeros(1, 1, 2 * step, 2 * step + step // 2))


@each_network
def test_every_parameter_learns(name: str) -> None:
    """One step back from the scores reaches every weight, and every bias that is not normalised away."""
    net = small(name, 3, 3).train()
    scores = net(pictures(name, 4, 3))
    scores.log_softmax(1)[:, 0].mean().backward()
    for path, weights in net.named_parameters():
        assert torch.isfinite(weights.grad).all(), path
        normalised_away = path.endswith(".0.bias") and name in ("res-unet", "lcd-unet")
        assert weights.grad.abs().max() > 0 or normalised_away, path


@each_network
def test_answers_do_not_change_from_call_to_call(name: str) -> None:
    """In use nothing is dropped at random, nothing is learnt, and company in the batch changes no answer."""
    net, batch = small(name, 1, 3), pictures(name, 3, 1)
    with torch.no_grad():
        first, again, alone = net(batch), net(batch), net(batch[1:2])
    assert torch.equal(first, again)
    assert torch.allclose(first[1:2], alone, atol=1e-4)


@each_network
def test_grey_values_are_normalised_inside(name: str) -> None:
    """Darker pictures of half the contrast get the same scores once mean and deviation say so."""
    net, batch = small(name, 1, 3), pictures(name, 2, 1)
    with torch.no_grad():
        bright = net(batch)
        net.normalise.mean.copy_(net.normalise.mean / 2 + 10)
        net.normalise.deviation.mul_(0.5)
        dark = net(batch / 2 + 10)
    assert torch.allclose(bright, dark, atol=1e-3)


def test_normalising_is_by_channel() -> None:
    """(x − mean) / deviation, each channel with its own; both travel with the weights."""
    normalise = Normalise(3)
    normalise.mean.copy_(torch.tensor([10.0, 20, 30]).view(3, 1, 1))
    normalise.deviation.copy_(torch.tensor([2.0, 4, 5]).view(3, 1, 1))
    assert normalise(torch.full((1, 3, 1, 1), 40.0)).flatten().tolist() == [15, 5, 2]
    assert set(normalise.state_dict()) == {"mean", "deviation"}


def test_filters_of_narrow_mobilenets_are_multiples_of_eight() -> None:
    """The nearest one, the next where that would take more than a tenth away."""
    assert [rounded(wanted) for wanted in (32, 12, 8.4, 3.2, 11, 20)] == [32, 16, 8, 8, 16, 24]


def test_an_unknown_network_is_named_with_those_there_are() -> None:
    """A misspelt name says what can be had."""
    with pytest.raises(EngineError, match="no network 'u-net'; there are: unet, lcd-unet"):
        load_network("u-net")


class Said(nn.Module):
    """A network that says the same scores whatever it sees."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.scores


SEEN = torch.zeros(1, 1, 4, 1, dtype=torch.uint8)


def test_sigmoids_become_labels_and_confidence() -> None:
    """The largest sigmoid from 0.5 on is the label; below, background is as sure as that sigmoid is not."""
    chance = torch.tensor([[0.9, 0.6, 0.2, 0.5], [0.1, 0.7, 0.4, 0.0001]])
    labels, confidence = DeployedSigmoids(Said(chance.logit().view(1, 2, 1, 4)))(SEEN)
    assert (labels.dtype, confidence.dtype) == (torch.uint8, torch.uint8)
    assert labels.tolist() == [[[1, 2, 0, 1]]]
    assert confidence.tolist() == [[[230, 178, 153, 128]]]  # 229.5 to even, 178.5 to even, 0.6 · 255, 127.5 to even


def test_softmax_becomes_labels_and_confidence() -> None:
    """The class of the largest score, and its probability × 255."""
    chance = torch.tensor([[0.7, 0.1], [0.2, 0.3], [0.1, 0.6]])
    labels, confidence = DeployedSegmenter(Said(chance.log().view(1, 3, 1, 2)))(SEEN)
    assert labels.tolist() == [[[0, 2]]]
    assert confidence.tolist() == [[[178, 153]]]


def test_a_gate_of_one_score_gives_two_classes() -> None:
    """P(good) is 1 − P(defect), and a small one is not rounded away."""
    scores = DeployedGate(Said(torch.tensor([[0.8], [0.01]]).logit()))(SEEN)
    assert scores.flatten().tolist() == pytest.approx([0.2, 0.8, 0.99, 0.01])
    certain = DeployedGate(Said(torch.tensor([[40.0]])))(SEEN)
    assert 0 < certain[0, 0] < 1e-16


def write(model: nn.Module, kind: Kind, example: torch.Tensor, path: Path) -> None:
    """An ONNX file of the engine contract, as engines.training.export writes it."""
    names = ["pixels", *OUTPUTS[kind]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the other exporter is recommended
        torch.onnx.export(
            model.eval(),
            (example,),
            str(path),
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "N"} for name in names},
            opset_version=17,
            dynamo=False,
        )


WRAPPED = [
    *[(name, DeployedSegmenter, 1, 3, 3) for name in ("unet", "lcd-unet")],
    *[(name, DeployedSigmoids, 3, 4, 5) for name in ("res-unet",)],
    *[(name, DeployedSigmoids, 1, 1, 2) for name in ("add-skip-unet",)],
    *[(name, DeployedClassifier, 1, 6, 6) for name in ("mobilenet-v1", "mobilenet-v2")],
    *[(name, DeployedGate, 3, 1, 2) for name in ("resnet-50",)],
]


@pytest.mark.parametrize(("name", "wrapper", "channels", "planes", "classes"), WRAPPED)
def test_exported_networks_answer_as_in_training(
    name: str, wrapper: type[nn.Module], channels: int, planes: int, classes: int, tmp_path: Path
) -> None:
    """The cpu engine gives the network's own answers from the ONNX file, for a batch other than the traced one."""
    net = small(name, channels, planes)
    tiles = pictures(name, 3, channels).permute(0, 2, 3, 1).contiguous().to(torch.uint8)
    kind: Kind = "segmenter" if name in PIXEL_NETWORKS else "classifier"
    path = tmp_path / f"{name}.onnx"
    write(wrapper(net), kind, tiles[:2], path)
    class_names = ("good", *"abcde")[:classes]
    with open_engine("cpu", path, kind, class_names, EngineOptions(max_batch=3, in_flight=1)) as engine:
        assert engine.spec.tile_shape == (*SMALL[name][1], channels)
        got = engine.submit(tiles.numpy()).result()
    with torch.no_grad():
        expected = wrapper(net)(tiles)
    if kind == "classifier":
        assert (got["scores"].shape, got["scores"].dtype) == ((3, classes), np.float32)
        assert np.abs(got["scores"] - expected.numpy()).max() < TOLERANCE
        assert got["scores"].sum(1) == pytest.approx(1, abs=1e-5)
        assert got["scores"].std(0).max() > TOLERANCE  # tiles are told apart
        return
    labels, confidence = (plane.numpy().astype(int) for plane in expected)
    assert (got["labels"].shape, got["labels"].dtype) == (labels.shape, np.uint8)
    assert len(np.unique(labels)) == classes
    assert (got["labels"] != labels).mean() < 1e-3  # a tie may fall either way
    assert np.abs(got["confidence"].astype(int) - confidence).max() <= 1
