"""Commands that show runs: ``skerry report``, ``status`` and ``results``."""

from collections.abc import Sequence
from pathlib import Path

import click

from skerry.experiments.cli.options import FOLDER
from skerry.experiments.recipes import RECIPES
from skerry.experiments.reports.comparison import Group, grouped, load_runs, to_markdown, to_rich
from skerry.experiments.reports.html import write_report
from skerry.experiments.reports.results_page import write_results
from skerry.experiments.reports.status import status


def print_report(out: Path) -> None:
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


@click.command(name="report")
@click.argument("folder", type=FOLDER)
@click.option("--markdown", is_flag=True, help="Only print the table, as Markdown.")
def report_command(folder: Path, markdown: bool) -> None:
    """Write report.html for the run in FOLDER, or for all runs below it, and print their table."""
    if not markdown:
        print_report(folder)
        return
    groups = grouped(load_runs(folder))
    click.echo(to_markdown([row for row, _ in groups]))
    _print_folders(groups)


@click.command(name="status")
@click.argument("folder", type=FOLDER)
def status_command(folder: Path) -> None:
    """Show the progress of the run in FOLDER: round, workers and their speeds, processes lost, and the time left."""
    for line in status(folder):
        click.echo(line)


@click.command(name="results")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The page to write, for example docs/results.md.")
def results_command(folder: Path, out: Path) -> None:
    """Write a page of results, with pictures, from the runs in FOLDER/RECIPE/."""
    about = {name: (recipe().summary, recipe().paper) for name, recipe in RECIPES.items()}
    click.echo(f"{out}: {', '.join(write_results(folder, out, about))}")
