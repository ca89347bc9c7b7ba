"""The wire: what one process reads the other writes, once, in order, in buffers of bounded size."""

import math
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from together import together

from skerry.exchange.moves import Move
from skerry.exchange.routes import Transfer
from skerry.runtimes.distributed.wire import Part, Wire, messages, num_bytes, parts, split, wire_dtype
from skerry.subnet.index import Index, cut_shape

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64,
    torch.complex128,
]  # fmt: skip


@st.composite
def products(draw):
    """A shape, and for each dim all or some of its indices."""
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    indices = []
    for size in shape:
        some = draw(st.one_of(st.none(), st.sets(st.integers(0, size - 1)) if size else st.just(set())))
        indices.append(None if some is None else Index(torch.tensor(sorted(some), dtype=torch.int64)))
    return torch.Size(shape), tuple(indices)


def grid(indices, shape):
    return np.ix_(*(np.arange(s) if i is None else i.ids.numpy() for i, s in zip(indices, shape, strict=True)))


@given(products(), st.integers(1, 40))
def test_splitting_keeps_every_element_once_and_in_order(product, most):
    shape, indices = product
    number = np.arange(math.prod(shape)).reshape(shape)
    whole = number[grid(indices, shape)].ravel().tolist()
    found = [number[grid(part, shape)].ravel().tolist() for part in split(indices, shape, most)]
    assert sorted(e for part in found for e in part) == whole
    assert all(0 < len(part) <= most for part in found)
    assert [part[0] for part in found] == sorted(part[0] for part in found)
    # The key of a part in an exchange: no two begin with the same indices.
    begins = [tuple(-1 if i is None else i.first for i in part) for part in split(indices, shape, most)]
    assert len(set(begins)) == len(begins)


@given(products(), st.sampled_from(DTYPES), st.sampled_from(["exact", "bf16"]), st.sampled_from([16, 48, 1024]))
def test_parts_fit_into_a_message(product, dtype, wire, chunk):
    shape, indices = product
    move = Move("t", indices, (0,), (1,), None)
    found = list(parts(Transfer(move, indices, 0, 1), torch.empty(shape, dtype=dtype, device="meta"), wire, chunk))
    assert sum(math.prod(part.shape) for part in found) == cut_shape(shape, indices).numel()
    for part in found:
        assert part.dtype == wire_dtype(dtype, wire)
        assert math.prod(part.shape) * part.dtype.itemsize <= part.num_bytes <= chunk
        assert part.num_bytes % part.dtype.itemsize == 0
        assert list(part.shape) == [s if i is None else len(i) for s, i in zip(shape, part.cut, strict=True)]


def test_only_float32_is_halved():
    for dtype in DTYPES:
        assert wire_dtype(dtype, "exact") == dtype
        assert wire_dtype(dtype, "bf16") == (torch.bfloat16 if dtype == torch.float32 else dtype)


def part_of(number, dtype):
    """A part of ``number`` elements."""
    indices = (Index.run(0, number),) if number != 1 else ()
    return Part(Move(f"{number}", indices, (0,), (1,), None), indices, torch.Size([number] * len(indices)), dtype)


streams = st.lists(st.builds(part_of, st.integers(1, 5), st.sampled_from(DTYPES)), max_size=25)


@given(streams, st.sampled_from([80, 96, 256]))
def test_messages_are_full_and_keep_the_order(stream, chunk):
    packed = messages(stream, chunk)
    assert [id(part) for message in packed for part in message] == [id(part) for part in stream]
    assert all(0 < num_bytes(message) <= chunk for message in packed)
    for message, after in pairwise(packed):
        assert num_bytes(message) + after[0].num_bytes > chunk  # otherwise it would be in this message


def drawn(source, target, k, part):
    """Bytes that only this part has."""
    rng = torch.Generator().manual_seed(hash((source, target, k)) % 2**31)
    size = max(1, math.prod(part.shape)) * part.dtype.itemsize
    high = 2 if part.dtype == torch.bool else 120
    return torch.randint(0, high, (size,), dtype=torch.uint8, generator=rng).view(part.dtype).view(part.shape)


@settings(max_examples=40, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.integers(1, 4).flatmap(lambda n: st.lists(streams, min_size=n * n, max_size=n * n)), st.integers(1, 3))
def test_every_process_receives_what_was_sent_to_it(roads, num_runs):
    n, budget = math.isqrt(len(roads)), 80 * 4
    stream = {(s, t): roads[s * n + t] for s in range(n) for t in range(n) if s != t}

    def work(member):
        rank, wire = member.rank, Wire(n, nullcontext, budget * max(1, n - 1))
        assert wire.chunk == 80
        taken = []
        for _ in range(num_runs):
            number = {id(p): (s, t, k) for (s, t), some in stream.items() for k, p in enumerate(some)}
            came = {peer: [] for peer in range(n)}
            packed = {road: messages(some, wire.chunk) for road, some in stream.items()}
            wire.run(
                {t: m for (s, t), m in packed.items() if s == rank},
                {s: m for (s, t), m in packed.items() if t == rank},
                lambda part, number=number: drawn(*number[id(part)], part),
                lambda peer, part, tensor, came=came: came[peer].append((part, tensor.clone())),
            )
            taken.append(came)
        held = sum(len(buffer) for buffer in wire._buffers.values())
        return taken, wire.bytes_sent, held

    results = together(n, work)
    for rank, (taken, bytes_sent, held) in enumerate(results):
        assert held <= budget * max(1, n - 1)
        sizes = [part.num_bytes for (s, _), some in stream.items() if s == rank for part in some]
        assert bytes_sent == num_runs * sum(sizes)
        for came in taken:
            for peer in range(n):
                expected = stream.get((peer, rank), [])
                assert [id(part) for part, _ in came[peer]] == [id(part) for part in expected]
                for k, (part, tensor) in enumerate(came[peer]):
                    assert tensor.dtype == part.dtype
                    assert tensor.shape == part.shape
                    bits = [t.reshape(-1).view(torch.uint8) for t in (tensor, drawn(peer, rank, k, part))]
                    assert torch.equal(*bits)


def test_values_to_send_need_not_be_contiguous_or_of_the_right_dtype():
    source = torch.randn(6, 4)
    part = Part(Move("t", (None, None), (0,), (1,), None), (None, None), torch.Size([4, 6]), torch.bfloat16)

    def work(member):
        wire, came = Wire(2, nullcontext, 4096), []
        road = {1 - member.rank: [[part]]}
        one, other = (road, {}) if member.rank == 0 else ({}, road)
        wire.run(one, other, lambda part: source.T, lambda peer, part, tensor: came.append(tensor.clone()))
        return came

    assert torch.equal(together(2, work)[1][0], source.T.to(torch.bfloat16))


def test_the_guard_reports_a_lost_process():
    class Lost(Exception):
        pass

    class Guard(nullcontext):
        def __exit__(self, kind, error, trace):
            if isinstance(error, RuntimeError):
                raise Lost from error

    part = part_of(3, torch.float32)

    def work(member):
        wire = Wire(2, Guard, 4096)
        if member.rank == 0:
            raise KeyError("gone")
        with pytest.raises(Lost):
            wire.run({}, {0: [[part]]}, None, None)

    with pytest.raises(KeyError, match="gone"):
        together(2, work)
