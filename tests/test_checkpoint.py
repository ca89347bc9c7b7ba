"""Checkpoints: read gives what was written, to the bit; every damaged or foreign file is refused in one line."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from zoo import blobs, mlp

from skerry import ist, train
from skerry.checkpoint import CheckpointError, read, write
from skerry.plan import named_tensors
from skerry.state import State


@pytest.fixture
def state():
    model, plan, _ = mlp()
    return State(named_tensors(model), 3, torch.arange(plan.num_units), 1)


def fresh_like(state):
    return State({n: torch.zeros_like(t) for n, t in state.tensors.items()}, 0, torch.zeros_like(state.trained))


def test_round_trip(tmp_path, state):
    state.tensors["out.weight::momentum_buffer"] = torch.randn(4, 10).to(torch.bfloat16)
    state.totals["flop"] = 0.1 + 0.2
    write(tmp_path / "c", state, "mine")
    model_only = fresh_like(state)
    del model_only.tensors["out.weight::momentum_buffer"]
    again = read(tmp_path / "c", model_only, "mine")
    assert (again.round, again.bad_rounds, again.totals) == (3, 1, state.totals)
    assert torch.equal(again.trained, state.trained)
    assert again.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(again.tensors[n], t) for n, t in state.tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path, state):
    path = tmp_path / "c"
    write(path, state, "mine")
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in [0, 9, header - 40, header + 1, (header + len(content)) // 2, len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match=str(path)):
            read(path, fresh_like(state), "mine")
    for length in (0, 5, header, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            read(path, fresh_like(state), "mine")


def test_foreign_files_are_refused(tmp_path, state):
    path = tmp_path / "c"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not Skerry's"):
        read(path, fresh_like(state), "mine")
    write(path, state, "mine")
    other = fresh_like(state)
    other.tensors["out.weight"] = torch.zeros(4, 11)
    with pytest.raises(CheckpointError, match=r"out\.weight has shape \(4, 10\).*expected \(4, 11\).*another model"):
        read(path, other, "mine")
    other.tensors["extra"] = torch.zeros(1)
    other.tensors["out.weight"] = torch.zeros(4, 10)
    with pytest.raises(CheckpointError, match="extra is missing"):
        read(path, other, "mine")


def test_another_runs_checkpoint_is_refused(tmp_path, state):
    write(tmp_path / "c", state, "seed 1")
    with pytest.raises(CheckpointError, match="other settings"):
        read(tmp_path / "c", fresh_like(state), "mine")


def test_no_pickle_in_the_file(tmp_path, state):
    write(tmp_path / "c", state, "mine")
    content = (tmp_path / "c").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["state"])["round"] == 3


@pytest.mark.parametrize("optimizer_state", ["reset", "travel"])
def test_resuming_from_any_round_ends_with_the_same_bits(tmp_path, optimizer_state):
    def go(resume=None, on_round=None):
        torch.manual_seed(0)
        model, plan, _ = mlp(dropout=0.2)
        algorithm = ist(3, local_steps=3, reshuffle=0.4, optimizer_state=optimizer_state)
        optimizer = lambda p: torch.optim.AdamW(p, 1e-2)  # noqa: E731
        return train(
            model, F.cross_entropy, blobs(3), plan=plan, algorithm=algorithm, optimizer=optimizer, num_rounds=5,
            resume=resume, on_round=on_round,
        ).state  # fmt: skip

    whole = go(on_round=lambda record, state: write(tmp_path / f"{record.round}", state, "mine"))
    for stop in range(5):
        resumed = go(resume=lambda fresh, stop=stop: read(tmp_path / f"{stop}", fresh, "mine"))
        assert resumed.tensors.keys() == whole.tensors.keys()
        for name, tensor in whole.tensors.items():
            assert torch.equal(resumed.tensors[name], tensor), (stop, name)
        assert torch.equal(resumed.trained, whole.trained)
        assert resumed.totals["bytes_due"] == whole.totals["bytes_due"]
