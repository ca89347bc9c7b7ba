"""What a recipe trains on if that is a graph of PyTorch Geometric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from skerry.data.labelled_nodes import labelled
from skerry.experiments.config import Config
from skerry.model.graph_inputs import GraphInputs
from skerry.predictor import Signature
from skerry.training.evaluation.metrics import Metric
from skerry.training.worker import Data, LossFn


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphTask:
    """A graph, and how workers get their batches of it.

    Attributes:
        graph: ``Data`` with ``x``, ``edge_index``, ``y``, ``train_mask`` and ``test_mask``.
        classes: how many there are.
        batches: a function of graph and config that returns the workers' data (``skerry.graphs``).
        loss_fn, metrics: as in ``Task``.
    """

    graph: Any
    classes: int
    batches: Callable[[Any, Config], Data]
    loss_fn: LossFn = F.cross_entropy
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """What the model is built from."""
        return {"features": self.graph.x.shape[1], "classes": self.classes}

    @property
    def signature(self) -> Signature:
        """What a model of it takes and returns."""
        return Signature(shape=(self.graph.x.shape[1],), dtype="float32", classes=self.classes, sizes=self.sizes)

    @property
    def held_out(self) -> tuple[GraphInputs, Tensor]:
        """The nodes in ``test_mask``, and their labels."""
        rows = labelled(self.graph, "test_mask")
        return GraphInputs(self.graph, rows), self.graph.y[rows]

    def data(self, config: Config) -> Data:
        """Return the data of all workers.

        Raises:
            ValueError: a setting is wrong.
        """
        if config.split != "iid":
            raise ValueError(
                f"split={config.split}: recipe '{config.recipe}' deals out a graph, expected iid; data.* says who "
                "has which nodes"
            )
        return self.batches(self.graph, config)

    def log_priors(self, config: Config) -> None:
        """Return None: there are none.

        Raises:
            ValueError: they are wanted.
        """
        if config.prior_adjusted:
            raise ValueError(f"prior_adjusted=true: recipe '{config.recipe}' trains on a graph, expected false")
