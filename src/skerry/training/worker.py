"""A worker's local steps: ordinary PyTorch training of one subnet, between two exchanges."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skerry.model.device import wide
from skerry.model.inputs import Inputs, call, num_rows, take
from skerry.privacy.gradient import PrivateGradient
from skerry.training.steps.rates import Rates
from skerry.training.steps.settings import StepSettings

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(output, labels)``: the mean over the batch, a scalar."""
OptimizerFn = Callable[[nn.Module], torch.optim.Optimizer]
"""A function of a worker's subnet that returns a ``torch.optim`` optimizer of its parameters."""


class Data(Protocol):
    """Where workers get their batches; ``skerry.data.Shards`` is one."""

    @property
    def num_workers(self) -> int:
        """The number of workers it has data for."""
        ...

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterable[tuple[Inputs, Any]]:
        """Return the (inputs, labels) of steps ``first_step ...`` of ``worker``: the same ones in every call."""
        ...

    def sample(self, worker: int, num: int) -> Inputs:
        """Return inputs of ``num`` samples of ``worker``, or of all it has, for calibration."""
        ...


class Worker:
    """One worker in one round: its subnet, and the optimizer of its local steps.

    Args:
        subnet: the narrow module to train.
        optimizer: over its parameters.
        rates: for each step what is set in the optimizer's groups.
        number: the worker's.
        round: of the training.
        settings: how it takes its steps.
        scaler: of the loss, for half precision.
        around: what to call in place of ``subnet``, and a function that takes the backward pass from its loss; all
            workers are in step then, so none leaves out steps after a loss that is not finite.
        on_step: called after each step with the worker and the number of steps done.
        client: whose data it trains on.
        first_step: how many steps were taken on that data before.
        private: sets the gradients of its steps, in private training.
        proximal: mu of a term (mu / 2) ||W - W_0||^2 of its loss, where W_0 is what it began with. ``loss`` is without.

    Attributes:
        number: the worker's, from 0.
        client: whose data it trains on: its own number, unless the algorithm has clients.
        first_step: how many steps were taken on that data before this round, for ``Data.batches``.
        round: of the training, from 0.
        num_steps: the steps it takes in this round, no more and no fewer.
        subnet: the narrow module to train, in training mode and in place; for a synchronous algorithm a module around
            it, whose backward averages gradients over all workers.
        narrow: the narrow module itself.
        optimizer: over its parameters.
        accumulate: the number of losses that a step is the mean of.
        is_private: whether it takes ``private_step`` only.
        in_step: whether every step waits for all workers.
        local_s: seconds from the beginning to the end of the last step.
        flop: floating-point operations of its steps; NaN if not measured.
        num_samples: that its data has; ``train`` notes it where the algorithm weights workers by it, and a loop of your
            own sets it.
        on_labels: called with the worker and the labels of each step; set while label skew is measured.
        after_step: called with the worker and the loss after each step, for callbacks.
    """

    def __init__(
        self,
        subnet: nn.Module,
        optimizer: torch.optim.Optimizer,
        rates: Rates,
        *,
        number: int = 0,
        round: int = 0,
        settings: StepSettings | None = None,
        scaler: torch.amp.GradScaler | None = None,
        around: tuple[nn.Module, Callable[[Tensor], None]] | None = None,
        on_step: Callable[["Worker", int], None] | None = None,
        client: int = 0,
        first_step: int = 0,
        private: PrivateGradient | None = None,
        proximal: float = 0.0,
    ) -> None:
        settings = settings or StepSettings()
        self.number, self.round, self.num_steps, self.accumulate = number, round, len(rates), settings.accumulate
        self.client, self.first_step = client, first_step
        self.narrow, self.optimizer = subnet, optimizer
        self.subnet, self._backward = around or (subnet, _backward)
        self.subnet.train()
        self.in_step = around is not None
        self.local_s, self.flop, self.num_samples = 0.0, math.nan, 0
        self.on_labels: Callable[[Worker, Any], None] | None = None
        self.after_step: Callable[[Worker, Tensor], None] | None = None
        self._rates, self._on_step, self._clip, self._scaler = rates, on_step, settings.clip_grad_norm, scaler
        self._last_set, self._by_hand = [group["lr"] for group in optimizer.param_groups], False
        self._scheduled = any([group["lr"] for group in rates] != self._last_set for rates in self._rates)
        self.is_private, self._private = private is not None, private
        self._total: Tensor | float = 0.0 if private is None else math.nan
        self._of_step = list[Tensor]()  # the losses that the next step is the mean of
        self._proximal = proximal
        self._start = [p.detach().clone() for p in self._trained()] if proximal else []
        self._done, self._is_finite = 0, True
        optimizer.zero_grad()
        self._began = time.perf_counter()

    @property
    def loss(self) -> float:
        """The mean loss of its steps; NaN or infinite if that of one step is. Reading it waits for the device.

        NaN in private training: it would tell of the samples.
        """
        total = self._total.item() if isinstance(self._total, Tensor) else self._total
        return total / max(1, self._done)

    @property
    def failed(self) -> bool:
        """Whether the loss of a step is not finite, so that it will be refused. In private training nobody knows."""
        return not self.is_private and not math.isfinite(self.loss)

    @property
    def stopped(self) -> bool:
        """Whether steps do nothing any more, after a loss that is not finite: known at once on the CPU only."""
        return not self._is_finite and not self.in_step

    def backward(self, loss: Tensor, labels: Any = None) -> None:
        """Add the gradient of ``loss``, one of the ``accumulate`` losses that the next step is the mean of.

        Args:
            loss: the mean over a micro-batch, a scalar, computed with ``self.subnet``.
            labels: of the micro-batch, (B,) int64 where they are classes. They are counted in the first round to
                measure label skew (``Diagnosis.label_skew``), and used for nothing else.

        Raises:
            ValueError: it has taken all steps of the round, or has all losses of this step; or ``loss`` is no single
                number.
        """
        self._check_loss(loss)
        if self.is_private:
            raise ValueError(f"{self.where}: training is private; call worker.private_step(loss_fn, batch) instead")
        if self.stopped:
            return
        self._check_steps_left()
        if len(self._of_step) == self.accumulate:
            raise ValueError(f"{self.where}: one loss more than accumulate={self.accumulate}; call worker.step() first")
        if self.on_labels is not None and labels is not None:
            self.on_labels(self, labels)
        loss = loss / self.accumulate if self.accumulate > 1 else loss
        self._backward(loss if self._scaler is None else self._scaler.scale(loss))
        self._of_step.append(loss.detach())
        self._add_to_total(loss.detach())

    def step(self, loss: Tensor | None = None, labels: Any = None) -> None:
        """Take one step down the gradient of ``loss``, or of the losses of earlier ``backward`` calls.

        Gradients of ``loss.backward()`` calls of your own are added, too. After a loss that is not finite the worker
        will be refused: further steps on the CPU do nothing, and elsewhere the rest of the round is wasted, since
        nobody waits for the device in each step.

        Args:
            loss: see ``backward``, which is called first. None: after ``accumulate`` calls of it.
            labels: see ``backward``.

        Raises:
            ValueError: there are fewer losses than ``accumulate``; no parameter of the optimizer has a gradient, as
                where the loss is that of another module; or see ``backward``.
        """
        if loss is not None:
            self.backward(loss, labels)
        if len(self._of_step) != self.accumulate and not self.stopped:
            raise ValueError(
                f"{self.where}: {len(self._of_step)} losses for a step, expected accumulate={self.accumulate}; call "
                "worker.backward(loss) that often, then worker.step()"
            )
        self._step()

    def private_step(self, loss_fn: LossFn, batch: Any) -> None:
        """Take one step of private training, down the noisy mean of the clipped gradients of a batch's samples.

        Args:
            loss_fn: ``loss_fn(output, labels)``; it is called with one sample at a time.
            batch: (inputs, labels), as ``PrivateRun.data`` yields them; it may be empty. ``accumulate`` parts of it are
                computed one after the other, which takes less memory.

        Raises:
            ValueError: training is not private, or it has taken all steps of the round.
        """
        if self._private is None:
            raise ValueError(f"{self.where}: training is not private; give the session a PrivateRun, or call step")
        self._check_steps_left()
        is_empty = num_rows(batch) == {0}
        self._private.set_(loss_fn, [] if is_empty else [part for part, _ in micro_batches(batch, self.accumulate)])
        self._of_step = [torch.tensor(math.nan)]
        self._step()

    def _check_steps_left(self) -> None:
        if self._done == self.num_steps:
            raise ValueError(
                f"{self.where}: one step more, but it takes worker.num_steps={self.num_steps} in this round "
                "(at most the algorithm's local_steps); give it that number of batches"
            )

    def _step(self) -> None:
        """Take the step of the losses so far."""
        if self.stopped:
            return
        if all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"{self.where}: the loss does not depend on the worker's subnet; compute it from "
                "worker.subnet(inputs), not from the full model"
            )
        self._set_rates()
        if self._scaler is not None and (self._clip is not None or self._proximal):
            self._scaler.unscale_(self.optimizer)
        self._add_proximal_gradient()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.narrow.parameters(), self._clip)
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.optimizer.zero_grad()  # before the next forward, which needs memory
        self._done, of_step, self._of_step = self._done + 1, self._of_step, []
        ended = time.perf_counter()
        self.local_s = ended - self._began
        if self._on_step is not None and self._is_finite:
            self._on_step(self, self._done)
        if self.after_step is not None:
            self.after_step(self, torch.stack(of_step).sum())
        self._began += time.perf_counter() - ended  # waiting for others and callbacks do not count as local steps

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Run a block whose time does not count as local steps."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._began += time.perf_counter() - began

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _add_proximal_gradient(self) -> None:
        """Add mu (W - W_0), the gradient of the term of FedProx."""
        with torch.no_grad():
            for p, start in zip(self._trained(), self._start, strict=False):
                if p.grad is not None:
                    p.grad.add_(p - start, alpha=self._proximal)

    @property
    def steps_done(self) -> int:
        """How many steps it has taken in this round."""
        return self._done

    @property
    def where(self) -> str:
        """Worker, round and the step of the round that comes next, for messages."""
        return f"worker {self.number}, round {self.round}, step {self._done}"

    def _check_loss(self, loss: object) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{self.where}: the loss is {got}, expected one number, the mean over the batch")
        if not loss.requires_grad:
            raise ValueError(
                f"{self.where}: the loss has no gradient; compute it from worker.subnet(inputs), outside "
                "torch.no_grad(), and with parameters that require gradients"
            )

    def _add_to_total(self, loss: Tensor) -> None:
        """Add a loss on its device, without waiting for it."""
        self._total = self._total + loss.reshape(()).to(wide(loss))
        if loss.device.type == "cpu":
            self._is_finite = math.isfinite(self._total)

    def _set_rates(self) -> None:
        """Set this step's rates, unless somebody else has set learning rates in this round: those are respected."""
        groups = self.optimizer.param_groups
        changed = any(group["lr"] != last for group, last in zip(groups, self._last_set, strict=True))
        if changed and not self._by_hand:
            self._by_hand = True
            if self._scheduled:
                warnings.warn(
                    "the learning rate of worker.optimizer was changed, by a scheduler or by the optimizer itself, and "
                    "stays so in this round; schedule= and lr_scheduler= set it, too, so leave one of them out",
                    stacklevel=4,  # who calls step
                )
        if not self._by_hand:
            for group, rates in zip(groups, self._rates[self._done], strict=True):
                group.update(rates)
            self._last_set = [group["lr"] for group in groups]

    def finish(self) -> None:
        """Check that it has taken all its steps, and let go of its modules: who keeps the worker keeps no memory.

        Raises:
            ValueError: steps are missing.
        """
        if self._done < self.num_steps and self._is_finite:
            raise ValueError(
                f"{self.where}: {self._done} steps, but it takes worker.num_steps={self.num_steps} in this round "
                "(at most the algorithm's local_steps); call worker.step(loss) that often"
            )
        if isinstance(self._total, Tensor):
            self._total = self._total.item()
        del self.subnet, self.narrow, self.optimizer, self._private, self._start


def local_steps(worker: Worker, loss_fn: LossFn, batches: Iterable[tuple[Inputs, Any]]) -> None:
    """Take one step per batch, until a loss is not finite (on another device than the CPU, all steps).

    Args:
        worker: whose subnet is trained.
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch.
        batches: pairs (inputs, labels); inputs are one argument of the subnet, a tuple of several, or a dict of named
            ones.
    """
    for batch in batches:
        if worker.is_private:
            worker.private_step(loss_fn, batch)
            continue
        for (x, y), weight in micro_batches(batch, worker.accumulate):
            loss = loss_fn(call(worker.subnet, x), y)
            worker.backward(loss if weight == 1 else loss * weight, y)
        worker._step()
        if worker.stopped:
            break


def micro_batches(batch: Any, num: int) -> Iterator[tuple[Any, float]]:
    """Yield ``num`` parts of equal size of a batch, with weight 1; other weights where it cannot be split so.

    Raises:
        ValueError: not every tensor of the batch has a row per sample.

    Example:
        >>> [(x.tolist(), weight) for x, weight in micro_batches(torch.arange(4), 2)]
        [([0, 1], 1.0), ([2, 3], 1.0)]
    """
    if num == 1:
        yield batch, 1.0
        return
    sizes = num_rows(batch)
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"accumulate={num}: the tensors of a batch have {sorted(sizes)} rows, expected one per sample in each; "
            "take micro-batches in a loop of your own (worker.backward)"
        )
    (size,) = sizes
    for rows in torch.arange(size).tensor_split(min(num, size)):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        yield take(batch, part), len(rows) * num / size


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
