"""``from_loaders`` against the plain loaders it is given, and against itself asked in another order."""

import pytest
import torch
from numbered import Augmented, Stream, own_sampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SubsetRandomSampler, TensorDataset

from skerry.data.loaders import as_data, from_loaders

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


@pytest.mark.parametrize("processes", [0, 1])
def test_a_stream_gives_the_same_batches_whenever_they_are_asked_for(processes):
    def make():
        return from_loaders([DataLoader(Stream(range(first, 11)), 4, num_workers=processes) for first in (0, 3)])

    meant = [y.tolist() for _, y in make().batches(1, 0, 7)]
    assert [len(y) for y in meant] == [4, 4, 4, 4, 4, 4, 4]
    assert sorted(meant[2] + meant[3]) == list(range(3, 11))
    assert meant[:2] != meant[2:4]
    data = make()
    for first, num in ((5, 2), (0, 2), (1, 1), (2, 3)):
        list(data.batches(0, first, num))
        assert [y.tolist() for _, y in data.batches(1, first, num)] == meant[first : first + num]
        data.sample(1, 3 + first)


def test_set_epoch_of_a_stream_is_called():
    stream = Stream(range(4))
    list(from_loaders([DataLoader(stream, 2)]).batches(0, 0, 5))
    assert stream.passes == [0, 1, 2]


def test_what_does_not_fit_is_named():
    class Short(DataLoader):
        def __len__(self):
            return 5

    good = DataLoader(TensorDataset(torch.ones(3), torch.ones(3)))
    with pytest.raises(ValueError, match=r"loaders\[1\]: no batches"):
        from_loaders([good, DataLoader(Stream([]))]).sample(1, 1)
    with pytest.raises(ValueError, match=r"loaders\[1\].*0 batches, worker 1, step 0"):
        next(from_loaders([good, DataLoader(Stream([]))]).batches(1, 0, 1))
    with pytest.raises(ValueError, match=r"loaders\[0\].*3 batches, worker 0, step 8; expected its length, 5"):
        list(from_loaders([Short(good.dataset)]).batches(0, 6, 3))
    with pytest.raises(ValueError, match=r"loaders\[0\]"):
        from_loaders([DataLoader(TensorDataset(torch.ones(3)), batch_size=4, drop_last=True)])
    with pytest.raises(ValueError, match=r"loaders\[0\].*\bTensorDataset\b.*\bDataLoader\b"):
        from_loaders([good.dataset])
    with pytest.raises(ValueError, match=r"loaders\[0\].*\bpersistent_workers=True\b"):
        from_loaders([DataLoader(good.dataset, num_workers=1, persistent_workers=True)])
    with pytest.raises(ValueError, match=r"\bloaders\b(?!\[)"):
        from_loaders([])
    with pytest.raises(ValueError, match=r"worker 0, step 2: .*\blist of 3\b.*pair"):
        list(from_loaders([DataLoader(TensorDataset(*[torch.ones(3)] * 3))]).batches(0, 2, 1))
    way_out = r".*skerry\.from_loaders\(loader, num_workers=4, inputs=\[\.\.\.\], label="
    with pytest.raises(ValueError, match=r"worker 0, step 0: column 'label'" + way_out):
        next(from_loaders([DataLoader([{"a": torch.ones(1)}])]).batches(0, 0, 1))
    with pytest.raises(ValueError, match=r"column 'text'.*with_format" + way_out):
        next(from_loaders([DataLoader([{"text": "a", "label": 1}])]).batches(0, 0, 1))
    for sample in ((torch.ones(1), torch.tensor(1)), (torch.ones(1), 1)):
        with pytest.raises(ValueError, match=r"worker 0: labels have no batch dim; .*batch_size"):
            from_loaders([DataLoader([sample], batch_size=None)]).sample(0, 1)
    with pytest.raises(ValueError, match=r"loaders\[0\]: got Tensor.*DataLoader\(TensorDataset\(x, y\)"):
        as_data((torch.ones(3, 1), torch.ones(3)), 2, 0)
    with pytest.warns(UserWarning, match=r"loaders\[0\]: 1 batches.*has 3.*worker 0.*step 1"):
        from_loaders([DataLoader(good.dataset, 3), good])


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


def test_a_loader_tells_how_many_samples_it_draws_from_unless_it_was_dealt():
    data = from_loaders(loaders("own-sampler"), seed=5)
    assert [data.num_samples(w) for w in range(2)] == [len(own.sampler) for own in loaders("own-sampler")]
    assert [from_loaders(loaders("shuffled"), seed=5).num_samples(w) for w in range(2)] == [9, 11]
    dealt = from_loaders(DataLoader(Augmented(0, 9), batch_size=2), num_workers=2)
    streams = from_loaders([DataLoader(Stream(range(9)), batch_size=2)])
    for without in (dealt, streams):
        with pytest.raises(ValueError, match="does not tell how many samples worker 0 has"):
            without.num_samples(0)


class Chosen:
    """A batch sampler of a class of its own."""

    def __iter__(self):
        return iter([[7], [9]])

    def __len__(self) -> int:
        return 2


class NoLength(Sampler):
    def __iter__(self):
        return iter([7, 9])


def test_a_loader_that_draws_otherwise_does_not_tell_how_many_samples():
    """Else a worker would have the weight of samples that it never reads."""
    samples, of_two = Augmented(0, 1000), BatchSampler(SubsetRandomSampler([7, 9]), 1, drop_last=False)
    own = [{"batch_sampler": of_two}, {"batch_sampler": Chosen()}, {"sampler": NoLength()}]
    data = from_loaders([DataLoader(samples, **each) for each in own])
    assert data.num_samples(0) == 2
    for worker in (1, 2):
        with pytest.raises(ValueError, match=rf"loaders\[{worker}\]: it does not tell how many samples"):
            data.num_samples(worker)
