"""Estimators for scikit-learn: ``fit`` and ``predict`` on numpy arrays, in pipelines and cross-validation too.

``skerry`` imports this file when ``Classifier`` or ``Regressor`` is asked for: scikit-learn is an extra, and slow to
import.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.algorithm import Algorithm
from skerry.algorithms.ist import ist
from skerry.algorithms.relay import relay
from skerry.choose import choose
from skerry.data.shards import Shards
from skerry.data.splits import split
from skerry.discovery.discover import discover
from skerry.plan.table import Plan
from skerry.runtimes.serial import Serial
from skerry.training.schedules import cosine
from skerry.training.train import train
from skerry.training.worker import LossFn, OptimizerFn
from skerry.whole_number import check_whole_number

METHODS: dict[str, Callable[..., Algorithm]] = {"ist": ist, "relay": relay}

_BATCH = 1024
"""Samples per forward in ``predict``."""


class _Estimator(BaseEstimator):  # type: ignore[misc]  # without types
    """What classifier and regressor have in common; ``Classifier`` documents the parameters."""

    def __init__(
        self,
        model: nn.Module,
        *,
        workers: int = 4,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        optimizer: OptimizerFn | None = None,
        local_steps: int = 20,
        method: Literal["ist", "relay"] = "ist",
        plan: Plan | None = None,
        random_state: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.model = model
        self.workers = workers
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.local_steps = local_steps
        self.method = method
        self.plan = plan
        self.random_state = random_state
        self.device = device

    def _fit(self, x: ArrayLike, y: Tensor, loss_fn: LossFn, outputs: tuple[int, ...], meaning: str) -> Self:
        """Train; ``outputs`` is the expected shape of the model's output for a sample, and ``meaning`` what it is."""
        rows = self._rows(x, reset=True)
        if len(rows) != len(y):
            raise ValueError(f"X has {len(rows)} samples and y {len(y)}, expected the same number")
        check_whole_number("epochs", self.epochs, 1)
        model = copy.deepcopy(self.model)
        shape = tuple(self._run(model.eval(), rows[:2]).shape[1:])
        if shape != outputs:
            raise ValueError(f"the model returns rows of shape {shape}, expected {outputs}: {meaning}")
        self.plan_ = discover(model, rows[:8]) if self.plan is None else self.plan
        batch_size = min(self.batch_size, max(1, len(rows) // self.workers))
        data = Shards(
            rows, y, split(y, self.workers, "iid", self.random_state),
            batch_size=batch_size, seed=self.random_state,
        )  # fmt: skip
        steps = self.epochs * math.ceil(math.ceil(len(rows) / self.workers) / batch_size)
        make = METHODS[choose(self.method, METHODS, "method")]
        algorithm = make(self.workers, local_steps=self.local_steps, seed=self.random_state, optimizer_state="travel")
        result = train(
            model,
            loss_fn,
            data,
            plan=self.plan_,
            algorithm=algorithm,
            optimizer=self.optimizer or (lambda net: torch.optim.AdamW(net.parameters(), lr=self.learning_rate)),
            num_rounds=math.ceil(steps / self.local_steps),
            schedule=cosine,
            seed=self.random_state,
            runtime=Serial(),
            device=self.device,
        )
        self.model_, self._shape = result.model, rows.shape[1:]
        return self

    def _outputs(self, x: ArrayLike) -> Tensor:
        check_is_fitted(self)
        rows = self._rows(x, reset=False)
        if rows.shape[1:] != self._shape:
            raise ValueError(f"X has samples of shape {tuple(rows.shape[1:])}, expected {tuple(self._shape)} as in fit")
        return self._run(self.model_, rows)

    @staticmethod
    def _run(model: nn.Module, rows: Tensor) -> Tensor:
        device = next(model.parameters()).device
        with torch.no_grad():
            return torch.cat([model(part.to(device)).float().cpu() for part in torch.split(rows, _BATCH)])

    def _rows(self, x: ArrayLike, *, reset: bool) -> Tensor:
        return torch.from_numpy(validate_data(self, x, reset=reset, dtype=np.float32, allow_nd=True, copy=True))


class Classifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """Trains ``model``, which returns a row of logits for each sample, as independent subnets.

    Args:
        model: takes a batch of rows of X as float32. It is not changed: ``fit`` trains a copy that starts from its
            values.
        workers: number of subnets the model is dealt out to.
        epochs: each worker sees its part of the data at least this many times.
        batch_size: samples per local step, or all samples of a worker that has fewer.
        learning_rate: of AdamW, falling to 0 by a cosine.
        optimizer: makes another ``torch.optim`` optimizer of a worker's subnet; then ``learning_rate`` has no effect.
        local_steps: steps between two exchanges.
        method: ``"ist"`` deals new subnets in every round and works for every model. ``"relay"`` trains one narrow net
            per worker and hands them on; ``model_`` then returns the mean of their outputs. It is often better where
            every hidden layer can be dealt out (MLPs), and raises an error elsewhere. In both, momenta travel with the
            units.
        plan: what is dealt out; discovered if None.
        random_state: determines all random draws.
        device: where to train and predict: ``"cuda"``, ``"cpu"``, ``"auto"``; None: where ``model`` is.

    Attributes:
        model_: the trained full model, calibrated.
        plan_: what was dealt out.
        n_features_in_: features per sample; for samples of several dims, the size of the first.
        classes_: the labels in y, sorted; column k of the logits belongs to ``classes_[k]``.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 5))
        >>> net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> y = np.where(x[:, 0] > 0, "right", "left")
        >>> Classifier(net, workers=2, epochs=10).fit(x, y).predict([[3, 0, 0, 0, 0], [-3, 0, 0, 0, 0]]).tolist()
        ['right', 'left']
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on samples X, (n, ...), and labels y, (n,), of any type that can be sorted.

        Raises:
            ValueError: X and y do not fit each other or the model, X has NaN or infinite values, or ``train`` raises.
        """
        labels = np.asarray(y)
        if labels.ndim != 1:
            raise ValueError(f"y: shape {labels.shape}, expected one label per sample, (n,)")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        targets, shape = torch.from_numpy(numbers.astype(np.int64)), (len(self.classes_),)
        return self._fit(X, targets, F.cross_entropy, shape, "a logit for each label in y")

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most likely label of each sample, (n,)."""
        numbers = self._outputs(X).argmax(1).numpy()
        found: NDArray[Any] = self.classes_[numbers]
        return found

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each of ``classes_`` for each sample, (n, classes)."""
        return self._outputs(X).softmax(1).numpy()


class Regressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """Trains ``model``, which returns a row of numbers for each sample, as independent subnets.

    Parameters and attributes are those of ``Classifier``, except ``classes_``. The loss is the mean squared error, so
    scale targets to about 1 (scikit-learn: ``TransformedTargetRegressor``).

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 5))
        >>> net = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 1))
        >>> Regressor(net, workers=2).fit(x, x[:, 0]).score(x, x[:, 0]) > 0.9
        True
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on samples X, (n, ...), and targets y, (n,) or (n, targets).

        Raises:
            ValueError: X and y do not fit each other or the model, X has NaN or infinite values, or ``train`` raises.
        """
        targets = torch.as_tensor(np.asarray(y, dtype=np.float32))
        self._flat = targets.dim() == 1
        targets = targets[:, None] if self._flat else targets
        return self._fit(X, targets, F.mse_loss, tuple(targets.shape[1:]), "a number for each target in y")

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the prediction for each sample, in the shape of y."""
        output = self._outputs(X)
        return (output[:, 0] if self._flat else output).numpy()
