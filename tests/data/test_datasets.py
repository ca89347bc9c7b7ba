"""``from_dataset`` against ``Shards`` on the same samples; Hugging Face datasets, and what behaves like them."""

import importlib.util
import random

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from skerry.data.datasets import from_dataset
from skerry.data.shards import Shards
from skerry.data.splits import split

pytestmark = pytest.mark.filterwarnings("ignore:parts")  # small shards are warned of

X, Y = torch.randn(23, 3), torch.arange(23) % 4


class Columns(Dataset):
    """Dict samples and column names, as a Hugging Face dataset in torch format has them."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns, self.column_names, self.read = columns, list(columns), []

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        self.read.append(key)
        return {name: column[key] for name, column in self.columns.items()}

    def __getitems__(self, keys):
        return [self[key] for key in keys]


def hugging_face(columns: dict[str, Tensor]):
    if not importlib.util.find_spec("datasets"):
        pytest.skip("needs Hugging Face datasets")
    import datasets

    return datasets.Dataset.from_dict({name: c.tolist() for name, c in columns.items()}).with_format("torch")


KINDS = {"dicts": Columns, "hugging-face": hugging_face}


def assert_same(ours, meant, steps=9):
    assert ours.num_workers == meant.num_workers
    for worker in range(meant.num_workers):
        for first in (0, 5):
            found = list(ours.batches(worker, first, steps))
            for (x, y), (x2, y2) in zip(found, meant.batches(worker, first, steps), strict=True):
                torch.testing.assert_close(x, x2, rtol=0, atol=0)
                assert torch.equal(y, y2)
        for num in (1, 4, 99):
            torch.testing.assert_close(ours.sample(worker, num), meant.sample(worker, num), rtol=0, atol=0)


def shards(how: str) -> Shards:
    return Shards(X, Y, split(Y, 3, how, seed=2), batch_size=4, seed=2)


@pytest.mark.parametrize("how", ["iid", "by_label", "dirichlet:0.3"])
def test_batches_are_those_of_shards(how):
    settings = {"num_workers": 3, "batch_size": 4, "seed": 2, "split": how}
    assert_same(from_dataset(TensorDataset(X, Y), **settings), shards(how))
    pairs = [(x, int(y)) for x, y in zip(X, Y, strict=True)]
    assert_same(from_dataset(pairs, **settings), shards(how))


@pytest.mark.parametrize("how", ["iid", "by_label", "dirichlet:0.3"])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_chosen_by_name(kind, how):
    dataset = KINDS[kind]({"pixels": X, "digit": Y, "other": Y * 2})
    data = from_dataset(
        dataset, num_workers=3, batch_size=4, seed=2, split=how, inputs="pixels", label="digit"
    )  # fmt: skip
    assert_same(data, shards(how))
    for inputs in (None, ["pixels", "other"]):
        data = from_dataset(dataset, num_workers=3, batch_size=4, seed=2, split=how, inputs=inputs, label="digit")
        ((x, y),) = data.batches(1, 5, 1)
        assert x.keys() == {"pixels", "other"}
        assert torch.equal(x["other"], y * 2)
        assert data.sample(0, 5)["pixels"].shape == (min(5, len(split(Y, 3, how, seed=2)[0])), 3)


def test_indices_may_be_given_and_only_ones_own_samples_are_read():
    dataset = Columns({"x": X, "label": Y})
    parts = [torch.arange(0, 10), torch.arange(10, 23)]
    data = from_dataset(dataset, num_workers=2, batch_size=4, seed=2, split=parts)
    list(data.batches(1, 0, 8))
    data.sample(1, 99)
    assert set(dataset.read) == set(range(10, 23))


class Noisy(Dataset):
    """Augments by torch's global generator, and by Python's."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int):
        return torch.rand(2), random.random()


def test_randomness_from_torch_is_repeated_and_the_global_state_is_left_alone():
    data = from_dataset(Noisy(), num_workers=2, batch_size=3, seed=0)
    before = torch.get_rng_state()
    once, again = (list(data.batches(1, 2, 3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for (x, y), (x2, y2) in zip(once, again, strict=True):
        assert torch.equal(x, x2)
        assert not torch.equal(y, y2)  # what the docstring says of other generators
    assert not torch.equal(once[0][0], once[1][0])


def test_what_does_not_fit_is_named():
    settings = {"num_workers": 2, "batch_size": 3, "seed": 0}

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match=r"\bStream\b"):
        from_dataset(Stream(), **settings)
    with pytest.raises(ValueError, match=r"split\b.*\b1\b.*num_workers=2\b"):
        from_dataset(TensorDataset(X, Y), **settings, split=[torch.arange(3)])
    with pytest.raises(ValueError, match=r"parts\[1\].*\b40\b.*\b22\b"):
        from_dataset(TensorDataset(X, Y), **settings, split=[torch.arange(3), torch.tensor([40])])
    with pytest.raises(ValueError, match=r"batch_size\b.*\b0\b"):
        from_dataset(TensorDataset(X, Y), num_workers=2, batch_size=0, seed=0)
    with pytest.raises(ValueError, match=r"\blist\b.*\(inputs, labels\)"):
        from_dataset(TensorDataset(X, Y, Y), **settings).sample(0, 3)
    with pytest.raises(ValueError, match=r"'label'.*\bx, y\b"):
        from_dataset(Columns({"x": X, "y": Y}), **settings).sample(0, 3)
    lists = [{"x": [1.0, 2.0], "label": 0, "text": "a"} for _ in range(5)]
    for column in ("x", "text"):
        with pytest.raises(ValueError, match=rf"'{column}'.*\blist\b.*with_format"):
            from_dataset(lists, **settings, inputs=column).sample(0, 2)
