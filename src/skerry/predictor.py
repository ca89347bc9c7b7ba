"""A trained model that takes samples as they are stored and answers with classes; ``skerry.load`` returns one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from skerry.model.graph_inputs import is_graph
from skerry.model.in_words import OF_TORCH, described, first_line
from skerry.model.inputs import call, tensors_of, to
from skerry.whole_number import check_whole_number


@dataclass(frozen=True, eq=False)
class Scaling:
    """How stored samples become a model's inputs: ``(x / divisor - mean) / std``, as float32.

    Args:
        mean, std: numbers, or tensors that broadcast to a sample.
        divisor: 255 for images of bytes whose mean and std are of values from 0 to 1.

    Raises:
        ValueError: a value is not finite, or std or divisor is 0.

    Example:
        >>> Scaling(mean=0.5, std=0.25, divisor=255)(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-2.,  2.])
    """

    mean: Tensor | float
    std: Tensor | float
    divisor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float32))
        for name, remedy in (("mean", ""), ("std", "; use std.clamp(min=1e-6)"), ("divisor", "")):
            value = torch.as_tensor(getattr(self, name))
            wrong = ~value.isfinite() if name == "mean" else ~value.isfinite() | (value == 0)
            if num := int(wrong.sum()):
                zero = "" if name == "mean" else "0 or "
                raise ValueError(f"{name}: {num} of {value.numel()} entries are {zero}not finite{remedy}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return stored samples, (B, ...), as inputs of the model."""
        mean, std = (torch.as_tensor(value, device=x.device) for value in (self.mean, self.std))
        return (x.float() / self.divisor - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        mean, std = (torch.as_tensor(value).tolist() for value in (self.mean, self.std))
        return {"mean": mean, "std": std, "divisor": self.divisor}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a model takes and returns; a run's folder keeps it as JSON.

    Attributes:
        shape: of a stored sample.
        dtype: of stored samples, such as "uint8".
        scaling: turns them into the model's inputs; None: they are that already.
        classes: the names of the classes, or how many there are; None: outputs are not classes.
        sizes: what the model was built from besides its settings, such as the number of inputs.
        tokenizer: of a language model whose tokens are not the characters in ``classes``: a tokenizer of the package
            tokenizers, as its ``to_str`` gives it.
    """

    shape: tuple[int, ...]
    dtype: str
    scaling: Scaling | None = None
    classes: tuple[str, ...] | int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    tokenizer: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        scaling = None if self.scaling is None else self.scaling.to_json()
        return {**vars(self), "shape": list(self.shape), "sizes": dict(self.sizes), "scaling": scaling}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Return the signature that ``to_json`` wrote."""
        scaling, classes = plain["scaling"], plain["classes"]
        return cls(
            shape=tuple(plain["shape"]),
            dtype=plain["dtype"],
            scaling=None if scaling is None else Scaling(**scaling),
            classes=tuple(classes) if isinstance(classes, list) else classes,
            sizes=plain["sizes"],
            tokenizer=plain.get("tokenizer", ""),  # older runs have none
        )

    def inputs(self, samples: Tensor) -> Tensor:
        """Return stored samples, (B, ...), as inputs of the model.

        Raises:
            ValueError: they are not like the samples that the model was trained on.
        """
        dtype = getattr(torch, self.dtype)
        # Words and tokens may be more or fewer; a feature that is missing would be filled in by broadcasting.
        any_length = self.scaling is None and not dtype.is_floating_point
        got, meant = tuple(samples.shape[1:]), self.shape
        if len(got) != len(meant) if any_length else got != meant:
            one = "; for a single sample give x[None]" if tuple(samples.shape) == meant else ""
            raise ValueError(f"x: samples of shape {got}, expected {meant} as in training{one}")
        if samples.is_complex() or (samples.is_floating_point() and not dtype.is_floating_point):
            raise ValueError(f"x: {samples.dtype}, expected {dtype} as in training; give samples that are not scaled")
        if samples.dtype != dtype and not dtype.is_floating_point:
            low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
            least, most = map(
                int, samples.to(torch.int64).aminmax()
            )  # for uint16 and larger, torch lacks most functions
            if least < low or most > high or (samples.dtype == torch.uint64 and least < 0):
                raise ValueError(f"x: {least} to {most}, expected {low} to {high} as in training ({dtype})")
        samples = samples.to(dtype)
        return samples if self.scaling is None else self.scaling(samples)


class Predictor:
    """A trained model with the scaling of its inputs and the names of its classes.

    Args:
        model: the model.
        signature: what it takes and returns.
        name: where it comes from, for messages.
        round: rounds that it was trained for.
        num_rounds: rounds that it is to be trained for.

    Attributes:
        model: the model in evaluation mode, to be used as any other; it takes scaled inputs. Move it to compute
            elsewhere: ``predictor.model.to("cuda")``.
        signature: what it takes and returns.
        round, num_rounds: how far it is trained.

    Example:
        >>> signature = Signature(shape=(2,), dtype="float32", classes=("left", "right"))
        >>> Predictor(nn.Linear(2, 2), signature, name="trial").predict([[1.0, 2.0]]).shape
        (1,)
    """

    def __init__(
        self, model: nn.Module, signature: Signature, *, name: str, round: int = 0, num_rounds: int = 0
    ) -> None:
        self.model, self.signature = model.eval(), signature
        self.name, self.round, self.num_rounds = name, round, num_rounds

    def __repr__(self) -> str:
        signature, classes = self.signature, self.classes
        returns = "numbers" if classes is None else f"one of {len(classes)} classes"
        takes = f"{signature.dtype} of shape {signature.shape}"
        return (
            f"Predictor({self.name}: after round {self.round} of {self.num_rounds}, takes {takes}, returns {returns})"
        )

    @property
    def classes(self) -> NDArray[Any] | None:
        """The names of the classes, or their numbers; None if the outputs are not classes."""
        known = self.signature.classes
        return np.arange(known) if isinstance(known, int) else None if known is None else np.array(known)

    def predict(self, x: ArrayLike | Tensor, *, batch_size: int = 1024) -> NDArray[Any]:
        """Return the most likely class of each sample, by name if it has one; where there are no classes, the outputs.

        Args:
            x: samples as they were stored for training, not scaled: an array (also one mapped from a file), a tensor
                or a list, (num_samples, ...). Or a graph (``Data`` of PyTorch Geometric), whose nodes are the samples.
            batch_size: samples in memory at a time.

        Raises:
            ValueError: ``x`` is not like the samples that the model was trained on, or an output is NaN. With classes,
                too, if outputs are not (num_samples, num_classes): ``outputs`` gives them.
        """
        classes = self.classes
        if classes is None:
            return self.outputs(x, batch_size=batch_size).numpy()
        named: NDArray[Any] = classes[self._of_classes(x, batch_size, lambda logits: logits.argmax(1)).numpy()]
        return named

    def predict_proba(self, x: ArrayLike | Tensor, *, batch_size: int = 1024) -> NDArray[np.float32]:
        """Return the probability of each of ``classes``, (num_samples, num_classes); arguments as in ``predict``.

        It is the softmax of the outputs, so they must be logits.

        Raises:
            ValueError: the outputs are not classes, or as in ``predict``.
        """
        if self.classes is None:
            raise ValueError(f"{self.name}: its outputs are not classes, so there are no probabilities; use outputs(x)")
        return self._of_classes(x, batch_size, lambda logits: logits.softmax(1)).numpy()

    def outputs(self, x: ArrayLike | Tensor, *, batch_size: int = 1024) -> Tensor:
        """Return what the model returns (logits, for classes) as float32 on the CPU; arguments as in ``predict``."""
        return torch.cat(list(self._of_batches(x, batch_size)))

    def _of_classes(self, x: Any, batch_size: int, answer: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the ``answer`` to the logits of each sample."""
        num_classes, num_bad, found = len(self.classes), 0, []  # type: ignore[arg-type]  # the caller has looked
        for output in self._of_batches(x, batch_size):
            if output.dim() != 2:
                raise ValueError(
                    f"{self.name}: outputs of shape {tuple(output.shape)}, expected (num_samples, num_classes); "
                    "use outputs(x)"
                )
            if output.shape[1] != num_classes:
                raise ValueError(f"{self.name}: {output.shape[1]} outputs for {num_classes} classes")
            num_bad += int(output.isnan().any(1).sum())
            found.append(answer(output))
        if num_bad:
            num = sum(map(len, found))
            raise ValueError(
                f"{self.name}: the outputs of {num_bad} of {num} samples are NaN; look for NaN and infinite values in x"
            )
        return torch.cat(found)

    def _of_batches(self, x: Any, batch_size: int) -> Iterator[Tensor]:
        check_whole_number("batch_size", batch_size, 1)
        if is_graph(x):
            self.signature.inputs(x.x)
            return self._run([x], 1)
        rows = x if hasattr(x, "shape") else np.asarray(x)
        if not rows.shape or not len(rows):
            raise ValueError(f"x: shape {tuple(rows.shape)}, expected at least one sample of {self.signature.shape}")
        return self._run(rows, batch_size)

    @torch.no_grad()
    def _run(self, rows: Any, batch_size: int) -> Iterator[Tensor]:
        device = next(self.model.parameters()).device
        self.model.eval()
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            inputs = to(part[0], device) if is_graph(part[0]) else self.signature.inputs(self._tensor(part).to(device))
            try:
                output = next(tensors_of(call(self.model, inputs)))
            except OF_TORCH as error:
                if type(error) not in OF_TORCH:
                    raise
                raise ValueError(
                    f"x: the model does not run on inputs {described(inputs)}: {first_line(error)}; it was trained on "
                    f"samples of shape {self.signature.shape}"
                ) from error
            yield output.float().cpu()

    def _tensor(self, part: Any) -> Tensor:
        if isinstance(part, Tensor):
            return part
        array = np.array(part)
        try:
            return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False))
        except TypeError as error:
            raise ValueError(f"x: {array.dtype}, expected {self.signature.dtype} as in training") from error
