"""Datasets whose samples are their numbers: to see which worker has read what."""

import torch
from torch.utils.data import Dataset, IterableDataset, WeightedRandomSampler, get_worker_info


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


class Stream(IterableDataset):
    """Numbers, in an order of torch's global generator; processes of a loader share them."""

    def __init__(self, numbers, *, length=None):
        self.numbers, self.length, self.passes = list(numbers), length, []

    def __iter__(self):
        info = get_worker_info()
        numbers = self.numbers if info is None else self.numbers[info.id :: info.num_workers]
        return iter([(torch.tensor(float(numbers[k])), numbers[k]) for k in torch.randperm(len(numbers))])

    def set_epoch(self, number):
        self.passes.append(number)
