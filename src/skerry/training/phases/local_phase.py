"""The local phase: a worker gets its subnet and optimizer, takes its local steps, and hands its tensors over."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from skerry.checkpoint.state import State
from skerry.merge.aggregate import is_finite
from skerry.model import optimizer_state
from skerry.model.tensors import named_tensors
from skerry.plan.table import Plan
from skerry.randomness import own_random_state, seed_of
from skerry.runtimes.runtime import Handover, Report
from skerry.training.check import check_optimizer
from skerry.training.setup import Setup
from skerry.training.steps.optimizer import optimizer_of
from skerry.training.steps.prepared import prepared
from skerry.training.worker import Worker

SCALER = "::scaler::"
"""The prefix of names of what a worker keeps for the scaler of its loss; no parameter's name begins so."""
_OF_SCALER = ("scale", "_growth_tracker")


@contextmanager
def lend_worker(setup: Setup, state: State, number: int, num_steps: int, handed: list[Handover]) -> Iterator[Worker]:
    """Lend a worker for its local steps of the next round, with a random state of its own for torch.

    Args:
        setup: of the session.
        state: of the training, before the round.
        number: the worker's.
        num_steps: how many local steps it takes.
        handed: gets what the worker hands over, unless an exception ends its steps.
    """
    algorithm, store, round = setup.algorithm, setup.store, state.round
    setup.runtime.at(round, "local steps")
    subnet, travelled = store.subnet(number)
    optimizer = optimizer_of(setup.optimizer, subnet)
    check_optimizer(optimizer, subnet)
    kept = store.kept.get(number, {})
    to_keep = algorithm.outer.begin(subnet, kept) if algorithm.outer else {}
    if algorithm.optimizer_state != "reset":
        own = {name: t for name, t in kept.items() if not name.startswith(optimizer_state.SEPARATOR)}
        optimizer_state.load_(optimizer, subnet, {**travelled, **own})
    if not algorithm.overlap:  # a run resumed without overlap after a round with it
        _add_late_means_(setup, number, subnet)

    def on_step(worker: Worker, num_done: int) -> None:
        if num_done == algorithm.overlap:
            _add_late_means_(setup, number, worker.narrow)

    scaler = _scaler(setup, kept)
    client, first_step = setup.turn(state, number)
    private = setup.private
    seed = seed_of(setup.seed, "local", number, round) if private is None else private.seed(client, round)
    with (
        prepared(subnet, setup.steps, setup.device),
        own_random_state(seed, setup.device),
    ):
        worker = Worker(
            subnet,
            optimizer,
            setup.rates(optimizer, round)[:num_steps],
            number=number,
            round=round,
            settings=setup.steps,
            scaler=scaler,
            around=setup.runtime.synchronized(subnet) if algorithm.synchronous else None,
            on_step=on_step,
            client=client,
            first_step=first_step,
            private=None if private is None else private.gradient(subnet, client, round),
            proximal=algorithm.proximal,
        )
        yield worker
    worker.finish()
    if scaler is not None:
        to_keep |= {f"{SCALER}{key}": torch.tensor(scaler.state_dict()[key]) for key in _OF_SCALER}
    handed.append(_hand_over(setup, worker, subnet, optimizer, to_keep))


def _hand_over(
    setup: Setup, worker: Worker, subnet: nn.Module, optimizer: torch.optim.Optimizer, to_keep: dict[str, Tensor]
) -> Handover:
    """Return what a worker hands over after its local steps; store what it keeps for itself."""
    algorithm, tensors = setup.algorithm, named_tensors(subnet)
    if algorithm.optimizer_state == "travel":
        tensors |= optimizer_state.read(optimizer, subnet, setup.state_start)
        _check_state_can_be_cut(setup.plan, tensors)
    stays = algorithm.optimizer_state == "stay"
    own = optimizer_state.read(optimizer, subnet, setup.state_start) if stays else {}
    watched = {n: t for n, t in (tensors | own).items() if optimizer_state.parameter_of(n) not in setup.never_finite}
    good = not worker.failed and is_finite(watched)
    if good:
        to_keep |= own  # the optimizer of a refused worker starts afresh
        if algorithm.outer:
            algorithm.outer.end_(subnet, to_keep)
    setup.store.kept[worker.number] = to_keep
    if algorithm.by_samples and worker.num_samples < 1:
        raise ValueError(f"{worker.where}: by_samples=True needs worker.num_samples, how many its data has; set it")
    report = Report(
        worker.number, good, worker.loss, worker.flop, worker.local_s,
        num_steps=worker.num_steps, num_samples=worker.num_samples,
    )  # fmt: skip
    return Handover(tensors, report)


def _scaler(setup: Setup, kept: Mapping[str, Tensor]) -> torch.amp.GradScaler | None:
    """Return the scaler of a worker's loss, which goes on from its last round; None with enough exponents."""
    if setup.steps.precision != "fp16":
        return None
    scaler = torch.amp.GradScaler(setup.device.type)
    if f"{SCALER}scale" in kept:
        scaler.load_state_dict(scaler.state_dict() | {key: kept[f"{SCALER}{key}"].item() for key in _OF_SCALER})
    return scaler


@torch.no_grad()
def _add_late_means_(setup: Setup, worker: int, subnet: nn.Module) -> None:
    """Add to the parameters the part of the last exchange's means that has arrived during local steps (overlap)."""
    parameters = named_tensors(subnet)
    for name, missing in setup.store.late(worker):
        parameters[name].add_(missing)


def _check_state_can_be_cut(plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for optimizer state of a dealt parameter that has dims but not the parameter's shape."""
    for name, tensor in tensors.items():
        owner, _, key = name.partition(optimizer_state.SEPARATOR)
        is_dealt = tensors[owner].shape != plan.shapes[owner]
        if key and is_dealt and tensor.dim() and tensor.shape != tensors[owner].shape:
            raise ValueError(
                f"optimizer state '{key}' of {owner} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(tensors[owner].shape)} to travel with its units; use optimizer_state='reset'"
            )
