"""A site: it has data, trains the subnets that it is sent on them, and sends them back."""

import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from skerry.data.loaders import as_data
from skerry.federated.elsewhere import Elsewhere
from skerry.federated.messages import Refused, read_numbers, read_tensors, written
from skerry.federated.server import TRAIN
from skerry.federated.sites import BYE, HELLO
from skerry.model.inputs import Inputs
from skerry.model.tensors import fill_, named_tensors, skeleton
from skerry.partitions.capacities import with_capacities
from skerry.runtimes.runtime import Beginning, Handover, Report, Store
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import extract
from skerry.training.phases.local_phase import lend_worker
from skerry.training.session import Session
from skerry.training.steps.local_training import LocalTraining, samples_of
from skerry.training.worker import Data

OVER = "over"
"""In the state of a site's context once the server has ended the training."""
_OF_SERVER = ("callbacks", "checkpoints", "max_bad_rounds")
_STEPS_AT_ONCE, _MOST_TIMES, _ENOUGH_S = 10, 15, 1.0
"""A site measures its speed in so many local steps, as often, or until it has taken that many seconds."""
_WORK = {"token": str, "round": int, "worker": int, "steps": int, "units": bytes}


class CannotBegin(ValueError):
    """A site that cannot make its part of the training, which trying again does not change."""


class AtSite(Elsewhere):
    """The runtime of a session at a site, which keeps no model between messages."""

    def keep(self, beginning: Beginning) -> Store:
        """Make a store that holds the subnet which is trained now."""
        return Visiting(beginning)


class Visiting:
    """The store of a site: the subnet of one message."""

    def __init__(self, beginning: Beginning) -> None:
        self.plan, self.assignment, self.layout = beginning.plan, beginning.assignment, beginning.assignment
        self._model, self._device = skeleton(beginning.model), beginning.device
        self.sizes = named_tensors(self._model)
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.bytes_sent = 0.0
        self.units, self.tensors = torch.empty(0, dtype=torch.int64), dict[str, Tensor]()

    def like(self, units: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the subnet of ``units``, on the meta device."""
        shapes = Cuts(self.plan, units).shapes(self.sizes)
        return {name: torch.empty(shape, dtype=self.sizes[name].dtype, device="meta") for name, shape in shapes.items()}

    def subnet(self, worker: int) -> tuple[nn.Module, dict[str, Tensor]]:
        """Return the subnet of the message."""
        subnet = extract(self._model, self.plan, self.units)
        return fill_(subnet, {name: tensor.to(self._device) for name, tensor in self.tensors.items()}), {}

    def late(self, worker: int) -> Iterator[tuple[str, Tensor]]:
        """Yield nothing."""
        return iter(())

    def shards(self) -> Mapping[str, Tensor]:
        """Return nothing."""
        return {}

    def exchange(self, *args: Any, **more: Any) -> Any:
        """Raise: the server does it."""
        raise AssertionError("a site exchanges nothing")

    full = exchange


class Site:
    """Trains what the server sends on the data of this site.

    Args:
        session: with the arguments that the server's training has, ``loss_fn``, and ``runtime=AtSite()``.
        data: of this site: a ``DataLoader``, or ``Shards`` (or another ``Data``) with one part, or with the parts of
            all sites, of which its own is used.
        number: which site it is, from 0.
        logit_adjustment: (number of classes,), added to the outputs in local steps: the log priors of its labels. They
            stay here.

    Raises:
        ValueError: the session has no ``loss_fn`` or another runtime, or the data is split for another number of sites.
    """

    def __init__(self, session: Session, data: Any, *, number: int, logit_adjustment: Tensor | None = None) -> None:
        setup = session.setup
        runtime = setup.runtime
        if not (isinstance(runtime, AtSite) and isinstance(setup.store, Visiting)) or setup.loss_fn is None:
            raise ValueError("session: expected runtime=skerry.federated.AtSite(), and loss_fn")
        # In a list, so that it is read as it is: one that is dealt does not tell its number of samples.
        source: Data = as_data([data] if isinstance(data, DataLoader) else data, 1, setup.seed)
        num = setup.algorithm.num_parts
        if source.num_workers not in (1, num):
            raise ValueError(f"data: split for {source.num_workers} sites, expected 1 part (its own) or {num}")
        if not 0 <= number < num:
            raise ValueError(f"number={number}: expected a site from 0 to {num - 1}")
        rows = None if logit_adjustment is None else logit_adjustment.expand(num, -1)
        own = _Own(source, number)
        if setup.algorithm.by_samples:
            own.num_samples(number)  # now: where the data do not tell, the site cannot begin
        self.number, self._setup, self._state, self._store = number, setup, session.state, setup.store
        example = next(iter(own.batches(number, 0, 1)))
        self._local = LocalTraining(setup, setup.loss_fn, own, example=example, logit_adjustment=rows)
        self._settings = runtime.settings

    def hello(self, content: RecordDict) -> RecordDict:
        """Return which site this is, and the name of a setting in which the server differs, or its speed if asked.

        Raises:
            Refused: what it is asked is not of this training.
        """
        if "capacities" in content.config_records.get("numbers", {}):
            speed = self.steps_per_s(_capacities(content, self._setup.algorithm.num_parts))
            return written({"site": self.number, "differs": "", "steps_per_s": speed})
        theirs = json.loads(read_numbers(content, {"settings": str})["settings"])
        names = [name for name in self._settings if name.split(".")[0] not in _OF_SERVER]
        other = [name for name in names if theirs.get(name) != self._settings[name]]
        for name in other[:1]:
            here, there = self._settings[name], theirs.get(name)
            warnings.warn(
                f"the server trains with other settings: {name} is {here!r} at the site, and {there!r} at the server; "
                "use the same",
                stacklevel=2,
            )
        told = "".join(other[:1])  # without its value: a loss may hold class weights, which tell of label counts
        return written({"site": self.number, "differs": told})

    def steps_per_s(self, capacities: Sequence[float]) -> float:
        """Return how many local steps it takes per second with the subnet that it would have.

        Weights are made up: all zeros.

        Args:
            capacities: of all sites, relative to each other.
        """
        setup, store = self._setup, self._store
        partition = with_capacities(setup.algorithm.partition, capacities)
        store.units = partition.assign(setup.plan.axes, 0).units(self.number)
        store.tensors = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in store.like(store.units).items()}
        self._state.round = 0
        self._steps_of(_STEPS_AT_ONCE)  # the first ones make room in memory
        speeds, used_s = list[float](), 0.0
        while len(speeds) < _MOST_TIMES and used_s < _ENOUGH_S:
            report = self._steps_of(_STEPS_AT_ONCE)
            used_s += report.local_s
            speeds.append(report.num_steps / max(report.local_s, 1e-9))
        store.kept.clear()
        store.tensors = {}
        return statistics.median(speeds)  # whatever else the machine did for a moment

    def _steps_of(self, most: int) -> Report:
        """Take local steps with the subnet that is here, and return how they went."""
        handed: list[Handover] = []
        with lend_worker(
            self._setup, self._state, self.number, min(most, self._setup.algorithm.local_steps), handed
        ) as w:
            self._local.take(w)
        return handed[0].report

    def train(self, content: RecordDict) -> RecordDict:
        """Return the subnet in ``content`` after its local steps.

        Raises:
            Refused: the message is not one of this training, or for another site's data.
        """
        setup, store = self._setup, self._store
        work = read_numbers(content, _WORK)
        round, worker, steps = work["round"], work["worker"], work["steps"]
        num, num_units = setup.algorithm.partition.num_workers, setup.plan.num_units
        if not (0 <= round < setup.num_rounds and 0 <= worker < num and 0 < steps <= setup.algorithm.local_steps):
            raise Refused(f"round {round}, worker {worker}, {steps} steps: not of this training")
        if len(work["units"]) != (num_units + 7) // 8:
            raise Refused(f"units: {len(work['units'])} bytes, expected {(num_units + 7) // 8}")
        self._state.round = round
        if setup.turn(self._state, worker)[0] != self.number:
            raise Refused(f"worker {worker} of round {round} is for another site")
        mask = np.unpackbits(np.frombuffer(work["units"], np.uint8), count=num_units)
        store.units = torch.from_numpy(mask).nonzero().flatten()
        store.tensors = read_tensors(content, store.like(store.units))
        handed: list[Handover] = []
        with lend_worker(setup, self._state, worker, steps, handed) as lent:
            self._local.take(lent)
        store.kept.clear()
        store.tensors = {}
        (own,) = handed
        report = own.report
        numbers = {"token": work["token"], "loss": report.loss, "flop": report.flop, "local_s": report.local_s}
        if setup.algorithm.by_samples:
            numbers["num_samples"] = report.num_samples
        return written(numbers, own.tensors)


def _capacities(content: RecordDict, num: int) -> list[float]:
    """Return the capacities of ``num`` sites in a message.

    Raises:
        Refused: they are something else.
    """
    text = read_numbers(content, {"capacities": str})["capacities"]
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Refused("capacities: not JSON") from error
    numbers = isinstance(found, list) and all(type(each) is float and 0 < each < math.inf for each in found)
    if not numbers or len(found) != num:
        raise Refused(f"capacities: expected {num} positive numbers")
    return [float(each) for each in found]


class _Own:
    """The data of one site, under its number."""

    def __init__(self, data: Data, number: int) -> None:
        self._data, self._number = data, number
        self._part = 0 if data.num_workers == 1 else number
        self.num_workers = data.num_workers

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterable[tuple[Inputs, Any]]:
        """Return the batches of the site."""
        assert worker == self._number
        return self._data.batches(self._part, first_step, num_steps)

    def num_samples(self, worker: int) -> int:
        """Return how many samples the site has."""
        return samples_of(self._data, self._part)

    def sample(self, worker: int, num: int) -> Inputs:
        """Return inputs of the site."""
        return self._data.sample(self._part, num)


def client_app(make: Callable[[Context, str], Site]) -> ClientApp:
    """Return a Flower ``ClientApp`` of a site.

    Args:
        make: returns the site, from Flower's context and what ``Federated(job=...)`` was given. Called once in a
            process for each node and job.

    Example:
        >>> app = client_app(lambda context, job: make_site(int(context.node_config["site"])))
    """
    app, made = ClientApp(), dict[tuple[int, str], Site]()

    def site(message: Message, context: Context) -> Site:
        key = context.node_id, str(read_numbers(message.content, {"job": str})["job"])
        if key not in made:
            made.clear()
            try:
                made[key] = make(context, key[1])
            except ValueError as error:
                raise CannotBegin(str(error)) from error
        return made[key]

    def hello(message: Message, context: Context) -> Message:
        return Message(site(message, context).hello(message.content), reply_to=message)

    def train(message: Message, context: Context) -> Message:
        return Message(site(message, context).train(message.content), reply_to=message)

    def bye(message: Message, context: Context) -> Message:
        context.state[OVER] = ConfigRecord({OVER: True})
        return Message(RecordDict(), reply_to=message)

    for kind, function in ((HELLO, hello), (BYE, bye)):
        app.query(kind.partition(".")[2])(function)
    app.train(TRAIN.partition(".")[2])(train)
    return app
