"""Local steps: ordinary PyTorch training of one subnet, between two exchanges."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skerry.model.inputs import Inputs, call

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(what the model returns, y)``: the mean over the batch, a scalar."""
OptimizerFn = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Data(Protocol):
    """Where workers get their batches; ``skerry.data.Shards`` is one."""

    @property
    def num_workers(self) -> int:
        """The number of workers it has data for."""
        ...

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterable[tuple[Inputs, Any]]:
        """Return the (x, y) of steps ``first_step ...`` of ``worker``: the same ones whenever it is asked."""
        ...

    def sample(self, worker: int, num: int) -> Inputs:
        """Return ``num`` (or all) inputs of ``worker``, to calibrate with."""
        ...


class Worker:
    """One worker's local steps in one round: its subnet, and an optimizer that takes them.

    Attributes:
        number: which worker.
        round: of the training.
        num_steps: the steps it takes in this round, no more and no fewer.
        subnet: the narrow module to train, in training mode and in place; for a synchronous algorithm one around it,
            whose backward averages gradients over all workers.
        narrow: the narrow module itself.
        optimizer: over its parameters.
        in_step: whether every step waits for all workers.
        local_s: seconds from the beginning to the end of the last step.
        flop: floating-point operations; not known where nobody counts them.
        on_labels: called with the worker and the labels of a step; ``watch.py`` sets it while it counts them.

    Args:
        factors: for each step what the optimizer's learning rates are multiplied by.
        around: what to call in the place of the subnet, and what goes down the gradient of its loss; all workers are in
            step then, so none leaves steps out after a loss that is not finite.
        on_step: called after each step with the worker and the number of steps done.
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
        self._factors, self._on_step = factors, on_step
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._total, self._done = 0.0, 0
        optimizer.zero_grad()
        self._began = time.perf_counter()

    @property
    def first_step(self) -> int:
        """How many steps it took before this round, for ``Data.batches``."""
        return self.round * self.num_steps

    @property
    def loss(self) -> float:
        """The mean loss of its steps; NaN or infinite as soon as one step's is."""
        return self._total / max(1, self._done)

    def step(self, loss: Tensor, labels: Any = None) -> None:
        """Take one step down the gradient of ``loss``, at this step's learning rate.

        Gradients of an earlier ``backward`` of your own are added, and an optimizer's ``register_step_pre_hook`` may
        clip them. After a loss that is not finite the piece will be refused, and steps do nothing.

        Args:
            loss: the mean over a batch, a scalar, made with ``self.subnet``.
            labels: of the batch, (B,) int64 where they are classes. Nothing is learned of them: they are counted in the
                first round, to tell how unlike workers' labels are (``Diagnosis.label_skew``).

        Raises:
            ValueError: it has taken all steps of the round.
        """
        if not math.isfinite(self._total) and not self.in_step:
            return
        if self._done == self.num_steps:
            raise ValueError(
                f"worker {self.number}, round {self.round}: a step more than the algorithm's local_steps="
                f"{self.num_steps}; give it as many batches a round, or other local_steps"
            )
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factors[self._done]
        if self.on_labels is not None and labels is not None:
            self.on_labels(self, labels)
        self._backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()  # before the next forward, which needs memory
        self._total += loss.item()
        self._done += 1
        ended = time.perf_counter()
        self.local_s = ended - self._began
        if self._on_step is not None and math.isfinite(self._total):
            self._on_step(self, self._done)
            self._began += time.perf_counter() - ended  # waiting for others is no local step

    def check_done(self) -> None:
        """Raise ValueError unless it has taken all its steps."""
        if self._done < self.num_steps and math.isfinite(self._total):
            raise ValueError(
                f"worker {self.number}, round {self.round}: {self._done} steps, expected the algorithm's local_steps="
                f"{self.num_steps}; give it as many batches a round, or other local_steps"
            )


def local_steps(worker: Worker, loss_fn: LossFn, batches: Iterable[tuple[Inputs, Any]]) -> None:
    """Take one step a batch, as long as the loss is finite.

    Args:
        worker: whose subnet is trained.
        loss_fn: ``loss_fn(call(subnet, x), y)`` is the scalar to minimize.
        batches: pairs (x, y); x is one argument of the subnet, a tuple of several, or a dict of named ones.
    """
    for x, y in batches:
        worker.step(loss_fn(call(worker.subnet, x), y), y)
        if not math.isfinite(worker.loss) and not worker.in_step:
            break


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
