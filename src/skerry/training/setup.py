"""What stays the same from round to round of a session, and how it is built from a session's arguments."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.checkpoint.state import State
from skerry.clients import Timeline
from skerry.exchange.routes import traffic
from skerry.merge.aggregate import is_finite
from skerry.model import optimizer_state
from skerry.model.tensors import named_tensors, skeleton
from skerry.partitions.assignment import Assignment
from skerry.partitions.exposures import Log
from skerry.partitions.share import Share
from skerry.plan.table import Plan
from skerry.privacy.private_run import PrivateRun, is_noted
from skerry.runtimes.elastic.generation import Generation
from skerry.runtimes.overlap import BEGAN
from skerry.runtimes.runtime import KEPT, RESTING, Beginning, Runtime, Store
from skerry.trained import Start
from skerry.training.agreement import agree_on_start
from skerry.training.check import check_goes_on
from skerry.training.settings import Settings
from skerry.training.steps.optimizer import initial_state
from skerry.training.steps.pace import forget_workers, steps_before, steps_of_all
from skerry.training.steps.rates import Rates, SchedulerRates, scaled_rates
from skerry.training.steps.schedules import Schedule

_EXPOSURE = "exposure"  # of ``State.observed``: after the latest round, before today's workers came, and when they came


@dataclass(frozen=True, kw_only=True)
class Setup(Settings):
    """What the phases of every round use: the settings, of which two are those of the net that is trained.

    Attributes:
        model: the modules of what is trained, on the meta device; the store keeps the values.
        plan: its plan.
        scheduler: what ``steps.lr_scheduler`` sets; None without one.
        state_start: where optimizer state starts, by name (``optimizer_state.initial``); empty if it does not travel.
        never_finite: names of tensors that are not finite from the start (an attention mask of -inf), so that a
            worker is not refused for them.
        timeline: which clients train when; None without clients.
        log: what each participant has held; None where that is not known in advance.
    """

    scheduler: SchedulerRates | None
    store: Store
    state_start: Mapping[str, Tensor]
    never_finite: frozenset[str]
    timeline: Timeline | None
    log: Log | None

    def turn(self, state: State, worker: int) -> tuple[int, int]:
        """Return whose data a worker trains on in the next round, and how many steps were taken on it before."""
        if self.timeline is None:
            return worker, self.steps_before(state)[worker]
        turn = self.timeline.turns(state.round)[worker]
        return turn.client, turn.nth * self.algorithm.local_steps

    def assignment(self, round: int) -> Assignment:
        """Return who holds what in ``round``; after the last round nothing is exchanged any more."""
        return self.algorithm.partition.assign(self.plan.axes, min(round, self.num_rounds - 1))

    def steps_of_workers(self, state: State) -> list[int]:
        """Return how many local steps each worker takes in the next round."""
        most, num = self.algorithm.local_steps, self.algorithm.partition.num_workers
        return steps_of_all(state, most, num) if self.steps.deadline == "adaptive" else [most] * num

    def steps_before(self, state: State) -> list[int]:
        """Return how many steps each worker has taken on its data before the next round, where it has its own."""
        return steps_before(state, self.algorithm.local_steps, self.algorithm.partition.num_workers)

    def rates(self, optimizer: torch.optim.Optimizer, round: int) -> Rates:
        """Return what to set in the groups of ``optimizer``, which is new, in each step of ``round``."""
        steps = self.algorithm.local_steps
        if self.scheduler is not None:
            return self.scheduler.of_steps(optimizer, round * steps, steps)
        return scaled_rates(
            optimizer, [self.schedule((round + step / steps) / self.num_rounds) for step in range(steps)]
        )

    def rate_factor(self, round: int) -> float:
        """Return what learning rates are multiplied by in the first step of ``round``, the last one."""
        if self.scheduler is not None:
            return self.scheduler.factor(round * self.algorithm.local_steps)
        return self.schedule(round / self.num_rounds)

    def share(self, num_done: int) -> Share:
        """Return how likely a subnet has each unit, after ``num_done`` rounds."""
        return Share.of(self.algorithm.partition, self.plan.axes, max(0, num_done - 1))


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


def set_up(given: Settings, start: Start | None) -> tuple[Setup, State]:
    """Build the setup of a session, and its state: a new one, or that of the checkpoint to resume from.

    Args:
        given: the session's settings.
        start: where values come from, if not from the model.

    Raises:
        CheckpointError: the checkpoint cannot be resumed from.
        ValueError: another process starts from other values, or clients are to train in several processes.
    """
    algorithm, runtime, num_rounds = given.algorithm, given.runtime, given.num_rounds
    if algorithm.clients is not None and runtime.num_processes > 1:
        raise ValueError(f"clients: '{algorithm.name}' runs them in one process; leave out the runtime, or the clients")
    if algorithm.by_samples and (runtime.num_processes > 1 or isinstance(runtime, Generation) or given.private):
        raise ValueError(
            f"by_samples=True: workers of '{algorithm.name}' are weighted in one process or on sites only, by numbers "
            "of samples that are no secret; leave out the runtime or privacy, or by_samples"
        )
    net, net_plan = net_to_train(given.model, given.plan, algorithm, given.seed)
    source = algorithm.trains.source(given.model, given.plan, net, start)
    state = State(0, torch.zeros(net_plan.num_units, dtype=torch.int64))
    saved = runtime.resume(algorithm, state, named_tensors(net), net_plan)
    if saved is None and given.checkpoints is not None:
        saved = given.checkpoints.latest(algorithm.name, net_plan, named_tensors(net), runtime)
    if saved is not None:
        source, state = saved, saved.state
        check_goes_on(algorithm, state, num_rounds)
        if given.private is None and is_noted(state.observed):
            raise ValueError("privacy: the saved training is private; give privacy= to go on with it")
        if state.num_workers not in (0, algorithm.partition.num_workers):
            latest, _, _ = state.observed.get(_EXPOSURE, [1.0, 0.0, 0.0])
            state.observed[_EXPOSURE] = [latest, latest, float(state.round)]
        if runtime.change is not None or state.num_workers not in (0, algorithm.partition.num_workers):
            forget_workers(state, () if runtime.change is None else runtime.change.speeds)
        _tell_of_other_rates(given.schedule, state, num_rounds, runtime)
        state.totals["bytes_due"] += _left_out(algorithm, net_plan, saved.sizes, state, num_rounds)
    else:
        agree_on_start(runtime, source, named_tensors(net))
    private = None if given.private is None else _private(given, given.private, state)
    state.num_rounds, state.num_workers = num_rounds, algorithm.partition.num_workers
    state_start = initial_state(given.optimizer, net) if algorithm.optimizer_state == "travel" else {}
    store = runtime.keep(
        Beginning(
            model=net,
            plan=net_plan,
            source=source,
            assignment=algorithm.partition.assign(net_plan.axes, min(state.round, num_rounds - 1)),
            device=given.device,
            start=state_start,
            state={} if saved is None else {n: t for n, t in saved.sizes.items() if optimizer_state.SEPARATOR in n},
            saved=saved,
            algorithm=algorithm,
            timeline=(timeline := algorithm.timeline()),
            round=state.round,
        )
    )
    lr_scheduler = given.steps.lr_scheduler
    setup = Setup(
        **vars(given) | {"model": skeleton(net), "plan": net_plan, "private": private},
        scheduler=SchedulerRates(lr_scheduler, given.num_steps) if lr_scheduler else None,
        store=store,
        state_start=state_start,
        never_finite=_never_finite(store, runtime),
        timeline=timeline,
        log=_log(given, net_plan, state),
    )
    return setup, state


def note_private_round(setup: Setup, state: State) -> None:
    """Note, before a round, the private steps that workers take in it: whatever becomes of it, they may be seen."""
    assert setup.private is not None
    for worker, steps in enumerate(setup.steps_of_workers(state)):
        setup.private.note(state.observed, setup.turn(state, worker)[0], steps)


def _private(given: Settings, run: PrivateRun, state: State) -> PrivateRun:
    """Return the private run with the noise of the rounds that are left; note the steps that a resume repeats."""
    algorithm = given.algorithm
    if state.round and not is_noted(state.observed):
        raise ValueError(
            f"privacy: the first {state.round} rounds of the saved training were not private; start a new one"
        )
    if state.num_workers not in (0, algorithm.partition.num_workers):
        raise ValueError(
            f"privacy: {algorithm.partition.num_workers} workers, but the training was saved with {state.num_workers}, "
            "so samples would get other owners, whose steps are not known; go on with as many"
        )
    done, most = (algorithm.most_steps(num) for num in (state.round, given.num_rounds))
    run = run.with_noise(state.observed, [a - b for a, b in zip(most, done, strict=True)])
    if not (run.is_secret and state.num_rounds and state.round < given.num_rounds):
        return run
    # The checkpoint counts the round it begins with. If a later one was damaged, the round after may have been seen.
    seen, lost = (algorithm.most_steps(state.round + num) for num in (1, 2))
    run.note_repeated(state.observed, [a - b for a, b in zip(lost, seen, strict=True)])
    return run.with_noise(state.observed, [a - b for a, b in zip(most, done, strict=True)])


def _log(given: Settings, plan: Plan, state: State) -> Log | None:
    """Return what each participant has held, None where assignments of all rounds are not known."""
    held_by = given.algorithm.held_by()
    if held_by is None or isinstance(given.runtime, Generation):
        return None
    _, before, since = state.observed.get(_EXPOSURE, [0.0, 0.0, 0.0])
    return Log(held_by, plan.axes, int(since), before)


def note_exposure(state: State, exposure: float | None) -> float | None:
    """Note what a participant has held, and return it: never less than before. What is not known may be all."""
    latest, before, since = state.observed.get(_EXPOSURE, [0.0, 0.0, 0.0])
    latest = max(latest, 1.0 if exposure is None else exposure)
    state.observed[_EXPOSURE] = [latest, before, since]
    return None if exposure is None else latest


def _tell_of_other_rates(schedule: Schedule, state: State, num_rounds: int, runtime: Runtime) -> None:
    """Warn if the schedule goes on from another rate than the saved training would have gone on with."""
    meant, now = (schedule(state.round / num) for num in (state.num_rounds or num_rounds, num_rounds))
    if meant != now and runtime.rank == 0:
        warnings.warn(
            f"num_rounds={num_rounds}, {state.num_rounds} before: the schedule now spans {num_rounds} rounds, so the "
            f"factor of the learning rate goes from {meant:.3g} to {now:.3g} at round {state.round}",
            stacklevel=4,  # the caller of Session or train
        )


def _left_out(algorithm: Algorithm, plan: Plan, sizes: Mapping[str, Tensor], state: State, num_rounds: int) -> float:
    """Return the bytes due per worker for what the end of a training that is now extended did not deal out again."""
    num, assign = algorithm.partition.num_workers, algorithm.partition.assign
    if not state.round == state.num_rounds < num_rounds or num != state.num_workers:
        return 0.0
    now, then = assign(plan.axes, state.round - 1), assign(plan.axes, state.round)
    return float((traffic(plan, sizes, now, then) - traffic(plan, sizes, now, now)).sum()) / num


def _never_finite(store: Store, runtime: Runtime) -> frozenset[str]:
    """Return the names of tensors that are not finite now, in any process."""
    names = sorted(store.sizes)
    shards = {name: t for name, t in store.shards().items() if not name.startswith((BEGAN, KEPT))}
    odd = {name.removeprefix(RESTING) for name, t in shards.items() if not is_finite({name: t})}
    seen = runtime.total(torch.tensor([name in odd for name in names], dtype=torch.int64))
    return frozenset(name for name, count in zip(names, seen.tolist(), strict=True) if count)
