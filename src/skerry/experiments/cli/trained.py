"""Commands that use the model of a run: ``skerry export``, ``prune``, ``predict`` and ``generate``."""

from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from skerry.checkpoint.export import ExportFormat
from skerry.experiments.cli.options import FOLDER
from skerry.experiments.cli.start import warnings_in_one_line
from skerry.experiments.runs.generate import generate
from skerry.experiments.runs.load import export_pretrained, export_run, load
from skerry.experiments.runs.pruned import prune_run


@click.command(name="export")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder to write to; default: FOLDER/export.")
@click.option(
    "--shard-mb",
    type=float,
    default=256.0,
    show_default=True,
    help="Largest safetensors file (a larger tensor has its own); 0: one file.",
)
@click.option(
    "--format",
    type=click.Choice([*get_args(ExportFormat), "pretrained"]),
    default="safetensors",
    show_default=True,
    help="safetensors; dcp: a checkpoint of torch.distributed.checkpoint; pretrained: a folder of transformers.",
)
def export_command(folder: Path, out: Path | None, shard_mb: float, format: Any) -> None:
    """Write the calibrated full model of the last checkpoint in FOLDER.

    It needs the memory of the largest tensor, whatever the size of the model. As pretrained, that of the model.
    """
    out = out or folder / "export"
    if format == "pretrained":
        round = export_pretrained(folder, out)
    else:
        round = export_run(folder, out, shard_bytes=int(shard_mb * 2**20) or None, format=format)
    click.echo(f"{out}: the model after round {round}")


@click.command(name="prune")
@click.argument("folder", type=FOLDER)
@click.option("--keep", type=float, required=True, help="Fraction of its units that each axis keeps, such as 0.5.")
@click.option("--axis", "axes", multiple=True, help="Prune only axes of this name or pattern (repeat); default: all.")
@click.option("--out", type=FOLDER, help="Folder to write to; default: FOLDER/pruned-KEEP.")
def prune_command(folder: Path, keep: float, axes: tuple[str, ...], out: Path | None) -> None:
    """Write a smaller model with the strongest units of the trained model of the run in FOLDER.

    Torch alone loads its model.pt2, and skerry.load its folder (docs/pruning.md).
    """
    out = out or folder / f"pruned-{keep:g}"
    with warnings_in_one_line():
        pruned = prune_run(folder, out, dict.fromkeys(axes, keep) if axes else keep)
    for axis, (left, num) in pruned.axes.items():
        click.echo(f"{axis}: {left} of {num} units")
    before, after = pruned.parameters
    click.echo(f"{out}: {after:,} of {before:,} parameters")


@click.command(name="predict")
@click.argument("folder", type=FOLDER)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def predict_command(folder: Path, file: Path) -> None:
    """Print what the model of the run in FOLDER predicts, one line for each sample in FILE (.npy).

    FILE has samples as they were stored for training, not scaled: (num_samples, ...).
    """
    try:
        samples = np.lib.format.open_memmap(file, mode="r")
    except ValueError as error:
        raise ValueError(f"{file}: expected an array as numpy.save writes it") from error
    with warnings_in_one_line():
        predictor = load(folder)
    for found in predictor.predict(samples):
        click.echo(" ".join(map(str, np.atleast_1d(found))))


@click.command(name="generate")
@click.argument("folder", type=FOLDER)
@click.argument("prompt")
@click.option("--tokens", type=int, default=200, show_default=True, help="How many to add to the prompt.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the most likely token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random choice.")
def generate_command(folder: Path, prompt: str, tokens: int, temperature: float, seed: int) -> None:
    """Print PROMPT and how the language model of the run in FOLDER goes on with it."""
    with warnings_in_one_line():
        predictor = load(folder)
    click.echo(generate(predictor, prompt, tokens=tokens, temperature=temperature, seed=seed))
