"""Residual networks of pre-activation basic blocks, for small images."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class PreActBlock(nn.Module):
    """``x + conv2(relu(norm2(conv1(h))))`` with ``h = relu(norm1(x))``.

    If the shape changes, ``x`` is replaced by a 1x1 convolution of ``h``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        h = F.relu(self.norm1(x))
        branch: Tensor = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return branch + (x if self.shortcut is None else self.shortcut(h))


class ResNet(nn.Module):
    """A 3x3 stem, stages of blocks, a last norm, the mean over the image, and a linear classifier.

    Stage k has ``2**k * width`` channels; all but the first start with a block of stride 2. ``blocks=(2, 2, 2, 2)`` is
    the layout of ResNet-18, ``(3, 4, 23, 3)`` that of ResNet-101 with basic blocks.

    Args:
        blocks: number of blocks of each stage.
        width: channels of the stem and of the first stage.
        classes: number of logits.
        stem_stride: 2 halves the images first, for a quarter of the operations.

    References: He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv 1603.05027, the
    "full pre-activation" unit. The 3x3 stem without pooling is the one for 32x32 images in He et al., arXiv 1512.03385,
    section 4.2.
    """

    def __init__(self, blocks: Sequence[int], *, width: int, classes: int, stem_stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stem_stride, padding=1, bias=False)
        stages, inputs = [], width
        for k, num in enumerate(blocks):
            outputs = 2**k * width
            shapes = [(inputs, outputs, 2 if k else 1), *[(outputs, outputs, 1)] * (num - 1)]
            stages.append(nn.Sequential(*(PreActBlock(*shape) for shape in shapes)))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inputs)
        self.out = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, classes)."""
        x = self.stages(self.stem(x))
        logits: Tensor = self.out(F.relu(self.norm(x)).mean((2, 3)))
        return logits
