"""Random models from all supported operations: whatever discover returns must be right, and must run."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from equivalence import assert_narrow_equals_masked, assert_write_back_is_exact, dealt_to, doubled
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import discover, verify
from skerry.discovery.constraints import Constraints
from skerry.discovery.operations.rules import RULES
from skerry.discovery.trace import trace
from skerry.subnet import cut_arguments
from skerry.subnet.cut_arguments import cut_argument_

Draw = Callable[[st.SearchStrategy], object]


class Program(nn.Module):
    """A random net: a list of steps, each of which reads some earlier values and adds one.

    Values are (batch, tokens, width) tensors. Steps find their modules in the net they are given: in a subnet, its own.
    The code is that of an ordinary forward; it takes widths from shapes, or, where it spells one out, discovery has to
    notice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.loose = nn.ParameterList()
        self.steps: list[Callable[[Program, list[Tensor]], Tensor]] = []
        self.said: list[str] = []
        self.outputs: list[int] = [0]

    def extra_repr(self) -> str:
        return f"{'; '.join(self.said)}; outputs {self.outputs}"

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = list(inputs)
        for step in self.steps:
            values.append(step(self, values))
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
    shared: dict[tuple[str, int, int], int] = {}

    def pick(like: int | None = None) -> int:
        fit = [k for k, w in enumerate(widths) if like is None or w == like]
        return fit[-1] if draw(st.integers(0, 3)) else draw(st.sampled_from(fit))  # mostly the last: nets get deep

    def keep(module: nn.Module) -> int:
        parts.append(module)
        return len(parts) - 1

    def free(*shape: int) -> int:
        loose.append(nn.Parameter(torch.randn(shape) * 0.5 + 0.2))
        return len(loose) - 1

    def linear(i: int, o: int, bias: bool = True) -> int:
        key = ("linear", i, o)
        if key in shared and draw(st.booleans()):
            return shared[key]  # used twice
        shared[key] = keep(nn.Linear(i, o, bias=bias))
        return shared[key]

    def add(step: Callable[["Program", list[Tensor]], Tensor], width: int) -> None:
        model.steps.append(step)
        widths.append(width)
        given = dict(zip(step.__code__.co_varnames[2:], step.__defaults__ or (), strict=False))
        model.said.append(f"v{len(widths) - 1} = {kind} {given} -> {width}")

    # A few kinds a net: with all of them at once something would always keep every width whole.
    kinds = ["linear", "act", *draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))]
    for number in range(draw(st.integers(2, 10))):
        a = pick()
        w = widths[a]
        kind = "linear" if number == 0 else draw(st.sampled_from(kinds))
        if kind == "linear":
            m = linear(w, o := draw(st.sampled_from([4, 6, 8, 12])), draw(st.booleans()))
            add(lambda n, v, a=a, m=m: n.parts[m](v[a]), o)
        elif kind == "act":
            f = draw(st.sampled_from(ACTIVATIONS))
            add(lambda n, v, a=a, f=f: f(v[a]), w)
        elif kind in SAME_WIDTH:
            add(lambda n, v, a=a, f=SAME_WIDTH[kind]: f(v[a]), w)
        elif kind in EVEN_WIDTH and w % 2 == 0:
            f, divisor = EVEN_WIDTH[kind]
            add(lambda n, v, a=a, f=f: f(v[a]), w // divisor)
        elif kind in OF_TWO:
            b, f = pick(w), OF_TWO[kind]
            add(lambda n, v, a=a, b=b, f=f: f(v[a], v[b]), w)
        elif kind == "cat":
            b = pick()
            if w + widths[b] <= 24:
                add(lambda n, v, a=a, b=b: torch.cat([v[a], v[b]], -1), w + widths[b])
        elif kind == "chunk" and w % 2 == 0:
            k = draw(st.integers(0, 1))
            add(lambda n, v, a=a, k=k: v[a].chunk(2, -1)[k], w // 2)
        elif kind == "split" and w > 2:
            at = draw(st.integers(1, w - 1))
            part = draw(st.integers(0, 1))
            add(
                lambda n, v, a=a, at=at, w=w, part=part: v[a].split([at, w - at], -1)[part], at if part == 0 else w - at
            )
        elif kind == "slice" and w > 2:
            at = draw(st.integers(1, w - 1))
            add(lambda n, v, a=a, at=at: v[a][..., :at], at)
        elif kind == "index":
            order = torch.tensor(draw(st.lists(st.integers(0, w - 1), min_size=1, max_size=4)))
            add(lambda n, v, a=a, order=order: v[a][..., order], len(order))
        elif kind == "stack":
            b = pick(w)
            add(lambda n, v, a=a, b=b: torch.stack([v[a], v[b]], -1).amax(-1), w)
        elif kind == "layer_norm":
            m = keep(nn.LayerNorm(w))
            add(lambda n, v, a=a, m=m: n.parts[m](v[a]), w)
        elif kind == "head_norm" and w % 2 == 0:
            m = keep(nn.LayerNorm(2))
            add(lambda n, v, a=a, m=m: n.parts[m](v[a].unflatten(-1, (-1, 2))).flatten(-2), w)
        elif kind == "rms":
            p = free(w)
            add(lambda n, v, a=a, p=p: n.loose[p] * v[a] * torch.rsqrt(v[a].square().mean(-1, keepdim=True) + 1e-6), w)
        elif kind == "scale":
            p = free(w)
            add(lambda n, v, a=a, p=p: v[a] * n.loose[p], w)
        elif kind == "scored":  # as attention vectors do it
            p = free(w)
            add(lambda n, v, a=a, p=p: v[a] * (v[a] * n.loose[p]).sum(-1, keepdim=True).tanh(), w)
        elif kind == "constant":
            c = torch.linspace(0.5, 1.5, w, dtype=torch.float64)
            add(lambda n, v, a=a, c=c: v[a] * c.to(v[a]), w)
        elif kind == "batch_norm":
            m = keep(nn.BatchNorm1d(w))
            add(lambda n, v, a=a, m=m: _conv(v[a], n.parts[m]), w)
        elif kind == "group_norm" and w % 2 == 0:
            m = keep(nn.GroupNorm(w // 2, w))
            add(lambda n, v, a=a, m=m: _conv(v[a], n.parts[m]), w)
        elif kind == "conv":
            m = keep(nn.Conv1d(w, o := draw(st.sampled_from([4, 6, 8])), 3, padding=1))
            add(lambda n, v, a=a, m=m: _conv(v[a], n.parts[m]), o)
        elif kind == "depthwise":
            times = draw(st.integers(1, 2))
            m = keep(nn.Conv1d(w, w * times, 3, padding=1, groups=w))
            add(lambda n, v, a=a, m=m: _conv(v[a], n.parts[m]), w * times)
        elif kind == "grouped" and w % 2 == 0:
            m = keep(nn.Conv1d(w, w, 1, groups=w // 2))
            add(lambda n, v, a=a, m=m: _conv(v[a], n.parts[m]), w)
        elif kind == "transposed":
            m = keep(nn.ConvTranspose1d(w, o := draw(st.sampled_from([4, 6])), 3, padding=1))
            add(lambda n, v, a=a, m=m: _conv(v[a], n.parts[m]), o)
        elif kind == "attention":
            heads, dim = draw(st.sampled_from([2, 3])), 2
            qkv, out = keep(nn.Linear(w, 3 * heads * dim)), keep(nn.Linear(heads * dim, w))
            by_hand = draw(st.booleans())
            add(lambda n, v, a=a, qkv=qkv, out=out, h=by_hand: n.parts[out](_attend(n.parts[qkv](v[a]), 2, h)), w)
        elif kind == "gqa":
            q, k, o = keep(nn.Linear(w, 8)), keep(nn.Linear(w, 4)), keep(nn.Linear(8, w))
            add(lambda n, v, a=a, q=q, k=k, o=o: n.parts[o](_grouped_queries(n.parts[q](v[a]), n.parts[k](v[a]))), w)
        elif kind == "cross_attention":
            b, heads = pick(), draw(st.sampled_from([2, 3]))
            q, kv, o = (
                keep(nn.Linear(w, 2 * heads)),
                keep(nn.Linear(widths[b], 4 * heads)),
                keep(nn.Linear(2 * heads, w)),
            )
            mask = draw(st.booleans())
            add(
                lambda n, v, a=a, b=b, q=q, kv=kv, o=o, mask=mask: n.parts[o](
                    _across(n.parts[q](v[a]), n.parts[kv](v[b]), mask)
                ),
                w,
            )
        elif kind == "mqa":  # one key head for all
            q, kv, o = keep(nn.Linear(w, 8)), keep(nn.Linear(w, 4)), keep(nn.Linear(8, w))
            add(lambda n, v, a=a, q=q, kv=kv, o=o: n.parts[o](_one_key_head(n.parts[q](v[a]), n.parts[kv](v[a]))), w)
        elif kind == "rnn":
            layer, o = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN])), draw(st.sampled_from([4, 6]))
            both, layers = draw(st.booleans()), draw(st.integers(1, 2))
            m = keep(layer(w, o, num_layers=layers, bidirectional=both, batch_first=True))
            add(lambda n, v, a=a, m=m: n.parts[m](v[a])[0], o * (1 + both))
        elif kind == "width":  # a width that is compared
            at = draw(st.integers(1, w))
            add(lambda n, v, a=a, at=at: v[a] * 2 if v[a].shape[-1] > at else v[a], w)
        elif kind == "in_training":
            f = draw(
                st.sampled_from([lambda x: x * 2, lambda x: x - x.mean(-1, keepdim=True), lambda x: x / x.shape[-1]])
            )
            add(lambda n, v, a=a, f=f: f(v[a]) if n.training else v[a], w)
        elif kind == "normed_weight":
            layer, dim = nn.Linear(w, o := draw(st.sampled_from([4, 6]))), draw(st.integers(0, 1))
            m = keep(nn.utils.parametrizations.weight_norm(layer, dim=dim))
            add(lambda n, v, a=a, m=m: n.parts[m](v[a]), o)
        elif kind == "slopes":
            m = keep(Sloped(w, h := draw(st.sampled_from([2, 3, 4]))))
            add(lambda n, v, a=a, m=m, h=h: n.parts[m](v[a], torch.arange(1, h + 1, dtype=v[a].dtype)), w)
        elif kind == "gate":  # squeeze and excite: a mean over tokens, then a weight a channel
            m = linear(w, w)
            add(lambda n, v, a=a, m=m: v[a] * torch.sigmoid(n.parts[m](v[a].mean(1, keepdim=True))), w)
        elif kind == "tied":  # a weight used forwards and backwards
            m = linear(w, w)
            add(lambda n, v, a=a, m=m: F.linear(v[a], n.parts[m].weight.t()), w)
        elif kind == "low_rank":
            p, q = free(w, 3), free(3, 4)
            add(lambda n, v, a=a, p=p, q=q: v[a] @ (n.loose[p] @ n.loose[q]), 4)
        elif kind == "einsum":
            p = free(2, w, 4)
            add(lambda n, v, a=a, p=p: torch.einsum("btw,ewo->beto", v[a], n.loose[p]).sum(1), 4)
        elif kind == "weight_norm":
            m = linear(w, 4)
            add(
                lambda n, v, a=a, m=m: F.linear(
                    v[a], n.parts[m].weight / (n.parts[m].weight.square().sum(1, keepdim=True) + 1.0)
                ),
                4,
            )
        elif kind == "pad" and w <= 12:
            add(lambda n, v, a=a: F.pad(v[a], (1, 1)), w + 2)
        elif kind == "matmul_tokens":  # activation times activation over the width
            b = pick(w)
            add(lambda n, v, a=a, b=b: (v[a] @ v[b].transpose(1, 2)) @ v[b], w)
    kind = "head"
    last = draw(st.integers(1, 2))
    for _ in range(last):
        k = pick()
        head = keep(nn.Linear(widths[k], 3))
        add(lambda n, v, k=k, m=head: n.parts[m](v[k]), 3)
    model.outputs = list(range(len(widths) - last, len(widths)))
    if draw(st.integers(0, 5)) == 0:
        model.outputs.append(draw(st.integers(0, len(widths) - 1)))  # some inner value is an output as well
    return model, inputs


class Sloped(nn.Module):
    """Attention with a slope a head, which the caller makes for all heads, as in ALiBi."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 6 * heads), nn.Linear(2 * heads, width)

    def forward(self, x: Tensor, slopes: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) + slopes[:, None, None] * torch.arange(x.shape[1], dtype=x.dtype)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


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


def _across(q: Tensor, kv: Tensor, masked: bool) -> Tensor:
    q, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in (q, *kv.chunk(2, -1)))
    scores = q @ k.transpose(-1, -2)
    if masked:  # the last token is padding, told by a mask as large as the scores
        padding = torch.arange(5) == 4
        scores = scores.masked_fill(padding[None, None, None].expand(scores.shape).contiguous(), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)


def _one_key_head(q: Tensor, kv: Tensor) -> Tensor:
    q, (k, v) = q.unflatten(-1, (-1, 2)).transpose(1, 2), (t[:, None] for t in kv.chunk(2, -1))
    return F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q)).transpose(1, 2).flatten(-2)


def _filled(x: Tensor) -> Tensor:
    """Token by token, into a tensor made before."""
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        out[:, t] = x[:, t] * (t + 1)
    return out


ACTIVATIONS = [torch.relu, torch.tanh, torch.sigmoid, F.gelu, F.silu, torch.square, torch.cos, F.softplus, F.elu]

SAME_WIDTH = {
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(1, -1),
    "softmax": lambda x: x.softmax(-1),
    "in_place": lambda x: (x * 1.0).add_(x).relu_(),
    "into_zeros": lambda x: x.new_zeros(x.shape).index_add_(1, torch.tensor([0, 0, 1, 2, 3]), x),
    "mean_tokens": lambda x: x - x.mean(1, keepdim=True),
    "statistic": lambda x: x - x.mean(-1, keepdim=True),
    "filled": _filled,
    "fft": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=5, dim=1),
}
EVEN_WIDTH = {  # and by what it divides the width
    "glu": (lambda x: F.glu(x, -1), 2),
    "swiglu": (lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], 2),
    "strided": (lambda x: x[..., ::2], 2),
    "regroup": (lambda x: x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2), 1),  # heads, then dims of heads
    "regroup_back": (lambda x: x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2), 1),
    "pairs": (lambda x: x.unflatten(-1, (-1, 2)).sum(-1), 2),
    "shuffle": (lambda x: F.channel_shuffle(x.transpose(1, 2), 2).transpose(1, 2), 1),
    "apart": (lambda x: torch.cat([x.chunk(2, -1)[1].relu(), x.chunk(2, -1)[0]], -1), 1),
    "halves": (lambda x: x.unflatten(-1, (2, -1)).mean(-2), 2),
}
OF_TWO = {"add": torch.add, "mul": torch.mul, "sub": torch.sub, "maximum": torch.maximum}

KINDS = [
    *SAME_WIDTH, *EVEN_WIDTH, *OF_TWO, "cat", "chunk", "split", "slice", "index", "stack", "layer_norm", "head_norm",
    "rms", "scale", "scored", "constant", "batch_norm", "group_norm", "conv", "depthwise", "grouped", "transposed",
    "attention", "gqa", "gate", "tied", "low_rank", "einsum", "weight_norm", "pad", "matmul_tokens", "cross_attention",
    "mqa", "rnn", "width", "in_training", "normed_weight", "slopes",
]  # fmt: skip


def check(model: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> None:
    """Discover, and check what was discovered, all axes at once."""
    model, inputs = doubled(model, inputs)
    plan = discover(model, inputs)
    steps = trace(model, inputs, dict(model.named_parameters())).steps
    assert [step.name for step in steps if not step.known] == []
    event(f"{min(len(plan.axes), 4)} axes")
    if not plan.axes:
        return
    workers = min(2 + seed % 4, *(axis.num_units for axis in plan.axes))
    units = dealt_to(plan, workers, seed)[0]
    if any("= width" in line for line in model.said):
        try:  # what a forward does at one size only is refused before training
            verify(model, plan, inputs, pieces=[units])
        except ValueError:
            return
    assert_narrow_equals_masked(model, plan, inputs, units, training=bool(seed % 2), tolerance=1e-8)
    assert_write_back_is_exact(model, plan, units)


def forgetful(rule):
    """The rule without the constraints that it adds."""
    return lambda op: rule(replace(op, constraints=Constraints(op.constraints.op)))


class Unmarked(Constraints):
    """Constraints that do not note who makes units and who sums over them."""

    def mark(self, fields, role) -> None:
        pass


def unmarked(rule):
    """The rule without the roles that it notes."""
    return lambda op: rule(replace(op, constraints=Unmarked(**vars(op.constraints))))


def first_ones(narrow: nn.Module, name: str, held: Tensor) -> None:
    """Cut an argument to the first of its parts, not to those that are held."""
    cut_argument_(narrow, name, held.sort(descending=True).values)


WRONG = {
    "mean": (RULES, "mean", forgetful(RULES["mean"])),
    "bmm": (RULES, "bmm", forgetful(RULES["bmm"])),
    "weight norm": (RULES, "_weight_norm_interface", unmarked(RULES["_weight_norm_interface"])),
    "cut arguments": (vars(cut_arguments), "cut_argument_", first_ones),
}


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "name", "wrong"), WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_found_within_400_examples(rules, name, wrong, monkeypatch):
    monkeypatch.setitem(rules, name, wrong)

    @settings(max_examples=400, phases=[Phase.generate], report_multiple_bugs=False, database=None, derandomize=True)
    @given(programs(), st.integers(0, 1000))
    def search(program, seed):
        torch.manual_seed(seed)
        check(*program, seed)

    with pytest.raises(AssertionError):
        search()


@settings(max_examples=50)
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
