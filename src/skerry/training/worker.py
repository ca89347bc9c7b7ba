"""A worker's local steps: ordinary PyTorch training of one subnet, between two exchanges."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skerry.model.inputs import Inputs, call

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
        factors: for each step what the optimizer's learning rates are multiplied by.
        number: the worker's.
        round: of the training.
        around: what to call in place of ``subnet``, and a function that takes the backward pass from its loss; all
            workers are in step then, so none leaves out steps after a loss that is not finite.
        on_step: called after each step with the worker and the number of steps done.

    Attributes:
        number: the worker's, from 0.
        round: of the training, from 0.
        num_steps: the steps it takes in this round, no more and no fewer.
        subnet: the narrow module to train, in training mode and in place; for a synchronous algorithm a module around
            it, whose backward averages gradients over all workers.
        narrow: the narrow module itself.
        optimizer: over its parameters.
        in_step: whether every step waits for all workers.
        local_s: seconds from the beginning to the end of the last step.
        flop: floating-point operations of its steps; NaN if not measured.
        on_labels: called with the worker and the labels of each step; set while label skew is measured.
        after_step: called with the worker and the loss after each step, for callbacks.
    """

    def __init__(
        self,
        subnet: nn.Module,
        optimizer: torch.optim.Optimizer,
        factors: Sequence[float],
        *,
        number: int = 0,
        round: int = 0,
        around: tuple[nn.Module, Callable[[Tensor], None]] | None = None,
        on_step: Callable[["Worker", int], None] | None = None,
    ) -> None:
        self.number, self.round, self.num_steps = number, round, len(factors)
        self.narrow, self.optimizer = subnet, optimizer
        self.subnet, self._backward = around or (subnet, _backward)
        self.subnet.train()
        self.in_step = around is not None
        self.local_s, self.flop = 0.0, math.nan
        self.on_labels: Callable[[Worker, Any], None] | None = None
        self.after_step: Callable[[Worker, Tensor], None] | None = None
        self._factors, self._on_step = factors, on_step
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._total, self._done, self._told = 0.0, 0, False
        optimizer.zero_grad()
        self._began = time.perf_counter()

    @property
    def first_step(self) -> int:
        """How many steps it took before this round, for ``Data.batches``."""
        return self.round * self.num_steps

    @property
    def loss(self) -> float:
        """The mean loss of its steps; NaN or infinite as soon as that of one step is."""
        return self._total / max(1, self._done)

    def step(self, loss: Tensor, labels: Any = None) -> None:
        """Take one step down the gradient of ``loss``, at this step's learning rate.

        Gradients of earlier ``backward`` calls of yours are added, and an optimizer's ``register_step_pre_hook`` may
        clip them. After a loss that is not finite the worker will be refused, and further steps do nothing.

        Args:
            loss: the mean over a batch, a scalar, computed with ``self.subnet``.
            labels: of the batch, (B,) int64 where they are classes. They are counted in the first round to measure
                label skew (``Diagnosis.label_skew``), and used for nothing else.

        Raises:
            ValueError: it has taken all steps of the round; ``loss`` is no single number; or no parameter of the
                optimizer has a gradient, as where the loss is that of another module.
        """
        self._check_loss(loss)
        if not math.isfinite(self._total) and not self.in_step:
            return
        if self._done == self.num_steps:
            raise ValueError(
                f"{self._where}: one step more than the algorithm's local_steps="
                f"{self.num_steps}; give it that number of batches per round, or change local_steps"
            )
        self._set_rates()
        if self.on_labels is not None and labels is not None:
            self.on_labels(self, labels)
        self._backward(loss)
        if all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"{self._where}: the loss does not depend on the worker's subnet; compute it from "
                "worker.subnet(inputs), not from the full model"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()  # before the next forward, which needs memory
        self._total += loss.item()
        self._done += 1
        ended = time.perf_counter()
        self.local_s = ended - self._began
        if self._on_step is not None and math.isfinite(self._total):
            self._on_step(self, self._done)
        if self.after_step is not None:
            self.after_step(self, loss.detach())
        self._began += time.perf_counter() - ended  # waiting for others and callbacks do not count as local steps

    @property
    def _where(self) -> str:
        return f"worker {self.number}, round {self.round}"

    def _check_loss(self, loss: object) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{self._where}: the loss is {got}, expected one number, the mean over the batch")
        if not loss.requires_grad:
            raise ValueError(
                f"{self._where}: the loss has no gradient; compute it from worker.subnet(inputs), outside "
                "torch.no_grad(), and with parameters that require gradients"
            )

    def _set_rates(self) -> None:
        """Set this step's learning rates; warn if somebody else has set them meanwhile, since that has no effect."""
        groups, before = self.optimizer.param_groups, self._factors[self._done - 1] if self._done else 1.0
        changed = any(group["lr"] != rate * before for group, rate in zip(groups, self._rates, strict=True))
        if changed and not self._told:
            self._told = True
            warnings.warn(
                "the learning rate of worker.optimizer was changed, by a scheduler or by the optimizer itself, but is "
                "set before each step; give train or Session schedule=, the factor of the rate by progress",
                stacklevel=3,  # who calls step
            )
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * self._factors[self._done]

    def finish(self) -> None:
        """Check that it has taken all its steps, and let go of its modules: who keeps the worker keeps no memory.

        Raises:
            ValueError: steps are missing.
        """
        if self._done < self.num_steps and math.isfinite(self._total):
            raise ValueError(
                f"{self._where}: {self._done} steps, expected the algorithm's local_steps="
                f"{self.num_steps}; call worker.step(loss) that often in each round, or change local_steps"
            )
        del self.subnet, self.narrow, self.optimizer


def local_steps(worker: Worker, loss_fn: LossFn, batches: Iterable[tuple[Inputs, Any]]) -> None:
    """Take one step per batch, as long as the loss is finite.

    Args:
        worker: whose subnet is trained.
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch.
        batches: pairs (inputs, labels); inputs are one argument of the subnet, a tuple of several, or a dict of named
            ones.
    """
    for x, y in batches:
        worker.step(loss_fn(call(worker.subnet, x), y), y)
        if not math.isfinite(worker.loss) and not worker.in_step:
            break


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
