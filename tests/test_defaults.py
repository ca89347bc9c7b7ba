"""What ``train`` chooses with three arguments, what it says of it, and that given arguments win."""

import re

import pytest
import torch
from together import together
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from skerry import Shards, discover, ist, split, train
from skerry.defaults import PASSES
from skerry.plan import Plan

X = torch.randn(320, 12, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(12, 3, generator=torch.Generator().manual_seed(1))).argmax(1)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))


def loader(batch_size=8):
    return DataLoader(TensorDataset(X, Y), batch_size, shuffle=True)


def test_three_arguments_are_enough(capsys):
    model = mlp()
    result = train(model, F.cross_entropy, loader(), test=(X, Y))
    algorithm = result.session.setup.algorithm
    assert (algorithm.name, algorithm.partition.num_workers, algorithm.optimizer_state) == ("relay", 4, "travel")
    assert len(result.history) * algorithm.local_steps == PASSES * 40 // 4
    assert result.score.accuracy > 0.6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), mlp().parameters(), strict=True))
    (said,) = capsys.readouterr().err.splitlines()
    for part in (
        "skerry.discover(",
        "32 units",
        "skerry.relay(workers=4",
        "AdamW",
        "lr=0.001",
        "num_rounds=10: 20 passes",
        "200 steps per worker, local_steps=20",
        "result.model, and your model stays as it is",
    ):
        assert part in said
    plan = discover(mlp(), X[:8])
    same = train(
        mlp(), F.cross_entropy, loader(), plan=plan, algorithm=algorithm, num_rounds=10, test=(X, Y),
        optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3),
    )  # fmt: skip
    assert capsys.readouterr().err == ""
    assert same.score == result.score


def test_what_is_given_wins(capsys):
    result = train(mlp(), F.cross_entropy, loader(), algorithm=ist(3, local_steps=2), num_rounds=2)
    assert (result.session.setup.algorithm.name, len(result.history)) == ("ist", 2)
    said = capsys.readouterr().err
    assert "algorithm=" not in said
    assert "num_rounds=" not in said
    assert "AdamW" in said
    assert "4 steps per worker, local_steps=2" in said
    assert "result.model" not in said  # ist trains the model itself
    data = Shards(X, Y, split(Y, 2, "iid", seed=0), batch_size=8, seed=0)
    assert train(mlp(), F.cross_entropy, data, num_rounds=2).session.setup.algorithm.partition.num_workers == 2
    two = [loader(), loader()]
    assert train(mlp(), F.cross_entropy, two, num_rounds=2).session.setup.algorithm.partition.num_workers == 2
    capsys.readouterr()


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(12, 16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.down(self.up(self.norm(self.stem(x))).relu())


@pytest.mark.parametrize(
    ("model", "plan", "why"),
    [
        (Normed, None, "1/4 of each axis.*stem.weight is on every worker"),
        (mlp, Plan.whole(mlp()), "whole model.*nothing can be dealt out"),
        (lambda: nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 3)), None, "axis.*3"),
    ],
)
def test_a_narrow_net_where_no_relay_is_possible_and_why(capsys, model, plan, why):
    result = train(model(), F.cross_entropy, loader(), plan=plan, num_rounds=1)
    assert result.session.setup.algorithm.name == "narrow"
    said = capsys.readouterr().err
    assert re.search(f"skerry.narrow.*{why}", said), said


def test_processes_are_the_workers_and_one_says_so(capsys):
    results = together(2, lambda member: train(mlp(), F.cross_entropy, loader(40), runtime=member))
    assert results[0].session.setup.algorithm.partition.num_workers == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_a_length_rounds_must_be_given(capsys):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    with pytest.raises(ValueError, match="num_rounds"):
        train(mlp(), F.cross_entropy, DataLoader(Stream(), 8))
    train(mlp(), F.cross_entropy, DataLoader(Stream(), 8), num_rounds=1)

    class Counted(Stream):
        def __len__(self):
            return len(X)

    assert len(train(mlp(), F.cross_entropy, DataLoader(Counted(), 20)).history) == 4


class Ragged(nn.Module):
    """Takes tokens padded to any length, by name."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, tokens, mask):
        mean = (self.embed(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.down(self.up(mean).relu())


def padded(samples):
    longest = max(len(tokens) for tokens, _ in samples)
    tokens = torch.stack([F.pad(tokens, (0, longest - len(tokens))) for tokens, _ in samples])
    return {"tokens": tokens, "mask": (tokens > 0).float(), "labels": torch.tensor([label for _, label in samples])}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dict_batches_of_ragged_samples_train(capsys):
    rng = torch.Generator().manual_seed(0)
    samples = []
    for k in range(90):
        own = torch.randint(1, 6, (int(torch.randint(2, 9, (1,), generator=rng)),), generator=rng)
        samples.append((torch.cat([own, torch.full((2,), 6 + k % 3)]), k % 3))
    batches = DataLoader(samples, 6, shuffle=True, collate_fn=padded)
    test = padded(samples)
    labels = test.pop("labels")
    result = train(
        Ragged(), F.cross_entropy, batches, test=(test, labels),
        optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=0.03),
    )  # fmt: skip
    assert result.score.accuracy > 0.8


def test_other_things_are_not_data():
    with pytest.raises(ValueError, match=r"data: got TensorDataset, expected a DataLoader.*Shards"):
        train(mlp(), F.cross_entropy, TensorDataset(X, Y))
    with pytest.raises(ValueError, match=r"loaders\[0\]: got Tensor"):
        train(mlp(), F.cross_entropy, [X, Y])
    with pytest.raises(ValueError, match="algorithm: got 'ist'"):
        train(mlp(), F.cross_entropy, loader(), algorithm="ist")
