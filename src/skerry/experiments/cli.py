"""The command line: the only place where names become runs."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from skerry.choose import choose
from skerry.experiments import datasets as data_room
from skerry.experiments import theory as theory_room
from skerry.experiments.config import Config, parse_settings
from skerry.experiments.methods import METHODS, takes
from skerry.experiments.recipes import RECIPES
from skerry.experiments.reports.comparison import comparison, load_runs, to_markdown, to_rich
from skerry.experiments.reports.html import write_report
from skerry.experiments.reports.results_page import write_results
from skerry.experiments.runs import execute as experiment
from skerry.experiments.runs.folder import check_folder, saved_config
from skerry.experiments.runs.progress import RunProgress
from skerry.runtimes.distributed.launch import WorkerDied, launch
from skerry.runtimes.distributed.processes import PeerLost, Processes
from skerry.runtimes.runtime import Runtime
from skerry.runtimes.serial import Serial
from skerry.training.diagnosis.theory_warnings import TheoryWarning
from skerry.training.phases.exchange_phase import TrainingFailed

_TOLD = (ValueError, OSError, TrainingFailed, PeerLost, WorkerDied)


COMPARED = ("ist", "relay", "narrow", "ensemble")
"""What ``compare`` shows by default, of those that the recipe has."""


def entry() -> None:
    """The ``skerry`` command."""
    code, message = call(sys.argv[1:])
    if message:
        print(f"skerry: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: in a process group that lost a member, gloo's destructors may wait for it.
    os._exit(code)


def call(arguments: list[str]) -> tuple[int, str]:
    """Run one command; return the exit code and what to tell: whatever a user can mend in one line, no traceback."""
    try:
        main(arguments, prog_name="skerry", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130, "interrupted; go on with --resume if it had begun"
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        return error.exit_code, f"error: {error.format_message()}"
    except _TOLD as error:
        told = " ".join([str(error), *getattr(error, "__notes__", [])])
        return 1, f"error: {told}" if isinstance(error, WorkerDied) else f"error: {' '.join(told.split())}"
    return 0, ""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="skerry")
def main() -> None:
    """Train one wide PyTorch network as many narrow, independent ones.

    A first try, a few seconds: skerry train digits-mlp --out runs/first
    """


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that ``train`` and ``compare`` have in common."""
    options = [
        click.option("--workers", type=int, help="Number of workers."),
        click.option(
            "--runtime", type=click.Choice(["serial", "processes"]), help="All in this process, or a process a worker."
        ),
        click.option("--seed", type=int, help="Seed of everything random."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change any setting, e.g. optimizer.lr=0.3."
        ),
        click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for all files of the run."),
        click.option("--resume", is_flag=True, help="Go on with what is in --out."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("recipe", required=False)
@click.option("--method", default=None, help=f"{', '.join(METHODS)}; default: the recipe's.")
@click.option("--rounds", type=int, help="Number of rounds.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events to OUT/tensorboard.")
@_shared_options
def train(
    recipe: str | None,
    method: str | None,
    rounds: int | None,
    tensorboard: bool,
    workers: int | None,
    runtime: str | None,
    seed: int | None,
    settings: tuple[str, ...],
    out: Path,
    resume: bool,
) -> None:
    """Train RECIPE and write metrics, checkpoints and a report to --out.

    Recipes: fashion-mlp, mnist-mlp, digits-mlp, speech-mlp2, speech-mlp3, depends-xc, vgg-cifar, resnet18-cifar,
    resist-cifar, skewed-mlp, skewed-resnet. The settings that --set takes are those of config.json in --out, such
    as local_steps=100, partition.reshuffle=1, partition.capacities=[1,1,2,4], optimizer.name=AdamW, split=by_label,
    prior_adjusted=true.

    Started by torchrun (torchrun --standalone --nproc-per-node 4 -m skerry train ...) it is one of the workers.
    """
    given = _given({"workers": workers, "runtime": runtime, "seed": seed, "rounds": rounds}, settings)
    if recipe is not None:
        choose(recipe, RECIPES, "recipe")
    if resume:
        config = saved_config(out)
        if recipe not in (None, config.recipe):
            raise ValueError(f"{out}: the saved run is of {config.recipe}, got {recipe}; resume with that recipe")
        if method not in (None, config.method):
            raise ValueError(f"{out}: the saved run is of method {config.method}, got {method}; choose another --out")
        if given.get("runtime", config.runtime) != config.runtime:
            given = {"threads": 0, **given}  # those of the new runtime
        config = config.change(given)
    elif recipe is None:
        raise ValueError(f"RECIPE is missing; known: {', '.join(RECIPES)}")
    else:
        if "WORLD_SIZE" in os.environ and method != "single":
            given = {"workers": int(os.environ["WORLD_SIZE"]), **given}  # one worker a process
        config = experiment.configure(recipe, method or RECIPES[recipe]().config.method, given)
    _start(config, out, resume=resume, tensorboard=tensorboard)
    if int(os.environ.get("RANK", 0)) == 0:
        _conclude(out)


@main.command()
@click.argument("recipe")
@click.option("--methods", help=f"Of {', '.join(METHODS)}; comma-separated. Default: ist,relay,narrow,ensemble.")
@click.option("--seeds", default=None, help="Seeds, comma-separated, to repeat every method with.")
@click.option("--rounds", type=int, help="Number of rounds, the same for all: operations are then not equal.")
@_shared_options
def compare(
    recipe: str,
    methods: str | None,
    seeds: str | None,
    rounds: int | None,
    workers: int | None,
    runtime: str | None,
    seed: int | None,
    settings: tuple[str, ...],
    out: Path,
    resume: bool,
) -> None:
    """Train RECIPE by several methods; one table, one report.

    With the recipe's own settings all cost a worker the same operations; where they do not, a line says so. A setting
    for one method only is named with the method: --set local_sgd.local_steps=230. With --resume, methods that are done
    are kept. A method whose training fails is told of, and the others go on.
    """
    if methods is None:
        built = RECIPES[choose(recipe, RECIPES, "recipe")]()
        by_default = dict.fromkeys([built.config.method, *COMPARED])
        methods = ",".join(method for method in by_default if method in built.methods)
    chosen = [choose(m.strip(), METHODS, "method") for m in methods.split(",") if m.strip()]
    try:
        repeats = [int(s) for s in seeds.split(",")] if seeds else [None]
    except ValueError:
        raise ValueError(f"--seeds {seeds}: expected whole numbers, for example 0,1,2") from None
    given = _given({"workers": workers, "runtime": runtime, "seed": seed, "rounds": rounds}, settings)
    if "RANK" in os.environ:
        raise ValueError("compare under torchrun: methods differ in workers; start it plainly with --runtime processes")
    for name in given:
        if name.split(".")[0] in METHODS and name.split(".")[0] not in chosen:
            raise ValueError(f"{name}: '{name.split('.')[0]}' is not among the --methods")
        if not any(_is_for(name, method) for method in chosen):
            raise ValueError(f"{name}: none of the --methods has a use for it; leave it out")
        if seeds and name.split(".")[-1] == "seed":
            raise ValueError(f"{name}: given beside --seeds, expected one of the two")
    runs = []
    for method in chosen:
        for repeat in repeats:
            own = {k: v for k, v in given.items() if _is_for(k, method)}
            own = {k.removeprefix(f"{method}."): v for k, v in own.items()}
            if repeat is not None:
                own["seed"] = repeat
            folder = out / (method if repeat is None else f"{method}-seed{repeat}")
            runs.append((experiment.configure(recipe, method, own), folder))
    for config, folder in runs:
        check_folder(folder, config, resume=resume and (folder / "config.json").exists())
    failed: list[Exception] = []
    for config, folder in runs:
        if not (folder / "summary.json").exists():
            try:
                _start(config, folder, resume=(folder / "config.json").exists())
            except (TrainingFailed, WorkerDied) as error:  # of this method; the others are still worth a table
                failed.append(error)
                click.echo(f"{folder.name}: {error}", err=True)
    if len(failed) < len(runs):
        _conclude(out)
    if failed:
        raise failed[0]


@main.command()
def recipes() -> None:
    """List the recipes: what each trains, and with which methods."""
    for name, make in RECIPES.items():
        recipe = make()
        click.echo(f"{name}: {recipe.summary}\n    {', '.join(recipe.methods)}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The page, for example docs/results.md.")
def results(folder: Path, out: Path) -> None:
    """Write a page of results, with pictures, from the runs in FOLDER/RECIPE/."""
    about = {name: (recipe().summary, recipe().paper) for name, recipe in RECIPES.items()}
    written = write_results(folder, out, about)
    click.echo(f"{out}: {', '.join(written)}")


def _given(options: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """The settings given by options of their own and by --set; one may not be given both ways."""
    given = {name: value for name, value in options.items() if value is not None}
    by_set = parse_settings(settings)
    for name in set(given) & set(by_set):
        raise ValueError(f"--set {name}: given by --{name} too, expected once")
    return given | by_set


def _is_for(setting: str, method: str) -> bool:
    """Whether a setting given to ``compare`` is for ``method``."""
    first = setting.split(".")[0]
    if first in METHODS:
        return first == method
    if not takes(method, setting) and any(takes(other, setting) for other in METHODS):
        return False  # a setting that is nobody's is a mistake, which configuring tells
    return not (method == "single" and first == "workers")


def _start(config: Config, out: Path, *, resume: bool, tensorboard: bool = False) -> None:
    """Run ``config`` where it belongs: in this process, in new ones, or as the process torchrun made us."""
    under_torchrun = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    if under_torchrun:
        config = config.change({"runtime": "processes"})
    threads = experiment.num_threads(config)
    config = config.change({"threads": threads})  # kept, so that a resumed part adds up in the same order
    torch.set_num_threads(threads)
    if under_torchrun:
        runtime = Processes.join(config.timeout_s, wire=config.wire)
        _work(runtime, config, out, resume, tensorboard)
        runtime.close()
        return
    check_folder(out, config, resume=resume)
    if config.runtime == "serial":
        click.echo(f"{config.workers} worker(s) in this process, {threads} torch thread(s)", err=True)
        _work(Serial(), config, out, resume, tensorboard)
        return
    cores = experiment.num_cores()
    told = f"{config.workers} processes with {threads} torch thread(s) each on {cores} cores"
    click.echo(f"starting {told}; this takes some seconds", err=True)
    launch(
        _work, config.workers, config, out, resume, tensorboard,
        threads=threads, timeout_s=config.timeout_s, wire=config.wire, expected=_TOLD,
    )  # fmt: skip


def _work(runtime: Runtime, config: Config, out: Path, resume: bool, tensorboard: bool) -> None:
    """What each process of a run does."""
    if runtime.rank != 0:
        experiment.run(config, out, runtime, resume=resume)
        return
    if runtime.num_processes > 1:
        click.echo(f"all {runtime.num_processes} processes have joined", err=True)
    with RunProgress(f"{config.recipe} {config.method}", config.rounds) as progress:
        hooks = [progress.on_round]
        if tensorboard:
            from skerry.experiments.runs.tensorboard import Events

            hooks.append(Events(out / "tensorboard").on_round)

        def on_round(record: Any, state: Any) -> None:
            for hook in hooks:
                hook(record, state)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TheoryWarning)  # the progress says it
            experiment.run(config, out, runtime, resume=resume, on_round=on_round)


def _conclude(out: Path) -> None:
    """Print the table and the path of the report."""
    from rich.console import Console

    rows = comparison(load_runs(out))
    Console().print(to_rich(rows))
    spent = [row.flop for row in rows if row.flop > 0]
    if spent and max(spent) > 1.2 * min(spent):
        click.echo(f"Not at equal operations: {min(spent) / 1e12:.3g} to {max(spent) / 1e12:.3g} TFLOP a worker.")
    click.echo("bytes due: what had to change hands, a worker; memory: to train a worker's subnet;")
    click.echo("outside: the part of the time not spent in local steps. All columns are explained in the report.")
    click.echo(f"report: {write_report(out)}")


@main.command(name="export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to write; default: FOLDER/export.")
@click.option(
    "--shard-mb", type=float, default=256.0, show_default=True, help="Most of a file, but for larger tensors."
)
def export_command(folder: Path, out: Path | None, shard_mb: float) -> None:
    """Write the full model of the last checkpoint of the run in FOLDER, calibrated, as safetensors.

    It needs the memory of one file, or of the largest tensor, whatever the size of the model.
    """
    out = out or folder / "export"
    round = experiment.export_run(folder, out, shard_bytes=int(shard_mb * 2**20))
    click.echo(f"{out}: the model after round {round}")


@main.command(name="report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
def report_command(folder: Path, markdown: bool) -> None:
    """Write report.html for the run, or the folder of runs, in FOLDER, and print its table."""
    if markdown:
        click.echo(to_markdown(comparison(load_runs(folder))))
    else:
        _conclude(folder)


@main.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/theory"),
    show_default=True,
    help="Folder for the pictures, NAME.png each.",
)
def theory(name: str | None, markdown: bool, out: Path) -> None:
    """Check the theorem NAME, or all: bound, what a simulation measures, and whether it holds.

    Names are those of the pictures, and in docs/theory.md, which says what they are about. Each takes seconds to a
    minute; a claim that does not hold is an error.
    """
    from rich.console import Console

    chosen = list(theory_room.THEOREMS) if name is None else [choose(name, theory_room.THEOREMS, "theorem")]
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    findings = {}
    for each in chosen:
        started = time.perf_counter()
        findings[each] = theory_room.THEOREMS[each]()
        theory_room.draw(findings[each], out / f"{each}.png")
        click.echo(f"{each}: {time.perf_counter() - started:.0f} s", err=True)
    if markdown:
        click.echo(theory_room.to_markdown(findings))
    else:
        Console().print(theory_room.to_rich(findings))
    for each, finding in findings.items():
        for note in finding.notes:
            click.echo(f"{each}: {note}")
    click.echo(f"pictures: {out}", err=True)
    failed = [each for each, finding in findings.items() if not finding.holds]
    if failed:
        raise ValueError(f"claims that do not hold: {', '.join(failed)}; see the rows that say no")


@main.group(name="data")
def data_command() -> None:
    """Get the real data sets that recipes use."""


@data_command.command()
@click.argument("name")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Folder with the four IDX files, plain or .gz.")
def fetch(name: str, source: Path | None) -> None:
    """Get NAME (fashion-mnist, mnist), check it and keep it in the cache. Needs no root."""
    data_room.fetch(name, source=source, say=click.echo)
