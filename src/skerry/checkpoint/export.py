"""Export: the calibrated full model in files that others read, written tensor by tensor as they arrive.

Format "safetensors", in Hugging Face's layout:

    model.safetensors                      if one file is enough; else
    model-00001-of-00003.safetensors, ...
    model.safetensors.index.json           which tensor is in which file

Format "dcp" (``dcp_export.py``): a checkpoint of ``torch.distributed.checkpoint``.

The writer needs the memory of one tensor. A tied tensor is written under each of its names, as ``load_state_dict``
expects.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from skerry.choose import choose
from skerry.files import atomic
from skerry.files.tensor_file import save_tensors
from skerry.model.tensors import named_tensors
from skerry.runtimes.runtime import FullModel

ExportFormat = Literal["safetensors", "dcp"]

SHARD_BYTES = 256 * 2**20
"""The most bytes per file, unless a single tensor has more."""

_INDEX = "model.safetensors.index.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|\.model(-\d{5}-of-\d{5})?\.safetensors\.draft")


def export(
    full: FullModel,
    folder: Path,
    *,
    first: bool = True,
    shard_bytes: int | None = SHARD_BYTES,
    format: ExportFormat = "safetensors",
) -> None:
    """Write ``full`` to files in ``folder``; every process must call it, and the first one writes.

    Args:
        full: the calibrated full model.
        folder: created if it is missing. The files of an earlier export, of either format, go once all new ones are
            written.
        first: whether this is the first process.
        shard_bytes: the most bytes per safetensors file, unless a single tensor has more; None: one file.
        format: of the files.

    Raises:
        ValueError: there is no such format.
    """
    choose(format, get_args(ExportFormat), "format")
    arriving = _arriving(full)
    if first:
        sizes = {other: t.to("meta") for name, t in named_tensors(full.inner).items() for other in full.names(name)}
        with atomic.writing(folder / "model"):
            folder.mkdir(parents=True, exist_ok=True)
        if format == "dcp":
            from skerry.checkpoint.dcp_export import write_dcp  # slow to import

            write_dcp(sizes, arriving, folder)
        else:
            _write_safetensors(_divided(sizes, shard_bytes), arriving, folder)
        _remove_others(format, folder)
    for _ in arriving:  # other processes send what they have
        pass


def _arriving(full: FullModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a ``state_dict``; those of one tensor follow each other."""
    for name, tensor in full.tensors():
        for other in full.names(name):
            yield other, tensor.detach().cpu().contiguous()
        del tensor  # before the next one arrives


def _divided(sizes: Mapping[str, Tensor], most: int | None) -> list[dict[str, Tensor]]:
    """Divide tensors, in their order, into files of at most ``most`` bytes or of one tensor; at least one file."""
    files: list[dict[str, Tensor]] = [{}]
    room = most
    for name, size in sizes.items():
        if most is not None and room is not None:
            if files[-1] and size.nbytes > room:
                files.append({})
                room = most
            room -= size.nbytes
        files[-1][name] = size
    return files


def _remove_others(format: ExportFormat, folder: Path) -> None:
    """Remove an export in the other format, its index first."""
    index, ours = (_INDEX, _OURS) if format == "dcp" else (".metadata", re.compile(r"__0_\d+\.distcp"))
    (folder / index).unlink(missing_ok=True)
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            path.unlink()


def _write_safetensors(files: list[dict[str, Tensor]], arriving: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write ``files`` one by one as drafts, and give them their names when all are written."""
    num = len(files)
    names = [f"model-{k:05d}-of-{num:05d}.safetensors" for k in range(1, num + 1)] if num > 1 else ["model.safetensors"]
    drafts: list[Path] = []
    try:
        for name, sizes in zip(names, files, strict=True):
            write = partial(save_tensors, sizes, metadata={"format": "pt"}, arriving=islice(arriving, len(sizes)))
            drafts.append(atomic.make_draft(folder / name, write))
    except BaseException:
        for draft in drafts:
            draft.unlink(missing_ok=True)
        raise
    # First, so that a reader never takes files of an earlier export, or half of ours, for a model.
    (folder / _INDEX).unlink(missing_ok=True)
    for draft, name in zip(drafts, names, strict=True):
        draft.rename(folder / name)
    if num > 1:
        total = sum(size.nbytes for sizes in files for size in sizes.values())
        held = {tensor: name for sizes, name in zip(files, names, strict=True) for tensor in sizes}
        index = {"metadata": {"total_size": total}, "weight_map": held}
        atomic.write(folder / _INDEX, (json.dumps(index, indent=1) + "\n").encode())
    for path in folder.iterdir():  # of an earlier export
        if _OURS.fullmatch(path.name) and path.name not in names:
            path.unlink()
