"""Discovery of models on meta, against the plan of the same model with values."""

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn

from skerry import discover
from skerry.discovery.forward_contexts import ValuesOfInputs
from skerry.model.tensors import skeleton


class Looks(nn.Module):
    """Looks at values of its inputs: how many nodes there are, which are wanted, how often each is repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor, wanted: Tensor) -> Tensor:
        h = x @ self.up.weight.t() + self.up.bias
        degrees = torch.bincount(edges[1], minlength=int(edges.max()) + 1)
        sums = h.new_zeros(len(degrees), h.shape[1]).index_add(0, edges[1], h[edges[0]])
        if bool(wanted.any()):
            sums = torch.relu(sums)[wanted].repeat_interleave(degrees[wanted], 0)
        return self.down(sums)


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(6, 5), torch.stack([torch.arange(6), torch.arange(1, 7) % 6]), torch.arange(6) % 2 == 0


def _same(model: nn.Module, inputs: tuple[Tensor, ...], other_inputs: tuple[Tensor, ...] | None = None) -> bool:
    expected = discover(model, inputs)
    found = discover(skeleton(model), other_inputs or inputs)
    return (found.digest(), found.numbers) == (expected.digest(), expected.numbers)


def test_a_forward_may_look_at_values_of_its_inputs():
    inputs = _inputs()
    assert _same(Looks(), inputs)
    assert [axis.num_units for axis in discover(skeleton(Looks()), inputs).axes] == [12]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_features_are_as_good_as_dense_ones():
    x, *others = _inputs()
    assert _same(Looks(), (x, *others), (x.to_sparse_csr(), *others))


PYG = [family for family in FAMILIES if family.name in ("pyg-gcn", "pyg-sage", "pyg-gat", "pyg-gin")]


@pytest.mark.parametrize("family", PYG, ids=lambda family: family.name)
def test_models_of_pyg_have_the_same_plan(family):
    pytest.importorskip("torch_geometric", exc_type=ImportError)
    assert _same(*family.build())


def test_what_depends_on_weights_has_no_values_and_all_else_has():
    weight, x = torch.ones(3, device="meta"), torch.tensor([2.0, 3.0, 4.0])
    with ValuesOfInputs():
        assert (x * weight).is_meta
        assert float((x * x).sum()) == 29
        assert weight[x > 2].shape == (2,)


def test_a_forward_that_looks_at_what_depends_on_weights_is_told_what_to_do():
    class Chooses(Looks):
        def forward(self, x: Tensor, edges: Tensor, wanted: Tensor) -> Tensor:
            h = self.up(x)
            return self.down(h if bool(h.sum() > 0) else -h)

    with pytest.raises(ValueError, match="values to a model on meta"):
        discover(skeleton(Chooses()), _inputs())
