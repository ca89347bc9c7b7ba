"""Messages: what was packed comes back to the bit, and anything else is refused before a tensor is made."""

from types import SimpleNamespace

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from skerry.federated.messages import Refused, read_numbers, read_tensors, reason_of, written

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8]
SHAPES = st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), min_size=1, max_size=4)


def tensors_of(kinds):
    made = {}
    for k, (dtype, shape) in enumerate(kinds):
        made[f"t{9 - k}"] = torch.randint(-2, 3, shape).to(dtype)
    return made


@given(SHAPES)
def test_tensors_come_back_to_the_bit(kinds):
    tensors = tensors_of(kinds)
    like = {name: torch.empty_like(t, device="meta") for name, t in reversed(tensors.items())}
    found = read_tensors(written({"round": 3}, tensors), like)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


LIKE = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
NUM_BYTES = 36


@given(st.binary(max_size=2 * NUM_BYTES), st.sampled_from(["uint8", "float32", "object"]), st.integers(0, 10**12))
def test_other_bytes_are_refused_or_just_bytes(data, dtype, length):
    """Whatever type and length a message claims, only the number of its bytes counts, and nothing is unpickled."""
    content = written({}, LIKE)
    for stype in ("skerry.bytes", "numpy.ndarray"):
        content["tensors"] = ArrayRecord({"packed": Array(dtype, (length,), stype, data)})
        if stype == "skerry.bytes" and len(data) == NUM_BYTES:
            assert {n: t.shape for n, t in read_tensors(content, LIKE).items()} == {n: t.shape for n, t in LIKE.items()}
        else:
            with pytest.raises(Refused):
                read_tensors(content, LIKE)


@pytest.mark.parametrize(
    "sent",
    [
        {"w": torch.zeros(3, 2), "b": torch.zeros(3)},
        {"w": torch.zeros(2, 3), "c": torch.zeros(3)},
        {"w": torch.zeros(2, 3), "b": torch.zeros(3, dtype=torch.int32)},
        {"w": torch.zeros(2, 3)},
        {**LIKE, "more": torch.zeros(1)},
        {},
    ],
)
def test_other_tensors_are_refused(sent):
    with pytest.raises(Refused):
        read_tensors(written({}, sent), LIKE)


@pytest.mark.parametrize("number", ["1", 1.0, True, b"1", [1]])
def test_numbers_of_another_type_are_refused(number):
    content = RecordDict({"numbers": ConfigRecord({"round": number})})
    with pytest.raises(Refused, match="round: got"):
        read_numbers(content, {"round": int})


def test_messages_without_parts_are_refused():
    for content in (RecordDict(), RecordDict({"numbers": ConfigRecord({})}), written({"round": 1})):
        with pytest.raises(Refused):
            read_tensors(content, LIKE)


def test_the_reason_of_an_error_is_one_short_line_that_steers_no_terminal():
    said = "first\n\x1b[2J\u202eü \ud800" + "\x07" * 10**4
    found = reason_of(SimpleNamespace(error=Error(2, said)))
    assert found.startswith(r"\x1b[2J\u202eü \ud800\x07")
    assert len(found) <= 200
    assert found.isprintable()
