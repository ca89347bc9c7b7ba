"""Checks of a training's arguments, made before it starts so that mistakes are named here and not deep inside."""

import inspect
import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from skerry.algorithm import Algorithm
from skerry.checkpoint.checkpoints import Checkpoints
from skerry.checkpoint.state import State
from skerry.discovery.verify import verify, verify_small
from skerry.merge.calibrate import check_batch_norm
from skerry.model.in_words import CHOOSE_COLUMNS, OF_TORCH, described, first_line
from skerry.model.inputs import Inputs, stored, tensors_of, to
from skerry.model.tensors import frozen_names, named_tensors
from skerry.partitions.assignment import Assignment
from skerry.partitions.everything import Everything
from skerry.plan.table import Plan
from skerry.runtimes.elastic.generation import Generation
from skerry.runtimes.serial import Serial
from skerry.trained import Start
from skerry.training.settings import Settings
from skerry.training.steps.optimizer import optimizer_of, small_copy
from skerry.training.steps.prepared import repeated_blocks
from skerry.training.steps.rates import SchedulerRates
from skerry.training.steps.schedules import constant
from skerry.training.steps.settings import StepSettings
from skerry.whole_number import check_whole_number

_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda v: isinstance(v, nn.Module), "an nn.Module"),
    "plan": (lambda v: isinstance(v, Plan), "skerry.discover(model, example_inputs)"),
    "algorithm": (
        lambda v: isinstance(v, Algorithm),
        "what a method returns, such as skerry.ist(workers=4, local_steps=20)",
    ),
    "optimizer": (
        lambda v: callable(v) and not isinstance(v, torch.optim.Optimizer),
        "a function of a subnet, such as lambda net: torch.optim.SGD(net.parameters(), lr=0.1)",
    ),
    "loss_fn": (
        lambda v: callable(v) and not isinstance(v, type),
        "a function of outputs and labels, such as torch.nn.CrossEntropyLoss()",
    ),
    "seed": (lambda v: isinstance(v, Integral) and not isinstance(v, bool), "a whole number"),
    "runtime": (
        lambda v: hasattr(v, "mine") and not isinstance(v, type),
        "an object, such as skerry.Processes.join()",
    ),
    "start": (
        lambda v: callable(v) and not isinstance(v, type),
        "a function of a model, such as lambda m: skerry.weights.FromFiles(path, m)",
    ),
    "checkpoints": (lambda v: isinstance(v, Checkpoints), "skerry.Checkpoints(folder=...)"),
    "verify": (lambda v: isinstance(v, bool), "True or False"),
}
_LEAST = {"num_rounds": 1, "max_bad_rounds": 1, "calibration_samples": 1}
_STEPS_TO_TRY = 100_000  # of a scheduler: some seconds


def check_arguments(required: dict[str, Any], or_none: dict[str, Any]) -> None:
    """Raise ValueError for arguments of ``train`` or ``Session`` of wrong types, and for a model without parameters.

    Args:
        required: values by name, with the model.
        or_none: those that may be None.
    """
    for name, value in (required | {n: v for n, v in or_none.items() if v is not None}).items():
        if name in _LEAST:
            check_whole_number(name, value, _LEAST[name])
        elif not _EXPECTED[name][0](value):
            plain = isinstance(value, str | int | float | None)
            kind = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise ValueError(f"{name}: got {repr(value) if plain else kind}, expected {_EXPECTED[name][1]}")
    model = required["model"]
    if next(model.parameters(), None) is None:
        raise ValueError(f"model: got {type(model).__name__} without parameters, expected some to train")


def check_model(given: Settings, start: Start | None) -> None:
    """Raise ValueError unless the model is that of the plan, has values or a start, and can be calibrated."""
    given.plan.check(given.model)
    check_batch_norm(given.model)
    if _is_on_meta(given.model) and start is None:
        raise ValueError(
            "the model is on meta and has no values; give start=lambda m: skerry.weights.FromInitializer(m, seed=0)"
        )


def check_algorithm(algorithm: Algorithm, plan: Plan, num_rounds: int) -> None:
    """Raise ValueError unless ``algorithm`` can train ``plan`` for ``num_rounds``."""
    check_whole_number("num_rounds", num_rounds, 1)
    partition, last = algorithm.partition, num_rounds - 1
    if not plan.axes and not isinstance(partition, Everything):
        raise ValueError(
            f"the plan deals nothing out, so '{algorithm.name}' has nothing to deal; print(plan) says why, and "
            "docs/plans.md how to change that"
        )
    if plan.blocks and not partition.covers:
        raise ValueError(
            f"'{algorithm.name}' leaves units unassigned for a round, but blocks have no owner rank that stores them; "
            "deal out units within blocks, or use ist"
        )
    rounds = sorted({0, min(1, last), num_rounds // 2, last}) if algorithm.keeps else []
    check_units_stay(algorithm, *(partition.assign(plan.axes, round) for round in rounds))


def warn_of_frozen_readers(given: Settings) -> None:
    """Warn of frozen parameters that read units which a subnet may lack: calibration does not scale them."""
    model, plan, algorithm = given.model, given.plan, given.algorithm
    if algorithm.trains.pieces(plan) is not None or not any(p.requires_grad for p in model.parameters()):
        return  # nets of their own, or an error that comes later
    share = algorithm.partition.share(plan.axes, given.num_rounds - 1)
    for name in sorted(frozen_names(model) & plan.dims.keys()):
        reads = [dim.units for dim in plan.dims[name] if dim is not None and dim.role == "in"]
        lacking = [axis for axis in plan.axes if bool((share[axis.units] < 1).any())]
        axes = [a.name for a in lacking if any(bool(((u >= a.start) & (u < a.units.stop)).any()) for u in reads)]
        if axes:
            warnings.warn(
                f"{name} is frozen and reads units that are dealt out ({', '.join(axes)}), so calibration may "
                "not scale it, and the full model sums over more units than a subnet did; leave the axis whole "
                "(plan.without)",
                stacklevel=2,
            )


def check_units_stay(algorithm: Algorithm, *assignments: Assignment) -> None:
    """Raise ValueError if workers of ``algorithm`` keep something of their units, but not the units."""
    if algorithm.keeps and not all(torch.equal(assignments[0].held, other.held) for other in assignments):
        raise ValueError(
            f"'{algorithm.name}': optimizer_state='stay' and an outer optimizer are for workers that keep their units; "
            "use 'reset' or 'travel', or a method that deals only once (ensemble, ist with reshuffle=0)"
        )


def check_goes_on(algorithm: Algorithm, state: State, num_rounds: int) -> None:
    """Raise ValueError unless what a checkpoint has the ``state`` of can go on with ``algorithm`` to ``num_rounds``."""
    if state.round > num_rounds:
        raise ValueError(f"num_rounds={num_rounds}: {state.round} rounds are done, expected at least as many")
    num = algorithm.partition.num_workers
    if state.num_workers in (0, num):
        return
    why = algorithm.why_same_workers
    if why or state.round == num_rounds:
        why = why or f"all {num_rounds} rounds are done, so give more of them to go on with {num}"
        raise ValueError(f"{num} workers, but the training was saved with {state.num_workers}: {why}")


def check_functions(given: Settings, test: object) -> None:
    """Raise ValueError for mistakes that are easily made with the functions of a training."""
    schedule = given.schedule
    if not callable(schedule) or isinstance(schedule, type):
        raise ValueError(
            f"schedule: got {schedule!r}, expected a function of progress (0 to 1) that returns the factor of the "
            "learning rate, such as skerry.cosine"
        )
    try:
        float(schedule(0.0))
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"schedule: {first_line(error)}; expected a function of progress (0 to 1); a scheduler of "
            "torch.optim.lr_scheduler goes to lr_scheduler="
        ) from error
    if test is not None and given.loss_fn is None:
        raise ValueError("test: a test set, but no loss_fn; give the function that returns the mean loss over a batch")


def check_steps(given: Settings) -> None:
    """Raise ValueError unless workers can take their local steps so, as tried on a small copy of the model."""
    made = optimizer_of(given.optimizer, small := small_copy(given.model))
    check_optimizer(made, small)
    lr_scheduler, num_steps = given.steps.lr_scheduler, given.num_steps
    if lr_scheduler is not None:
        if given.schedule is not constant:
            raise ValueError("schedule and lr_scheduler both set the learning rate, expected one of them")
        last = num_steps - 1 if num_steps <= _STEPS_TO_TRY else 0
        SchedulerRates(lr_scheduler, num_steps).of_steps(made, last, 1)
    if given.steps.deadline == "adaptive" and (given.algorithm.synchronous or given.algorithm.overlap):
        raise ValueError(
            f"deadline='adaptive': the workers of '{given.algorithm.name}' need each other during local steps"
        )
    if given.steps.deadline == "adaptive" and given.algorithm.clients is not None:
        raise ValueError("deadline='adaptive': clients have the speeds that they declare; leave one of the two out")
    num = given.algorithm.partition.num_workers
    if given.steps.deadline == "adaptive" and num > 1 and isinstance(given.runtime, Serial):
        raise ValueError(
            f"deadline='adaptive': {num} workers take turns in this process, so their speeds mean nothing; start one "
            "process per worker (--set runtime=processes, skerry.launch or torchrun), or leave the deadline out"
        )
    if given.steps.checkpoint_activations:
        repeated_blocks(small)


NOT_ON_SITES = "privacy: sites of a federated run cannot train privately yet; use a runtime whose workers have the data"


def check_private(given: Settings) -> None:
    """Raise ValueError unless workers can take private steps."""
    if not given.runtime.mine(given.algorithm.partition.num_workers):
        raise ValueError(NOT_ON_SITES)
    for name, module in given.model.named_modules():
        if isinstance(module, _NormBase) and (module.track_running_stats or isinstance(module, _BatchNorm)):
            raise ValueError(
                f"privacy: {name} is a {type(module).__name__}, whose statistics mix the samples of a batch; use "
                "nn.GroupNorm, or no norm"
            )
    usual = StepSettings()
    for setting in ("clip_grad_norm", "precision", "checkpoint_activations", "compile"):
        if (value := getattr(given.steps, setting)) != getattr(usual, setting):
            raise ValueError(f"privacy: {setting}={value!r} does not go with private steps; leave it out")
    if given.algorithm.synchronous:
        raise ValueError(f"privacy: '{given.algorithm.name}' averages gradients in every step; use local_sgd")
    if isinstance(given.runtime, Generation):
        raise ValueError("privacy: in an elastic run samples change their owners, so nobody could account for them")


def check_optimizer(optimizer: Any, subnet: nn.Module) -> None:
    """Raise ValueError unless ``optimizer`` is one of the parameters of ``subnet`` that steps without a closure."""
    if not isinstance(optimizer, torch.optim.Optimizer) and not hasattr(optimizer, "param_groups"):  # or like one
        raise ValueError(
            f"optimizer: the function returned {type(optimizer).__name__}, expected a torch.optim optimizer"
        )
    name, closure = type(optimizer).__name__, inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(f"optimizer: {name} needs a closure in each step, expected one without, such as SGD or AdamW")
    if not any(group["params"] for group in optimizer.param_groups):
        raise ValueError(f"optimizer: the function returned {name} without parameters; give it those of the subnet")
    own = {id(parameter) for parameter in subnet.parameters()}
    if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            f"optimizer: the function returned {name} of other parameters, expected those of the subnet that it is "
            "given; each worker trains a subnet of its own"
        )


def check_data(data: Any, algorithm: Algorithm | None, num_workers: int) -> None:
    """Raise ValueError unless ``data`` has batches for the ``num_workers`` of ``algorithm``, or for that number."""
    if not (hasattr(data, "batches") and hasattr(data, "sample")):
        raise ValueError(
            f"data: got {type(data).__name__}, expected a DataLoader, a list of one per worker, skerry.Shards or "
            "another skerry.training.Data"
        )
    if data.num_workers != num_workers:
        who = f"algorithm '{algorithm.name}' has" if algorithm else "there are"
        num = f"{num_workers}{' clients' if algorithm and algorithm.clients else ''}"
        raise ValueError(f"the data is split for {data.num_workers} workers, but {who} {num}; split it for that number")


def check_logit_adjustment(rows: object, num_workers: int) -> None:
    """Raise ValueError unless ``rows`` is None or has a row per worker."""
    if rows is None:
        return
    if not isinstance(rows, Tensor):
        raise ValueError(
            f"logit_adjustment: got {type(rows).__name__}, expected a tensor, such as skerry.training.log_priors(...)"
        )
    if rows.dim() != 2 or len(rows) != num_workers:
        raise ValueError(
            f"logit_adjustment: shape {tuple(rows.shape)}, expected ({num_workers}, number of classes), one row per "
            "worker; compute it from that number of parts (skerry.training.log_priors)"
        )


def verify_plan(given: Settings, inputs: Inputs) -> None:
    """Raise ValueError unless subnets of all sizes that a training has compute what the plan says.

    For a model on meta, small nets of its modules are checked.
    """
    model, plan = given.model, given.plan
    pieces = _one_of_each_size(given.algorithm, plan, given.num_rounds)
    try:
        if _is_on_meta(model):
            verify_small(model, plan, inputs, pieces)
        else:
            verify(model, plan, to(inputs, next(model.parameters()).device), pieces=pieces)
    except Exception as error:
        if type(error) in OF_TORCH:
            what = f"data: the model does not run on inputs {described(inputs)}: {first_line(error)}"
            what += f"; {CHOOSE_COLUMNS}" if isinstance(inputs, dict) else ""
            raise ValueError(what) from error
        if "nan" in str(error) and any(bool(stored(t)[0].isnan().any()) for t in tensors_of(inputs)):
            raise ValueError("data: inputs are NaN, and so are the model's outputs; fill them in") from error
        raise


def _one_of_each_size(algorithm: Algorithm, plan: Plan, num_rounds: int) -> list[Tensor]:
    """Return the units of one subnet of each size (units per axis) that workers have, but not those with all units."""
    pieces = algorithm.trains.pieces(plan)
    if pieces is None:
        last = num_rounds - 1
        rounds = [algorithm.partition.assign(plan.axes, t) for t in sorted({0, min(1, last), num_rounds // 2, last})]
        pieces = [dealt.units(worker) for dealt in rounds for worker in range(dealt.num_workers)]
    edges = torch.tensor([axis.start for axis in plan.axes] + [plan.num_units])
    sizes = {tuple(torch.searchsorted(p, edges).diff().tolist()): p for p in pieces}
    return [piece for piece in sizes.values() if len(piece) < plan.num_units]


def _is_on_meta(model: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in named_tensors(model).values())
