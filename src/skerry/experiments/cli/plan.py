"""``skerry plan``: what can be dealt out of a model, and what each method would cost on a given link and memory."""

import re
from collections.abc import Mapping, Sequence

import click
import torch

from skerry.choose import choose
from skerry.experiments import planner
from skerry.experiments.config import Config, parse_settings
from skerry.experiments.methods import METHODS
from skerry.experiments.planner import Forecast

PLANNED = ("ist", "relay", "narrow", "local_sgd")
"""The methods that are planned by default, as far as a recipe has them."""


@click.command(name="plan")
@click.argument("reference", metavar="MODEL")
@click.option("--workers", type=int, help="Number of workers.")
@click.option("--link", default="1gbit", show_default=True, help="Each worker's link: kbit, mbit or gbit per second.")
@click.option("--memory", help="Memory of each worker, such as 2GB; methods that do not fit are refused.")
@click.option(
    "--elastic", is_flag=True, help="Include the cost of elastic runs: the backup copies that processes keep and send."
)
@click.option("--methods", help=f"Of {', '.join(METHODS)}; comma-separated. Default: {','.join(PLANNED)} and its own.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. local_steps=100.")
def plan_command(
    reference: str,
    workers: int | None,
    link: str,
    memory: str | None,
    elastic: bool,
    methods: str | None,
    settings: tuple[str, ...],
) -> None:
    """Say what can be dealt out of MODEL, and what a round costs with several methods.

    MODEL is my_module:function or my_file.py:function, which returns a model and example inputs (net, torch.randn(8,
    64)) or a recipe; or the name of a recipe. The model may be on torch's meta device: nothing of its size is
    allocated. Nothing is trained. It is an error if no method fits into --memory.
    """
    rate, most = _amount("link", link, _BITS), _amount("memory", memory, _BYTES) if memory else None
    given = parse_settings(settings) | ({} if workers is None else {"workers": workers})
    about = planner.subject(reference)
    chosen = [choose(name.strip(), METHODS, "method") for name in (methods or "").split(",") if name.strip()]
    own = about.recipe.config.method
    chosen = chosen or [name for name in dict.fromkeys((*PLANNED, own)) if name in about.recipe.methods]
    config = about.config(chosen[0], given)
    model, plan, _, _ = about.job(config)
    for line in [str(plan), *plan.warnings(config.workers)]:
        click.echo(line)
    size = sum(parameter.nbytes for parameter in model.parameters())
    click.echo(
        f"\n{reference}: {_in_words(size)} of parameters, {config.workers} workers, {link} links, {_optimizer(config)}"
    )
    found, why_not = planner.forecasts(about, chosen, given, elastic=elastic)
    if found:
        _print_table(found, rate)
    for method, why in why_not.items():
        click.echo(f"{method}: not possible: {why}")
    too_much = {f.method: f.memory.peak - most for f in found if most is not None and f.memory.peak > most}
    for method, more in too_much.items():
        click.echo(f"{method}: does not fit into {memory}: {_in_words(more)} too much")
    if advised := planner.advice([f for f in found if f.method not in too_much], why_not):
        click.echo(f"advised: {advised}")
    if not found:
        raise ValueError(f"{reference}: none of {', '.join(chosen)} is possible; the lines above say why")
    if len(too_much) == len(found):
        least = min(found, key=lambda f: f.memory.peak)
        raise ValueError(
            f"{reference}: nothing fits into {memory} per worker: {least.method} needs {_in_words(least.memory.peak)}, "
            f"{_in_words(too_much[least.method])} too much; use more workers, a smaller batch or a narrower model"
        )


def _print_table(found: Sequence[Forecast], bits_per_s: float) -> None:
    """Print a row per method, and how the seconds were found."""
    rows: list[tuple[str, ...]] = [
        ("method", "local steps", "sent, MB", "memory, MB", "local steps, s", "exchange, s", "round, s", "seen")
    ]
    for f in found:
        exchange_s = 8 * f.busiest / bits_per_s
        figures = f.sent / 1e6, f.memory.peak / 1e6, f.local_s, exchange_s, f.local_s + exchange_s
        cells = [f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in figures]
        rows.append((f.method, str(f.config.local_steps), *cells, "-" if f.exposure is None else f"{f.exposure:.0%}"))
    wide = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, wide, strict=True))
        click.echo("  ".join([first.strip().ljust(wide[0]), *others]))
    click.echo("sent: per worker and round; memory: of a worker's process, beyond that of an idle one;")
    click.echo("seen: units that one worker has held by the end, at most (docs/exposure.md);")
    click.echo("exchange: the busiest worker's bytes over its link; how a step's seconds were found:")
    threads = torch.get_num_threads()
    for f in found:
        how = f"measured on this machine, {threads} torch thread(s)"
        if not f.step_measured:
            how = f"at least: {f.memory.step.flop / 1e12:.3g} TFLOP at {f.rate / 1e9:.3g} GFLOP/s (matrix product)"
        click.echo(f"  {f.method}: {f.step_s:.3g} s, {how}")


def _optimizer(config: Config) -> str:
    return ", ".join(f"{value}" if name == "name" else f"{name}={value}" for name, value in config.optimizer.items())


def _in_words(num_bytes: float) -> str:
    unit, size = next((u, s) for u, s in [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)] if num_bytes >= s or u == "kB")
    return f"{num_bytes / size:.3g} {unit}"


_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BYTES = {"MB": 1e6, "GB": 1e9, "MiB": 2**20, "GiB": 2**30}


def _amount(option: str, text: str, units: Mapping[str, float]) -> float:
    """Return an amount such as 100mbit."""
    match = re.fullmatch(rf"([0-9.]+)\s*({'|'.join(units)})", text.strip(), re.IGNORECASE)
    by_lower = {unit.lower(): size for unit, size in units.items()}
    try:
        amount = float(match[1]) * by_lower[match[2].lower()] if match else 0.0
    except ValueError:
        amount = 0.0
    if not amount:
        raise ValueError(f"--{option} {text}: expected a number and one of {', '.join(units)}, such as 2{[*units][1]}")
    return amount
