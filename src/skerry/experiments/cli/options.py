"""Options that several commands share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from skerry.experiments.config import parse_settings


class _Folder(click.Path):
    """A path that is not empty, which would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("is empty, expected a folder", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = _Folder(path_type=Path)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
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


def given_settings(options: Mapping[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """Merge the settings given as options and by --set; giving one both ways is an error."""
    given = {name: value for name, value in options.items() if value is not None}
    by_set = parse_settings(settings)
    for name in set(given) & set(by_set):
        raise ValueError(f"--set {name}: given by --{name} too, expected once")
    return given | by_set
