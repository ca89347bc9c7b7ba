"""VGG and ResNet: against layer by layer by hand, published sizes, and narrow == masked full by the recipes' plans."""

import pytest
import torch
from torch.nn import functional as F

from skerry import Blocks, Plan, verify
from skerry.experiments.models.resnet import PreActBlock, ResNet
from skerry.experiments.models.vgg import VGG
from skerry.experiments.recipes.cifar import channel_rules, vgg_rules


def randomized(model):
    """Batch norms that do something."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" in name and tensor.is_floating_point():
            with torch.no_grad():
                tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(6, 6, 1), (6, 10, 2), (6, 6, 2)])
def test_a_block_by_hand(inputs, outputs, stride):
    torch.manual_seed(0)
    block, x = randomized(PreActBlock(inputs, outputs, stride)), torch.randn(3, inputs, 8, 8)
    h = F.relu(block.norm1(x))
    branch = F.conv2d(h, block.conv1.weight, stride=stride, padding=1)
    branch = F.conv2d(F.relu(block.norm2(branch)), block.conv2.weight, padding=1)
    other = x if block.shortcut is None else F.conv2d(h, block.shortcut.weight, stride=stride)
    assert (block.shortcut is None) == (inputs == outputs and stride == 1)
    torch.testing.assert_close(block(x), branch + other)


@pytest.mark.parametrize(
    ("blocks", "classes", "millions"),
    [((2, 2, 2, 2), 10, 11.2), ((3, 4, 23, 3), 100, 41.4)],  # the second: papers of ResIST, arXiv 2107.00961
)
def test_published_numbers_of_parameters(blocks, classes, millions):
    with torch.device("meta"):
        model = ResNet(blocks, width=64, classes=classes)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_each_stage_but_the_first_halves_the_image():
    model, shapes = ResNet((1, 2, 1), width=4, classes=5, stem_stride=2), []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert shapes == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 16, 4, 4)]


def test_vgg_by_hand():
    torch.manual_seed(0)
    model = randomized(VGG((1, 2), width=4, hidden=6, image_size=8, classes=3))
    x = torch.randn(2, 3, 8, 8)
    h = F.max_pool2d(F.relu(model.norms[0](model.convs[0](x))), 2)
    h = F.relu(model.norms[1](model.convs[1](h)))
    h = F.max_pool2d(F.relu(model.norms[2](model.convs[2](h))), 2)
    assert h.shape == (2, 8, 2, 2)
    h = F.relu(model.hidden_norm(model.hidden(h.flatten(1))))
    torch.testing.assert_close(model(x), model.out(h))


def test_the_plans_of_the_recipes_mean_what_they_say():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    vgg = VGG((1, 1, 2), width=4, hidden=9, image_size=32, classes=5)
    verify(vgg, Plan.from_rules(vgg, vgg_rules(4)), x)
    resnet = ResNet((1, 2, 3), width=4, classes=5)
    channels = Plan.from_rules(resnet, channel_rules())
    assert [(axis.name, axis.num_units) for axis in channels.axes] == [
        ("stages.0.0", 4), ("stages.1.0", 8), ("stages.1.1", 8),
        ("stages.2.0", 16), ("stages.2.1", 16), ("stages.2.2", 16),
    ]  # fmt: skip
    verify(resnet, channels + Blocks("stages.2.[12]", branch="conv2").plan(resnet, x), x)
