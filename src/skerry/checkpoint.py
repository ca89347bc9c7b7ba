"""Checkpoints: one safetensors file, written atomically, checked when read, without pickle.

Tensors are stored under their names (the units' counts under ``::trained``); the numbers of the state are JSON in the
file's metadata, with a checksum over everything. A kill at any instant leaves the last complete file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from skerry import atomic
from skerry.state import TOTALS, State

_FORMAT = "skerry-checkpoint-1"
_TRAINED = "::trained"


class CheckpointError(ValueError):
    """A checkpoint that is corrupt, foreign or does not fit; the message names the file and the remedy."""


def write(path: Path, state: State, run: str) -> None:
    """Write ``state`` to ``path``, replacing what was there in one step; ``run`` says whose it is (its settings)."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()} | {_TRAINED: state.trained}
    numbers = json.dumps({"round": state.round, "bad_rounds": state.bad_rounds, "totals": state.totals})
    meta = {"format": _FORMAT, "run": run, "state": numbers, "checksum": _checksum(tensors, run + numbers)}
    atomic.write(path, save(tensors, meta))


def read(path: Path, fresh: State, run: str) -> State:
    """Read the state of ``run``, which must fit ``fresh``, the state of a run that has not begun.

    Raises:
        CheckpointError: the file is damaged, not a checkpoint of Skerry, or of another run or model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}); remove it to start again") from error
    if meta.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: format '{meta.get('format')}', expected '{_FORMAT}'; it is not Skerry's")
    if meta.get("checksum") != _checksum(tensors, meta.get("run", "") + meta.get("state", "")):
        raise CheckpointError(
            f"{path}: its checksum does not fit its contents; it is damaged, remove it to start again"
        )
    if meta["run"] != run:
        raise CheckpointError(f"{path}: it is of a run with other settings; put back this run's own or start anew")
    for name, tensor in [*fresh.tensors.items(), (_TRAINED, fresh.trained)]:
        got = tensors.get(name)
        if got is None or got.shape != tensor.shape or got.dtype != tensor.dtype:
            what = "is missing" if got is None else f"has shape {tuple(got.shape)}, {got.dtype}"
            raise CheckpointError(
                f"{path}: {name} {what}, expected {tuple(tensor.shape)}, {tensor.dtype}; it is of another model"
            )
    numbers = json.loads(meta["state"])
    trained = tensors.pop(_TRAINED)
    totals = {key: float(numbers["totals"][key]) for key in TOTALS}
    return State(tensors, int(numbers["round"]), trained, int(numbers["bad_rounds"]), totals)


def _checksum(tensors: Mapping[str, Tensor], numbers: str) -> str:
    digest = hashlib.blake2b(numbers.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
