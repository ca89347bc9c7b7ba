"""The same training in one process: what a run on sites must come to."""

import json
import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from processes import RECIPE
from safetensors.torch import load_file
from torch import Tensor

import skerry
from skerry.experiments.config import Config
from skerry.experiments.recipes import Job, find_recipe
from skerry.experiments.runs.execute import arguments_of, configure
from skerry.training import Result

Settings = Mapping[str, Any]
"""Dotted names of a config, and ``method``."""


def built(settings: Settings) -> tuple[Config, Job]:
    """Return the config that the command line makes of settings, and what it names."""
    given = {name: value for name, value in settings.items() if name != "method"}
    config = configure(RECIPE, settings["method"], given)
    return config, find_recipe(RECIPE).build(config)


def trained(settings: Settings, refused: Collection[tuple[int, int]] = ()) -> Result:
    """Train serially; what ``refused`` names, rounds and workers, is NaN and so not used."""
    config, job = built(settings)
    data = _Spoilt(job.data, config.local_steps, refused) if refused else job.data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return skerry.train(
            job.model, job.loss_fn, data, verify=False, max_bad_rounds=10**9, **arguments_of(config, job)
        )


def problems_of(run: Path, settings: Settings, refused: Collection[tuple[int, int]] = ()) -> list[str]:
    """Return in what the run in a folder differs from the serial one: weights, to the bit, or counts of units."""
    meant, ours = trained(settings, refused), load_file(run / "model.safetensors")
    theirs = meant.model.state_dict()
    told = [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)]
    told += [f"{name} is not finite" for name, tensor in ours.items() if not tensor.isfinite().all()]
    counts = [n for axis in json.loads((run / "units.json").read_text())["axes"] for n in axis["counts"]]
    return told + (["counts of units"] if counts != meant.state.trained.tolist() else [])


def units_lost(settings: Settings, refused: Collection[tuple[int, int]]) -> int:
    """Return how many units' rounds were refused, by the assignments."""
    config, job = built(settings)
    session = skerry.Session(job.model, loss_fn=job.loss_fn, **arguments_of(config, job))
    partition, axes = session.setup.algorithm.partition, session.setup.plan.axes
    return sum(len(partition.assign(axes, round).units(worker)) for round, worker in refused)


class _Spoilt:
    """Data of which some workers' are NaN in some rounds."""

    def __init__(self, data: Any, steps: int, where: Collection[tuple[int, int]]) -> None:
        self._data, self._steps, self._where, self.num_workers = data, steps, set(where), data.num_workers

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the batches of some steps."""
        bad = (first_step // self._steps, worker) in self._where
        return ((x * math.nan if bad else x, y) for x, y in self._data.batches(worker, first_step, num_steps))

    def sample(self, worker: int, num: int) -> Tensor:
        """Return inputs."""
        found: Tensor = self._data.sample(worker, num)
        return found
