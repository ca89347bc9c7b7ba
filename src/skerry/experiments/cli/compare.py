"""``skerry compare``: a recipe with several methods."""

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import click

from skerry.choose import choose
from skerry.experiments.cli.options import given_settings, run_options
from skerry.experiments.cli.report import print_report
from skerry.experiments.cli.start import start
from skerry.experiments.methods import METHODS, takes
from skerry.experiments.recipes import find_recipe
from skerry.experiments.runs.execute import configure
from skerry.experiments.runs.folder import check_folder, is_finished
from skerry.runtimes.distributed.launch import WorkerDied
from skerry.training.phases.exchange_phase import TrainingFailed

COMPARED = ("ist", "relay", "narrow", "ensemble")
"""The methods that ``compare`` runs by default, as far as the recipe supports them."""


@click.command(name="compare")
@click.argument("recipe")
@click.option("--methods", help=f"Of {', '.join(METHODS)}; comma-separated. Default: {','.join(COMPARED)}.")
@click.option("--seeds", help="Comma-separated seeds; every method runs once with each.")
@run_options
def compare_command(
    recipe: str,
    methods: str | None,
    seeds: str | None,
    settings: tuple[str, ...],
    out: Path,
    resume: bool,
    **options: Any,
) -> None:
    """Train RECIPE with several methods and compare them in one table and one report.

    With the recipe's own settings each method costs a worker the same number of operations; otherwise a line below the
    table says so. Prefix a setting with a method to change it for that method only: --set local_sgd.local_steps=230.
    With --resume, finished methods are kept. If a method fails, or does not fit the model, the error is printed and the
    others still run.
    """
    built = find_recipe(recipe)
    if methods is None:
        chosen = [name for name in dict.fromkeys([built.config.method, *COMPARED]) if name in built.methods]
    else:
        chosen = [choose(name.strip(), METHODS, "method") for name in methods.split(",") if name.strip()]
    try:
        repeats = [int(s) for s in seeds.split(",")] if seeds else [None]
    except ValueError:
        raise ValueError(f"--seeds {seeds}: expected whole numbers, for example 0,1,2") from None
    given = given_settings(options, settings)
    if "RANK" in os.environ:
        raise ValueError("compare does not run under torchrun: methods differ in workers; use --runtime processes")
    _check_settings(given, chosen, seeds)
    runs = []
    for method, seed in product(chosen, repeats):
        own = {k.removeprefix(f"{method}."): v for k, v in given.items() if _applies(k, method)}
        name = method if seed is None else f"{method}-seed{seed}"
        runs.append((configure(recipe, method, own if seed is None else own | {"seed": seed}), out / name))
    for config, folder in runs:
        check_folder(folder, config, resume=resume and (folder / "config.json").exists())
    failed: list[Exception] = []
    for config, folder in runs:
        if not is_finished(folder, config):
            try:
                start(config, folder, resume=(folder / "config.json").exists())
            except (TrainingFailed, WorkerDied, ValueError) as error:
                if isinstance(error, ValueError) and folder == runs[0][1]:
                    raise  # more likely of the recipe than of the method
                failed.append(error)
                click.echo(f"{folder.name}: {error}", err=True)
    if len(failed) < len(runs):
        print_report(out)
    if failed:
        raise failed[0]


def _check_settings(given: Mapping[str, Any], methods: list[str], seeds: str | None) -> None:
    """Raise ValueError for a setting of ``compare`` that would have no effect."""
    for name in given:
        prefix = name.split(".")[0]
        if prefix in METHODS and prefix not in methods:
            raise ValueError(f"{name}: '{prefix}' is not among the --methods")
        if not any(_applies(name, method) for method in methods):
            raise ValueError(f"{name}: none of the --methods uses it; leave it out")
        if seeds and name.split(".")[-1] == "seed":
            raise ValueError(f"{name}: given beside --seeds, expected one of the two")


def _applies(setting: str, method: str) -> bool:
    """Whether ``compare`` passes ``setting`` on to ``method``."""
    prefix = setting.split(".")[0]
    if prefix in METHODS:
        return prefix == method
    if not takes(method, setting) and any(takes(other, setting) for other in METHODS):
        return False  # a setting that no method takes is a mistake, which ``configure`` reports
    return not (method == "single" and prefix == "workers")
