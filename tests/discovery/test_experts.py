"""Experts as units: a subnet is the full model whose router never chooses the others (their logits are -inf)."""

import importlib.util

import pytest
import torch
from equivalence import assert_narrow_equals_masked, assert_write_back_is_exact, dealt_to, doubled
from families import experts_in_a_batch, experts_in_a_loop
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import Shards, discover, ist, split, train
from skerry.discovery import Experts
from skerry.subnet import extract, masked

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")


def _transformers(name: str, **given: object) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers

    kind = getattr(transformers, name)
    sizes = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
        "moe_intermediate_size": 20, "intermediate_size": 20, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "experts_implementation": "eager", "num_experts_per_tok": 2,
    }  # fmt: skip
    model = kind(kind.config_class(**{**sizes, **given}))
    return model, {"input_ids": torch.randint(3, 40, (3, 9))}


DEEPSEEK = {
    "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 0, "kv_lora_rank": 8, "q_lora_rank": 10,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "n_group": 1, "topk_group": 1,
}  # fmt: skip
MODELS = {
    "MixtralForCausalLM": {"num_local_experts": 8},
    "Qwen3MoeForCausalLM": {"num_experts": 8, "head_dim": 6},
    "DeepseekV3ForCausalLM": DEEPSEEK,
    "GptOssForCausalLM": {
        "num_local_experts": 8,
        "head_dim": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def _assert_right(model: nn.Module, inputs, where: str) -> None:
    model, inputs = doubled(model, inputs)
    plan = discover(model, inputs, blocks=Experts(where))
    experts = plan.only("experts of *")
    assert {axis.kind for axis in experts.axes} == {"experts"}
    assert len(plan.axes) > len(experts.axes)  # hidden units, too
    for each in (plan, experts):
        # routers of transformers compute in float32
        units = dealt_to(each, 2)[-1]
        assert_narrow_equals_masked(model, each, inputs, units, training=True, tolerance=1e-5)
    assert_write_back_is_exact(model, plan, dealt_to(plan, 2)[0])


@pytest.mark.parametrize("build", [experts_in_a_loop, experts_in_a_batch])
def test_a_subnet_computes_the_mixture_over_the_experts_it_has(build):
    torch.manual_seed(0)
    _assert_right(*build(), "1.branch")


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("name", MODELS)
def test_so_do_subnets_of_models_of_transformers(name):
    torch.manual_seed(0)
    _assert_right(*_transformers(name, **MODELS[name]), "model.layers.*.mlp")


class Mixture(nn.Module):
    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.router, self.k = nn.Linear(6, 8), k
        self.experts = nn.ModuleList(nn.Linear(6, 5) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).topk(self.k)
        weight = weight.softmax(-1)
        return sum((weight * (chosen == k)).sum(-1, True) * expert(x) for k, expert in enumerate(self.experts))


class Noisy(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = (self.router(x) + torch.rand(len(x), len(self.experts), dtype=x.dtype)).topk(self.k)
        return sum((weight * (chosen == k)).sum(-1, True) * expert(x) for k, expert in enumerate(self.experts))


def test_the_rows_of_a_router_are_not_listed_as_left_whole():
    model, x = nn.Sequential(nn.Linear(5, 6), Mixture()), torch.randn(9, 5)
    assert "router.weight dim 0" in str(discover(model, x))
    assert "router.weight dim 0" not in str(discover(model, x, blocks=Experts("1")))


def test_the_reference_is_the_mixture_without_the_others_written_by_hand():
    model, x = doubled(nn.Sequential(Mixture()), torch.randn(9, 6))
    plan = Experts("0").plan(model, x)
    units = torch.tensor([1, 4, 5, 7])
    logits = model[0].router(x)[:, units]
    weight, chosen = logits.topk(2)
    outputs = torch.stack([model[0].experts[int(u)](x) for u in units], 1)
    expected = (outputs.take_along_dim(chosen[..., None], 1) * weight.softmax(-1)[..., None]).sum(1)
    torch.testing.assert_close(masked(model, plan, units)(x), expected)
    narrow = extract(model, plan, units)
    torch.testing.assert_close(narrow(x), expected)
    assert [name for name, _ in narrow[0].experts.named_children()] == ["1", "4", "5", "7"]
    assert narrow[0].experts[2].weight.data_ptr() == narrow[0].experts.get_submodule("5").weight.data_ptr()


def test_training_changes_only_experts_that_are_held_and_too_few_are_refused():
    torch.manual_seed(0)
    model, x, y = Mixture(), torch.randn(64, 6), torch.randint(5, (64,))
    plan = Experts("").plan(model, x[:9])

    def run(workers: int):
        data = Shards(x, y, split(y, workers, "iid", seed=0), batch_size=8, seed=0)
        sgd = lambda net: torch.optim.SGD(net.parameters(), lr=0.1)  # noqa: E731
        algorithm = ist(workers=workers, local_steps=2)
        return train(model, F.cross_entropy, data, plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=2)

    before = model(x).detach()
    trained = run(4).model
    assert F.cross_entropy(trained(x), y) < F.cross_entropy(before, y)
    with pytest.raises(
        ValueError, match=r"1 of 8 units.*chooses k experts, a subnet needs at least k: use fewer workers"
    ):
        run(8)


def test_what_is_no_mixture_is_refused():
    x = torch.randn(9, 6)
    with pytest.raises(ValueError, match=r"Experts\('1'\) matches no module"):
        Experts("1").plan(nn.Sequential(Mixture()), x)
    with pytest.raises(ValueError, match="no ModuleList and no tensor with three dims"):
        Experts("0.router").plan(nn.Sequential(Mixture()), x)
    with pytest.raises(ValueError, match="no router with 8 rows"):
        Experts("0.experts").plan(nn.Sequential(Mixture()), x)
    with pytest.raises(ValueError, match="chooses k experts, a subnet needs at least k"):
        Experts("0").plan(nn.Sequential(Mixture(k=5)), x)
    with pytest.raises(ValueError, match=r"experts of 0' with 4 of 8 units.*it adds noise.*hidden units instead"):
        Experts("0").plan(nn.Sequential(Noisy()), x)
    shared = Mixture()
    shared.up, shared.down = nn.Linear(6, 8), nn.Linear(8, 6)
    with pytest.raises(ValueError, match=r"0\.router and 0\.up have 8 rows each.*cannot be told which is the router"):
        Experts("0").plan(nn.Sequential(shared), x)


@pytest.mark.slow
@needs_transformers
def test_a_router_that_chooses_groups_first_is_refused_because_a_subnet_has_other_groups():
    model, inputs = _transformers("DeepseekV3ForCausalLM", **{**DEEPSEEK, "n_group": 2})
    torch.manual_seed(0)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight.normal_()
    with pytest.raises(ValueError, match=r"experts of model\.layers\.0\.mlp' with 4 of 8 units"):
        Experts("model.layers.*.mlp").plan(model, inputs)
