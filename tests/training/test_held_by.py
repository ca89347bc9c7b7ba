"""A test set on all processes, on one or in parts, against the serial runtime, which has it whole."""

import pytest
import torch
from together import together
from torch import nn
from torch.nn import functional as F

from skerry import Shards, discover, ist, split, train
from skerry.training import Test


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, a, b):
        return self.out(F.relu(self.a(a) + self.b(b.float())))


class Largest:
    """A metric that keeps what cannot be summed over processes."""

    def reset(self):
        self.most = -1.0

    def update(self, output, y):
        self.most = max(self.most, float(output.max()))

    def compute(self):
        return self.most


def first_right(output, y):
    return (output[:, 0] > 0).double() * y


def halves(x):
    return {"a": x[:, :4], "b": x[:, 4:].long()}


def scores(num, runtime, test):
    """The scores of each round in one process, or serially."""
    torch.manual_seed(0)
    model, x = TwoInputs(), torch.randn(40, 7)
    y = (x[:, 0] > 0).long()
    result = train(
        model, F.cross_entropy, Shards(x, y, split(y, num, "iid", seed=0), batch_size=5, seed=0, transform=halves),
        plan=discover(model, halves(x)), algorithm=ist(num, local_steps=3), num_rounds=3, runtime=runtime, test=test,
        optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1),
    )  # fmt: skip
    return [record.score for record in result.history]


@pytest.fixture(scope="module")
def data():
    x = torch.randn(23, 7, generator=torch.Generator().manual_seed(1))
    return halves(x), (x[:, 0] > 0).long()


@pytest.mark.parametrize("num", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("structure", [dict, tuple])
def test_on_one_process_the_score_is_that_of_the_serial_runtime(data, num, structure):
    inputs = data[0] if structure is dict else tuple(data[0].values())
    test = Test(inputs, data[1], held_by="one", every=2, batch_size=7, metrics={"m": first_right, "most": Largest()})
    expected = scores(num, None, test)
    assert [score is None for score in expected] == [True, False, False]
    for holder in range(num):
        by_rank = together(num, lambda member, h=holder: scores(num, member, test if member.rank == h else None))
        assert by_rank == [expected] * num


@pytest.mark.parametrize("num", [2, 3])
def test_on_all_and_in_parts_it_is_the_same_but_for_rounding(data, num):
    (inputs, labels), settings = data, {"every": 1, "batch_size": 4, "metrics": {"m": first_right}}
    whole = Test(inputs, labels, **settings)
    edges = [*[0, 1, 13][:num], 23]

    def part(rank):
        own = slice(edges[rank], edges[rank + 1])
        return Test({k: v[own] for k, v in inputs.items()}, labels[own], held_by="parts", **settings)

    expected = scores(num, None, whole)
    for given in (lambda rank: whole, part):
        for found in together(num, lambda member, given=given: scores(num, member, given(member.rank))):
            for score, wanted in zip(found, expected, strict=True):
                assert (score.count, score.accuracy) == (23, wanted.accuracy)
                assert score.metrics == pytest.approx(wanted.metrics)
                assert score.loss == pytest.approx(wanted.loss, rel=1e-6)


def test_other_combinations_are_refused(data):
    by = {how: Test(*data, held_by=how) for how in ("all", "one", "parts")} | {None: None}
    for wrong in (
        ("one", "one", None),
        ("one", "all", None),
        ("all", None, None),
        ("parts", "all", "all"),
        (None, "parts", "parts"),
    ):
        with pytest.raises(ValueError, match=r"rank \d.*test: .* here and .* on rank \d.*held_by"):
            together(3, lambda member, wrong=wrong: scores(3, member, by[wrong[member.rank]]))
    with pytest.raises(ValueError, match=r"held_by.*'all'"):
        Test(*data, held_by="al")
    assert together(2, lambda member: scores(2, member, None)) == [[None] * 3] * 2


def test_other_inputs_are_refused_but_not_for_rounding(data):
    def scored(change):
        by_rank = [Test(data[0], data[1]), Test(change(data[0]), data[1])]
        return together(2, lambda member: scores(2, member, by_rank[member.rank]))

    scored(lambda inputs: {**inputs, "a": inputs["a"] * (1 + 1e-6)})
    for change in (lambda a: a / 255, lambda a: a.flip(1), lambda a: a + 0.1):
        with pytest.raises(ValueError, match=r"rank \d: input 0 of the test set has .* here and .* on rank \d"):
            scored(lambda inputs, change=change: {**inputs, "a": change(inputs["a"])})


def test_inputs_whose_shapes_cannot_be_told_are_refused(data):
    odd = Test((data[0]["a"], None), data[1], held_by="one")
    with pytest.raises(ValueError, match=r"held_by='one'.*NoneType"):
        together(2, lambda member: scores(2, member, odd if member.rank else None))
