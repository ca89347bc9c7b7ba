"""Fresh weights, drawn row by row from a seed: a process draws only the rows of which it stores a part."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from skerry.model.grouped_norm import GroupedNorm
from skerry.model.tensors import named_tensors
from skerry.randomness import seed_of
from skerry.subnet.index import Cut, whole
from skerry.subnet.slicing import take
from skerry.weights.of_pyg import pyg_init
from skerry.weights.rows import Constant, Fill, Normal, Uniform, inverse_root
from skerry.weights.slabs import by_slabs

Init = Callable[[nn.Module, str, torch.Size], Fill | Tensor | None]
"""``init(module, name, shape)`` says how the tensor ``name`` of ``module``, of the full ``shape``, is initialized.

It returns the ``Fill`` of its rows, or the whole tensor (if it is small), or None for what ``default_init`` does.
"""


def default_init(module: nn.Module, name: str, shape: torch.Size) -> Fill | None:
    """Return how PyTorch's own modules, transformers' Conv1D and PyTorch Geometric's layers initialize a tensor.

    None for other modules.

    The distribution is that of the module's ``reset_parameters``; the values differ. What a model does to its modules'
    tensors afterwards is not known: its own ``_init_weights``, or the Xavier weights of ``nn.Transformer``. There is
    no rule for a subclass with its own ``reset_parameters`` either. Write an ``init`` for those.

    Args:
        module: has the tensor.
        name: of the tensor in the model.
        shape: its full size.
    """
    kind, own = type(module), name.rpartition(".")[2]
    if f"{kind.__module__.partition('.')[0]}.{kind.__name__}" == "transformers.Conv1D":
        return Normal(0.02) if own == "weight" else Constant(0) if own == "bias" else None
    if isinstance(module, GroupedNorm):
        return Constant(0 if own == "bias" else 1 - module.offset)
    reset: Any = getattr(kind, "reset_parameters", getattr(kind, "_reset_parameters", None))
    if not getattr(reset, "__module__", "").startswith("torch."):
        return pyg_init(module, own, shape)
    match module:
        case NonDynamicallyQuantizableLinear() if own == "bias":  # out_proj of MultiheadAttention
            return Constant(0)
        case nn.Linear() | _ConvNd() | nn.Bilinear() if own in ("weight", "bias"):
            sizes = module.weight.shape[1:2] if isinstance(module, nn.Bilinear) else module.weight.shape[1:]
            return Uniform(inverse_root(sizes.numel()))
        case nn.Embedding() | nn.EmbeddingBag() if own == "weight":
            return Normal(1.0, zero_row=module.padding_idx)
        case _NormBase() | nn.LayerNorm() | nn.GroupNorm() | nn.RMSNorm():
            ones, zeros = ("weight", "running_var"), ("bias", "running_mean", "num_batches_tracked")
            return Constant(1) if own in ones else Constant(0) if own in zeros else None
        case nn.MultiheadAttention():
            return _attention(own, shape)
        case nn.RNNBase() | nn.RNNCellBase() if own.startswith(("weight_", "bias_")):
            return Uniform(inverse_root(module.hidden_size))
        case nn.PReLU() if own == "weight":
            return Constant(module.init)
    return None


def _attention(own: str, shape: torch.Size) -> Fill | None:
    if own == "in_proj_bias":
        return Constant(0)
    if own in ("bias_k", "bias_v"):  # Xavier's normal, of (1, 1, embed_dim)
        return Normal(inverse_root(shape[2]))
    if own in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return Uniform(math.sqrt(6) * inverse_root(sum(shape)))  # Xavier's uniform
    return None


class FromInitializer:
    """Fresh weights, drawn row by row: a row is a pure function of (seed, name of the tensor, index of the row).

    So a process draws only the rows of which it stores a part, a few at a time, and all processes agree without a
    message.

    Args:
        model: on meta or not; only shapes and dtypes are used. A buffer with real values and no rule (a mask, a table
            of frequencies) keeps its values.
        seed: of the random generator.
        init: how tensors are initialized; where it returns None, ``default_init`` is asked.

    Raises:
        ValueError: there is no rule for a tensor, or ``init`` returned something else than a rule.

    Example:
        >>> from skerry.subnet import Index
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Embedding(50_000, 64), nn.Linear(64, 10))
        >>> def init(module, name, shape):
        ...     if isinstance(module, nn.Embedding):
        ...         return Normal(0.02)
        >>> source = FromInitializer(model, seed=0, init=init)
        >>> rows = torch.tensor([3, 49_999])
        >>> part = source.read("0.weight", (Index(rows), None))
        >>> part.shape, bool(part.abs().max() < 0.2)
        (torch.Size([2, 64]), True)
        >>> torch.equal(part, source.read("0.weight")[rows])
        True
    """

    def __init__(self, model: nn.Module, seed: int, init: Init = default_init) -> None:
        self._seed = seed
        self._starts: dict[str, tuple[torch.Size, torch.dtype, Fill | Tensor]] = {}
        parameters = dict(model.named_parameters())
        for name, tensor in named_tensors(model).items():
            module, shape = model.get_submodule(name.rpartition(".")[0]), tensor.shape
            start = init(module, name, shape)
            if start is None:
                start = default_init(module, name, shape)
            if start is None and name not in parameters and not tensor.is_meta:
                start = tensor.clone()
            if start is None:
                raise ValueError(
                    f"{name} ({type(module).__name__}): no rule to initialize it; pass init=... that returns one, or "
                    "start from files or from a model with real tensors"
                )
            if not (start.shape == shape if isinstance(start, Tensor) else callable(start)):
                got = f"a tensor of shape {tuple(start.shape)}" if isinstance(start, Tensor) else repr(start)
                raise ValueError(
                    f"{name}: init returned {got}, expected a function that fills a row, or all of the tensor, of "
                    f"shape {tuple(shape)}"
                )
            self._starts[name] = (shape, tensor.dtype, start)

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part ``cut`` of a tensor, drawn from the seed."""
        shape, dtype, start = self._starts[name]
        if isinstance(start, Tensor):
            return take(start.detach(), cut).to("cpu", dtype)
        fill: Fill = start
        row_shape = shape[1:] if len(shape) > 1 else shape
        drawn = torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype
        rng = torch.Generator()

        def made(rows: Tensor) -> Tensor:
            slab = torch.empty((len(rows), *row_shape), dtype=drawn, device="cpu")
            for block, row in zip(slab, rows.tolist(), strict=True):
                fill(block, rng.manual_seed(seed_of(self._seed, "init", name, row)), row)
            return slab

        if len(shape) < 2:
            return take(made(torch.zeros(1, dtype=torch.int64, device="cpu"))[0].to(dtype), cut)
        return by_slabs(shape, dtype, cut, lambda rows, rest: _rest_of(made(rows), rest))


def _rest_of(slab: Tensor, rest: Cut) -> Tensor:
    return slab if whole(rest) else take(slab, (None, *rest))
