"""The files of checkpoints: sets of safetensors files, one per process, each set with an index that is written last.

    checkpoint/7-round-120/0-of-4.safetensors     what process 0 kept: its subnet and the elements it owns
    checkpoint/7-round-120/index.json             whose set it is, and each file's checksum; the first process writes it

Sets are numbered in the order in which they are saved. The latest two are kept, so that a run goes on from the one
before if the latest is damaged.

Files are safetensors, not ``torch.distributed.checkpoint``, which pickles its index: whoever can write such a file can
run code in the process that reads it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from skerry.files import atomic

FORMAT = "skerry-checkpoint-5"
TRAINED, HELD = "::trained", "::held"
"""Tensors in every file: ``State.trained``, and the assignment by which the set was written."""
DIGEST_BYTES = 16
SETS, INDEX = "checkpoint", "index.json"
_SET_NAME = re.compile(r"(\d+)-round-(\d+)")
_OLDER_INDEX = "checkpoint.json"  # of format 3


class CheckpointError(ValueError):
    """A checkpoint that is damaged, foreign or does not fit; the message names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose checkpoint it is; a training resumes from its own only.

    Attributes:
        run: identifies the run (its settings).
        method: the name of the algorithm.
        plan: the digest of the plan of what is trained.
    """

    run: str
    method: str
    plan: str

    def check(self, other: "Owner", path: Path) -> None:
        """Raise CheckpointError unless the checkpoint at ``path`` is of this owner; it is of ``other``."""
        if self.method != other.method:
            raise CheckpointError(
                f"{path}: it is of method '{other.method}', got '{self.method}'; resume with the same method, or start "
                "anew in another folder"
            )
        if self.run != other.run:
            raise CheckpointError(
                f"{path}: it is of a run with other settings; resume with the same, or start anew in another folder"
            )
        if self.plan != other.plan:
            raise CheckpointError(
                f"{path}: it is of a run with another plan or number of nets; resume with the same, or start anew in "
                "another folder"
            )


@dataclass(frozen=True)
class SetIndex:
    """What completes a set.

    Attributes:
        round: ``State.round`` of the set.
        owner: whose it is.
        checksums: of the files, in the order of processes.
    """

    round: int
    owner: Owner
    checksums: list[str]

    def write(self, folder: Path) -> None:
        """Write it into the set's ``folder``, in one step."""
        content = {"format": FORMAT, "round": self.round, **asdict(self.owner), "checksums": self.checksums}
        atomic.write(folder / INDEX, (json.dumps(content | {"checksum": _digest(content)}, indent=1) + "\n").encode())


def read_index(text: str) -> SetIndex:
    """Return the index that is written as ``text``.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"expected format '{FORMAT}'")
    if content.pop("checksum", "") != _digest(content):
        raise ValueError("its checksum does not match its contents")
    owner = Owner(run=content["run"], method=content["method"], plan=content["plan"])
    return SetIndex(content["round"], owner, content["checksums"])


def sets(folder: Path) -> list[Path]:
    """Return the folders of all sets in ``folder``, the latest first, also of incomplete ones."""
    found = [path for path in (folder / SETS).glob("*") if _SET_NAME.fullmatch(path.name)]
    return sorted(found, key=number_of, reverse=True)


def complete_sets(folder: Path) -> list[Path]:
    """Return the folders of the complete sets in ``folder``, the latest first.

    Raises:
        CheckpointError: there is only a checkpoint of an older version.
    """
    found = [path for path in sets(folder) if (path / INDEX).exists()]
    if not found and (folder / _OLDER_INDEX).exists():
        raise CheckpointError(
            f"{folder / _OLDER_INDEX}: written by an older version of Skerry; resume with that version, or start anew "
            "in another folder"
        )
    return found


def set_name(number: int, round: int) -> str:
    """Return the name of a set's folder."""
    return f"{number}-round-{round}"


def round_of(name: str) -> int:
    """Return ``State.round`` of the set whose folder has that name."""
    return int(name.rpartition("-")[2])


def next_number(folder: Path) -> int:
    """Return the number of the next set in ``folder``."""
    return 1 + max(map(number_of, sets(folder)), default=0)


def number_of(path: Path) -> int:
    """Return the number of the set in the folder ``path``; later ones are greater."""
    return int(path.name.partition("-")[0])


def file_name(rank: int, num_files: int) -> str:
    """Return the name of the file of process ``rank``."""
    return f"{rank}-of-{num_files}.safetensors"


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()


def checksum(tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> str:
    """Return the checksum of a file's contents; ``tensors`` are sorted by name, and consumed one at a time."""
    digest = hashlib.blake2b(json.dumps(sorted(metadata.items())).encode(), digest_size=DIGEST_BYTES)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
