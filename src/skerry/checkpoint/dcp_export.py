"""A model as a checkpoint of ``torch.distributed.checkpoint`` (DCP), for tools that read these. Skerry reads none.

Its index is pickled, and tensors are in files of ``torch.save``: whoever can write such a checkpoint can run code in a
process that reads it. So Skerry's own checkpoints are others (``layout.py``).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem

from skerry.files import atomic

_INDEX = ".metadata"


class _Arriving(DefaultSavePlanner):
    """Takes tensors in the order in which they arrive, when DCP is about to write them."""

    def __init__(self, arriving: Iterator[tuple[str, Tensor]]) -> None:
        super().__init__()
        self._arriving = arriving

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        name, tensor = next(self._arriving)
        assert name == write_item.index.fqn
        return tensor


def write_dcp(sizes: Mapping[str, Tensor], arriving: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write a checkpoint; ``torch.distributed.checkpoint.load(model.state_dict(), checkpoint_id=folder)`` reads it.

    Each tensor has a file of its own: DCP keeps all tensors of a file in memory. The index is written last.

    Args:
        sizes: tensors on meta by name, in the order in which they arrive.
        arriving: yields the names with CPU tensors.
        folder: is there; an earlier checkpoint in it is replaced.
    """
    draft = folder / ".dcp.draft"
    atomic.remove_folder(draft)  # left by a killed write
    try:
        with atomic.writing(folder / _INDEX):
            _write(sizes, arriving, draft)
            (folder / _INDEX).unlink(missing_ok=True)  # first, so that no reader takes half of ours for a checkpoint
            for path in folder.glob("__0_*.distcp"):
                path.unlink()
            for path in [*draft.glob("__*"), draft / _INDEX]:
                path.rename(folder / path.name)
    finally:
        atomic.remove_folder(draft)


def _write(sizes: Mapping[str, Tensor], arriving: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Do what ``dcp.save`` does, but in one process of several, of which the others take no part in it."""
    planner, writer = _Arriving(arriving), FileSystemWriter(folder, single_file_per_rank=False)
    planner.set_up_planner(dict(sizes), writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, index = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    (plan,) = writer.prepare_global_plan(plans)
    written = writer.write_data(planner.finish_plan(plan), planner).wait()
    writer.finish(index, [written])
