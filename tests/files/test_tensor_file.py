"""What is written is what safetensors reads."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from skerry.files import tensor_file
from skerry.files.tensor_file import save_tensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6))
def test_safetensors_reads_every_dtype_and_shape_with_the_same_bits(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    tensors = {f"t{k}.weight": (torch.randn(shape) * 9).to(dtype) for k, (dtype, shape) in enumerate(drawn)}
    save_tensors(tensors, path, {"of": 'a "run"\n'})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"of": 'a "run"\n'}


def test_the_file_is_the_one_that_safetensors_writes(tmp_path):
    tensors = {"b": torch.randn(3, 4), "a": torch.arange(5), "c": torch.tensor(True), "d": torch.randn(2).bfloat16()}
    save_tensors(tensors, tmp_path / "ours", {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    ours, theirs = (content(tmp_path / name) for name in ("ours", "theirs"))
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]


def content(path):
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def test_no_more_waits_for_the_disk_than_may(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_WAITING", 1000)
    sizes, sync = [], os.fsync

    def watched(file):
        sizes.append(os.fstat(file).st_size)
        sync(file)

    monkeypatch.setattr(os, "fsync", watched)
    tensors = {"large": torch.randn(1111), "small": torch.randn(3)}
    save_tensors(tensors, tmp_path / "x", {})
    assert len(sizes) == 5
    assert all(b - a <= 1500 for a, b in zip([0, *sizes], sizes, strict=False))
    assert load_file(tmp_path / "x")["large"].equal(tensors["large"])


def test_tensors_that_share_memory_or_are_transposed_are_written_out(tmp_path):
    x = torch.randn(3, 4)
    save_tensors({"x": x, "again": x, "turned": x.T}, tmp_path / "x", {})
    found = load_file(tmp_path / "x")
    assert found["again"].equal(x)
    assert found["turned"].equal(x.T)


def test_what_the_format_cannot_hold_is_told_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"layer\.mask\b.*\btorch\.complex128\b"):
        save_tensors({"layer.mask": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "x", {})
    assert not (tmp_path / "x").exists()
