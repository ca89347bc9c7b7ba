"""The trained model of a run's folder: loaded to predict with, or exported."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from skerry.checkpoint.export import SHARD_BYTES, ExportFormat, export
from skerry.checkpoint.pretrained import save_pretrained
from skerry.experiments.config import Config
from skerry.experiments.methods import build
from skerry.experiments.recipes import Recipe, find_recipe
from skerry.experiments.runs.folder import (
    SIGNATURE,
    check_holds_no_run,
    checkpoints_of,
    is_finished,
    saved_config,
)
from skerry.merge.calibrate import estimate_batch_norm_
from skerry.model.inputs import call
from skerry.model.tensors import fill_, named_tensors, skeleton
from skerry.partitions.share import Share
from skerry.plan.table import Plan
from skerry.predictor import Predictor, Signature
from skerry.runtimes.serial import Serial
from skerry.runtimes.streamed import Streamed
from skerry.subnet.extract import extract, plan_of_subnet
from skerry.training.setup import net_to_train
from skerry.training.train import calibration_inputs
from skerry.weights.from_files import FromFiles
from skerry.weights.source import materialize

PRUNED = "pruned.json"
"""What ``skerry prune`` has left of which run."""


def load(folder: Path | str, *, recipe: Recipe | Callable[[], Recipe] | None = None) -> Predictor:
    """Return the trained model of the run in ``folder``, ready for samples as they were stored for training.

    A finished run needs its folder only, not the data. Of an unfinished one it is the model of the last checkpoint,
    with a warning; a batch norm is calibrated on the run's data.

    **It runs the code of the recipe** that ``config.json`` names. Load runs of people whose code you would run.

    Args:
        folder: of a run of ``skerry train``, with any method, or what ``skerry prune`` made of one.
        recipe: the run's own recipe, or its function, where it cannot be imported as it was for the training.

    Raises:
        ValueError: there is no run in ``folder``, it has no checkpoint yet, or its recipe is not found.

    Example::

        digits = skerry.load("runs/first")
        digits.predict(images)  # uint8, (num_images, 8, 8)
    """
    folder = Path(folder)
    found = _pruned(folder, recipe) if (folder / PRUNED).exists() else trained(folder, recipe)
    config = found.config
    name = f"{folder}, {config.recipe} {config.method}"
    return Predictor(found.net, found.signature, name=name, round=found.round, num_rounds=config.rounds)


@dataclass(frozen=True)
class Found:
    """The trained model of a run, its plan, and after which round it is."""

    net: nn.Module
    plan: Plan
    config: Config
    signature: Signature
    round: int


def trained(folder: Path, recipe: Recipe | Callable[[], Recipe] | None = None) -> Found:
    """Return what the run in ``folder`` has trained; arguments, errors and a warning as in ``load``."""
    config = saved_config(folder)
    known = _recipe(folder, config, recipe)
    signature = _signature(folder, known, config)
    net, plan = _net(known, config, signature)
    round = config.rounds
    if is_finished(folder, config):
        materialize(net, FromFiles(folder, net))
    else:
        full, round = _checkpoint(folder, config, known, net, plan)
        fill_(net, dict(full.tensors()))
        warnings.warn(f"{folder}: not finished, the model after round {round} of {config.rounds}", stacklevel=3)
    return Found(net, plan, config, signature, round)


def _pruned(folder: Path, recipe: Recipe | Callable[[], Recipe] | None) -> Found:
    """Return the pruned model that ``skerry prune`` wrote to ``folder``."""
    path = folder / PRUNED
    try:
        content = json.loads(path.read_text())
        config, signature = Config.from_json(content["config"]), Signature.from_json(content["signature"])
        full, plan = _net(_recipe(folder, config, recipe), config, signature)
        left = [axis.start + k for axis in plan.axes for k in content["units"][axis.name]]
        net = extract(skeleton(full), plan, torch.tensor(left))
    except (LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error}); run skerry prune again") from error
    materialize(net, FromFiles(folder, net))
    return Found(net, plan_of_subnet(plan, torch.tensor(left)), config, signature, content["round"])


def _recipe(folder: Path, config: Config, recipe: Recipe | Callable[[], Recipe] | None) -> Recipe:
    try:
        return recipe() if callable(recipe) else recipe or find_recipe(config.recipe)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; or give skerry.load the recipe: recipe=...") from error


def export_run(
    folder: Path, out: Path, *, shard_bytes: int | None = SHARD_BYTES, format: ExportFormat = "safetensors"
) -> int:
    """Write the calibrated full model of the last checkpoint in ``folder`` to ``out``.

    Runs in one process, which holds one tensor (and the vectors) of the full model at a time.

    Args:
        folder: the run.
        out: receives the files.
        shard_bytes, format: see ``Session.export``.

    Returns:
        The round of the checkpoint.

    Raises:
        ValueError: there is no run or no checkpoint in ``folder``.
    """
    config = saved_config(folder)
    recipe = find_recipe(config.recipe)
    full, round = _checkpoint(folder, config, recipe, *_net(recipe, config, _signature(folder, recipe, config)))
    export(full, out, shard_bytes=shard_bytes, format=format)
    return round


def export_pretrained(folder: Path, out: Path) -> int:
    """Write the model of the run in ``folder``, and its tokenizer, to ``out`` as transformers reads them.

    Returns:
        The round that the model was trained to.

    Raises:
        FolderInUse: there is a run in ``out``.
        ValueError: there is no run in ``folder``, or its model is not of transformers.
    """
    check_holds_no_run(out)
    predictor = load(folder)
    tokenizer = None
    if predictor.signature.tokenizer:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(predictor.signature.tokenizer))
    save_pretrained(predictor.model, out, tokenizer)
    return predictor.round


def _signature(folder: Path, recipe: Recipe, config: Config) -> Signature:
    """Return the signature in ``folder``, or that of the data, if an older version has made the run."""
    path = folder / SIGNATURE
    try:
        return Signature.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return recipe.task(config).signature
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove it to have it made from the data") from error


def _net(recipe: Recipe, config: Config, signature: Signature) -> tuple[nn.Module, Plan]:
    """Return what the run trains, and its plan."""
    return net_to_train(*recipe.net(config, signature.sizes), build(config), config.seed)


def _checkpoint(folder: Path, config: Config, recipe: Recipe, net: nn.Module, plan: Plan) -> tuple[Streamed, int]:
    """Return the calibrated full model of the last checkpoint, and its round."""
    saved = checkpoints_of(folder, config, resume=True).latest(build(config).name, plan, named_tensors(net), Serial())
    if saved is None:
        raise ValueError(f"{folder}: no checkpoint yet; train on until it writes one")
    # It may have just gone on with other workers.
    config = config.change({"workers": saved.state.num_workers or config.workers, **saved.state.settings})
    algorithm = build(config)
    share = Share.of(algorithm.partition, plan.axes, max(0, saved.state.round - 1))
    full = Streamed(skeleton(net), plan, share, lambda names, *, only_first: {name: saved.read(name) for name in names})
    if bool((share.alone < 1).any()):

        def forward(model: nn.Module) -> list[object]:
            inputs = calibration_inputs(recipe.build(config).data, range(algorithm.partition.num_workers))
            return [call(model, x) for x in inputs]

        estimate_batch_norm_(full.module, forward)
    return full, saved.state.round
