"""What training a model would cost, predicted before anything is trained: bytes, memory and seconds per method.

Everything is computed on the meta device, where nothing is allocated. Only the seconds of a local step are measured, on
a subnet of zeros, if it is small enough.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.discovery.discover import discover
from skerry.exchange.moves import moves
from skerry.exchange.routes import traffic, transfers
from skerry.experiments.config import Config
from skerry.experiments.methods import build, for_elastic, takes
from skerry.experiments.recipes import Recipe, find_recipe
from skerry.experiments.recipes.own import own_object
from skerry.experiments.runs.execute import configured, make_optimizer
from skerry.model import optimizer_state
from skerry.model.inputs import Inputs, call, map_tensors, tensors_of
from skerry.model.tensors import fill_, named_tensors, skeleton
from skerry.partitions.assignment import Assignment
from skerry.partitions.exposures import Log
from skerry.plan.table import Plan, trained_in_blocks
from skerry.randomness import own_random_state
from skerry.runtimes.elastic.pieces import num_bytes
from skerry.subnet.extract import extract
from skerry.training.check import check_algorithm
from skerry.training.cost import RankMemory, StepCosts, most_buffer_bytes, rank_memory
from skerry.training.phases.exchange_phase import gradient_bytes
from skerry.training.setup import net_to_train
from skerry.training.steps.prepared import prepared
from skerry.training.steps.settings import StepSettings
from skerry.training.worker import LossFn, OptimizerFn, micro_batches

_MEASURED_S, _MEASURED_BYTES = 2.0, 2**30
"""A local step is measured if it is estimated to take no longer than this, and needs no more memory."""
_CPU = torch.device("cpu")
_ALL_AT_ONCE = 16
"""The most workers whose bytes are all counted: with random dealing it takes n**5 steps."""


@dataclass(frozen=True)
class Subject:
    """What is to be trained: settings, and a function of a method's settings that returns model, plan, loss and batch.

    The model is on the meta device; a batch is (inputs, labels).
    """

    recipe: Recipe
    job: Callable[[Config], tuple[nn.Module, Plan, LossFn, tuple[Inputs, Any]]]

    def config(self, method: str, settings: Mapping[str, Any]) -> Config:
        """Return the settings of ``method``: those of ``settings`` that it takes, the others as in the recipe."""
        return configured(self.recipe, method, {name: v for name, v in settings.items() if takes(method, name)})


@dataclass(frozen=True)
class Forecast:
    """What a round of a method costs, predicted.

    Attributes:
        method: its name.
        config: its settings.
        sent: bytes that a worker sends in a round, the mean over workers (above 16 workers: the one with most units).
        busiest: bytes that the worker sends or receives that has most of them.
        memory: of the process that needs most.
        step_s: seconds of a local step on this machine.
        step_measured: whether that was measured; else it was estimated from operations and ``rate``.
        rate: operations per second of a matrix product on this machine.
        exposure: the largest share of the units that one worker has held by the end; None if not known in advance.
    """

    method: str
    config: Config
    sent: float
    busiest: float
    memory: RankMemory
    step_s: float
    step_measured: bool
    rate: float
    exposure: float | None

    @property
    def local_s(self) -> float:
        """Seconds of the local steps of a round."""
        return self.config.local_steps * self.step_s


def subject(reference: str) -> Subject:
    """Return what ``reference`` names: a recipe, or a function (``own_object``) that returns a recipe or a model.

    A model comes with example inputs. It is planned with the default ``Config``, on batches like the example, with the
    mean square of its outputs as a loss.

    Raises:
        ValueError: there is no such thing, or it returns something else.
    """
    found = own_object(reference) if ":" in reference else find_recipe(reference)
    if isinstance(found, Recipe):
        return Subject(found, lambda config: _of_recipe(found, config))
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module)):
        kind = type(found).__name__
        raise ValueError(
            f"{reference}: it returns {kind}, expected a model and example inputs, such as net, torch.randn(8, 64), or "
            "a Recipe"
        )
    model, inputs = found
    plan = discover(model, inputs)
    made = skeleton(model), plan, _mean_square, (inputs, None)
    recipe = Recipe(summary=reference, config=Config(recipe=reference), task=_no_task, model=lambda *_: made[:2])
    return Subject(recipe, lambda config: made)


def _of_recipe(recipe: Recipe, config: Config) -> tuple[nn.Module, Plan, LossFn, tuple[Inputs, Any]]:
    job = recipe.build(config)
    return skeleton(job.model), job.plan, job.loss_fn, next(iter(job.data.batches(0, 0, 1)))


def _no_task(config: Config) -> Any:
    raise ValueError(f"{config.recipe}: a model without data, which can be planned but not trained")


def _mean_square(output: Any, labels: Any) -> Tensor:
    return sum((t.float().square().mean() for t in tensors_of(output) if t.is_floating_point()), torch.zeros(()))


def forecast(about: Subject, config: Config, *, elastic: bool = False) -> Forecast:
    """Predict what a round costs with the method and the settings of ``config``.

    Args:
        about: what is trained.
        config: the settings.
        elastic: whether processes come and go; the costs are those of rounds in which none does.

    Raises:
        ValueError: the method cannot train the plan; the message says why.
    """
    if elastic:
        config = for_elastic(config)
    model, plan, loss_fn, batch = about.job(config)
    algorithm, optimizer = build(config), make_optimizer(config)
    check_algorithm(algorithm, plan, config.rounds)
    net, plan = net_to_train(model, plan, algorithm, config.seed)
    now = algorithm.partition.assign(plan.axes, 0)
    steps = replace(StepSettings(**config.steps), compile=False)
    costs = StepCosts(loss_fn, optimizer, lambda: batch, kept=algorithm.kept_tensors, settings=steps, device=_CPU)
    subnets = [extract(net, plan, now.units(worker)) for worker in range(now.num_workers)]
    sizes = named_tensors(net) | _state_sizes(subnets[0], net, plan, algorithm, optimizer)
    sent, busiest = _bytes(plan, sizes, algorithm, config.rounds)
    if algorithm.server is not None:  # each reply sends its net
        sent = busiest = float(max(sum(t.nbytes for t in named_tensors(subnet).values()) for subnet in subnets))
    buffers = most_buffer_bytes(now.num_workers, busiest, max(size.nbytes for size in sizes.values()))
    memories = [
        rank_memory(plan, sizes, now, w, costs.of(subnet), buffer_bytes=buffers, elastic=elastic)
        for w, subnet in enumerate(subnets)
    ]
    largest = max(range(now.num_workers), key=lambda worker: memories[worker].step.flop)
    seconds, measured, rate = _step_s(subnets[largest], memories[largest], loss_fn, batch, optimizer, steps)
    if elastic and len(subnets) > 1:  # each sends its piece to its buddy
        pieces = [num_bytes(plan, sizes, now, worker) for worker in range(len(subnets))]
        sent, busiest = sent + sum(pieces) / len(pieces), busiest + max(pieces)
    if algorithm.synchronous:
        of_gradients = config.local_steps * config.accumulate * gradient_bytes(net, now.num_workers)
        sent, busiest = sent + of_gradients, busiest + of_gradients
    most = max(memories, key=lambda memory: memory.peak)
    held_by = algorithm.held_by()
    seen = None if held_by is None else Log(held_by, plan.axes).units(config.rounds)
    return Forecast(config.method, config, sent, busiest, most, seconds, measured, rate, seen)


def forecasts(
    about: Subject, methods: Sequence[str], settings: Mapping[str, Any], *, elastic: bool = False
) -> tuple[list[Forecast], dict[str, str]]:
    """Return the forecasts of ``methods``, and for those that cannot train the plan, by name, why.

    Raises:
        ValueError: none of them takes one of ``settings``, or a value is wrong.
    """
    for name in settings:
        if not any(takes(method, name) for method in methods):
            raise ValueError(f"{name}: none of {', '.join(methods)} takes it; leave it out")
    found, why_not = [], {}
    configs = []
    for method in methods:
        try:
            configs.append(about.config(method, settings))
        except ValueError as error:
            why_not[method] = str(error)
    if not configs:
        raise ValueError(why_not[methods[0]])
    for config in configs:
        try:
            found.append(forecast(about, config, elastic=elastic))
        except ValueError as error:
            why_not[config.method] = str(error)
    return found, why_not


def _bytes(plan: Plan, sizes: Mapping[str, Tensor], algorithm: Algorithm, num_rounds: int) -> tuple[float, float]:
    """Return ``Forecast.sent`` and ``busiest``: the mean over three exchanges."""

    def assigned(round: int) -> Assignment:
        return algorithm.partition.assign(plan.axes, min(round, num_rounds - 1))

    n, rounds = algorithm.partition.num_workers, sorted({0, num_rounds // 3, 2 * num_rounds // 3})
    if n > _ALL_AT_ONCE:
        now = assigned(0)
        worker = int(now.held.sum(1).argmax())
        sent = transfers(list(moves(plan, sizes, now, assigned(1), worker)), sizes).bytes_from(worker, sizes)
        return sent, sent
    total = torch.zeros(n, n, dtype=torch.float64)
    for t in rounds:
        total += traffic(plan, sizes, assigned(t), assigned(t + 1)) / len(rounds)
    return float(total.sum()) / n, float(torch.maximum(total.sum(0), total.sum(1)).max())


def _state_sizes(
    subnet: nn.Module, net: nn.Module, plan: Plan, algorithm: Algorithm, make: OptimizerFn
) -> dict[str, Tensor]:
    """Return full-size optimizer state by name, where it travels."""
    if algorithm.optimizer_state != "travel":
        return {}
    optimizer = make(subnet)
    for parameter in subnet.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    narrow = named_tensors(subnet) | optimizer_state.read(optimizer, subnet, {})
    return optimizer_state.full_sizes(narrow, plan.shapes, trained_in_blocks(net, plan), {})


def _step_s(
    subnet: nn.Module,
    memory: RankMemory,
    loss_fn: LossFn,
    batch: tuple[Inputs, Any],
    make: OptimizerFn,
    steps: StepSettings,
) -> tuple[float, bool, float]:
    """Return the seconds of a local step, whether they were measured, and the rate of a matrix product."""
    rate = _rate()
    estimate = memory.step.flop / rate
    if estimate > _MEASURED_S or memory.step.memory > _MEASURED_BYTES:
        return estimate, False, rate

    def real(tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor

    filled = fill_(subnet, {name: real(tensor) for name, tensor in named_tensors(subnet).items()}).train()
    parts = [part for part, _ in micro_batches(map_tensors(real, batch), steps.accumulate)]
    optimizer = make(filled)

    def step() -> None:
        for x, y in parts:
            loss_fn(call(filled, x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    with own_random_state(), prepared(filled, steps, _CPU):
        return min([_seconds(step) for _ in range(4)][1:]), True, rate


@cache
def _rate() -> float:
    a = torch.ones(1024, 1024)
    return 2 * 1024**3 / min(_seconds(lambda: a @ a) for _ in range(4))


def _seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def advice(found: Sequence[Forecast], why_not: Mapping[str, str]) -> str:
    """Return in words which of the methods to begin with, and why; empty if there is none."""
    names = [forecast.method for forecast in found]
    if "relay" in names:
        return "relay: its nets share nothing, and it sends least; with label skew, narrow"
    for method in ("narrow", "ist"):
        if method in names:
            why = f"a relay is not possible ({why_not['relay']})" if "relay" in why_not else "of those that fit"
            more = "; ist if the narrow net is too small for the task in a long training" if method == "narrow" else ""
            return f"{method}: {why}{more}"
    return ""
