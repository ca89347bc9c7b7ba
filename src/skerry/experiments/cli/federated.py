"""Training on sites from the command line: ``skerry serve`` and ``skerry join``."""

import json
import logging
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

from skerry.data.shards import Shards
from skerry.experiments.cli.elastic import host_and_port
from skerry.experiments.cli.options import FOLDER, given_settings, run_options
from skerry.experiments.cli.report import print_report
from skerry.experiments.cli.start import how_it_goes_on, warnings_in_one_line, work
from skerry.experiments.config import Config, parse_settings
from skerry.experiments.methods import build
from skerry.experiments.recipes import RECIPES, find_recipe
from skerry.experiments.recipes.own import own_object
from skerry.experiments.runs.execute import arguments_of, configure, num_threads
from skerry.experiments.runs.folder import check_folder, saved_config
from skerry.partitions.capacities import with_capacities
from skerry.partitions.disjoint import Disjoint
from skerry.training.priors import log_priors
from skerry.training.session import Session

CERTIFICATE, KEY, SITES = "server.pem", "server.key", "sites"
_PARTS = re.compile(r"([0-9]+)")
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(name="serve")
@click.argument("recipe")
@click.option("--method", help="Default: the recipe's own.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:9092", show_default=True, help="Where sites dial in.")
@click.option("--insecure", is_flag=True, help="Without encryption and keys: whoever reaches the port takes part.")
@click.option("--certs", type=FOLDER, help="Folder with server.pem, server.key and sites/*.pub.")
@click.option("--deadline", type=float, default=600.0, show_default=True, help="Seconds that a round may take.")
@click.option("--patience", type=float, default=600.0, show_default=True, help="Seconds to wait for sites.")
@click.option("--at-least", type=int, default=1, show_default=True, help="The fewest sites that a round begins with.")
@click.option("--by-speed", is_flag=True, help="Subnets as large as the sites' speeds allow, measured at first.")
@run_options
def serve_command(
    recipe: str,
    method: str | None,
    listen: str,
    insecure: bool,
    certs: Path | None,
    deadline: float,
    patience: float,
    at_least: int,
    by_speed: bool,
    settings: tuple[str, ...],
    out: Path,
    resume: bool,
    **options: Any,
) -> None:
    """Train RECIPE on sites that dial in (skerry join), and write the files of the run to --out.

    There are as many sites as workers, or as --set clients=N says, of which as many as workers train in each round.
    This process never sees their data (docs/federated.md).
    """
    _need_flower()
    from skerry.federated import Federated
    from skerry.federated.fleet import Certificates, Fleet

    if insecure == (certs is not None):
        raise ValueError("expected --certs FOLDER, or --insecure for a network that you trust")
    host, port = host_and_port(f"--listen {listen}", listen)
    given = given_settings(options, settings)
    if given.get("runtime", "serial") != "serial":
        raise ValueError("--runtime: workers run on sites; leave it out")
    going_on = resume and (out / "config.json").exists()
    method = method or find_recipe(recipe).config.method
    config = saved_config(out).change(given) if going_on else configure(recipe, method, given)
    check_folder(out, config, resume=going_on)
    num = config.clients or config.workers
    fleet = Fleet(None if certs is None else _public_keys(certs / SITES, num))
    files = None if certs is None else Certificates(certs / CERTIFICATE, certs / KEY)
    threads = num_threads(config)
    config = config.change({"threads": threads})
    torch.set_num_threads(threads)
    with how_it_goes_on(out), fleet.serving(host, port, files) as served:
        click.echo(f"serving {num} site(s) at {host}:{served}; they join with: skerry join {host}:{served}", err=True)
        if by_speed and not going_on:
            config = _by_speed(config, fleet, patience)
        runtime = Federated(
            fleet.grid, deadline_s=deadline, patience_s=patience, at_least=at_least,
            numbers=fleet.numbers, job=json.dumps(config.to_json()),
        )  # fmt: skip
        work(runtime, config, out, going_on, tensorboard=False)
        runtime.sites.dismiss()
    print_report(out)


def _by_speed(config: Config, fleet: Any, patience_s: float) -> Config:
    """Return the config with the capacities, or fractions, that sites measure; a resumed run has them there."""
    from skerry.federated import measured_capacities

    if config.partition.capacities is not None:
        raise ValueError("--by-speed: partition.capacities is given; leave one of the two out")
    algorithm = build(config)
    found = measured_capacities(
        fleet.grid, algorithm, job=json.dumps(config.to_json()), numbers=fleet.numbers, patience_s=patience_s
    )
    click.echo(f"capacities of the sites, by their speeds: {', '.join(f'{each:g}' for each in found)}", err=True)
    partition = with_capacities(algorithm.partition, found)
    name = "capacities" if isinstance(partition, Disjoint) else "fractions"
    return config.change({f"partition.{name}": list(getattr(partition, name))})


@click.command(name="join")
@click.argument("address", metavar="HOST:PORT")
@click.argument("recipe", required=False)
@click.option("--data", help="my_module:function or my_file.py:function that returns this site's data.")
@click.option("--site", type=int, default=0, show_default=True, help="Which site this is, from 0.")
@click.option("--certs", "certificate", type=_FILE, help="File ca.crt that has signed the server's certificate.")
@click.option("--key", type=_FILE, help="File with this site's private key.")
@click.option("--device", default="auto", show_default=True, help="Where this site trains.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of model or data that serve has."
)
def join_command(
    address: str,
    recipe: str | None,
    data: str | None,
    site: int,
    certificate: Path | None,
    key: Path | None,
    device: str,
    settings: tuple[str, ...],
) -> None:
    """Train on this site's data what the server at HOST:PORT sends, until it is done.

    RECIPE is only needed where the server trains a recipe of your own: its code must be here, too. Nothing that the
    server sends is run, and settings of model and data, which can name files, are this site's (--set). --data returns
    a DataLoader, skerry.Shards with one part, or a pair of tensors; without it this site takes its part of the recipe's
    public data.
    """
    _need_flower()
    from skerry.federated import client_app
    from skerry.federated.join import join

    host_and_port(address, address)
    if key is not None and certificate is None:
        raise ValueError("--key: keys are for encrypted connections; give --certs ca.crt, too")
    own, given = None if data is None else own_object(data), parse_settings(settings)
    if own is None:
        click.echo("no --data: this site trains on its part of the recipe's own samples", err=True)

    def make(context: Any, job: str) -> Any:
        config = Config.from_json(json.loads(job)).change({"device": device})
        return _site(config, recipe, own, site, given)

    with warnings_in_one_line():
        join(
            address, client_app(make), certificate=certificate, key=key, node_config={"site": site},
            say=lambda text: click.echo(text, err=True),
        )  # fmt: skip


def _site(config: Config, recipe: str | None, own: Any, number: int, given: Mapping[str, Any]) -> Any:
    """Return the site that trains ``config``; ``given``: what this site sets of model and data."""
    from skerry.federated import AtSite, Site

    if recipe is None and config.recipe not in RECIPES:
        raise ValueError(
            f"the server trains {config.recipe}, which is code of somebody's own; if you have it and trust it, name "
            "it: skerry join HOST:PORT RECIPE"
        )
    if recipe not in (None, config.recipe):
        raise ValueError(f"the server trains {config.recipe}, got {recipe}")
    found = find_recipe(config.recipe)
    _check_named(config, found.config.change(found.methods.get(config.method, {})).change(given))
    torch.set_num_threads(num_threads(config.change({"threads": 0})))
    job = found.build(config)
    session = Session(job.model, loss_fn=job.loss_fn, runtime=AtSite(), **arguments_of(config, job))
    priors = None if job.logit_adjustment is None else job.logit_adjustment[number]
    if own is None:
        return Site(session, job.data, number=number, logit_adjustment=priors)
    if isinstance(own, tuple):
        x, y = own
        everything = torch.arange(len(x))
        if priors is not None:
            priors = log_priors(y, [everything], len(priors))[0]
        own = Shards(x, y, [everything], batch_size=config.batch_size, seed=config.seed)
    elif priors is not None:
        raise ValueError("--data: prior_adjusted=true needs the labels; return a pair of tensors")
    return Site(session, own, number=number, logit_adjustment=priors)


def _check_named(theirs: Config, ours: Config) -> None:
    """Raise ValueError unless model and data are this site's: they can name files here, and sizes.

    Its number of samples is told only if it says so, too.
    """
    named, own = theirs.to_json(), ours.to_json()
    differ = ["by_samples"] if named["by_samples"] and not own["by_samples"] else []
    for group in ("model", "data"):
        names = sorted(named[group].keys() | own[group].keys())
        named |= {f"{group}.{name}": named[group].get(name) for name in names}
        own |= {f"{group}.{name}": own[group].get(name) for name in names}
        differ += [f"{group}.{name}" for name in names if named[f"{group}.{name}"] != own[f"{group}.{name}"]]
    if differ:
        name, text = differ[0], json.dumps(named[differ[0]])
        raise ValueError(
            f"the server has {name}={text}, this site {json.dumps(own[name])}; if it may be so here, join with --set "
            f"'{name}={text}'"
        )


def _public_keys(folder: Path, num: int) -> list[bytes]:
    """Return the keys of the sites, in the order of the names of their files: site-2 comes before site-10."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    paths = sorted(
        folder.glob("*.pub"), key=lambda path: [int(t) if t.isdigit() else t for t in _PARTS.split(path.name)]
    )
    if len(paths) != num:
        raise ValueError(f"{folder}: {len(paths)} public keys (*.pub), expected one for each of {num} sites")
    keys = []
    for path in paths:
        key = load_ssh_public_key(path.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError(f"{path}: a key of another kind, expected one of: ssh-keygen -t ecdsa -b 384")
        keys.append(public_key_to_bytes(key))
    return keys


def _need_flower() -> None:
    if find_spec("flwr") is None:
        raise ValueError("Flower is not installed; run: pip install 'skerry[federated]'")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr.supercore.logger import console_handler

    console_handler.setLevel(logging.ERROR)
