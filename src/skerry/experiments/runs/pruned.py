"""A pruned model beside its run: files that torch alone loads, and what ``skerry.load`` needs to build its modules.

model.pt2              the model as a program for any number of samples: torch.export.load needs no other code
model.safetensors      its tensors
pruned.json            run, settings, and which units of each axis are left
"""

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from skerry.checkpoint.export import export
from skerry.experiments.runs.folder import check_holds_no_run
from skerry.experiments.runs.load import PRUNED, trained
from skerry.files import atomic
from skerry.model.in_words import first_line
from skerry.predictor import Signature
from skerry.runtimes.whole_model import Whole
from skerry.subnet.extract import extract
from skerry.subnet.prune import Keep, strongest_units
from skerry.subnet.side_by_side import SideBySide


@dataclass(frozen=True)
class Pruned:
    """What was pruned: by axis, how many units are left of how many; and parameters before and after."""

    axes: dict[str, tuple[int, int]]
    parameters: tuple[int, int]


def prune_run(folder: Path, out: Path, keep: Keep) -> Pruned:
    """Prune the trained model of the run in ``folder`` (see ``skerry.prune``) and write it to the folder ``out``.

    Raises:
        FolderInUse: there is a run in ``out``.
        ValueError: there is no run in ``folder``, it trains nets side by side or one without units, or ``keep`` does
            not fit its plan.
    """
    check_holds_no_run(out)
    found = trained(folder)
    if isinstance(found.net, SideBySide) or not found.plan.axes:
        raise ValueError(
            f"{folder}: method '{found.config.method}' trains narrow nets, of which no unit is left to prune; expected "
            "a run of a method that trains the whole model, such as ist, local_sgd or single"
        )
    net, plan = found.net.eval(), found.plan
    units = strongest_units(net, plan, keep)
    narrow = extract(net, plan, units).eval()
    left = {axis.name: [u - axis.start for u in units.tolist() if u in axis.units] for axis in plan.axes}
    content = {
        "run": str(folder.resolve().name),
        "round": found.round,
        "config": found.config.to_json(),
        "signature": found.signature.to_json(),
        "units": left,
    }
    with atomic.writing(out / PRUNED):
        out.mkdir(parents=True, exist_ok=True)
    (out / PRUNED).unlink(missing_ok=True)  # until all is written
    export(Whole(narrow), out)
    _write_program(narrow, found.signature, out / "model.pt2")
    atomic.write(out / PRUNED, (json.dumps(content, indent=1) + "\n").encode())
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (net, narrow)]
    return Pruned({axis.name: (len(left[axis.name]), axis.num_units) for axis in plan.axes}, (sizes[0], sizes[1]))


def _write_program(net: nn.Module, signature: Signature, path: Path) -> None:
    """Write ``net`` as a program of torch, or warn if torch cannot make one."""
    path.unlink(missing_ok=True)
    x = signature.inputs(torch.zeros(2, *signature.shape, dtype=getattr(torch, signature.dtype)))
    written = io.BytesIO()
    try:
        program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("samples", min=1)},))
        torch.export.save(program, written)
    except Exception as error:  # of any kind: it runs the model's own forward
        warnings.warn(
            f"{path}: not written, torch.export cannot follow the model ({first_line(error)}); skerry.load reads "
            f"{path.parent} with the run's recipe",
            stacklevel=3,
        )
        return
    atomic.write(path, written.getvalue())
