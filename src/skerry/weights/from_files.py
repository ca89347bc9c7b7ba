"""Weights from safetensors files, in the layout of Hugging Face. Only the rows that are needed are read."""

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from skerry.model.tensors import tensors_by_names
from skerry.subnet.index import Cut
from skerry.subnet.slicing import take
from skerry.weights.part_of_file import opened, read_part


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file, as the file's header describes it; ``dtype`` is a safetensors code."""

    path: Path
    name: str
    shape: torch.Size
    dtype: str


class FromFiles:
    """The tensors of a safetensors file, or of a folder as Hugging Face writes it, sharded or not.

    Only the rows that are needed are read, a few megabytes at a time, and converted to the model's dtype. A tied tensor
    is found under any of its names. Names may have or lack the model's ``base_model_prefix``. Buffers that are not
    saved with a model (``persistent=False``) keep the values that they have in ``model``.

    Args:
        path: the file, or the folder with ``model.safetensors`` or ``model.safetensors.index.json``.
        model: on meta or not; the files must have tensors of its names and shapes.

    Attributes:
        unused: the names of tensors in the files that the model does not have.

    Raises:
        ValueError: the files cannot be read, or are of another model.

    Example:
        >>> import tempfile
        >>> from skerry.subnet import Index
        >>> from safetensors.torch import save_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(nn.Linear(4, 3), f"{folder}/model.safetensors")
        ...     source = FromFiles(folder, nn.Linear(4, 3, device="meta"))
        ...     source.read("weight", (Index.run(0, 2), None)).shape
        torch.Size([2, 4])
    """

    def __init__(self, path: str | os.PathLike[str], model: nn.Module) -> None:
        stored = _stored(Path(path))
        prefix = getattr(model, "base_model_prefix", None)
        fleeting = _not_stored(model)
        self._kept: dict[str, Tensor] = {}
        self._stored: dict[str, _Stored] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        missing = []
        for names, tensor in tensors_by_names(model):
            if fleeting.issuperset(names) and not tensor.is_meta:
                self._kept[names[0]] = tensor.detach()
                continue
            found = next((stored[name] for name in _spellings(names, prefix) if name in stored), None)
            if found is None:
                missing.append(names)
                continue
            _check(found, names[0], tensor)
            self._stored[names[0]], self._dtypes[names[0]] = found, tensor.dtype
        if missing:
            raise ValueError(_missing_text(Path(path), missing, stored, fleeting))
        self.unused = tuple(sorted(stored.keys() - {found.name for found in self._stored.values()}))

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part ``cut`` of a tensor, read from its file."""
        if name in self._kept:
            return take(self._kept[name], cut).cpu()
        stored = self._stored[name]
        return read_part(stored.path, stored.name, stored.shape, self._dtypes[name], cut)


_INDEX = "model.safetensors.index.json"


def _stored(path: Path) -> dict[str, _Stored]:
    """Return the tensors in the files at ``path``, by name, from the headers alone."""
    stored = {}
    for file_path in _files(path):
        with opened(file_path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                stored[name] = _Stored(file_path, name, torch.Size(part.get_shape()), part.get_dtype())
    return stored


def _files(path: Path) -> list[Path]:
    """Return the files that ``path`` stands for."""
    remedy = "expected a .safetensors file, or a folder with model.safetensors or " + _INDEX
    if not path.is_dir():
        if path.suffix in _PICKLES:
            raise ValueError(f"{path}: {_PICKLE_TEXT}")
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file; {remedy}")
        return _shards(path) if path.name == _INDEX else [path]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if (path / _INDEX).is_file():
        return _shards(path / _INDEX)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    raise ValueError(f"{path / pickles[0]}: {_PICKLE_TEXT}" if pickles else f"{path}: no weights in it; {remedy}")


_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


_PICKLE_TEXT = (
    "a pickle, which can run any code when it is loaded; load it with torch.load(..., weights_only=True) and save it "
    "with safetensors.torch.save_file"
)


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        files = sorted(index.parent / name for name in names)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors files; write or fetch it again") from error
    for file in files:
        if file.suffix in _PICKLES:
            raise ValueError(f"{file}: {_PICKLE_TEXT}")
        if not file.is_file():
            raise ValueError(f"{file}: there is no such file, but {index.name} names it; fetch it")
    return files


def _not_stored(model: nn.Module) -> set[str]:
    """Return the names of buffers that ``state_dict`` leaves out."""
    modules = model.named_modules(remove_duplicate=False)
    return {f"{path}.{own}".lstrip(".") for path, module in modules for own in module._non_persistent_buffers_set}


def _spellings(names: Sequence[str], prefix: object) -> list[str]:
    """Return the names that a tensor may have in files, the likeliest first."""
    if not isinstance(prefix, str) or not prefix:
        return list(names)
    added = [f"{prefix}.{name}" for name in names]
    return [*names, *added, *(name.removeprefix(f"{prefix}.") for name in names)]


_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _check(stored: _Stored, name: str, tensor: Tensor) -> None:
    """Raise ValueError unless shape and kind of dtype are those of the model's tensor."""
    what = f"{stored.path}: {stored.name}"
    if stored.shape != tensor.shape:
        raise ValueError(
            f"{what} has shape {tuple(stored.shape)}, expected {tuple(tensor.shape)} for the model's {name}; the file "
            "is of another model"
        )
    integers = stored.dtype == "BOOL" or stored.dtype[0] in "IU"
    float_tensor = tensor.dtype in _FLOATS.values()
    if not (stored.dtype in _FLOATS if float_tensor else integers and not tensor.dtype.is_floating_point):
        raise ValueError(
            f"{what} has dtype {stored.dtype}, expected {'floats' if float_tensor else tensor.dtype} for the model's "
            f"{name}; write it unquantized, in the model's dtype"
        )


def _missing_text(path: Path, missing: list[list[str]], stored: dict[str, _Stored], fleeting: set[str]) -> str:
    name = missing[0][0]
    more = f" (and {len(missing) - 1} more tensors)" if len(missing) > 1 else ""
    if name in fleeting:
        return (
            f"{path}: no '{name}'{more}, a buffer that is not saved with models, and this model has it on meta; build "
            "the model with this buffer on the CPU"
        )
    tails = [other for other in stored if other.endswith(f".{name}") or name.endswith(f".{other}")]
    near = tails or difflib.get_close_matches(name, stored, n=1)
    hint = f", but '{near[0]}'" if near else ""
    return f"{path}: no '{name}'{more}{hint}; save the state_dict of a model of this class, under its own names"
