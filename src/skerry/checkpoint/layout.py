"""The files of a checkpoint: a set of safetensors files, one per process, and an index that names the set.

    checkpoint.json                                   the latest complete set, with each file's checksum
    checkpoint/round-00000120/0-of-4.safetensors      what process 0 kept: its subnet and the elements it owns

Files are safetensors, not ``torch.distributed.checkpoint``, which pickles its index: whoever can write such a file can
run code in the process that reads it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from skerry.files import atomic

FORMAT = "skerry-checkpoint-3"
TRAINED, HELD = "::trained", "::held"
"""Tensors in every file: ``State.trained``, and the assignment by which the set was written."""
DIGEST_BYTES = 16
INDEX, SETS = "checkpoint.json", "checkpoint"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, foreign or does not fit; the message names the file and the remedy."""


@dataclass(frozen=True)
class SetIndex:
    """The latest complete set of a folder.

    Attributes:
        round: ``State.round`` of the set.
        again: whether a run that was started again has written a set of this round beside an older one.
        checksums: of the files, in the order of processes.
    """

    round: int
    again: bool
    checksums: list[str]

    @property
    def set_name(self) -> str:
        """The folder of the set."""
        return set_name(self.round, again=self.again)

    def write(self, folder: Path, run: str) -> None:
        """Replace the index of ``folder`` in one step; ``run`` identifies the run."""
        index = {"format": FORMAT, "run": run, **asdict(self)}
        atomic.write(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())


def read_index(folder: Path, run: str) -> SetIndex:
    """Return the index of ``folder``.

    Raises:
        CheckpointError: it is damaged, of another format, or of another run.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
        good = index["format"] == FORMAT and isinstance(index["round"], int) and isinstance(index["again"], bool)
        good = good and all(len(bytes.fromhex(checksum)) == DIGEST_BYTES for checksum in index["checksums"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}); remove it to start again") from error
    if not good:
        raise CheckpointError(f"{path}: expected format '{FORMAT}'; it is not Skerry's")
    if index.get("run") != run:
        raise CheckpointError(f"{path}: it is of a run with other settings; restore this run's file or start again")
    return SetIndex(index["round"], index["again"], index["checksums"])


def latest_set_name(folder: Path) -> str | None:
    """Return the set that the index of ``folder`` names, of whichever run; None without a readable index."""
    try:
        index = json.loads((folder / INDEX).read_text())
        return set_name(index["round"], again=index.get("again", False))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def set_name(round: int, *, again: bool) -> str:
    """Return the name of a set's folder."""
    return f"round-{round:08d}{'-again' if again else ''}"


def file_name(rank: int, num_files: int) -> str:
    """Return the name of the file of process ``rank``."""
    return f"{rank}-of-{num_files}.safetensors"


def checksum(tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> str:
    """Return the checksum of a file's contents; ``tensors`` are sorted by name, and consumed one at a time."""
    digest = hashlib.blake2b(json.dumps(sorted(metadata.items())).encode(), digest_size=DIGEST_BYTES)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digests_to_tensor(checksums: Iterable[str], num: int) -> Tensor:
    """Return checksums as (num, DIGEST_BYTES) int64, rows of zeros for those that are missing."""
    rows = torch.zeros(num, DIGEST_BYTES, dtype=torch.int64)
    for row, text in zip(rows, checksums, strict=False):
        row.copy_(torch.tensor(list(bytes.fromhex(text)), dtype=torch.int64))
    return rows


def digests_from_tensor(rows: Tensor) -> list[str]:
    """Return the checksums that ``digests_to_tensor`` was given."""
    return [bytes(row.tolist()).hex() for row in rows]
