"""A worker's local steps on the batches of its data, as ``train`` and the sites of a federated run take them."""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor

from skerry.model.class_labels import has_label
from skerry.model.in_words import OF_TORCH, described, first_line
from skerry.model.inputs import Inputs, stored, tensors_of, to
from skerry.subnet.extract import extract
from skerry.training.cost import StepCost, StepCosts
from skerry.training.evaluation.labels import in_range
from skerry.training.priors import adjusted
from skerry.training.setup import Setup
from skerry.training.worker import Data, LossFn, Worker, local_steps, micro_batches


class LocalTraining:
    """Takes local steps on the data that are here.

    Args:
        setup: of the session.
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch.
        data: each worker's batches.
        logit_adjustment: see ``train``.
        example: a batch, to measure costs with.
        first_round: the round before which the session began.
    """

    def __init__(
        self,
        setup: Setup,
        loss_fn: LossFn,
        data: Data,
        *,
        example: Any,
        logit_adjustment: Tensor | None = None,
        first_round: int = 0,
    ) -> None:
        self._setup, self._loss_fn, self._data = setup, loss_fn, data
        self._rows, self._first_round = logit_adjustment, first_round
        kept, steps, device = setup.algorithm.kept_tensors, setup.steps, setup.device
        self._costs = StepCosts(loss_fn, setup.optimizer, lambda: example, kept=kept, settings=steps, device=device)

    def take(self, worker: Worker) -> None:
        """Take the local steps of ``worker``, and note what they cost.

        An error gets a note that describes the batch. In the first round, what torch says of shapes and dtypes becomes
        a ValueError of one line, and in any round what it says of labels and of a batch too small for batch norm. NaN
        in the data, and labels that are all ignored, are warned of, since the worker is refused for them.
        """
        device, rows = self._setup.device, self._rows
        if self._setup.algorithm.by_samples:
            worker.num_samples = samples_of(self._data, worker.client)
        loss_fn = self._loss_fn if rows is None else adjusted(self._loss_fn, rows[worker.client].to(device))
        is_first = worker.round == self._first_round
        batch: list[Any] = []

        def batches() -> Iterator[tuple[Inputs, Any]]:
            for x, y in self._data.batches(worker.client, worker.first_step, worker.num_steps):
                batch[:] = x, y
                yield to(x, device), to(y, device)

        own_loss = loss_fn if device.type == "cpu" or worker.is_private else in_range(loss_fn, lambda: batch[1])
        with suppress(Exception), worker.off_the_clock():  # an error is the user's; the steps tell of it
            self._costs.of(worker.narrow)  # now, while there is memory for it: no gradients, no state of an optimizer
        try:
            local_steps(worker, own_loss, batches())
        except Exception as error:  # of the user's model, loss or data
            where = worker.where
            with suppress(Exception):
                where += f", its batch: inputs {described(batch[0])}, labels {described(batch[1])}"
            if "more than 1 value per channel" in str(error):
                raise ValueError(
                    f"data: batch norm cannot train on a batch this small ({where}); leave it out (drop_last=True for "
                    "a DataLoader), or use another batch size"
                ) from error
            of_callback = hasattr(error, "__notes__")
            if type(error) in OF_TORCH and not of_callback and (is_first or isinstance(error, IndexError)):
                raise ValueError(f"model, loss_fn or data: {first_line(error)} ({where})") from error
            error.add_note(f"({where})")
            raise
        if worker.failed:
            _explain(worker, loss_fn, self._data, batch, is_first=is_first)
        worker.flop = float(self._costs.of(worker.narrow).flop * worker.num_steps)

    def largest_step_cost(self) -> StepCost:
        """Return the cost of a local step of the worker that needs most memory in the first round."""
        setup, first = self._setup, self._setup.assignment(0)
        subnets = (extract(setup.model, setup.plan, first.units(w)) for w in range(first.num_workers))
        return max((self._costs.of(subnet) for subnet in subnets), key=lambda cost: cost.memory)


def samples_of(data: Data, worker: int) -> int:
    """Return how many samples ``data`` has for ``worker``.

    Raises:
        ValueError: it does not tell.
    """
    if (tell := getattr(data, "num_samples", None)) is None:
        raise ValueError(
            f"by_samples=True: {type(data).__name__} does not tell how many samples worker {worker} has; give it a "
            "method num_samples(worker), or use Shards, from_dataset or one DataLoader per worker"
        )
    return int(tell(worker))


def _explain(worker: Worker, loss_fn: LossFn, data: Data, latest: list[Any], *, is_first: bool) -> None:
    """Warn of what in the data makes a loss not finite.

    Raises:
        ValueError: no batch of the first round has a label.
    """
    ignored = getattr(loss_fn, "ignore_index", -100)
    again = list(data.batches(worker.client, worker.first_step, worker.num_steps))
    if is_first and all(_has_no_label(y, ignored) for _, y in again):
        raise ValueError(
            f"data: worker {worker.number} has no label in round {worker.round} ({described(again[0][1])}; classes "
            "below 0 are none), so there is nothing to learn; give it labelled samples, or use fewer workers"
        )
    for step, (x, y) in [(worker.steps_done, latest)] if worker.stopped else enumerate(again):  # the CPU stops there
        named = (("inputs", x), ("labels", y))
        floats = [(what, v, stored(t)[0]) for what, v in named for t in tensors_of(v) if t.is_floating_point()]
        nan = [(what, v) for what, v, t in floats if t.isnan().any()]
        no_labels = any(_has_no_label(own, ignored) for (_, own), _ in micro_batches((x, y), worker.accumulate))
        if nan or no_labels:
            what, value = nan[0] if nan else ("labels", y)
            found = f"NaN in the {what}" if nan else f"only ignored labels ({_first(y, ignored)}) in a part of a batch"
            remedy = "fill them in" if nan else "weight the losses of parts yourself (docs/local-steps.md)"
            warnings.warn(
                f"data: {found} of worker {worker.number}, round {worker.round}, step {step} ({described(value)}), "
                f"so the worker is refused; {remedy}, or leave these samples out",
                stacklevel=4,  # the caller of train
            )
            return


def _first(y: Tensor, otherwise: int) -> int:
    return int(y.flatten()[0]) if y.numel() else otherwise


def _has_no_label(y: Any, ignored: int) -> bool:
    if not isinstance(y, Tensor):
        return False
    return bool((y[has_label(y)] == ignored).all())  # also where there are none
