"""``from_loaders`` against the plain loaders it is given, and against itself asked in another order."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from skerry.data.loaders import from_loaders


class Augmented(Dataset):
    """The number of a sample, and noise of torch's global generator."""

    def __init__(self, first: int, num: int) -> None:
        self.first, self.num = first, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int):
        return torch.cat([torch.tensor([float(self.first + index)]), torch.rand(1)]), self.first + index


def own_sampler(dataset):
    return WeightedRandomSampler([1.0] * len(dataset), 9, generator=torch.Generator().manual_seed(3))


KINDS = {
    "shuffled": {"shuffle": True},
    "in-order": {},
    "own-generator": {"shuffle": True, "generator": torch.Generator()},
    "in-processes": {"shuffle": True, "num_workers": 1},
}


def loaders(kind: str) -> list[DataLoader]:
    sets = [Augmented(0, 9), Augmented(9, 11)]
    if kind == "own-sampler":
        return [DataLoader(s, batch_size=4, sampler=own_sampler(s)) for s in sets]
    return [DataLoader(s, batch_size=4, **KINDS[kind]) for s in sets]


@pytest.mark.parametrize("kind", [*KINDS, "own-sampler"])
def test_the_same_batches_whenever_they_are_asked_for(kind):
    before = torch.get_rng_state()
    meant = list(from_loaders(loaders(kind), seed=5).batches(1, 0, 8))
    data = from_loaders(loaders(kind), seed=5)
    data.sample(1, 7)
    for first, num in ((4, 3), (0, 2), (2, 2), (7, 1), (1, 1)):
        list(data.batches(0, first, num))
        for (x, y), (x2, y2) in zip(data.batches(1, first, num), meant[first : first + num], strict=True):
            assert torch.equal(y, y2)
            assert torch.equal(x, x2)
            assert torch.equal(x[:, 0].long(), y)
        data.sample(1, 3 + first)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_epoch_has_each_sample_once_in_another_order():
    batches = [y.tolist() for _, y in from_loaders(loaders("shuffled")).batches(1, 0, 6)]
    epochs = [[*batches[k], *batches[k + 1], *batches[k + 2]] for k in (0, 3)]
    assert [len(b) for b in batches] == [4, 4, 3] * 2
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(9, 20))
    assert epochs[0] != epochs[1]


def test_another_seed_gives_another_order():
    one, other = (next(from_loaders(loaders("shuffled"), seed=seed).batches(1, 0, 1))[1] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_samples_are_as_many_as_asked_for_or_all():
    data = from_loaders(loaders("shuffled"))
    for num, found in ((3, 3), (6, 6), (2, 2), (99, 11)):
        x = data.sample(1, num)
        assert x.shape == (found, 2)
        assert len(set(x[:, 0].tolist())) == found


def test_dicts_have_columns():
    samples = [{"a": torch.ones(2) * k, "b": torch.zeros(1), "label": k} for k in range(6)]
    data = from_loaders([DataLoader(samples, batch_size=4)], inputs=["a", "b"])
    ((x, y),) = data.batches(0, 3, 1)
    assert x.keys() == {"a", "b"}
    assert torch.equal(x["a"][:, 0].long(), y)
    assert data.sample(0, 3)["a"].shape == (3, 2)


def test_what_does_not_fit_is_named():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    good = DataLoader(TensorDataset(torch.ones(3), torch.ones(3)))
    with pytest.raises(ValueError, match=r"loaders\[1\]"):
        from_loaders([good, DataLoader(Stream())])
    with pytest.raises(ValueError, match=r"loaders\[0\]"):
        from_loaders([DataLoader(TensorDataset(torch.ones(3)), batch_size=4, drop_last=True)])
    with pytest.raises(ValueError, match=r"loaders\[0\].*\bTensorDataset\b.*\bDataLoader\b"):
        from_loaders([good.dataset])
    with pytest.raises(ValueError, match=r"loaders\[0\].*\bpersistent_workers=True\b"):
        from_loaders([DataLoader(good.dataset, num_workers=1, persistent_workers=True)])
    with pytest.raises(ValueError, match=r"\bloaders\b(?!\[)"):
        from_loaders([])


class Padded(Dataset):
    """Two arguments; every sample has a length of its own."""

    lengths = (3, 3, 3, 3, 5, 5)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int):
        return (torch.full((self.lengths[index],), index), torch.tensor([float(index)])), index


@pytest.mark.parametrize(("num", "numbers"), [(2, [0, 1]), (3, [0, 1, 2]), (6, [0, 1, 2, 3])])
def test_samples_of_several_arguments_are_joined_as_far_as_they_fit(num, numbers):
    data = from_loaders([DataLoader(Padded(), batch_size=2)])
    tokens, other = data.sample(0, num)
    assert tokens.tolist() == [[n] * 3 for n in numbers]
    assert other.flatten().tolist() == numbers
