"""Export: the calibrated full model as safetensors files in Hugging Face's layout.

    model.safetensors                      if one file is enough; else
    model-00001-of-00003.safetensors, ...
    model.safetensors.index.json           which tensor is in which file

Tensors arrive one after the other and are written one file at a time, so the writer needs the memory of one file. A
tied tensor is written under each of its names, as ``load_state_dict`` expects.
"""

import json
import re
from pathlib import Path

from torch import Tensor

from skerry.files import atomic
from skerry.files.tensor_file import save_tensors
from skerry.runtimes.runtime import FullModel

SHARD_BYTES = 256 * 2**20
"""The most bytes per file, unless a single tensor has more."""

_INDEX = "model.safetensors.index.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|\.model-\d{5}\.safetensors\.draft")


def export(full: FullModel, folder: Path, *, first: bool = True, shard_bytes: int = SHARD_BYTES) -> None:
    """Write ``full`` to files in ``folder``; every process must call it, and the first one writes.

    Args:
        full: the calibrated full model.
        folder: created if it is missing. The files of an earlier export are replaced once all new ones are written.
        first: whether this is the first process.
        shard_bytes: the most bytes per file, unless a single tensor has more.
    """
    writer = _Writer(folder, shard_bytes)
    try:
        for name, tensor in full.tensors():
            if first:
                for alias in full.names(name):
                    writer.add(alias, tensor)
        if first:
            writer.close()
    except BaseException:
        writer.discard()
        raise


class _Writer:
    """Writes files one by one as drafts, and gives them their final names when all are written."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._most = folder, shard_bytes
        self._waiting: dict[str, Tensor] = {}
        self._files: list[tuple[Path, list[str]]] = []
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        if self._waiting and sum(t.nbytes for t in self._waiting.values()) + tensor.nbytes > self._most:
            self._flush()
        self._waiting[name] = tensor.detach().cpu().contiguous()
        self._total += tensor.nbytes

    def close(self) -> None:
        if self._waiting or not self._files:
            self._flush()
        num = len(self._files)
        names = [f"model-{k:05d}-of-{num:05d}.safetensors" for k in range(1, num + 1)]
        if num == 1:
            names = ["model.safetensors"]
        # First, so that a reader never takes files of an earlier export, or half of ours, for a model.
        (self._folder / _INDEX).unlink(missing_ok=True)
        for (draft, _), name in zip(self._files, names, strict=True):
            draft.rename(self._folder / name)
        if num > 1:
            held = {tensor: name for (_, inside), name in zip(self._files, names, strict=True) for tensor in inside}
            index = {"metadata": {"total_size": self._total}, "weight_map": held}
            atomic.write(self._folder / _INDEX, (json.dumps(index, indent=1) + "\n").encode())
        for path in self._folder.iterdir():  # of an earlier export
            if _OURS.fullmatch(path.name) and path.name not in names:
                path.unlink()

    def discard(self) -> None:
        """Remove what has no final name yet."""
        for draft, _ in self._files:
            draft.unlink(missing_ok=True)

    def _flush(self) -> None:
        with atomic.writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"model-{len(self._files) + 1:05d}.safetensors"
        tensors, self._waiting = self._waiting, {}
        draft = atomic.make_draft(path, lambda place: save_tensors(tensors, place, {"format": "pt"}))
        self._files.append((draft, list(tensors)))
