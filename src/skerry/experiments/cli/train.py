"""``skerry train``: one run of a recipe."""

import os
from pathlib import Path
from typing import Any

import click

from skerry.experiments.cli.elastic import Members, join
from skerry.experiments.cli.options import given_settings, run_options
from skerry.experiments.cli.report import print_report
from skerry.experiments.cli.start import start
from skerry.experiments.methods import METHODS
from skerry.experiments.recipes import RECIPES, find_recipe
from skerry.experiments.runs.execute import configure
from skerry.experiments.runs.folder import saved_config


@click.command(name="train")
@click.argument("recipe", required=False)
@click.option("--method", help=f"One of {', '.join(METHODS)}; default: the recipe's own.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events to OUT/tensorboard.")
@click.option("--elastic", metavar="MIN:MAX", help="Take part with other processes, which may come and go.")
@click.option("--store", metavar="HOST:PORT", help="Where they meet: the address that `skerry store` serves.")
@click.option(
    "--patience",
    type=float,
    help="Seconds to wait while fewer than MIN processes take part (with --elastic). Default: 300.",
)
@click.option(
    "--late", type=float, help="Leave out who ends a round so many seconds later (--elastic, 3 or more processes)."
)
@click.option("--by-speed", is_flag=True, help="Give faster processes wider subnets (with --elastic).")
@run_options
def train_command(
    recipe: str | None,
    method: str | None,
    tensorboard: bool,
    elastic: str | None,
    store: str | None,
    patience: float | None,
    late: float | None,
    by_speed: bool,
    settings: tuple[str, ...],
    out: Path,
    resume: bool,
    **options: Any,
) -> None:
    """Train RECIPE and write metrics, checkpoints and a report to --out.

    RECIPE is a name, or your own: my_module:function or my_file.py:function (docs/cli.md).

    Names: fashion-mlp, mnist-mlp, digits-mlp, speech-mlp2, speech-mlp3, depends-xc, vgg-cifar, resnet18-cifar,
    loft-cifar, resist-cifar, skewed-mlp, skewed-resnet, gpt-shakespeare, llama-docs, gist-cora, gist-citeseer,
    gist-wordnet, gist-wordnet-wide, async-fashion, private-fashion. --set changes any setting in the config.json of
    --out, such as
    local_steps=100, partition.reshuffle=.1, 'partition.capacities=[1,1,2,4]', optimizer.name=AdamW, split=by_label,
    prior_adjusted=true. Quote lists: brackets mean something to the shell.

    Started by torchrun (torchrun --standalone --nproc-per-node 4 -m skerry train ...), it runs as one of the workers.
    """
    given = given_settings(options, settings)
    members = None
    if elastic is not None:
        members = Members.of_options(elastic, store, 300.0 if patience is None else patience, late, by_speed=by_speed)
        if told := next((name for name in ("workers", "runtime") if name in given), None):
            raise ValueError(f"--{told}: the processes of an elastic run are its workers; leave it out")
        given |= {"workers": members.maximum, "runtime": "processes"}
    for option, value in (("store", store), ("patience", patience), ("late", late), ("by-speed", by_speed or None)):
        if elastic is None and value is not None:
            raise ValueError(f"--{option}: only with --elastic MIN:MAX")
    if recipe is not None:
        find_recipe(recipe)
    other_machine = int(os.environ.get("RANK", 0)) > 0 and recipe is not None and not (out / "config.json").exists()
    if resume and not other_machine:  # without a file of its own, a process's settings are compared with the others'
        config = saved_config(out)
        if by_speed:  # the saved ones are those of processes that were there then
            config = config.change({"partition.capacities": None})
        if recipe not in (None, config.recipe):
            raise ValueError(f"{out}: the saved run is of {config.recipe}, got {recipe}; resume with that recipe")
        if method not in (None, config.method):
            raise ValueError(f"{out}: the saved run is of method {config.method}, got {method}; choose another --out")
        if given.get("runtime", config.runtime) != config.runtime:
            given = {"threads": 0, **given}  # the saved number was chosen for the other runtime
        config = config.change(_one_per_process(config.method) | given)
    elif recipe is None:
        raise ValueError(f"RECIPE is missing; known: {', '.join(RECIPES)}")
    else:
        method = method or find_recipe(recipe).config.method
        config = configure(recipe, method, _one_per_process(method) | given)
    wrote = int(os.environ.get("RANK", 0)) == 0
    if members is not None:
        wrote = join(config, out, members, resume=resume, tensorboard=tensorboard)
    else:
        start(config, out, resume=resume, tensorboard=tensorboard)
    if wrote:
        print_report(out)


def _one_per_process(method: str) -> dict[str, Any]:
    """Return the number of workers that torchrun has started processes for, as a setting; nothing without torchrun."""
    num = os.environ.get("WORLD_SIZE")
    return {} if num is None or method == "single" else {"workers": int(num)}
