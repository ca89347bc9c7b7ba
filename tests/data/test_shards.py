"""``Shards`` against a slow obvious stream: a worker's epochs in one list, then cut into batches."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skerry.data.shards import Shards
from skerry.randomness import generator

pytestmark = pytest.mark.filterwarnings("ignore:parts")  # small shards are warned of

parts_lists = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
    lambda sizes: list(torch.arange(sum(sizes)).flip(0).split(sizes))
)


def make(parts: list[Tensor], batch_size: int = 3, seed: int = 0) -> Shards:
    """Return shards whose inputs are the samples' numbers, and whose targets are ten times that."""
    num = sum(len(part) for part in parts)
    return Shards(torch.arange(num), 10 * torch.arange(num), parts, batch_size=batch_size, seed=seed)


def reference(parts: list[Tensor], worker: int, batch_size: int, seed: int, num_steps: int) -> list[list[int]]:
    part, stream, epoch = parts[worker].tolist(), [], 0
    while len(stream) < batch_size * num_steps:
        order = torch.randperm(len(part), generator=generator(seed, "data", worker, epoch))
        stream += [part[i] for i in order.tolist()]
        epoch += 1
    return [stream[step * batch_size : (step + 1) * batch_size] for step in range(num_steps)]


def inputs(batches: Iterator[tuple[Tensor, Tensor]]) -> list[list[int]]:
    return [x.tolist() for x, _ in batches]


@settings(deadline=None)
@given(parts_lists, st.integers(1, 30), st.integers(0, 3))
def test_the_stream_is_the_reference(parts: list[Tensor], batch_size: int, seed: int):
    shards = make(parts, batch_size, seed)
    for worker in range(shards.num_workers):
        assert inputs(shards.batches(worker, 0, 6)) == reference(parts, worker, batch_size, seed, 6)


@settings(deadline=None)
@given(parts_lists, st.integers(1, 30), st.integers(0, 50), st.integers(0, 5))
def test_direct_access_is_sequential_access(parts: list[Tensor], batch_size: int, first: int, num: int):
    worker = len(parts) - 1
    sequential = inputs(make(parts, batch_size).batches(worker, 0, first + num))
    assert inputs(make(parts, batch_size).batches(worker, first, num)) == sequential[first:]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 7))
def test_each_epoch_sees_each_sample_once(num: int, batch_size: int):
    batches = inputs(make([torch.arange(num)], batch_size).batches(0, 0, 3 * num))
    stream = [i for batch in batches for i in batch]
    for start in range(0, len(stream) - num + 1, num):
        assert sorted(stream[start : start + num]) == list(range(num))


def test_interleaved_and_backward_use_of_one_object_changes_nothing():
    parts = list(torch.arange(12).split(6))
    shards = make(parts, batch_size=4)
    a, b = shards.batches(0, 0, 5), shards.batches(0, 3, 5)
    mixed = [(next(a)[0].tolist(), next(shards.batches(1, 7, 1))[0].tolist(), next(b)[0].tolist()) for _ in range(5)]
    expected = reference(parts, 0, 4, 0, 8)
    assert [step[0] for step in mixed] == expected[:5]
    assert [step[1] for step in mixed] == [reference(parts, 1, 4, 0, 8)[7]] * 5
    assert [step[2] for step in mixed] == expected[3:]
    assert inputs(shards.batches(0, 0, 5)) == expected[:5]


def test_targets_go_with_their_inputs():
    for x, y in make([torch.arange(20)], batch_size=7).batches(0, 0, 10):
        assert torch.equal(y, 10 * x)


def test_seeds_and_workers_have_other_orders():
    same_part = [torch.arange(50), torch.arange(50)]
    num = Shards(torch.arange(50), torch.arange(50), same_part, batch_size=50, seed=0)
    first, second = (inputs(num.batches(worker, 0, 1))[0] for worker in (0, 1))
    assert first != second
    assert inputs(make([torch.arange(50)], 50, seed=1).batches(0, 0, 1))[0] != first


def test_transform_sees_stored_batches_and_only_inputs():
    seen: list[torch.dtype] = []

    def transform(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x.float() / 255

    x = torch.arange(8, dtype=torch.uint8).reshape(4, 2)
    shards = Shards(x, torch.arange(4), [torch.arange(4)], batch_size=2, seed=0, transform=transform)
    batch, y = next(shards.batches(0, 0, 1))
    torch.testing.assert_close(batch, x[y].float() / 255)
    assert y.dtype == torch.int64
    assert shards.sample(0, 3).dtype == torch.float32
    assert seen == [torch.uint8, torch.uint8]


def test_sample_is_a_fixed_shuffle_of_the_part():
    part = torch.arange(100, 140)
    shards = Shards(torch.arange(140), torch.arange(140), [part], batch_size=4, seed=0)
    everything = shards.sample(0, 1000).tolist()
    assert everything != sorted(everything)
    assert sorted(everything) == part.tolist()
    list(shards.batches(0, 0, 30))
    assert shards.sample(0, 10).tolist() == everything[:10]


def test_a_worker_gathers_its_own_part_and_no_other():
    shards = make(list(torch.arange(12).split(4)))
    assert not shards._own
    next(shards.batches(1, 0, 1))
    assert list(shards._own) == [1]
    assert shards._own[1][0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (torch.tensor([], dtype=torch.int64), r"parts\[1\]"),
        (torch.tensor([0, 4]), r"parts\[1\].*\b0\b.*\b4\b.*\b3\b"),
        (torch.tensor([-1, 2]), r"parts\[1\].*-1\b.*\b2\b.*\b3\b"),
        (torch.tensor([0.0]), r"parts\[1\].*torch\.float32\b.*\(1,\).*torch\.int64\b"),
        (torch.tensor([[0]]), r"parts\[1\].*torch\.int64\b.*\(1, 1\)"),
    ],
)
def test_bad_parts_are_named(part: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        Shards(torch.arange(4), torch.arange(4), [torch.arange(4), part], batch_size=1, seed=0)


def test_bad_arguments():
    x, parts = torch.arange(4), [torch.arange(4)]
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        Shards(x, torch.arange(3), parts, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"batch_size\b.*\b0\b"):
        Shards(x, x, parts, batch_size=0, seed=0)
    with pytest.raises(ValueError, match=r"\bparts\b(?!\[)"):
        Shards(x, x, [], batch_size=1, seed=0)


def test_bad_calls_fail_at_the_call():
    shards = make([torch.arange(4)])
    for worker in (-1, 1):
        with pytest.raises(ValueError, match=rf"\bworker\b.*{worker}\b.*\b0\b"):
            shards.batches(worker, 0, 1)
        with pytest.raises(ValueError, match=rf"\bworker\b.*{worker}\b"):
            shards.sample(worker, 1)
    with pytest.raises(ValueError, match=r"\bfirst_step\b.*-1\b"):
        shards.batches(0, -1, 1)
    with pytest.raises(ValueError, match=r"\bnum\b.*\b0\b"):
        shards.sample(0, 0)
