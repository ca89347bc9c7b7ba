"""What stays the same from round to round of a session, and how it is built from a session's arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace

import torch
from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.checkpoint.checkpoints import Checkpoints
from skerry.checkpoint.state import State
from skerry.merge.aggregate import is_finite
from skerry.model import optimizer_state
from skerry.model.tensors import named_tensors, skeleton
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.randomness import seed_of
from skerry.runtimes.overlap import BEGAN
from skerry.runtimes.runtime import KEPT, RESTING, Beginning, Runtime, Store
from skerry.trained import Start
from skerry.training.schedules import Schedule
from skerry.training.worker import OptimizerFn


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the phases of every round use.

    Attributes:
        model: the modules of what is trained, on the meta device; the store keeps the values.
        plan: its plan.
        state_start: where optimizer state starts, by key (``optimizer_state.initial``); empty where it does not travel.
        never_finite: names of tensors that are not finite from the start (an attention mask of -inf), so that a
            worker is not refused for them.
        device: where subnets are trained.
    """

    model: nn.Module
    plan: Plan
    algorithm: Algorithm
    optimizer: OptimizerFn
    num_rounds: int
    schedule: Schedule
    seed: int
    runtime: Runtime
    store: Store
    state_start: Mapping[str, Tensor]
    never_finite: frozenset[str]
    device: torch.device

    def assignment(self, round: int) -> Assignment:
        """Return who holds what in ``round``; after the last round nothing is exchanged any more."""
        return self.algorithm.partition.assign(self.plan.axes, min(round, self.num_rounds - 1))

    def share(self, num_done: int) -> Tensor:
        """Return for each unit the probability that a subnet has it, after ``num_done`` rounds; (num_units,)."""
        return self.algorithm.partition.share(self.plan.axes, max(0, num_done - 1))


def net_to_train(model: nn.Module, plan: Plan, algorithm: Algorithm, seed: int = 0) -> tuple[nn.Module, Plan]:
    """Return the net that ``algorithm`` trains in the place of ``model``, and its plan.

    It has the tensors that a run exports: ``net.load_state_dict(safetensors.torch.load_file(...))``.

    Args:
        model: the full model; on meta, if its values do not matter.
        plan: its plan.
        algorithm: with the ``workers`` and ``seed`` of the run.
        seed: of the training; of the fresh values of ``narrow``.

    Returns:
        The model itself, or a narrow net (``narrow``), or ``SideBySide`` nets (``relay``, ``ensemble``); and its plan.
    """
    net, plan = algorithm.trains.net(model, plan, seed)
    return net, plan if algorithm.partition.covers else replace(plan, may_be_unassigned=True)


def set_up(
    model: nn.Module,
    plan: Plan,
    algorithm: Algorithm,
    *,
    optimizer: OptimizerFn,
    num_rounds: int,
    schedule: Schedule,
    seed: int,
    runtime: Runtime,
    start: Start | None,
    checkpoints: Checkpoints | None,
) -> tuple[Setup, State]:
    """Build the setup of a session, and its state: a new one, or that of the checkpoint to resume from.

    Raises:
        CheckpointError: the checkpoint cannot be resumed from.
        ValueError: another process has other settings.
    """
    agree_on(runtime, _settings(algorithm, num_rounds, seed, checkpoints))
    net, net_plan = net_to_train(model, plan, algorithm, seed)
    source = algorithm.trains.source(model, plan, net, start)
    state = State(0, torch.zeros(net_plan.num_units, dtype=torch.int64))
    saved = checkpoints.latest(algorithm.name, net_plan, named_tensors(net), runtime) if checkpoints else None
    if saved is not None:
        source, state = saved, saved.state
    state_start = optimizer_state.initial(optimizer) if algorithm.optimizer_state == "travel" else {}
    store = runtime.keep(
        Beginning(
            model=net,
            plan=net_plan,
            source=source,
            assignment=algorithm.partition.assign(net_plan.axes, min(state.round, num_rounds - 1)),
            start=state_start,
            state={} if saved is None else {n: t for n, t in saved.sizes.items() if optimizer_state.SEPARATOR in n},
            saved=saved,
        )
    )
    setup = Setup(
        model=skeleton(net),
        plan=net_plan,
        algorithm=algorithm,
        optimizer=optimizer,
        num_rounds=num_rounds,
        schedule=schedule,
        seed=seed,
        runtime=runtime,
        store=store,
        state_start=state_start,
        never_finite=_never_finite(store, runtime),
        device=next((p.device for p in net.parameters() if not p.is_meta), torch.device("cpu")),
    )
    return setup, state


def agree_on(runtime: Runtime, values: Mapping[str, object]) -> None:
    """Raise ValueError where another process has another value, before the processes wait for each other.

    Args:
        runtime: of all processes, each of which must give the same names.
        values: what must be the same, by name; it is compared as it is printed.
    """
    for name, value in values.items():
        runtime.agree(seed_of(name, repr(value)), name)


def _settings(algorithm: Algorithm, num_rounds: int, seed: int, checkpoints: Checkpoints | None) -> dict[str, object]:
    partition = algorithm.partition
    return {
        "algorithm.name": algorithm.name,
        "algorithm.local_steps": algorithm.local_steps,
        "algorithm.optimizer_state": algorithm.optimizer_state,
        "algorithm.overlap": algorithm.overlap,
        "algorithm.partition": partition if is_dataclass(partition) else type(partition).__name__,
        "num_rounds": num_rounds,
        "seed": seed,
        "resume": checkpoints is not None and checkpoints.resume,
        "a setting (checkpoints.run)": checkpoints.run if checkpoints else "",
    }


def _never_finite(store: Store, runtime: Runtime) -> frozenset[str]:
    """Return the names of tensors that are not finite now, in any process."""
    names = sorted(store.sizes)
    shards = {name: t for name, t in store.shards().items() if not name.startswith((BEGAN, KEPT))}
    odd = {name.removeprefix(RESTING) for name, t in shards.items() if not is_finite({name: t})}
    seen = runtime.total(torch.tensor([name in odd for name in names], dtype=torch.int64))
    return frozenset(name for name, count in zip(names, seen.tolist(), strict=True) if count)
