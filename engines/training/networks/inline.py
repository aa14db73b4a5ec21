"""Our pair for inline inspection: one encoder, a head that judges the tile and one that marks its pixels.

Both heads are taught at once, because masks teach the judge where to look and the judge teaches the marker what
it looks at (mixed supervision: Božič et al. 2021, arXiv:2104.06064); what is exported are two networks.

The encoder is the first five of the seven stages of EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946; "Lite":
ReLU6 and no squeeze-and-excitation, so that it quantises well), as learnt on ImageNet, its batch normalisation
folded into the convolutions: few labelled defects teach a network far less than a million photographs have. The
stages that are left out hold three quarters of the weights and see only a 32nd of the resolution.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# repeats, kernel, stride, expansion, channels
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
STEM = 32  # channels
MEAN, DEVIATION = 127.0, 128.0  # of the grey values the encoder was taught with
SPREAD = 0.375  # deviation of a photograph's values in the encoder's units
LEAST_DEVIATION = 6.0  # grey levels: a tile of less contrast is noise, which is not blown up
PRETRAINED = "efficientnet-lite0-five-stages.npz"


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution with bias that keeps the size, or divides it by `stride`."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)


class InvertedResidual(nn.Module):
    """Widen, look around per channel, narrow (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.widen = convolution(inputs, wide) if expansion > 1 else None
        self.look = convolution(wide, wide, kernel, stride, wide)
        self.narrow = convolution(wide, outputs)
        self.keeps = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.widen is None else F.relu6(self.widen(x))
        y: Tensor = self.narrow(F.relu6(self.look(wide)))
        return x + y if self.keeps else y


class Encoder(nn.Module):
    """Features at 1/4, 1/8 and 1/16 of the resolution: float [N, C, H, W] → 24, 40 and 112 channels."""

    channels = (24, 40, 112)

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.stem = convolution(inputs, STEM, 3, 2)
        self.stages = nn.ModuleList()
        previous = STEM
        for repeats, kernel, stride, expansion, channels in STAGES:
            blocks = [InvertedResidual(previous, channels, kernel, stride, expansion)]
            blocks += [InvertedResidual(channels, channels, kernel, 1, expansion) for _ in range(repeats - 1)]
            self.stages.append(nn.Sequential(*blocks))
            previous = channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = F.relu6(self.stem(x))
        features = []
        for stage in self.stages:
            y = stage(y)
            features.append(y)
        return features[1], features[2], features[4]

    def start_from_photographs(self) -> None:
        """Take the shipped weights; the stem's three colours are added up for a grey picture.

        With a golden template the three planes are picture, template and difference: the picture's and the
        difference's start as a grey picture's, the template's at nothing.
        """
        folder = files("engines.training") / "pretrained"
        with (folder / PRETRAINED).open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            weights = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files}
        if self.stem.in_channels == 1:
            weights["stem.weight"] = weights["stem.weight"].sum(1, keepdim=True)
        else:
            weights["stem.weight"] = weights["stem.weight"].flip(1)  # learnt on RGB, ours are BGR
        self.load_state_dict(weights)

    def look_at_difference(self) -> None:
        """Change the stem for the planes picture, template, difference."""
        with torch.no_grad():
            grey = self.stem.weight.sum(1)
            self.stem.weight.copy_(torch.stack([grey / 2, torch.zeros_like(grey), grey], 1))


def separable(channels: int, kernel: int) -> nn.Sequential:
    """A look around per channel and a mixing of channels, each normalised."""
    look = [nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)]
    mix = [nn.Conv2d(channels, channels, 1, bias=False)]
    after = [nn.BatchNorm2d(channels), nn.ReLU6(inplace=True)]
    return nn.Sequential(*look, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True), *mix, *after)


class Inline(nn.Module):
    """float [N, C, H, W], grey values 0 … 255 → scores of the tile, of its cells and of its pixels.

    C is 1 (grey), 3 (BGR), or 3 with `template` (picture, golden template, their difference). H and W must be
    multiples of 16.
    """

    side_step = 16

    def __init__(self, channels: int, classes: int, template: bool = False, width: int = 48) -> None:
        super().__init__()
        self.encoder = Encoder(channels)
        self.encoder.start_from_photographs()
        if template:
            self.encoder.look_at_difference()
        self.template = template
        self.level = nn.ModuleList(nn.BatchNorm2d(each) for each in self.encoder.channels)
        self.enter = nn.ModuleList(nn.Conv2d(each, width, 1) for each in self.encoder.channels)
        deepest = self.encoder.channels[-1]
        self.whole = nn.Conv2d(deepest, width, 1)
        self.deep = nn.Sequential(separable(width, 5), separable(width, 5))
        self.middle = separable(width, 3)
        self.fine = nn.Sequential(separable(width, 3), separable(width, 3))
        self.mark = nn.Conv2d(width, 4 * classes, 1)
        self.cells = nn.Conv2d(deepest, classes, 1)
        self.dropout = nn.Dropout(0.2)
        self.decide = nn.Linear(2 * deepest + classes, classes)
        for layer in (self.mark, self.cells, self.decide):
            nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.zeros_(self.mark.bias)

    def features(self, x: Tensor) -> list[Tensor]:
        """The encoder's features, brought to one scale.

        Every tile is brought to one mean and one contrast first: exposure and lamp are no defects. Beside a golden
        template grey values stay as they are, so that picture and template remain comparable.
        """
        features = self.encoder((x - MEAN) / DEVIATION if self.template else standardised(x))
        return [level(feature) for level, feature in zip(self.level, features, strict=True)]

    def judge(self, deep: Tensor) -> tuple[Tensor, Tensor]:
        """Tile scores [N, K] and cell scores [N, K, H / 16, W / 16].

        Defects are a few pixels of a tile, so the mean of the features is joined by their maximum, and by the
        maximum of the cells.
        """
        cells = self.cells(deep)
        pooled = torch.cat([deep.mean((2, 3)), deep.amax((2, 3)), cells.amax((2, 3))], 1)
        return self.decide(self.dropout(pooled)), cells

    def marks(self, features: list[Tensor], cells: Tensor) -> Tensor:
        """Pixel scores [N, K, H, W]: the cells', and what a pyramid (Lin et al. 2017, arXiv:1612.03144) adds to them.

        Cells learn soon where a small defect is, long before a pixel's score would; the pyramid, which ends at 1/4,
        only has to draw it.
        Its last two steps cost next to nothing: a pixel shuffle (Shi et al. 2016, arXiv:1609.05158) and a
        bilinear one, where most of a U-Net's time goes into its full-resolution layers.
        """
        fine, middle, deep = (enter(feature) for enter, feature in zip(self.enter, features, strict=True))
        y = self.deep(F.relu6(deep + self.whole(features[-1].mean((2, 3), keepdim=True))))
        y = self.middle(twice(y) + middle)
        y = self.fine(twice(y) + fine)
        rough = F.interpolate(cells, scale_factor=16.0, mode="bilinear", align_corners=False)
        return rough + twice(F.pixel_shuffle(self.mark(y), 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.features(x)
        tile, cells = self.judge(features[-1])
        return tile, cells, self.marks(features, cells)


def standardised(x: Tensor) -> Tensor:
    """Each tile [C, H, W] less its mean, over its deviation, as spread as a photograph is."""
    values = x.flatten(1)
    mean = values.mean(1)[:, None, None, None]
    deviation = (x - mean).flatten(1).square().mean(1).sqrt()[:, None, None, None]
    return (x - mean) * SPREAD / deviation.clamp(min=LEAST_DEVIATION)


def twice(x: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, 2 H, 2 W], bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class InlineClassifier(nn.Module):
    """The part of the pair that judges tiles: [N, C, H, W] → scores [N, K]."""

    def __init__(self, pair: Inline) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor) -> Tensor:
        return self.pair.judge(self.pair.features(x)[-1])[0]


class InlineSegmenter(nn.Module):
    """The part of the pair that marks pixels: [N, C, H, W] → scores [N, K, H, W]."""

    def __init__(self, pair: Inline) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor) -> Tensor:
        features = self.pair.features(x)
        return self.pair.marks(features, self.pair.cells(features[-1]))
