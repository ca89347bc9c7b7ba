"""Adapters: make a narrow module consistent with its narrow tensors.

A module keeps numbers beside its tensors (``out_features``, ``num_heads``), and some hard-code a width in ``forward``.
``fit`` updates the numbers of torch's own modules and of the libraries below. Other modules need a patch, a function
``patch(narrow, full)`` that changes the narrow module after its tensors were cut; ``full`` is the same module of the
full model. Pass it to ``discover`` or ``Plan.from_rules`` as ``patches={"pattern.of.*.names": patch}``.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def fit(narrow: nn.Module, full: nn.Module) -> None:
    """Update the numbers that a known module keeps beside its tensors.

    Args:
        narrow: a module of a subnet, changed in place; left alone if its class is unknown.
        full: the same module of the full model.
    """
    widths: Mapping[str, Any] = {}
    before: Any = full  # of the same class as ``narrow``
    match narrow:
        case nn.Linear():
            widths = {"out_features": narrow.weight.shape[0], "in_features": narrow.weight.shape[1]}
        case _ConvNd():
            groups = _scaled(before.groups, narrow.weight, before.weight) if before.groups > 1 else 1
            rows, columns = ("in", "out") if narrow.transposed else ("out", "in")
            weight = narrow.weight.shape
            widths = {"groups": groups, f"{rows}_channels": weight[0], f"{columns}_channels": weight[1] * groups}
        case _NormBase():
            tensors = (narrow.weight, narrow.bias, narrow.running_mean, narrow.running_var)
            known = [t for t in tensors if t is not None]
            widths = {"num_features": known[0].shape[0]} if known else {}
        case nn.GroupNorm() if narrow.affine:
            groups = _scaled(before.num_groups, narrow.weight, before.weight)
            widths = {"num_groups": groups, "num_channels": narrow.weight.shape[0]}
        case nn.LayerNorm() | nn.RMSNorm() if narrow.elementwise_affine:
            widths = {"normalized_shape": tuple(narrow.weight.shape)}
        case nn.Embedding():
            widths = {"num_embeddings": narrow.weight.shape[0], "embedding_dim": narrow.weight.shape[1]}
        case nn.PReLU():
            widths = {"num_parameters": narrow.weight.shape[0]}
        case nn.RNNBase() | nn.RNNCellBase():
            widths = _recurrent(narrow, before)
        case nn.MultiheadAttention():
            multihead_attention(narrow, before)
        case _:
            kind = type(narrow)
            by_library = _LIBRARIES.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
            if by_library is not None:
                by_library(narrow, full)
    for name, width in widths.items():
        setattr(narrow, name, width)


def _scaled(number: int, narrow: Tensor, full: Tensor, dim: int = 0) -> int:
    """A number of groups or heads, in proportion to the size that is left of a dim."""
    return number * narrow.shape[dim] // full.shape[dim]


def _recurrent(narrow: Any, full: Any) -> dict[str, int]:
    name = "weight_ih_l0" if isinstance(narrow, nn.RNNBase) else "weight_ih"
    rows, columns = getattr(narrow, name).shape
    sizes = {"input_size": columns, "hidden_size": full.hidden_size * rows // len(getattr(full, name))}
    return sizes | ({"proj_size": len(narrow.weight_hr_l0)} if getattr(full, "proj_size", 0) else {})


def multihead_attention(narrow: nn.MultiheadAttention, full: nn.MultiheadAttention) -> None:
    """Give ``nn.MultiheadAttention`` fewer heads, and a forward that does not derive their width from its input's.

    With ``bias_k`` or ``add_zero_attn`` it is left alone. Then it does not run narrow, and discovery leaves its heads
    whole.
    """
    heads = _scaled(full.num_heads, narrow.out_proj.weight, full.out_proj.weight, dim=1)
    if heads == full.num_heads or narrow.bias_k is not None or narrow.add_zero_attn:
        return
    narrow.num_heads = heads
    narrow._qkv_same_embed_dim = False  # also keeps torch's fused encoder layer from reading the weights directly
    narrow.forward = types.MethodType(_attend, narrow)  # type: ignore[method-assign]


def _attend(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The forward of ``nn.MultiheadAttention`` for any number of heads, each as wide as in the full model."""
    batched = query.dim() == 3
    if not batched:
        query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif not self.batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    if attn_mask is not None and attn_mask.dim() == 3:
        raise ValueError(
            f"attn_mask of shape {tuple(attn_mask.shape)}: a mask per head cannot be narrowed, expected (L, S)"
        )
    if self.in_proj_weight is not None:
        weights: tuple[Tensor, ...] = self.in_proj_weight.chunk(3)
    else:
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
    biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
    q, k, v = (
        F.linear(x, w, b).view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    mask = _additive(attn_mask, q.dtype)
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q.dtype)
        assert padding is not None
        padding = padding[:, None, None, :]
        mask = padding if mask is None else mask + padding
    p = self.dropout if self.training else 0.0
    weights_out = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        attention = F.softmax(scores if mask is None else scores + mask, dim=-1)
        out = F.dropout(attention, p) @ v
        weights_out = attention.mean(1) if average_attn_weights else attention
    else:
        causal = is_causal and mask is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal)
    out = self.out_proj(out.transpose(1, 2).flatten(2))
    if not batched:
        return out.squeeze(0), None if weights_out is None else weights_out.squeeze(0)
    return (out if self.batch_first else out.transpose(0, 1)), weights_out


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.is_floating_point():
        return None if mask is None else mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))


def nanogpt_attention(narrow: nn.Module, full: nn.Module) -> None:
    """Patch attention as in nanoGPT, with ``split(self.n_embd)`` and views by ``C // self.n_head``.

    For causal self-attention with ``c_attn`` (q, k, v fused), ``c_proj``, ``n_head`` and ``n_embd``. Dropout is taken
    from ``attn_dropout`` or ``dropout`` (a rate), and from ``resid_dropout``.

    Args:
        narrow: the module of a subnet; it gets another ``forward``.
        full: the same module of the full model.
    """
    narrow.head_dim = full.n_embd // full.n_head  # type: ignore[operator]
    narrow.forward = types.MethodType(_attend_nanogpt, narrow)


def _attend_nanogpt(self: Any, x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
    own = getattr(self, "attn_dropout", getattr(self, "dropout", 0.0))
    p = (own.p if isinstance(own, nn.Dropout) else float(own)) if self.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
    out: Tensor = self.c_proj(y.transpose(1, 2).flatten(2))
    return self.resid_dropout(out) if hasattr(self, "resid_dropout") else out


def _gpt2_attention(narrow: Any, full: Any) -> None:
    narrow.split_size = narrow.c_attn.weight.shape[1] // (2 if full.is_cross_attention else 3)
    narrow.num_heads = narrow.split_size // full.head_dim


def _conv1d(narrow: Any, full: Any) -> None:
    narrow.nx, narrow.nf = narrow.weight.shape


def _pyg_linear(narrow: Any, full: Any) -> None:
    narrow.out_channels, narrow.in_channels = narrow.weight.shape


def _gat(narrow: Any, full: Any) -> None:
    narrow.heads = narrow.att_src.shape[1]


_LIBRARIES: Mapping[str, Callable[[Any, Any], None]] = {
    "transformers.GPT2Attention": _gpt2_attention,
    "transformers.Conv1D": _conv1d,
    "torch_geometric.Linear": _pyg_linear,
    "torch_geometric.GATConv": _gat,
}
"""Adapters of library modules, by package and class name."""


def remedy(name: str, module: nn.Module) -> str:
    """Return in one line what to pass for a module that does not run narrow.

    Args:
        name: the module's name in the model.
        module: the module of the full model.
    """
    pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
    if all(hasattr(module, key) for key in ("c_attn", "c_proj", "n_head", "n_embd")):
        return f"pass patches={{'{pattern}': skerry.subnet.adapters.nanogpt_attention}}"
    numbers = {key: value for key, value in vars(module).items() if type(value) is int and key[0] != "_" and value > 1}
    own = ", ".join(f"{key}={value}" for key, value in list(numbers.items())[:4])
    hint = f"it keeps {own} of the full model" if own else "its forward hard-codes a width"
    first = next(iter(numbers), "width")
    return (
        f"{hint}: pass patches={{'{pattern}': patch}} with 'def patch(narrow, full): narrow.{first} = ...' (or a new "
        "narrow.forward), or leave the axis whole (plan.without)"
    )
