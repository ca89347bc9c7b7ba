"""One loader dealt to workers: against the plain loader, in any order of asking, and in a training that is resumed."""

import pytest
import torch
from numbered import Augmented, Stream, own_sampler
from stopped_runs import Stopped
from together import together
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

from skerry import Checkpoints, discover, from_loaders, ist, train
from skerry.callbacks import Callback

NUMBERS = Augmented(0, 22)  # the number of a sample, and noise of torch's generator
KINDS = {
    "in-order": lambda: DataLoader(NUMBERS, 3),
    "shuffled": lambda: DataLoader(NUMBERS, 3, shuffle=True, drop_last=True),
    "own-generator": lambda: DataLoader(NUMBERS, 3, shuffle=True, generator=torch.Generator()),
    "own-sampler": lambda: DataLoader(NUMBERS, 3, sampler=own_sampler(NUMBERS)),
    "batch-sampler": lambda: DataLoader(NUMBERS, batch_sampler=BatchSampler(RandomSampler(NUMBERS), 3, False)),
    "no-batches": lambda: DataLoader([(torch.full((3,), k), torch.full((3,), k)) for k in range(7)], batch_size=None),
    "in-processes": lambda: DataLoader(NUMBERS, 3, shuffle=True, num_workers=2),
    "kept-processes": lambda: DataLoader(NUMBERS, 3, num_workers=1, persistent_workers=True),
    "stream": lambda: DataLoader(Stream(range(22)), 3),
    "stream-in-processes": lambda: DataLoader(Stream(range(22)), 3, num_workers=2),
}


def read(data, first, num, workers=2):
    return [[y.tolist() for _, y in data.batches(worker, first, num)] for worker in range(workers)]


@pytest.mark.filterwarnings("ignore:loader. persistent_workers")
@pytest.mark.parametrize("kind", KINDS)
def test_workers_share_a_pass_and_get_the_same_batches_again(kind):
    data, loader = from_loaders(KINDS[kind](), num_workers=2, seed=3), KINDS[kind]()
    is_stream = "stream" in kind
    of_pass = 4 if is_stream else (len(loader) + 1) // 2
    first = read(data, 0, of_pass)
    own = first if is_stream else [batches[: len(range(w, len(loader), 2))] for w, batches in enumerate(first)]
    shared = [n for batches in own for batch in batches for n in batch]
    if kind == "own-sampler":
        assert len(shared) == 9  # some twice
    elif kind == "shuffled":
        assert len(shared) == len(set(shared)) == 21  # drop_last
    else:
        assert sorted(shared) == sorted(n for _, y in loader for n in y.tolist())
    later = read(data, of_pass, 2)
    data.sample(0, 5)
    assert read(data, 1, 2)[0] == [*first[0], *later[0]][1:3]
    assert read(data, of_pass, 2) == later
    assert read(from_loaders(KINDS[kind](), num_workers=2, seed=3), of_pass, 2) == later
    if kind not in ("in-order", "kept-processes", "no-batches"):
        assert read(from_loaders(KINDS[kind](), num_workers=2, seed=4), 0, of_pass) != first


def test_a_dealt_batch_is_one_of_the_loaders():
    loader = DataLoader(NUMBERS, 4)
    data = from_loaders(loader, num_workers=3)
    plain = [y.tolist() for _, y in loader]
    assert read(data, 0, 2, workers=3) == [[plain[w], plain[w + 3]] for w in range(3)]
    assert data.steps_per_pass == 2


def test_a_stream_with_shards_is_not_read_whole():
    class Sharded(Stream):
        num_shards = 4

        def shard(self, num_shards, index):
            return Stream(self.numbers[index::num_shards])

    data = from_loaders(DataLoader(Sharded(range(16)), 4), num_workers=2)
    assert [sorted(a + b) for a, b in read(data, 0, 2)] == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    data = from_loaders(DataLoader(Sharded(range(18)), 6), num_workers=3)  # 4 shards do not make 3
    assert sorted(n for (batch,) in read(data, 0, 1, workers=3) for n in batch) == list(range(18))


class Shuffled(IterableDataset):
    """Shuffles in a buffer as it goes, so that it draws between samples."""

    def __iter__(self):
        buffer = list(range(8))
        for n in range(8, 64 + 8):
            k = int(torch.randint(len(buffer), ()))
            yield buffer[k]
            buffer[k] = n
            if n >= 64:
                del buffer[k]


def test_a_stream_and_a_collate_function_that_both_draw_share_no_random_state():
    def collate(numbers):
        torch.randn(numbers[0])  # another number in each worker
        return torch.tensor(numbers), torch.tensor(numbers)

    data = from_loaders(DataLoader(Shuffled(), 4, collate_fn=collate), num_workers=4)
    assert sorted(n for batches in read(data, 0, 4, workers=4) for batch in batches for n in batch) == list(range(64))


def test_what_cannot_be_dealt_is_told():
    with pytest.raises(ValueError, match=r"2 batches for 3 workers.*worker 2 has none at step 0"):
        from_loaders(DataLoader(NUMBERS, 11), num_workers=3)

    class Own(DataLoader):
        def __iter__(self):
            return ((x + 1, y) for x, y in super().__iter__())

    with pytest.raises(ValueError, match=r"Own has an iterator of its own.*list of one per worker"):
        from_loaders(Own(NUMBERS, 3), num_workers=2)
    with pytest.raises(ValueError, match="DistributedSampler"):
        from_loaders(DataLoader(NUMBERS, 3, sampler=DistributedSampler(NUMBERS, 2, 0)), num_workers=2)
    with pytest.raises(ValueError, match="num_workers"):
        from_loaders(DataLoader(NUMBERS, 3))
    with pytest.warns(UserWarning, match=r"loader: persistent_workers=True has no effect"):
        from_loaders(KINDS["kept-processes"](), num_workers=2)
    with pytest.raises(ValueError, match=r"1 given.*2 workers"):
        from_loaders([DataLoader(NUMBERS, 3)], num_workers=2)


X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class XY(Stream):
    def __iter__(self):
        return iter([(X[n], Y[n]) for n in torch.randperm(len(X)).tolist()])


LOADERS = {
    "loader": lambda: DataLoader(TensorDataset(X, Y), 4, shuffle=True),
    "stream": lambda: DataLoader(XY([]), 4),
    "list": lambda: [DataLoader(TensorDataset(X[w::2], Y[w::2]), 5, shuffle=True) for w in range(2)],
}


def go(kind, *, runtime=None, folder=None, resume=False, stop=None):
    def on_round(session, record):
        if record.round == stop:
            raise Stopped

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return train(
        model, F.cross_entropy, LOADERS[kind](), plan=discover(model, X[:4]), algorithm=ist(2, local_steps=4),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1), num_rounds=4, runtime=runtime,
        checkpoints=Checkpoints(folder=folder, every_s=0, resume=resume) if folder else None,
        callbacks=[Callback(on_round=on_round)],
    )  # fmt: skip


@pytest.mark.parametrize("kind", LOADERS)
def test_a_training_is_resumed_exactly_and_is_that_of_processes(tmp_path, kind):
    meant = go(kind).model.state_dict()
    with pytest.raises(Stopped):
        go(kind, folder=tmp_path, stop=2)  # in the middle of a pass
    resumed = go(kind, folder=tmp_path, resume=True).model.state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in meant.items())
    full = together(2, lambda member: {n: t.clone() for n, t in go(kind, runtime=member).full.tensors()})[0]
    assert all(torch.equal(full[name], tensor) for name, tensor in meant.items())
