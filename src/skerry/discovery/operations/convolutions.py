"""Rules of convolutions, and of pooling and resampling, which work on each channel of an image on its own."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from skerry.discovery.index_labels import Field, Labels, map_ids, reshaped
from skerry.discovery.operations.operation import Operation, RuleTable

rules = RuleTable()


@rules.add("convolution", "_convolution", "mkldnn_convolution")
def convolution(op: Operation) -> list[Labels]:
    """At each place a sum of products over the input channels, all of them or those of a group."""
    x, weight, bias, out = op.args[0], op.args[1], op.arg(2, "bias"), op.outs[0]
    transposed, groups = (bool(op.args[6]), int(op.args[8])) if len(op.args) > 8 else (False, int(op.args[-1]))
    space = range(2, x.dim())
    image = op.constraints.collapse_all(op.labels_of(x).fields, [0, *space])
    kernel = op.collapsed(op.labels_of(weight), space)
    if groups == 1:
        products = _over_all_channels(op, image, kernel, x.shape[1], out.shape[1], transposed)
    else:
        products = _over_groups(op, image, kernel.fields, groups, (x.shape[1], weight.shape[0], out.shape[1]))
    found = [products, op.labels_of(bias).fields] if isinstance(bias, Tensor) else [products]
    shape = [1, -1] + [1] * (out.dim() - 2)
    wide = frozenset({1}) if out.shape[1] > 1 else frozenset()
    return [op.combined([(Labels(map_ids(one, lambda ids: ids.reshape(shape))), wide) for one in found])]


def _over_all_channels(
    op: Operation, image: Iterable[Field], kernel: Labels, num_in: int, num_out: int, transposed: bool
) -> tuple[Field, ...]:
    """Return the fields, of one dim each, of the output channels."""

    def in_by_out(ids: Tensor) -> Tensor:
        ids = ids.reshape(ids.shape[:2])  # it does not vary along the dims in space
        return ids if transposed else ids.t()

    channels = map_ids(image, lambda ids: ids.reshape(-1, 1))
    kernels = map_ids(kernel.fields, in_by_out)
    if not kernel.weight:
        channels = op.constraints.collapse_all(channels, [0])
        kernels = op.constraints.collapse_all(kernels, [0])
    wide_in = frozenset({0}) if num_in > 1 else frozenset()
    wide_out = frozenset({1}) if num_out > 1 else frozenset()
    fields = op.constraints.unify([(Labels(channels), wide_in), (Labels(kernels), wide_in | wide_out)])
    op.constraints.mark((one for one in kernels if 0 in one.dims), "in")
    op.constraints.mark((one for one in channels if 0 in one.dims), "out")
    return map_ids((one for one in fields if 0 not in one.dims), lambda ids: ids[0])


def _over_groups(
    op: Operation, image: Iterable[Field], kernel: Sequence[Field], groups: int, sizes: tuple[int, int, int]
) -> tuple[Field, ...]:
    """Return the fields, of one dim each, of the output channels. A group is a unit.

    ``sizes`` are the numbers of input channels, rows of the kernel and output channels.
    """

    def by_group(fields: Iterable[Field], size: int) -> Labels:
        shape = torch.Size([groups, size // groups])
        grouped = map_ids(fields, lambda ids: reshaped(ids.flatten(), torch.Size([size]), shape))
        return Labels(op.constraints.collapse_all(grouped, [1]))

    num_in, num_rows, num_out = sizes
    op.constraints.pin(one for one in kernel if 1 in one.dims)  # nothing within a group is dealt out
    both = [by_group(image, num_in), by_group((one for one in kernel if 0 in one.dims), num_rows)]
    fields = op.constraints.unify([(labels, frozenset({0})) for labels in both])
    return map_ids(fields, lambda ids: ids.expand(groups, num_out // groups).reshape(-1))


@rules.add("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d",
           "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool1d",
           "mkldnn_max_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
           "upsample_bilinear2d", "upsample_linear1d", "upsample_bicubic2d", "upsample_trilinear3d",
           "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
           "replication_pad3d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "adaptive_avg_pool1d",
           "adaptive_max_pool1d")  # fmt: skip
def pool_or_resample(op: Operation) -> list[Labels]:
    """Neighbours in space, channel by channel."""
    x = op.args[0]
    num_spatial = next(int(c) for c in op.name if c.isdigit())
    left = op.collapsed(op.labels_of(x), range(x.dim() - num_spatial, x.dim()))
    result = op.constraints.activation(left.fields)
    return [Labels(result) for _ in op.outs]


@rules.add("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(op: Operation) -> list[Labels]:
    """Neighbouring channels become neighbouring pixels, or the other way round."""
    x, out, area = op.args[0], op.outs[0], int(op.args[1]) ** 2
    channel = x.dim() - 3
    left = op.collapsed(op.labels_of(x), [channel + 1, channel + 2])
    if op.name == "pixel_unshuffle":
        fields = map_ids(left.fields, lambda i: i.repeat_interleave(area, channel) if i.shape[channel] > 1 else i)
    else:
        blocks = torch.Size([*x.shape[:channel], out.shape[channel], area, *x.shape[channel + 1 :]])
        grouped = map_ids(left.fields, lambda ids: reshaped(ids, x.shape, blocks))
        fields = op.constraints.collapse_all(grouped, [channel + 1])
        fields = map_ids(fields, lambda ids: ids.squeeze(channel + 1))
    return [Labels(op.constraints.activation(fields))]


@rules.add("im2col", "col2im")
def patches(op: Operation) -> list[Labels]:
    """``F.unfold``: each channel's pixels of a patch become neighbouring rows, or back again (``F.fold``)."""
    x, out, unfolds = op.args[0], op.outs[0], op.name == "im2col"
    channel = x.dim() - 3 if unfolds else x.dim() - 2
    left = op.collapsed(op.labels_of(x), range(channel + 1, x.dim()))
    image, rows = (x, out) if unfolds else (out, x)
    channels, area = image.shape[-3], rows.shape[-2] // image.shape[-3]

    def moved(ids: Tensor) -> Tensor:
        ids = ids.squeeze(-1) if unfolds else ids.unsqueeze(-1)
        return ids.repeat_interleave(area, channel) if unfolds and ids.shape[channel] > 1 else ids

    if not unfolds:
        blocks = torch.Size([*x.shape[:channel], channels, area, x.shape[-1]])
        fields = op.constraints.collapse_all(
            map_ids(left.fields, lambda i: reshaped(i, x.shape, blocks)), [channel + 1]
        )
        left = Labels(map_ids(fields, lambda ids: ids.squeeze(channel + 1)))
    return [Labels(op.constraints.activation(map_ids(left.fields, moved)))]


@rules.add("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sample(op: Operation) -> list[Labels]:
    """The pixels of each channel at places that are the same for all channels."""
    x, grid = op.args[:2]
    op.constraints.pin(op.labels_of(grid).fields)
    return [Labels(op.constraints.activation(op.collapsed(op.labels_of(x), range(2, x.dim())).fields))]
