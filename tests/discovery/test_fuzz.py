"""Random models from all supported operations: whatever discover returns must be right, and must run."""

from collections.abc import Callable

import pytest
import torch
from equivalence import assert_narrow_equals_masked, assert_write_back_is_exact, dealt_to, doubled
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import discover

Draw = Callable[[st.SearchStrategy], object]


class Program(nn.Module):
    """A random net: a list of steps, each of which reads some earlier values and adds one.

    Values are (batch, tokens, width) tensors. ``steps`` holds (function of the values, the modules it uses); modules are
    registered so that parameters are the model's. Drawn again with other widths, the code is that of an ordinary
    forward: it takes widths from shapes, or, where it spells one out, discovery has to notice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.loose = nn.ParameterList()
        self.steps: list[Callable[[list[Tensor]], Tensor]] = []
        self.outputs: list[int] = [0]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = list(inputs)
        for step in self.steps:
            values.append(step(values))
        found = tuple(values[k] for k in self.outputs)
        return found[0] if len(found) == 1 else found


def _conv(x: Tensor, conv: nn.Module) -> Tensor:
    return conv(x.transpose(1, 2)).transpose(1, 2)


@st.composite
def programs(draw: Draw) -> tuple[Program, tuple[Tensor, ...]]:
    model = Program()
    parts, loose = model.parts, model.loose
    num_inputs = draw(st.integers(1, 2))
    widths = [draw(st.sampled_from([4, 6])) for _ in range(num_inputs)]
    inputs = tuple(torch.randn(3, 5, w) for w in widths)
    shared: dict[tuple[str, int, int], nn.Module] = {}

    def pick(like: int | None = None, multiple: int = 1) -> int | None:
        fit = [k for k, w in enumerate(widths) if (like is None or w == like) and w % multiple == 0]
        # late values more often, so that nets get deep
        return draw(st.sampled_from(fit[-4:] + fit)) if fit else None

    def keep(module: nn.Module) -> nn.Module:
        parts.append(module)
        return module

    def linear(i: int, o: int, bias: bool = True) -> nn.Module:
        key = ("linear", i, o)
        if key in shared and draw(st.booleans()):
            return shared[key]  # used twice
        shared[key] = keep(nn.Linear(i, o, bias=bias))
        return shared[key]

    def add(step: Callable[[list[Tensor]], Tensor], width: int) -> None:
        model.steps.append(step)
        widths.append(width)

    num_steps = draw(st.integers(3, 12))
    for number in range(num_steps):
        a = pick()
        w = widths[a]
        kind = "linear" if number < 2 else draw(st.sampled_from(KINDS))
        if kind == "linear":
            m = linear(w, o := draw(st.sampled_from([4, 6, 8, 12])), draw(st.booleans()))
            add(lambda v, a=a, m=m: m(v[a]), o)
        elif kind == "act":
            f = draw(
                st.sampled_from(
                    [torch.relu, torch.tanh, torch.sigmoid, F.gelu, F.silu, torch.square, torch.cos, F.softplus, F.elu]
                )
            )
            add(lambda v, a=a, f=f: f(v[a]), w)
        elif kind in ("add", "mul", "sub", "maximum"):
            b = pick(w)
            f = {"add": torch.add, "mul": torch.mul, "sub": torch.sub, "maximum": torch.maximum}[kind]
            add(lambda v, a=a, b=b, f=f: f(v[a], v[b]), w)
        elif kind == "cat":
            b = pick()
            if w + widths[b] <= 24:
                add(lambda v, a=a, b=b: torch.cat([v[a], v[b]], -1), w + widths[b])
        elif kind == "chunk" and w % 2 == 0:
            k = draw(st.integers(0, 1))
            add(lambda v, a=a, k=k: v[a].chunk(2, -1)[k], w // 2)
        elif kind == "glu" and w % 2 == 0:
            add(lambda v, a=a: F.glu(v[a], -1), w // 2)
        elif kind == "swiglu" and w % 2 == 0:
            add(lambda v, a=a: F.silu(v[a].chunk(2, -1)[0]) * v[a].chunk(2, -1)[1], w // 2)
        elif kind == "split" and w > 2:
            at = draw(st.integers(1, w - 1))
            part = draw(st.integers(0, 1))
            add(lambda v, a=a, at=at, w=w, part=part: v[a].split([at, w - at], -1)[part], at if part == 0 else w - at)
        elif kind == "slice" and w > 2:
            at = draw(st.integers(1, w - 1))
            add(lambda v, a=a, at=at: v[a][..., :at], at)
        elif kind == "strided" and w % 2 == 0:
            add(lambda v, a=a: v[a][..., ::2], w // 2)
        elif kind == "flip":
            add(lambda v, a=a: v[a].flip(-1), w)
        elif kind == "roll":
            add(lambda v, a=a: v[a].roll(1, -1), w)
        elif kind == "index":
            order = torch.tensor(draw(st.lists(st.integers(0, w - 1), min_size=1, max_size=4)))
            add(lambda v, a=a, order=order: v[a][..., order], len(order))
        elif kind == "regroup" and w % 2 == 0:  # heads before dims of heads, then back in another order
            add(lambda v, a=a: v[a].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2), w)
        elif kind == "regroup_back" and w % 2 == 0:
            add(lambda v, a=a: v[a].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2), w)
        elif kind == "pairs" and w % 2 == 0:
            add(lambda v, a=a: v[a].unflatten(-1, (-1, 2)).sum(-1), w // 2)
        elif kind == "halves" and w % 2 == 0:
            add(lambda v, a=a: v[a].unflatten(-1, (2, -1)).mean(-2), w // 2)
        elif kind == "stack":
            b = pick(w)
            add(lambda v, a=a, b=b: torch.stack([v[a], v[b]], -1).amax(-1), w)
        elif kind == "layer_norm":
            m = keep(nn.LayerNorm(w))
            add(lambda v, a=a, m=m: m(v[a]), w)
        elif kind == "head_norm" and w % 2 == 0:
            m = keep(nn.LayerNorm(2))
            add(lambda v, a=a, m=m: m(v[a].unflatten(-1, (-1, 2))).flatten(-2), w)
        elif kind == "rms":
            p = nn.Parameter(torch.rand(w) + 0.5)
            loose.append(p)
            add(lambda v, a=a, p=p: p * v[a] * torch.rsqrt(v[a].square().mean(-1, keepdim=True) + 1e-6), w)
        elif kind == "scale":
            p = nn.Parameter(torch.rand(w) + 0.5)
            loose.append(p)
            add(lambda v, a=a, p=p: v[a] * p, w)
        elif kind == "constant":
            c = torch.linspace(0.5, 1.5, w, dtype=torch.float64)
            add(lambda v, a=a, c=c: v[a] * c.to(v[a]), w)
        elif kind == "batch_norm":
            m = keep(nn.BatchNorm1d(w))
            add(lambda v, a=a, m=m: _conv(v[a], m), w)
        elif kind == "group_norm" and w % 2 == 0:
            m = keep(nn.GroupNorm(w // 2, w))
            add(lambda v, a=a, m=m: _conv(v[a], m), w)
        elif kind == "conv":
            m = keep(nn.Conv1d(w, o := draw(st.sampled_from([4, 6, 8])), 3, padding=1))
            add(lambda v, a=a, m=m: _conv(v[a], m), o)
        elif kind == "depthwise":
            times = draw(st.integers(1, 2))
            m = keep(nn.Conv1d(w, w * times, 3, padding=1, groups=w))
            add(lambda v, a=a, m=m: _conv(v[a], m), w * times)
        elif kind == "grouped" and w % 2 == 0:
            m = keep(nn.Conv1d(w, w, 1, groups=w // 2))
            add(lambda v, a=a, m=m: _conv(v[a], m), w)
        elif kind == "transposed":
            m = keep(nn.ConvTranspose1d(w, o := draw(st.sampled_from([4, 6])), 3, padding=1))
            add(lambda v, a=a, m=m: _conv(v[a], m), o)
        elif kind == "softmax":
            add(lambda v, a=a: v[a].softmax(-1), w)
        elif kind == "attention":
            heads, dim = draw(st.sampled_from([2, 3])), 2
            qkv, out = keep(nn.Linear(w, 3 * heads * dim)), keep(nn.Linear(heads * dim, w))
            by_hand = draw(st.booleans())
            add(lambda v, a=a, qkv=qkv, out=out, h=by_hand: out(_attend(qkv(v[a]), 2, h)), w)
        elif kind == "gqa":
            q, k, o = keep(nn.Linear(w, 8)), keep(nn.Linear(w, 4)), keep(nn.Linear(8, w))
            add(lambda v, a=a, q=q, k=k, o=o: o(_grouped_queries(q(v[a]), k(v[a]))), w)
        elif kind == "gate":  # squeeze and excite: a mean over tokens, then a weight a channel
            m = linear(w, w)
            add(lambda v, a=a, m=m: v[a] * torch.sigmoid(m(v[a].mean(1, keepdim=True))), w)
        elif kind == "tied":  # a weight used forwards and backwards
            m = linear(w, w)
            add(lambda v, a=a, m=m: F.linear(v[a], m.weight.t()), w)
        elif kind == "low_rank":
            p, q = (nn.Parameter(torch.randn(*s) * 0.5) for s in ((w, 3), (3, 4)))
            loose.extend([p, q])
            add(lambda v, a=a, p=p, q=q: v[a] @ (p @ q), 4)
        elif kind == "einsum":
            p = nn.Parameter(torch.randn(2, w, 4) * 0.5)
            loose.append(p)
            add(lambda v, a=a, p=p: torch.einsum("btw,ewo->beto", v[a], p).sum(1), 4)
        elif kind == "into_zeros":  # a sum gathered in a fresh tensor
            add(lambda v, a=a: v[a].new_zeros(v[a].shape).index_add_(1, torch.tensor([0, 0, 1, 2, 3]), v[a]), w)
        elif kind == "in_place":
            add(lambda v, a=a: (v[a] * 1.0).add_(v[a]).relu_(), w)
        elif kind == "mean_tokens":
            add(lambda v, a=a: v[a] - v[a].mean(1, keepdim=True), w)
        elif kind == "statistic":
            add(lambda v, a=a: v[a] - v[a].mean(-1, keepdim=True), w)
        elif kind == "weight_norm":
            m = linear(w, 4)
            add(lambda v, a=a, m=m: F.linear(v[a], m.weight / (m.weight.square().sum(1, keepdim=True) + 1.0)), 4)
        elif kind == "pad" and w <= 12:
            add(lambda v, a=a: F.pad(v[a], (1, 1)), w + 2)
        elif kind == "matmul_tokens":  # activation times activation over the width
            b = pick(w)
            add(lambda v, a=a, b=b: (v[a] @ v[b].transpose(1, 2)) @ v[b], w)
    last = draw(st.integers(1, 2))
    for _ in range(last):
        k = pick()
        head = keep(nn.Linear(widths[k], 3))
        add(lambda v, k=k, m=head: m(v[k]), 3)
    model.outputs = list(range(len(widths) - last, len(widths)))
    if draw(st.integers(0, 5)) == 0:
        model.outputs.append(draw(st.integers(0, len(widths) - 1)))  # some inner value is an output as well
    return model, inputs


def _attend(qkv: Tensor, dim: int, by_hand: bool) -> Tensor:
    q, k, v = (t.unflatten(-1, (-1, dim)).transpose(1, 2) for t in qkv.chunk(3, -1))
    if by_hand:
        y = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).flatten(-2)


def _grouped_queries(q: Tensor, kv: Tensor) -> Tensor:
    q, kv = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in (q, kv))
    kv = kv.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, kv, kv).transpose(1, 2).flatten(-2)


KINDS = [
    "linear", "linear", "linear", "act", "act", "add", "mul", "sub", "maximum", "cat", "chunk", "glu", "swiglu", "split", "slice",
    "strided", "flip", "roll", "index", "regroup", "regroup_back", "pairs", "halves", "stack", "layer_norm", "head_norm",
    "rms", "scale", "constant", "batch_norm", "group_norm", "conv", "depthwise", "grouped", "transposed", "softmax",
    "attention", "gqa", "gate", "tied", "low_rank", "einsum", "into_zeros", "in_place", "mean_tokens", "statistic",
    "weight_norm", "pad", "matmul_tokens",
]  # fmt: skip


def check(model: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> None:
    """Discover, and check what was discovered, all axes at once."""
    model, inputs = doubled(model, inputs)
    plan = discover(model, inputs)
    assert not any("unknown op" in note.why for note in plan.notes)
    event(f"{min(len(plan.axes), 4)} axes")
    if not plan.axes:
        return
    workers = min(2 + seed % 4, *(axis.num_units for axis in plan.axes))
    units = dealt_to(plan, workers, seed)[0]
    assert_narrow_equals_masked(model, plan, inputs, units, training=bool(seed % 2), tolerance=1e-8)
    assert_write_back_is_exact(model, plan, units)


@settings(max_examples=150)
@given(programs(), st.integers(0, 1000))
def test_whatever_is_discovered_is_right(program, seed):
    torch.manual_seed(seed)
    check(*program, seed)


@pytest.mark.slow
@settings(max_examples=5000)
@given(programs(), st.integers(0, 1000))
def test_whatever_is_discovered_is_right_at_length(program, seed):
    torch.manual_seed(seed)
    check(*program, seed)
