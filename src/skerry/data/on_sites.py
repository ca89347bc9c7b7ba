"""The data of a server whose workers are sites: none of its own (``skerry.federated``)."""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

from skerry.model.inputs import Inputs, take


class OnSites:
    """Says how many sites have data, and what a batch of theirs looks like.

    Args:
        num_workers: how many sites there are.
        example: inputs and labels of a batch with the shapes and types of the sites'. The model runs on it to be
            checked and to count operations. Made-up samples do: nothing is trained on them.

    Example:
        >>> import torch
        >>> OnSites(3, (torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64))).num_workers
        3
    """

    def __init__(self, num_workers: int, example: tuple[Inputs, Any]) -> None:
        self.num_workers, self._example = num_workers, example

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Inputs, Any]]:
        """Yield the example as often as there are steps."""
        return repeat(self._example, num_steps)

    def sample(self, worker: int, num: int) -> Inputs:
        """Return inputs of the example."""
        inputs: Inputs = take(self._example[0], slice(num))
        return inputs
