"""Scores and metrics against plain loops; parts of a test set in several processes against all of it in one."""

import pytest
import torch
from together import together
from torch import nn
from torch.nn import functional as F

import skerry
from skerry.training import Test, evaluate, precision_at
from skerry.training.evaluation.test_set import as_test


class Said(nn.Module):
    """Returns what it is given."""

    def forward(self, x):
        return x


class Mean:
    """What torchmetrics' metrics look like: sums that are kept, and how they are added up."""

    def __init__(self, reduction="dim_zero_sum"):
        def reduce(x):
            return x.sum(0)

        reduce.__name__ = reduction
        self._reductions = {"total": reduce, "count": reduce}
        self.reset()

    def reset(self):
        self.total, self.count = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0)

    def update(self, output, y):
        self.total += output.double().sum()
        self.count += output.numel()

    def compute(self):
        return self.total / self.count


def in_parts(output, y, num, metrics):
    """Score each part as a process of its own; return what each says."""

    def work(member):
        part = slice(member.rank, None, num)
        return evaluate(Said(), F.cross_entropy, (output[part], y[part]), metrics=metrics(), total=member.total)

    return together(num, work)


def test_precision_at_k_counts_right_answers_among_the_best():
    output, y = torch.randn(50, 30), torch.full((50, 6), -1)
    for row in range(50):
        labels = torch.randperm(30)[: 1 + row % 6]
        y[row, : len(labels)] = labels
    for k in (1, 3, 5):
        found = precision_at(k)(output, y)
        for row in range(50):
            best = set(output[row].argsort(descending=True)[:k].tolist())
            assert found[row] == pytest.approx(len(best & set(y[row].tolist())) / k)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_metrics_are_means_over_samples_however_they_are_batched(batch_size):
    output, y = torch.randn(23, 5), torch.randint(0, 5, (23,))
    metrics = {"first": lambda o, y: o[:, 0], "mean": Mean()}
    score = evaluate(Said(), F.cross_entropy, (output, y), metrics=metrics, batch_size=batch_size)
    assert score.metrics == {
        "first": pytest.approx(output[:, 0].mean().item()), "mean": pytest.approx(output.mean().item()),
    }  # fmt: skip
    assert score.loss == pytest.approx(F.cross_entropy(output, y).item())
    assert "(23 " in str(score)
    assert "first" in str(score)


def test_each_process_scores_its_part():
    output, y = torch.randn(23, 5), torch.randint(0, 5, (23,))

    def metrics():
        return {"mean": Mean(), "first": lambda o, y: o[:, 0]}

    alone = evaluate(Said(), F.cross_entropy, (output, y), metrics=metrics())
    for score in in_parts(output, y, 3, metrics):
        assert score.metrics == pytest.approx(alone.metrics)
        assert score.loss == pytest.approx(alone.loss)


class Sum(nn.Module):
    """A model of two inputs."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, a, b):
        return self.out(torch.relu(self.hidden(a + b)))


@pytest.mark.parametrize("of", [tuple, lambda pair: dict(zip("ab", pair, strict=True))], ids=["tuple", "dict"])
def test_a_model_of_several_inputs_is_trained_and_scored(of):
    a, b, y = torch.randn(30, 4), torch.randn(30, 4), torch.randint(0, 3, (30,))
    model = Sum()
    plan = skerry.discover(model, of((a[:4], b[:4])))
    sets = [[(of((a[i], b[i])), int(y[i])) for i in range(w, 30, 2)] for w in range(2)]
    data = skerry.from_loaders([torch.utils.data.DataLoader(s, batch_size=5) for s in sets])
    result = skerry.train(
        model, F.cross_entropy, data, plan=plan, algorithm=skerry.ist(2, local_steps=2), num_rounds=2,
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1), test=Test(of((a, b)), y, batch_size=7),
    )  # fmt: skip
    trained = result.model
    assert result.score.loss == pytest.approx(F.cross_entropy(trained(a, b), y).item())
    assert result.score.accuracy == pytest.approx((trained(a, b).argmax(1) == y).double().mean().item())
    with pytest.raises(ValueError, match=r"\btest\b.*\(inputs, labels\)"):
        skerry.train(model, F.cross_entropy, data, plan=plan, algorithm=skerry.ist(2), num_rounds=1,
                     optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1), test=((a, b[:5]), y))  # fmt: skip


@pytest.mark.parametrize(
    ("test", "names"),
    [
        ((torch.zeros(0, 3), torch.zeros(0)), r"\btest\b.*\btest=None\b"),
        ((torch.zeros(5, 3), torch.zeros(4)), r"\btest\b.*\(inputs, labels\)"),
        ((torch.zeros(5, 3), [0] * 5), r"\btest\b.*\blist\b.*\(inputs, labels\)"),
        (torch.zeros(5, 3), r"\btest\b.*\bTensor\b.*\(inputs, labels\)"),
    ],
)
def test_a_test_set_that_is_none_is_refused(test, names):
    with pytest.raises(ValueError, match=names):
        as_test(test)
    with pytest.raises(ValueError, match=r"\bevery=-1\b"):
        Test(torch.zeros(5, 3), torch.zeros(5), every=-1)


def test_a_metric_that_does_not_fit_is_named():
    output, y = torch.randn(6, 5), torch.randint(0, 5, (6,))
    with pytest.raises(ValueError, match=r"'m'.*\(\).*\b6\b"):
        evaluate(Said(), F.cross_entropy, (output, y), metrics={"m": lambda o, y: o.mean()})
    with pytest.raises(ValueError, match=r"'m'.*\bMean\b.*'total'"):
        in_parts(output, y, 2, lambda: {"m": Mean("dim_zero_cat")})
