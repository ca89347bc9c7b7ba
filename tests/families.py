"""The model zoo that axis discovery is tested against: small models as people write them, and the expected axes.

The models know nothing about Skerry. The axes are derived by hand from what each model means, not by a tool.
A set of units is an axis if any of them can be dropped (the rows that make it, the columns that read it): the smaller
network of the same code then computes what the full one computes when everything that reads the dropped units is zero.
Never dealt out: inputs, outputs, vocabulary, dims that are normalised or averaged over (so the residual streams of
transformers), and dims of a tensor that both make units and read them.

Kinds: ``neurons`` (outputs of a dense layer), ``channels`` (of a convolution), ``groups`` (of a grouped convolution or
a group norm, several channels per unit), ``heads`` (with grouped queries: a key-value head with its query heads).

Widths differ where possible, so that equal sizes cannot hide a mistake. Every axis has at least five units.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.subnet.adapters import nanogpt_attention

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]  # one tensor; positional arguments; keyword arguments
Example = tuple[nn.Module, Inputs]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model, an example of it, and what should be dealt out of it.

    Attributes:
        name: short and unique.
        about: a line for the docs' page.
        build: makes the model and example inputs for it, in float32 unless ``about`` says otherwise. Seed before it.
        axes: (kind, number of units) of each axis that should be dealt out.
        undealt: what stays whole and why, apart from inputs and outputs.
        needs: the package it needs, "" for torch alone.
        patches: what to pass to ``discover`` beside the model, for modules that hard-code a width.
    """

    name: str
    about: str
    build: Callable[[], Example]
    axes: Sequence[tuple[str, int]]
    undealt: str = ""
    needs: str = ""
    patches: Mapping[str, Callable[[nn.Module, nn.Module], None]] = field(default_factory=dict)


FAMILIES: list[Family] = []
KINDS = ("neurons", "channels", "groups", "heads")

STREAM = "the residual stream: layer norm takes its statistics across it"
RMS_STREAM = "the residual stream: RMS norm takes its statistics across it"


def family(name: str, about: str, **given: Any) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    """Add a family, built by the decorated function. Axes are given by kind: ``heads=[6], neurons=[44, 12]``."""
    axes = [(kind, number) for kind in KINDS for number in given.pop(kind, ())]

    def add(build: Callable[[], Example]) -> Callable[[], Example]:
        FAMILIES.append(Family(name=name, about=about, build=build, axes=axes, **given))
        return build

    return add


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    """x + branch(norm(x))"""

    def __init__(self, norm: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x))


# ---------------------------------------------------------------------------------------------------------------------
# Dense nets


@family("mlp-batch-norm", "MLP with batch norm", neurons=[14, 18])
def mlp_batch_norm() -> Example:
    layers = [nn.Linear(10, 14), nn.BatchNorm1d(14), nn.ReLU(), nn.Linear(14, 18), nn.BatchNorm1d(18), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(18, 5)), torch.randn(8, 10)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


@family("mlp-layer-norm", "residual MLP, layer norm before each block", neurons=[22, 26], undealt=STREAM)
def mlp_layer_norm() -> Example:
    stem = [nn.Linear(10, 16), nn.LayerNorm(16), nn.ReLU()]
    blocks = [Residual(nn.LayerNorm(16), mlp(16, hidden, 16)) for hidden in (22, 26)]
    return nn.Sequential(*stem, *blocks, nn.LayerNorm(16), nn.Linear(16, 5)), torch.randn(8, 10)


@family("mlp-dropout", "MLP with dropout, without biases", neurons=[14, 18])
def mlp_dropout() -> Example:
    layers = [nn.Linear(10, 14, bias=False), nn.ReLU(), nn.Dropout(0.2), nn.Linear(14, 18, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(18, 5, bias=False)), torch.randn(8, 10)


@family("mlp-frozen", "MLP with a frozen layer", neurons=[14, 18])
def mlp_frozen() -> Example:
    frozen = nn.Linear(14, 18).requires_grad_(False)
    return nn.Sequential(nn.Linear(10, 14), nn.ReLU(), frozen, nn.ReLU(), nn.Linear(18, 5)), torch.randn(8, 10)


@family("mlp-bfloat16", "MLP in bfloat16", neurons=[14, 18])
def mlp_bfloat16() -> Example:
    model = nn.Sequential(nn.Linear(10, 14), nn.ReLU(), nn.Linear(14, 18), nn.ReLU(), nn.Linear(18, 5))
    return model.bfloat16(), torch.randn(8, 10, dtype=torch.bfloat16)


# GLU halves the width: a unit is a value row and its gate row, half the tensor apart.
@family("mlp-glu", "MLP of gated linear units (F.glu)", neurons=[14, 18])
def mlp_glu() -> Example:
    layers = [nn.Linear(10, 28), nn.GLU(), nn.Linear(14, 36), nn.GLU(), nn.Linear(18, 5)]
    return nn.Sequential(*layers), torch.randn(8, 10)


class LayerScaleMLP(nn.Module):
    """Residual blocks scaled by a learned gamma, without any norm: the residual stream is an axis as well."""

    def __init__(self, inputs: int, width: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(mlp(width, h, width) for h in hidden)
        self.gammas = nn.ParameterList(0.1 + 0.1 * torch.rand(width) for _ in hidden)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, gamma in zip(self.blocks, self.gammas, strict=True):
            x = x + gamma * block(x)
        return self.head(x)


# The residual stream: stem, both second layers and both gammas write to it.
@family("mlp-layer-scale", "residual MLP with layer scale, without norms", neurons=[14, 18, 22])
def mlp_layer_scale() -> Example:
    return LayerScaleMLP(10, 14, (18, 22), 5), torch.randn(8, 10)


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weight, transposed: its dim 0 both makes and reads the hidden units."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(inputs, hidden)
        self.bias = nn.Parameter(torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.encoder(x))
        return F.linear(hidden, self.encoder.weight.t(), self.bias)


@family(
    "autoencoder-tied",
    "autoencoder that decodes with the encoder's weight, transposed",
    undealt="the hidden units: one dim of one tensor both makes and reads them",
)
def autoencoder_tied() -> Example:
    return TiedAutoencoder(10, 14), torch.randn(8, 10)


class TiedEmbedding(nn.Module):
    """A next-token model without norms whose decoder is the embedding."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.decoder = nn.Linear(width, vocabulary, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.decoder(self.fc2(torch.relu(self.fc1(x))))


@family(
    "embedding-tied",
    "embedding, MLP, the embedding again as decoder; without norms",
    neurons=[18],
    undealt="the embedding's width: one dim of one tensor both makes and reads it",
)
def embedding_tied() -> Example:
    return TiedEmbedding(40, 12, 18), torch.randint(40, (3, 7))


class SharedLayer(nn.Module):
    """One square layer, used twice: its rows make the units that its own columns read."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.shared = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.shared(x))
        x = torch.relu(self.shared(x))
        return self.head(x)


# Rows of stem and shared, columns of shared and head: all one axis.
@family("shared-layer", "one layer used twice", neurons=[14])
def shared_layer() -> Example:
    return SharedLayer(10, 14, 5), torch.randn(8, 10)


class SharedBlock(nn.Module):
    """One bottleneck block, used three times in sequence."""

    def __init__(self, inputs: int, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.block = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


@family("shared-block", "one block of two layers used three times", neurons=[14, 18])
def shared_block() -> Example:
    return SharedBlock(10, 14, 18, 5), torch.randn(8, 10)


class TwoTowers(nn.Module):
    """A picture and a table row, each through its own tower, concatenated."""

    def __init__(self, channels: int, neurons: int, joint: int, outputs: int) -> None:
        super().__init__()
        self.picture = nn.Sequential(conv_bn_relu(3, channels), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.row = nn.Sequential(nn.Linear(10, neurons), nn.ReLU())
        self.joint = nn.Linear(4 * channels + neurons, joint)
        self.head = nn.Linear(joint, outputs)

    def forward(self, picture: Tensor, row: Tensor) -> Tensor:
        x = torch.cat([self.picture(picture), self.row(row)], dim=1)
        return self.head(torch.relu(self.joint(x)))


@family("two-towers", "two inputs, two towers, concatenated", channels=[12], neurons=[14, 18])
def two_towers() -> Example:
    return TwoTowers(12, 14, 18, 5), (torch.randn(3, 3, 8, 8), torch.randn(3, 10))


class TwoHeads(nn.Module):
    """A trunk with two outputs in a dict, one straight from the trunk, one through a layer of its own."""

    def __init__(self, inputs: int, first: int, second: int, box: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU())
        self.label = nn.Linear(second, 5)
        self.box = nn.Sequential(nn.Linear(second, box), nn.ReLU(), nn.Linear(box, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"label": self.label(x), "box": self.box(x)}


@family("two-heads", "two outputs in a dict", neurons=[12, 14, 18])
def two_heads() -> Example:
    return TwoHeads(10, 14, 18, 12), torch.randn(8, 10)


# ---------------------------------------------------------------------------------------------------------------------
# Convolutional nets


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


# The dense layers see each channel as 2 x 2 neighbouring columns.
@family("vgg", "VGG with batch norm, flatten to four columns a channel", channels=[8, 10, 14], neurons=[18, 22])
def vgg() -> Example:
    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    def dense(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout()]

    features = [*conv(3, 8), nn.MaxPool2d(2), *conv(8, 10), *conv(10, 14), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)]
    classifier = [nn.Flatten(), *dense(14 * 2 * 2, 22), *dense(22, 18), nn.Linear(18, 5)]
    return nn.Sequential(*features, *classifier), torch.randn(3, 3, 16, 16)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity where shapes match, else a 1 x 1 convolution with batch norm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(inputs, width, stride)
        self.outputs = width

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1 down, 3 x 3 (in groups: ResNeXt), 1 x 1 up."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, width_per_group: int = 0) -> None:
        super().__init__()
        inner = groups * width_per_group or width
        self.outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, self.outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut(inputs, self.outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return self.relu(out)


class PreactivationBlock(nn.Module):
    """Norm and ReLU come before each convolution; nothing is done to the sum."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.outputs = width
        self.shortcut = None
        if stride != 1 or inputs != width:
            self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return skip + self.conv2(F.relu(self.bn2(out)))


class ResNet(nn.Module):
    """Stages of residual blocks. ``block(inputs, width, stride)`` has an attribute ``outputs``."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        stem: int,
        widths: Sequence[int],
        depths: Sequence[int],
        normed_stem: bool = True,
    ) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, stem) if normed_stem else nn.Conv2d(3, stem, 3, padding=1, bias=False)
        channels = stem
        stages = []
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for i in range(depth):
                blocks.append(block(channels, width, 2 if number > 0 and i == 0 else 1))
                channels = blocks[-1].outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.final = nn.Identity() if normed_stem else nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.final(self.stages(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


# A residual stream a stage (the stem's channels are stage 1's), and the inner channels of each of 8 blocks.
@family("resnet18-basic", "ResNet-18: basic blocks, batch norm", channels=[8, 10, 12, 14] + 2 * [8, 10, 12, 14])
def resnet18() -> Example:
    return ResNet(BasicBlock, 8, widths=(8, 10, 12, 14), depths=(2, 2, 2, 2)), torch.randn(3, 3, 16, 16)


# Stem; a residual stream a stage, four times as wide; two inner axes in each of the 2 + 2 + 1 + 1 blocks.
@family(
    "resnet50-bottleneck",
    "ResNet-50 style: bottleneck blocks",
    channels=[8] + [20, 24, 28, 36] + 4 * [5] + 4 * [6] + 2 * [7] + 2 * [9],
)
def resnet50() -> Example:
    return ResNet(Bottleneck, 8, widths=(5, 6, 7, 9), depths=(2, 2, 1, 1)), torch.randn(3, 3, 16, 16)


# As in resnet18-basic: a stream a stage (the stem's is stage 1's), and one inner axis in each of 6 blocks.
@family("resnet-preactivation", "pre-activation ResNet", channels=[8, 12, 18] + 2 * [8, 12, 18])
def preactivation_resnet() -> Example:
    model = ResNet(PreactivationBlock, 8, widths=(8, 12, 18), depths=(2, 2, 2), normed_stem=False)
    return model, torch.randn(3, 3, 16, 16)


# Stem and streams; in each of four blocks, the channels before and after the grouped convolution by group.
@family("resnext", "ResNeXt: bottleneck blocks with grouped convolutions", channels=[10, 20, 28], groups=[6, 6, 6, 6])
def resnext() -> Example:
    def block(inputs: int, width: int, stride: int) -> nn.Module:
        return Bottleneck(inputs, width, stride, groups=6, width_per_group=width // 2)

    return ResNet(block, 10, widths=(5, 7), depths=(2, 2)), torch.randn(3, 3, 16, 16)


class SqueezeExciteConv(nn.Module):
    """Squeeze-and-excite by 1 x 1 convolutions, as in MobileNetV3."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(self.pool(x))))
        return x * F.hardsigmoid(gate)


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project; a skip only where shapes match."""

    def __init__(self, inputs: int, hidden: int, squeezed: int, outputs: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            SqueezeExciteConv(hidden, squeezed),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


# Stem; the outputs of blocks 1 and 2 (a skip joins them), of 3 and 4 (likewise); the last convolution. Then the
# expanded channels of blocks 2 to 4, and the squeezed ones of all four. At last the classifier's hidden layer.
@family(
    "mobilenet",
    "MobileNetV3 style: inverted residuals, depthwise convolutions, squeeze-and-excite",
    channels=[10, 12, 16, 34, 20, 26, 30, 5, 6, 7, 8],
    neurons=[38],
)
def mobilenet() -> Example:
    # The first block does not expand: its depthwise convolution runs on the stem's channels.
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10), nn.Hardswish()),
        InvertedResidual(10, hidden=10, squeezed=5, outputs=12, stride=1),
        InvertedResidual(12, hidden=20, squeezed=6, outputs=12, stride=1),
        InvertedResidual(12, hidden=26, squeezed=7, outputs=16, stride=2),
        InvertedResidual(16, hidden=30, squeezed=8, outputs=16, stride=1),
        nn.Sequential(nn.Conv2d(16, 34, 1, bias=False), nn.BatchNorm2d(34), nn.Hardswish()),
        Apply(lambda x: x.mean(dim=(2, 3))),
        nn.Sequential(nn.Linear(34, 38), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(38, 5)),
    ), torch.randn(3, 3, 16, 16)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excite by dense layers, as in the paper."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


@family("squeeze-excite", "CNN with squeeze-and-excite", channels=[12, 18], neurons=[5, 7])
def squeeze_excite() -> Example:
    first, second = [conv_bn_relu(3, 12), SqueezeExcite(12, 5)], [conv_bn_relu(12, 18), SqueezeExcite(18, 7)]
    largest = Apply(lambda x: x.amax(dim=(2, 3)))
    return nn.Sequential(*first, nn.MaxPool2d(2), *second, largest, nn.Linear(18, 6)), torch.randn(3, 3, 8, 8)


class DenseLayer(nn.Module):
    """Reads all channels so far (norm first), appends ``growth`` new ones."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x)))
        new = self.conv2(F.relu(self.norm2(new)))
        return torch.cat([x, new], dim=1)


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them; each layer grows by a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(DenseLayer(11, 5), DenseLayer(16, 6))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(22), nn.ReLU(), nn.Conv2d(22, 13, 1, bias=False), nn.AvgPool2d(2, 2)
        )
        self.block2 = nn.Sequential(DenseLayer(13, 7), DenseLayer(20, 8))
        self.norm = nn.BatchNorm2d(28)
        self.classifier = nn.Linear(28, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.stem(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.norm(x)), 1)
        return self.classifier(torch.flatten(x, 1))


# Stem and transition; what each of the four layers appends; the bottleneck inside each.
@family(
    "densenet",
    "DenseNet: each layer reads the concatenation of all before it",
    channels=[11, 13, 5, 6, 7, 8, 10, 12, 14, 16],
)
def densenet() -> Example:
    return DenseNet(), torch.randn(3, 3, 8, 8)


class UNet(nn.Module):
    """Two levels down, two up, each level two normed convolutions; the skips are concatenated.

    ``norm(channels)`` follows each convolution, but not the upsampling ones.
    """

    def __init__(self, norm: Callable[[int], nn.Module], down: Sequence[int], up: Sequence[int]) -> None:
        super().__init__()

        def twice(inputs: int, outputs: int) -> nn.Sequential:
            first = [nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU()]
            second = [nn.Conv2d(outputs, outputs, 3, padding=1), norm(outputs), nn.ReLU()]
            return nn.Sequential(*first, *second)

        fine, coarse, middle = down
        up_coarse, decoded_coarse, up_fine, decoded_fine = up
        self.encoder1 = twice(3, fine)
        self.encoder2 = twice(fine, coarse)
        self.middle = twice(coarse, middle)
        self.up2 = nn.ConvTranspose2d(middle, up_coarse, 2, stride=2)
        self.decoder2 = twice(up_coarse + coarse, decoded_coarse)
        self.up1 = nn.ConvTranspose2d(decoded_coarse, up_fine, 2, stride=2)
        self.decoder1 = twice(up_fine + fine, decoded_fine)
        self.head = nn.Conv2d(decoded_fine, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.encoder1(x)
        coarse = self.encoder2(F.max_pool2d(fine, 2))
        x = self.middle(F.max_pool2d(coarse, 2))
        x = self.decoder2(torch.cat([self.up2(x), coarse], dim=1))
        x = self.decoder1(torch.cat([self.up1(x), fine], dim=1))
        return self.head(x)


# Two convolutions at each of three levels down and two up, and two upsamplings.
@family("unet-batch-norm", "UNet with batch norm", channels=2 * [8, 12, 18] + 2 * [13, 9] + [14, 10])
def unet_batch_norm() -> Example:
    return UNet(nn.BatchNorm2d, down=(8, 12, 18), up=(14, 13, 10, 9)), torch.randn(2, 3, 8, 8)


# The same; ten convolutions have a norm of six groups, the two upsamplings have none. A skip goes by groups
# into the concatenation, after which no norm comes before the next convolution: nothing is joined there.
@family("unet-group-norm", "UNet with group norm", channels=[14, 10], groups=10 * [6])
def unet_group_norm() -> Example:
    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(6, channels)

    return UNet(norm, down=(12, 18, 24), up=(14, 18, 10, 12)), torch.randn(2, 3, 8, 8)


# The dense layer's outputs are 14 channels of 16 rows each.
@family("gan-generator", "GAN generator: dense layer, view to 4 x 4, transposed convolutions", channels=[14, 12, 8])
def gan_generator() -> Example:
    return nn.Sequential(
        nn.Linear(11, 14 * 4 * 4),
        Apply(lambda x: x.view(len(x), -1, 4, 4)),
        nn.BatchNorm2d(14),
        nn.ReLU(),
        nn.ConvTranspose2d(14, 12, 4, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 3, 3, padding=1),
        nn.Tanh(),
    ), torch.randn(3, 11)


class WaveNet(nn.Module):
    """Dilated causal convolutions with tanh and sigmoid gates, residual and skip sums; no norm.

    As in many such codes, the last layer's residual convolution writes to a sum that is not read any more.
    """

    def __init__(self, residual: int, gated: Sequence[int], skip: int, hidden: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, residual, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(residual, 2 * g, 2, dilation=2**i) for i, g in enumerate(gated))
        self.residual = nn.ModuleList(nn.Conv1d(g, residual, 1) for g in gated)
        self.skip = nn.ModuleList(nn.Conv1d(g, skip, 1) for g in gated)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, hidden, 1), nn.ReLU(), nn.Conv1d(hidden, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = 0
        for i, (dilated, residual, skip) in enumerate(zip(self.dilated, self.residual, self.skip, strict=True)):
            value, gate = dilated(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            h = torch.tanh(value) * torch.sigmoid(gate)
            x = x + residual(h)
            skips = skips + skip(h)
        return self.head(skips)


# The residual sum, three times value and gate, the skip sum, the head's hidden channels. There is no norm.
@family("wavenet", "1-d convolutions with gates, residual and skip sums", channels=[10, 12, 14, 16, 18, 22])
def wavenet() -> Example:
    return WaveNet(10, (12, 14, 16), 18, 22), torch.randn(3, 3, 20)


@family("prelu", "CNN with a PReLU slope a channel", channels=[10, 14, 18])
def prelu() -> Example:
    first = [nn.Conv2d(3, 10, 3, padding=1), nn.PReLU(10)]
    second = [nn.Conv2d(10, 14, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(14), nn.PReLU(14)]
    third = [nn.Conv2d(14, 18, 3, padding=1), nn.PReLU(18)]
    mean = Apply(lambda x: x.mean((2, 3)))
    return nn.Sequential(*first, *second, *third, mean, nn.Linear(18, 5)), torch.randn(3, 3, 8, 8)


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution on the residual stream, a norm over channels, a dense bottleneck, a learned scale."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.depthwise(x).permute(0, 2, 3, 1)
        branch = self.gamma * self.fc2(F.gelu(self.fc1(self.norm(branch))))
        return x + branch.permute(0, 3, 1, 2)


@family(
    "convnext",
    "ConvNeXt: depthwise convolution, layer norm, dense bottleneck, layer scale",
    neurons=[34, 38],
    undealt=STREAM,
)
def convnext() -> Example:
    stem, mean = nn.Conv2d(3, 16, 2, stride=2), Apply(lambda x: x.mean((-2, -1)))
    blocks = [ConvNeXtBlock(16, 34), ConvNeXtBlock(16, 38)]
    return nn.Sequential(stem, *blocks, mean, nn.LayerNorm(16), nn.Linear(16, 5)), torch.randn(3, 3, 8, 8)


# ---------------------------------------------------------------------------------------------------------------------
# Transformers. B, T, C: batch, tokens, width of the residual stream.


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention and a feed-forward net, each with its norm first and added to the residual stream."""

    def __init__(
        self, width: int, attention: nn.Module, feed_forward: nn.Module, norm: type[nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.ln_1 = norm(width)
        self.attn = attention
        self.ln_2 = norm(width)
        self.mlp = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class FusedAttention(nn.Module):
    """One layer for queries, keys and values; the number of heads follows from the tensors."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, -1, self.head_dim).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dropout(self.proj(y.transpose(1, 2).reshape(B, T, -1)))


class NanoAttention(nn.Module):
    """As in nanoGPT: sizes come from ``n_embd``, ``n_head`` and the input's width."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        assert n_embd % n_head == 0
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.resid_dropout = nn.Dropout(0.1)
        self.n_head = n_head
        self.n_embd = n_embd
        self.dropout = 0.1

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in (q, k, v))
        dropout = self.dropout if self.training else 0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class ManualAttention(nn.Module):
    """As in the older nanoGPT: a softmax by hand, and the causal mask in a buffer named ``bias``."""

    def __init__(self, n_embd: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.attn_dropout = nn.Dropout(0.1)
        self.resid_dropout = nn.Dropout(0.1)
        self.head_dim = n_embd // n_head
        mask = torch.tril(torch.ones(block_size, block_size))
        self.register_buffer("bias", mask.view(1, 1, block_size, block_size))

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.size()
        q, k, v = self.c_attn(x).chunk(3, dim=2)
        q, k, v = (part.view(B, T, -1, self.head_dim).transpose(1, 2) for part in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = self.attn_dropout(F.softmax(att, dim=-1))
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, -1)
        return self.resid_dropout(self.c_proj(y))


class GPT(nn.Module):
    """Learned positions, pre-norm blocks, and the embedding once more as the last layer."""

    def __init__(self, vocabulary: int, block_size: int, width: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(block_size, width)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor) -> Tensor:
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def gpt_of(attention: Callable[[], nn.Module]) -> Example:
    blocks = [Block(24, attention(), FeedForward(24, 44)) for _ in range(2)]
    return GPT(40, 16, 24, blocks), torch.randint(40, (3, 9))


@family("gpt", "GPT with fused QKV by chunk, tied embedding", heads=[6, 6], neurons=[44, 44], undealt=STREAM)
def gpt() -> Example:
    return gpt_of(lambda: FusedAttention(24, 6))


@family(
    "gpt-nano",
    "GPT as nanoGPT writes it: split(n_embd), view(n_head, C // n_head)",
    heads=[6, 6],
    neurons=[44, 44],
    undealt=STREAM,
    patches={"h.*.attn": nanogpt_attention},
)
def gpt_nano() -> Example:
    return gpt_of(lambda: NanoAttention(24, 6))


@family(
    "gpt-manual-attention",
    "GPT with a softmax by hand and a mask buffer",
    heads=[6, 6],
    neurons=[44, 44],
    undealt=STREAM,
)
def gpt_manual_attention() -> Example:
    return gpt_of(lambda: ManualAttention(24, 6, block_size=16))


class ViTAttention(nn.Module):
    """As in timm: one reshape and one permute for queries, keys and values together."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        x = attn.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, -1))


class ViT(nn.Module):
    """Patches by a convolution, a class token, learned positions."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + 9, dim))
        blocks = [Block(dim, ViTAttention(dim, num_heads), FeedForward(dim, hidden)) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


@family(
    "vit", "ViT: patches, class token, QKV by one reshape as in timm", heads=[6, 6], neurons=[44, 44], undealt=STREAM
)
def vit() -> Example:
    return ViT(24, 6, 44), torch.randn(2, 3, 12, 12)


class RelativeAttention(nn.Module):
    """Separate queries, keys and values, and a learned bias for each distance and head, as in T5."""

    def __init__(self, width: int, num_heads: int, head_dim: int, max_tokens: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.max_tokens = max_tokens
        self.q = nn.Linear(width, num_heads * head_dim, bias=False)
        self.k = nn.Linear(width, num_heads * head_dim, bias=False)
        self.v = nn.Linear(width, num_heads * head_dim, bias=False)
        self.o = nn.Linear(num_heads * head_dim, width, bias=False)
        self.distance_bias = nn.Embedding(2 * max_tokens - 1, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (part(x).view(B, T, -1, self.head_dim).transpose(1, 2) for part in (self.q, self.k, self.v))
        place = torch.arange(T, device=x.device)
        distance = place[None, :] - place[:, None] + self.max_tokens - 1
        scores = torch.matmul(q, k.transpose(2, 3)) + self.distance_bias(distance).permute(2, 0, 1).unsqueeze(0)
        y = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.o(y.transpose(1, 2).reshape(B, T, -1))


def tagger(width: int, block: nn.Module) -> nn.Module:
    """A dense layer in, a block on the residual stream, a norm and a dense layer out."""
    return nn.Sequential(nn.Linear(10, width), block, nn.LayerNorm(width), nn.Linear(width, 5))


# A head owns its column of the bias table too.
@family(
    "relative-attention",
    "attention with a learned bias a distance and head, as in T5",
    heads=[6],
    neurons=[46],
    undealt=STREAM,
)
def relative_attention() -> Example:
    attention = RelativeAttention(22, num_heads=6, head_dim=4, max_tokens=12)
    return tagger(22, Block(22, attention, FeedForward(22, 46))), torch.randn(3, 9, 10)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: turn the two halves of each head by an angle that grows with the place. x: (B, heads, T, D)."""
    T, D = x.shape[-2:]
    frequency = 10000.0 ** (-torch.arange(0, D, 2, device=x.device, dtype=x.dtype) / D)
    angle = torch.arange(T, device=x.device, dtype=x.dtype)[:, None] * frequency
    cos, sin = torch.cat([angle.cos()] * 2, dim=-1), torch.cat([angle.sin()] * 2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class LlamaAttention(nn.Module):
    """Grouped queries: each key-value head serves several query heads. Optionally with norms of queries and keys."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, head_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.queries_per_kv = num_heads // num_kv_heads
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, width, bias=False)
        self.q_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)
        q, k = rotate(q), rotate(k)
        k = k.repeat_interleave(self.queries_per_kv, dim=1)
        v = v.repeat_interleave(self.queries_per_kv, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class FusedSwiGLU(nn.Module):
    """The same with gate and up in one layer: a unit is a row of each half."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Llama(nn.Module):
    """12 query heads on 6 key-value heads of dim 4; the heads together are wider than the residual stream."""

    def __init__(self, mlp: Callable[[int, int], nn.Module], hidden: int, qk_norm: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(40, 20)
        self.layers = nn.ModuleList(
            Block(20, LlamaAttention(20, 12, 6, 4, qk_norm), mlp(20, hidden), RMSNorm) for _ in range(2)
        )
        self.norm = RMSNorm(20)
        self.lm_head = nn.Linear(20, 40, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


# A unit is a key-value head with its two query heads.
@family(
    "llama",
    "Llama style: grouped queries, rotary positions, SwiGLU, RMS norm",
    heads=[6, 6],
    neurons=[34, 34],
    undealt=RMS_STREAM,
)
def llama() -> Example:
    return Llama(SwiGLU, 34, qk_norm=False), torch.randint(40, (3, 9))


# The norms of queries and keys are inside a head; their weights are shared by all heads.
@family(
    "llama-fused",
    "the same with gate and up in one layer, and norms of queries and keys",
    heads=[6, 6],
    neurons=[34, 34],
    undealt=RMS_STREAM + "; the query and key norms, which all heads share",
)
def llama_fused() -> Example:
    return Llama(FusedSwiGLU, 34, qk_norm=True), torch.randint(40, (3, 9))


class MixtureOfExperts(nn.Module):
    """Each token goes to the two experts its router likes best; a loop over experts gathers and adds back."""

    def __init__(self, width: int, hidden: int, num_experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(num_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weight, chosen = torch.topk(F.softmax(self.router(tokens), dim=-1), 2, dim=-1)
        weight = weight / weight.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            out.index_add_(0, token, weight[token, place, None] * expert(tokens[token]))
        return out.view_as(x)


class BatchedExperts(nn.Module):
    """All experts in one tensor: a unit is a hidden neuron of the same number in every expert."""

    def __init__(self, width: int, hidden: int, num_experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(num_experts, width, hidden) / math.sqrt(width))
        self.b1 = nn.Parameter(torch.zeros(num_experts, 1, hidden))
        self.w2 = nn.Parameter(torch.randn(num_experts, hidden, width) / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        probability = F.softmax(self.router(tokens), dim=-1)
        weight, chosen = probability.topk(2, dim=-1)
        share = torch.zeros_like(probability).scatter(1, chosen, weight)
        hidden = F.gelu(torch.einsum("td,edh->eth", tokens, self.w1) + self.b1)
        out = torch.einsum("eth,ehd->etd", hidden, self.w2)
        return torch.einsum("te,etd->td", share, out).view_as(x)


# Each of the four experts has its own hidden axis.
@family(
    "experts-loop",
    "mixture of experts: top 2, a loop over experts, index_add",
    neurons=[14, 14, 14, 14],
    undealt=STREAM + "; the experts themselves: the router's softmax is over them",
)
def experts_in_a_loop() -> Example:
    return tagger(16, Residual(nn.LayerNorm(16), MixtureOfExperts(16, 14, 4))), torch.randn(5, 9, 10)


@family(
    "experts-batched",
    "mixture of experts: all weights in one tensor, einsum",
    neurons=[14],
    undealt=STREAM + "; the experts themselves: the router's softmax is over them",
)
def experts_in_a_batch() -> Example:
    return tagger(16, Residual(nn.LayerNorm(16), BatchedExperts(16, 14, 6))), torch.randn(5, 9, 10)


@family("transformer-encoder", "nn.TransformerEncoder", heads=[6, 6], neurons=[44, 44], undealt=STREAM)
def transformer_encoder() -> Example:
    layer = nn.TransformerEncoderLayer(24, 6, dim_feedforward=44, dropout=0.1, batch_first=True)
    encoder, mean = nn.TransformerEncoder(layer, num_layers=2), Apply(lambda x: x.mean(dim=1))
    return nn.Sequential(nn.Linear(10, 24), encoder, mean, nn.Linear(24, 5)), torch.randn(3, 9, 10)


class MultiheadBlock(nn.Module):
    """``nn.MultiheadAttention`` with its defaults: it also returns the weights averaged over heads, unused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(10, 24)
        self.attention = nn.MultiheadAttention(24, 6, batch_first=True)
        self.norm1 = nn.LayerNorm(24)
        self.mlp = nn.Sequential(nn.Linear(24, 38), nn.ReLU(), nn.Linear(38, 24))
        self.norm2 = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        attended, _ = self.attention(x, x, x)
        x = self.norm1(x + attended)
        x = self.norm2(x + self.mlp(x))
        return self.head(x)


@family("multihead-attention", "nn.MultiheadAttention with its defaults", heads=[6], neurons=[38], undealt=STREAM)
def multihead_attention() -> Example:
    return MultiheadBlock(), torch.randn(3, 9, 10)


class AttentionPooling(nn.Module):
    """A learned query weighs the tokens by their keys; the weighted values are summed. One head."""

    def __init__(self, hidden: int, key: int, value: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(10, hidden)
        self.key = nn.Linear(hidden, key)
        self.value = nn.Linear(hidden, value)
        self.query = nn.Parameter(torch.randn(key))
        self.scale = key**-0.5
        self.head = nn.Linear(value, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.encoder(x))
        weight = torch.softmax(self.key(x) @ self.query * self.scale, dim=1)
        pooled = (weight.unsqueeze(-1) * self.value(x)).sum(dim=1)
        return self.head(pooled)


# The encoder's outputs; the keys' dims, which the query reads; the values' dims, which the head reads.
@family("attention-pooling", "pooling over tokens by a learned query", neurons=[14, 12, 18])
def attention_pooling() -> Example:
    return AttentionPooling(14, key=12, value=18), torch.randn(3, 7, 10)


@family("mlp-mixer", "MLP-Mixer", neurons=[14, 26, 12, 22], undealt=STREAM + "; the tokens, which come from the input")
def mlp_mixer() -> Example:
    patches = nn.Conv2d(3, 16, 4, 4), Apply(lambda x: x.flatten(2).transpose(1, 2))
    blocks = []
    for token_hidden, channel_hidden in ((14, 26), (12, 22)):
        swap = Apply(lambda x: x.transpose(1, 2))
        blocks.append(Residual(nn.LayerNorm(16), nn.Sequential(swap, mlp(9, token_hidden, 9), swap)))
        blocks.append(Residual(nn.LayerNorm(16), mlp(16, channel_hidden, 16)))
    mean = Apply(lambda x: x.mean(dim=1))
    return nn.Sequential(*patches, *blocks, nn.LayerNorm(16), mean, nn.Linear(16, 5)), torch.randn(3, 3, 12, 12)


class Recurrent(nn.Module):
    """An embedding, a recurrent layer as ``run`` runs it, and a dense layer."""

    def __init__(self, layer: nn.Module, run: Callable[[nn.Module, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.embedding, self.layer, self.decoder = nn.Embedding(40, 12), layer, nn.Linear(width, 40)
        self.run = run

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.run(self.layer, self.embedding(tokens)))


def all_outputs(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


# A unit of a layer and direction is held with the same ones of the others: nn.LSTM has one hidden size.
@family("lstm", "LSTM language model, two layers", neurons=[12, 18])
def lstm() -> Example:
    layer = nn.LSTM(12, 18, num_layers=2, dropout=0.1, batch_first=True)
    return Recurrent(layer, all_outputs, 18), torch.randint(40, (3, 7))


@family("lstm-projected", "LSTM with projections", neurons=[12, 18, 14])
def lstm_projected() -> Example:
    return Recurrent(nn.LSTM(12, 18, proj_size=14), all_outputs, 14), torch.randint(40, (3, 7))


@family("gru", "GRU in both directions over packed sequences", neurons=[12, 18])
def gru() -> Example:
    def run(layer: nn.Module, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 4, 5]), True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)[0]

    return Recurrent(nn.GRU(12, 18, bidirectional=True, batch_first=True), run, 36), torch.randint(40, (3, 7))


@family("rnn", "RNN from a learned state, its last state read", neurons=[12, 18])
def rnn() -> Example:
    def run(layer: Any, x: Tensor) -> Tensor:
        return layer(x, layer.state.expand(-1, x.shape[1], -1).contiguous())[1][-1]

    layer = nn.RNN(12, 18, num_layers=2, nonlinearity="relu")
    layer.state = nn.Parameter(torch.randn(2, 1, 18))
    return Recurrent(layer, run, 18), torch.randint(40, (3, 7))


@family("lstm-cell", "LSTM cell step by step, into a tensor made before", neurons=[12, 18])
def lstm_cell() -> Example:
    def run(cell: Any, x: Tensor) -> Tensor:
        state = tuple(x.new_zeros(len(x), cell.hidden_size) for _ in range(2))
        found = x.new_zeros(*x.shape[:2], cell.hidden_size)
        for t in range(x.shape[1]):
            state = cell(x[:, t], state)
            found[:, t] = state[0]
        return found

    return Recurrent(nn.LSTMCell(12, 18), run, 18), torch.randint(40, (3, 4))


# ---------------------------------------------------------------------------------------------------------------------
# From transformers: tiny configurations, random weights


def from_transformers(model: str, **sizes: int | bool) -> nn.Module:
    import transformers

    small = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 44,
        "max_position_embeddings": 16, "num_labels": 5,
    }  # fmt: skip
    kind = getattr(transformers, model)
    return kind(kind.config_class(**{**small, **sizes}))


def two_sentences() -> dict[str, Tensor]:
    """Nine tokens each, the second sentence padded."""
    attention_mask = torch.ones(2, 9, dtype=torch.long)
    attention_mask[1, 6:] = 0
    return {"input_ids": torch.randint(40, (2, 9)), "attention_mask": attention_mask}


hf_family = partial(family, needs="transformers")


@hf_family("hf-gpt2", "GPT2LMHeadModel of transformers", heads=[6, 6], neurons=[44, 44], undealt=STREAM)
def hf_gpt2() -> Example:
    model = from_transformers("GPT2LMHeadModel", n_inner=44, bos_token_id=0, eos_token_id=0)
    return model, {"input_ids": torch.randint(40, (3, 9))}


@hf_family(
    "hf-llama", "LlamaForCausalLM of transformers, grouped queries", heads=[6, 6], neurons=[34, 34], undealt=RMS_STREAM
)
def hf_llama() -> Example:
    sizes = {"hidden_size": 36, "intermediate_size": 34, "head_dim": 4, "use_cache": False}
    model = from_transformers("LlamaForCausalLM", num_attention_heads=12, num_key_value_heads=6, **sizes)
    return model, {"input_ids": torch.randint(40, (3, 9))}


# The last transform is normed like the residual stream, and read by the tied decoder.
@hf_family("hf-bert-masked", "BertForMaskedLM of transformers", heads=[6, 6], neurons=[44, 44], undealt=STREAM)
def hf_bert_masked() -> Example:
    return from_transformers("BertForMaskedLM"), two_sentences()


# The pooler's outputs (24) are made by one dense layer and read by the classifier, with no norm between.
@hf_family(
    "hf-bert-classifier",
    "BertForSequenceClassification of transformers",
    heads=[6, 6],
    neurons=[24, 44, 44],
    undealt=STREAM,
)
def hf_bert_classifier() -> Example:
    return from_transformers("BertForSequenceClassification"), two_sentences()


@hf_family("hf-vit", "ViTForImageClassification of transformers", heads=[6, 6], neurons=[44, 44], undealt=STREAM)
def hf_vit() -> Example:
    model = from_transformers("ViTForImageClassification", image_size=12, patch_size=4)
    return model, {"pixel_values": torch.randn(2, 3, 12, 12)}


# ---------------------------------------------------------------------------------------------------------------------
# From torch_geometric


pyg_family = partial(family, needs="torch_geometric")


def torch_geometric_nn() -> Any:
    """Import ``torch_geometric.nn``, which uses ``torch.jit`` as it loads and so warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch_geometric.nn
    return torch_geometric.nn


class GraphNet(nn.Module):
    """Graph convolutions with an activation between them; the last one's outputs are the model's."""

    def __init__(self, convolutions: Sequence[nn.Module], activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.activation = activation

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for convolution in self.convolutions[:-1]:
            x = self.activation(convolution(x, edge_index))
        return self.convolutions[-1](x, edge_index)


def graph() -> tuple[Tensor, Tensor]:
    """11 nodes with 10 features each, 33 directed edges: a ring and 22 others."""
    ring = torch.stack([torch.arange(11), torch.arange(1, 12) % 11])
    return torch.randn(11, 10), torch.cat([ring, torch.randint(11, (2, 22))], dim=1)


@pyg_family("pyg-gcn", "GCN of torch_geometric", neurons=[18, 14])
def pyg_gcn() -> Example:
    GCNConv = torch_geometric_nn().GCNConv
    return GraphNet([GCNConv(10, 18), GCNConv(18, 14), GCNConv(14, 5)]), graph()


# A unit has a row in the layer for neighbours and in the one for the node itself, and a column in both after.
@pyg_family("pyg-sage", "GraphSAGE of torch_geometric, mean of neighbours", neurons=[18, 14])
def pyg_sage() -> Example:
    SAGEConv = torch_geometric_nn().SAGEConv
    sizes = [(10, 18), (18, 14), (14, 5)]
    return GraphNet([SAGEConv(*size, aggr="mean") for size in sizes]), graph()


# The last layer's single head is the output.
@pyg_family("pyg-gat", "GAT of torch_geometric, several heads", heads=[6, 7])
def pyg_gat() -> Example:
    GATConv = torch_geometric_nn().GATConv
    layers = [GATConv(10, 4, heads=6), GATConv(6 * 4, 3, heads=7), GATConv(7 * 3, 5, heads=1, concat=False)]
    return GraphNet(layers, F.elu), graph()


# Hidden units of three MLPs, and the node features between them.
@pyg_family("pyg-gin", "GIN of torch_geometric, MLPs with batch norm", neurons=[18, 22, 16, 14, 12])
def pyg_gin() -> Example:
    GINConv = torch_geometric_nn().GINConv

    def layer(inputs: int, hidden: int, outputs: int) -> nn.Module:
        mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        return GINConv(mlp, train_eps=True)

    return GraphNet([layer(10, 18, 14), layer(14, 22, 12), layer(12, 16, 5)]), graph()
