"""Group the norms over a residual stream, so that the stream can be dealt out.

A norm over all features needs all of them, so every worker would hold the stream. A norm over each of N groups needs
one group at a time: a group is a unit, with its columns of the embedding, of what the layers read, and of the head.
"""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from skerry.model.grouped_norm import GroupedNorm
from skerry.whole_number import check_whole_number

_EPS = ("eps", "variance_epsilon", "epsilon")


def group_norms_(model: nn.Module, num_groups: int) -> list[str]:
    """Replace the layer norms and RMS norms over the residual stream of ``model`` by norms over ``num_groups`` groups.

    **This changes what the model computes**, in place; its parameters stay the same objects under the same names. A
    norm is known by what it computes: torch's, those of transformers, and a class of your own. The stream is what most
    norms are over; those of queries and keys are grouped, too, if they are as wide.
    ``skerry.discover(..., grouped_norms=...)`` calls this first.

    Args:
        model: is changed in place. It may be on the meta device.
        num_groups: the number of groups; each worker gets some. With as many groups as workers the norms of a subnet
            are usual norms over all that it has.

    Returns:
        The names of the grouped norms.

    Raises:
        ValueError: there is no norm, its width is not divisible by ``num_groups``, or the model has another number of
            groups already.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> group_norms_(model, 4)
        ['1']
        >>> model[1]
        GroupedNorm(layer norm over groups of 2 features, eps=1e-05)
    """
    check_whole_number("grouped_norms", num_groups, 1)
    found = dict(_norms(model))
    if not found:
        raise ValueError(
            f"grouped_norms={num_groups}: {type(model).__name__} has no layer norm or RMS norm to group; leave it out"
        )
    counts = Counter(width for width, _ in found.values())
    stream = max(counts, key=lambda width: (counts[width], width))
    if stream % num_groups:
        name = next(name for name, (width, _) in found.items() if width == stream)
        raise ValueError(
            f"grouped_norms={num_groups}: the norm {name} is over {stream} features, expected a number that "
            f"divides {stream}"
        )
    names = [name for name, (width, _) in found.items() if width == stream]
    grouped: dict[nn.Module, GroupedNorm] = {}
    for name in names:
        module, norm = model.get_submodule(name), found[name][1]
        had = stream // norm.group_width
        if had not in (1, num_groups):
            raise ValueError(f"grouped_norms={num_groups}: {name} has {had} groups already; give {had}, or a new model")
        norm.group_width = stream // num_groups
        grouped[module] = norm.train(module.training)
    for name, module in list(model.named_modules(remove_duplicate=False)):  # one may have several names
        if module in grouped:
            model.set_submodule(name, grouped[module])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # keeps torch's fused layer, which reads the norms' tensors, away
    return names


def _norms(model: nn.Module) -> Iterator[tuple[str, tuple[int, GroupedNorm]]]:
    """Yield (name, (width, the same as a grouped norm)) of each layer norm and RMS norm over one dim."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters())
        if not name or own.keys() - {"weight", "bias"} or any(p.dim() != 1 for p in own.values()):
            continue
        if next(module.children(), None) is not None or next(module.buffers(), None) is not None:
            continue
        weight, shape = own.get("weight"), getattr(module, "normalized_shape", None) or [0]
        width = shape[0] if weight is None else len(weight)
        if isinstance(module, GroupedNorm) and weight is not None:
            yield name, (width, copy.copy(module))
        elif width > 1 and (same := _grouped(module, width)) is not None:
            yield name, (width, same)


def _grouped(module: nn.Module, width: int) -> GroupedNorm | None:
    """Return the grouped norm with one group that computes what ``module`` does, None if none does."""
    probe = copy.deepcopy(module).to_empty(device="cpu").float().eval()
    rng = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        parameter.data.uniform_(0.5, 1.5, generator=rng)
    x = 1e-3 * (torch.randn(2, 8, width, generator=rng) + 0.5)  # so small that eps counts; a group norm has other dims
    try:
        with torch.no_grad():
            y = probe(x)
    except Exception:  # whatever a forward may raise
        return None
    own = [value for key in _EPS if type(value := getattr(module, key, None)) is float]
    parameters = getattr(module, "weight", None), getattr(module, "bias", None)
    for eps in [*own, torch.finfo(torch.float32).eps, 1e-5, 1e-6, 1e-8, 1e-12]:
        for centred, offset in ((True, 0.0), (False, 0.0), (True, 1.0), (False, 1.0)):
            one = GroupedNorm(getattr(probe, "weight", None), getattr(probe, "bias", None), width, eps, centred, offset)
            if isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(one(x), y, rtol=1e-4, atol=1e-5):
                return GroupedNorm(*parameters, width, eps, centred, offset)
    return None
