"""How workers take their local steps, beyond the optimizer: clipping, micro-batches, precision, memory, compilation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from skerry.choose import choose
from skerry.whole_number import check_whole_number

Precision = Literal["fp32", "bf16", "fp16"]
Deadline = Literal["none", "adaptive"]
SchedulerFn = Callable[[torch.optim.Optimizer], Any]
"""A function of an optimizer that returns a scheduler of it, of ``torch.optim.lr_scheduler`` or one like those."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How workers take their local steps.

    Args:
        lr_scheduler: makes a scheduler, which is stepped after each local step; it goes on from round to round.
        clip_grad_norm: the most that the norm of all gradients of a subnet may be; longer ones are scaled to it.
        accumulate: a step is the mean of this number of losses, each of a micro-batch (``Worker.backward``). ``train``
            splits a worker's batches into so many parts.
        precision: the subnet's forward runs in ``torch.autocast`` of this type, with the loss scaled for ``"fp16"``.
            Weights stay as they are, and what the subnet returns is float32.
        checkpoint_activations: compute each repeated block once more in the backward pass instead of storing its
            activations.
        compile: compile the subnet (``torch.compile``), anew only for another size.
        deadline: ``"adaptive"``: a round is a common time. The fastest worker takes ``local_steps``, others fewer, by
            the speeds measured in earlier rounds (``Record.local_steps``); the rates are those of the round's first
            steps. ``"none"``: all take ``local_steps``.

    Raises:
        ValueError: a value of another type or out of range.
    """

    lr_scheduler: SchedulerFn | None = None
    clip_grad_norm: float | None = None
    accumulate: int = 1
    precision: Precision = "fp32"
    checkpoint_activations: bool = False
    compile: bool = False
    deadline: Deadline = "none"

    def __post_init__(self) -> None:
        clip = self.clip_grad_norm
        if self.lr_scheduler is not None and not callable(self.lr_scheduler):
            raise ValueError(
                "lr_scheduler: expected a function of an optimizer, such as "
                "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=100)"
            )
        if clip is not None and (
            isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < math.inf
        ):
            raise ValueError(f"clip_grad_norm={clip!r}: expected a number above 0, or None")
        check_whole_number("accumulate", self.accumulate, 1)
        choose(str(self.precision), get_args(Precision), "precision")
        choose(str(self.deadline), get_args(Deadline), "deadline")
        for name in ("checkpoint_activations", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected True or False")
