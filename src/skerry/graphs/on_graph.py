"""The data of workers that train on a graph: batches drawn from (worker, step) alone, so that resume is exact."""

from collections.abc import Callable, Iterator

from torch import Tensor

from skerry.model.graph_inputs import GraphInputs

Batch = tuple[GraphInputs, Tensor]


class OnGraph:
    """The data of all workers (``skerry.training.Data``), drawn from a graph.

    A batch is a pair: ``GraphInputs``, and the labels of its labelled nodes. The model gets what its forward names
    (``x, edge_index, edge_weight, edge_attr, batch``) or the graph; loss and metrics are of labelled nodes only.

    Args:
        num_workers: how many it is for.
        draw: returns the batch of (worker, step).
        sample: returns inputs of about so many nodes of a worker, all of which are rows.
        steps_per_pass: steps in which a worker sees all that it has.

    Attributes:
        num_workers, steps_per_pass: see above.
    """

    def __init__(
        self,
        num_workers: int,
        draw: Callable[[int, int], Batch],
        sample: Callable[[int, int], GraphInputs],
        *,
        steps_per_pass: int,
    ) -> None:
        self.num_workers, self.steps_per_pass = num_workers, steps_per_pass
        self._draw, self._sample = draw, sample

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yield the batches of steps first_step .. first_step + num_steps - 1 of ``worker``."""
        return (self._draw(worker, step) for step in range(first_step, first_step + num_steps))

    def sample(self, worker: int, num: int) -> GraphInputs:
        """Return inputs of about ``num`` nodes of ``worker``, to check the plan with and to calibrate batch norms."""
        return self._sample(worker, num)
