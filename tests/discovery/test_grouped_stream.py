"""Transformers whose residual stream is dealt out by groups: narrow == masked full model, and a relay of them."""

import importlib.util
from functools import cache

import pytest
import torch
from equivalence import assert_narrow_equals_masked, assert_write_back_is_exact, dealt_to, doubled
from families import FAMILIES
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry import Plan, discover
from skerry.algorithms import ensemble, ist, relay
from skerry.merge.calibrate import scaled
from skerry.model.inputs import Inputs
from skerry.partitions import Disjoint, Share

GROUPS = {
    "mlp-layer-norm": 8, "gpt": 6, "gpt-nano": 6, "vit": 6, "llama": 5, "llama-fused": 5,
    "transformer-encoder": 6, "hf-gpt2": 6, "hf-llama": 6, "hf-bert-masked": 6, "hf-vit": 6,
}  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}


@cache
def _found(name: str) -> tuple[nn.Module, Inputs, Plan]:
    family = BY_NAME[name]
    if family.needs and importlib.util.find_spec(family.needs) is None:
        pytest.skip(f"needs {family.needs}")
    torch.manual_seed(0)
    model, inputs = doubled(*family.build())
    return model, inputs, discover(model, inputs, patches=family.patches, grouped_norms=GROUPS[name])


@pytest.mark.parametrize("name", GROUPS)
def test_the_stream_is_an_axis_of_groups_and_subnets_are_nets_of_their_own(name):
    model, inputs, plan = _found(name)
    assert [axis.num_units for axis in plan.axes if axis.kind == "groups"] == [GROUPS[name]]
    assert plan.why_dependent(model) is None
    for units in (*dealt_to(plan, 2), dealt_to(plan, 5)[0]):
        for training in (False, True):
            assert_narrow_equals_masked(model, plan, inputs, units, training=training)
        assert_write_back_is_exact(model, plan, units)


class Tied(nn.Module):
    """A language model whose head is its embedding; ``between`` stands between the last norm and the head."""

    def __init__(self, between: nn.Module, tie: bool = True) -> None:
        super().__init__()
        self.embedding, self.mlp = nn.Embedding(20, 8), nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
        self.first, self.last, self.between = nn.LayerNorm(8), nn.LayerNorm(8), between
        self.head = nn.Linear(8, 20, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.between(self.last(x + self.mlp(self.first(x)))))


TOKENS = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))


def test_the_norm_before_a_tied_head_is_scaled_in_its_place():
    torch.manual_seed(0)
    tied, untied = Tied(nn.Identity()), Tied(nn.Identity(), tie=False)
    untied.load_state_dict(tied.state_dict())
    nets = []
    for model in (tied, untied):
        plan = discover(model, TOKENS, grouped_norms=4)
        skerry.verify(model, plan, TOKENS)
        nets.append(scaled(model, plan, Share.of(Disjoint(2, seed=0), plan.axes, 0)))
    assert torch.equal(nets[0].embedding.weight, tied.embedding.weight)
    torch.testing.assert_close(nets[1].head.weight, tied.embedding.weight / 2)
    torch.testing.assert_close(nets[0](TOKENS), nets[1](TOKENS))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_tied_gpt2_of_any_depth_is_dealt_out(num_layers):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=8, n_embd=32, n_layer=num_layers, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    plan = discover(model, TOKENS % 8, grouped_norms=2)
    assert plan.why_dependent(model) is None
    assert "tied" not in str(plan)


def test_a_tied_weight_that_no_norm_can_stand_in_for_stays_whole():
    plan = discover(Tied(nn.Tanh()), TOKENS, grouped_norms=4)
    assert "embedding.weight" not in plan.dims
    assert "tied" in str(plan)


def test_more_workers_than_groups_or_heads_are_refused_in_one_line():
    model = Tied(nn.Identity())
    plan = discover(model, TOKENS, grouped_norms=4)
    with pytest.raises(ValueError, match="4 units") as caught:
        skerry.training.net_to_train(model, plan, relay(workers=5))
    assert "\n" not in str(caught.value)
    plan = discover(Tied(nn.Identity()), TOKENS)
    with pytest.raises(ValueError, match=r"discover\(\.\.\., grouped_norms=5\); print\(plan\) says"):
        skerry.training.net_to_train(model, plan, relay(workers=5))


def test_true_takes_a_group_for_each_head():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 12, batch_first=True), 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(3, 8), model, nn.LayerNorm(8), nn.Linear(8, 3))
    plan = discover(model, torch.randn(2, 5, 3), grouped_norms=True)
    assert [axis.num_units for axis in plan.axes if axis.kind == "groups"] == [4]
    with pytest.raises(ValueError, match="no attention heads to deal out; give the number of groups"):
        discover(nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8)), torch.randn(2, 3), grouped_norms=True)


@pytest.mark.parametrize("method", [relay, ensemble, ist])
def test_a_relay_of_transformers_is_evaluated_as_the_mean_of_nets_that_it_returns(method):
    torch.manual_seed(0)
    model = Tied(nn.Identity())
    tokens = (torch.arange(64)[:, None] + torch.arange(7)) % 20
    x, y = tokens[:, :-1], tokens[:, 1:]

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), y.flatten())

    plan = discover(model, x[:4], grouped_norms=2)
    before = loss(model(x), y).detach()
    result = skerry.train(
        model, loss, skerry.Shards(x, y, skerry.split(y, 2, "iid", seed=0), batch_size=8, seed=0),
        plan=plan, algorithm=method(workers=2, local_steps=5),
        optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=0.01), num_rounds=4, test=(x, y),
    )  # fmt: skip
    assert result.score.loss < 0.7 * before
    assert result.score.loss == pytest.approx(float(loss(result.model(x), y).detach()), rel=1e-5)
    if method is not ist:
        outputs = [net(x) for net in result.model.nets]
        torch.testing.assert_close(result.model(x), sum(outputs) / 2)
        usual = nn.LayerNorm(4)
        usual.load_state_dict(result.model.nets[0].last.state_dict())  # as many groups as workers: usual norms
        torch.testing.assert_close(result.model.nets[0].last(torch.ones(1, 4)), usual(torch.ones(1, 4)))
