"""Where full-size tensors come from, a part at a time.

Where no process ever holds the full model, the full model is on the ``meta`` device (``skeleton``) and each process
makes or reads just the part of each tensor that it holds. A *source* gives that part: ``FromInitializer`` draws it
from a seed, ``FromFiles`` reads it from safetensors, ``FromModel`` cuts it out of a model with real tensors. It is the
same part to the bit in whichever process asks, and whatever else that process asks for.
"""

import copy
import difflib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from skerry.partition import Assignment
from skerry.plan import Plan, named_tensors
from skerry.randomness import seed_of
from skerry.subnet import Cut, Index, cut_shape, fill_, parameter_like, take


class Source(Protocol):
    """Where the values of full-size tensors come from."""

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return, as a new CPU tensor, the part of the full-size tensor ``name`` that ``cut`` names (see ``take``).

        ``name`` is the tensor's first name in the model; a tied tensor's other names are not known.
        """


class FromModel:
    """The tensors of a model that has real ones, as they are when they are read."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = named_tensors(model)
        for name, tensor in self._tensors.items():
            if tensor.is_meta:
                raise ValueError(f"{name} is on meta and has no values; start from FromInitializer or FromFiles")

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return a copy of the part of ``name``."""
        return take(self._tensors[name], cut).cpu()


class ZeroBetween:
    """Another source, with zeros for what no worker holds: of disjoint subnets, what lies between two of them.

    The full model is then nothing but its subnets side by side: it sums up what each of them computes by itself.
    """

    def __init__(self, source: Source, plan: Plan, assignment: Assignment) -> None:
        self._source, self._plan, self._assignment = source, plan, assignment

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part of ``name``."""
        part = self._source.read(name, cut)
        shape = self._plan.shapes[name]
        row, block = self._plan.row(name, shape), self._plan.block_of(name)
        held = torch.zeros((), dtype=torch.bool)
        always = torch.ones(self._assignment.num_workers, 1, dtype=torch.bool)
        for having in torch.cat([self._assignment.held, always], 1):  # unit id -1 looks at the last
            own = torch.ones((), dtype=torch.bool) if block is None else having[block]
            for dim, dealt in enumerate(row):
                if dealt is not None:
                    units = dealt.units[_indices(cut[dim] if cut else None, shape[dim])]
                    own = own & having[units].view([-1 if d == dim else 1 for d in range(len(shape))])
            held = held | own
        return torch.where(held, part, torch.zeros_like(part))


_SLAB_BYTES = 2**23
"""Rows of a large tensor that are made or read at a time, in bytes."""


def _by_slabs(shape: torch.Size, dtype: torch.dtype, cut: Cut, slab: Callable[[Tensor, Cut], Tensor]) -> Tensor:
    """Put a part together from slabs; ``slab(rows, rest)`` is ``rows`` of dim 0, cut by ``rest`` in the other dims."""
    out = torch.empty(cut_shape(shape, cut), dtype=dtype, device="cpu")
    if out.numel() == 0:
        return out
    first, *rest = cut or (None,)
    rows = _indices(first, shape[0])
    step = max(1, _SLAB_BYTES // max(1, shape[1:].numel() * max(4, dtype.itemsize)))
    begin = 0
    while begin < len(rows):  # rows[begin:end] lie within ``step`` neighbouring rows of the full tensor
        end = int(torch.searchsorted(rows, rows[begin] + step))
        out[begin:end] = slab(rows[begin:end], tuple(rest))
        begin = end
    return out


def _indices(index: Index | None, size: int) -> Tensor:
    if isinstance(index, Tensor):
        return index.cpu()
    runs = (slice(0, size),) if index is None else index
    return torch.cat([torch.arange(run.start, run.stop, device="cpu") for run in runs])


# ---- drawn from a seed


Fill = Callable[[Tensor, torch.Generator, int], object]
"""``fill(block, rng, row)`` writes row ``row`` (its index along dim 0) of a tensor into ``block``, in place.

A tensor of one or no dim is one block, its row 0. What is written may depend on nothing else, so that each process can
make the rows it needs. ``block`` is on the CPU, and float32 where the tensor is of a smaller float type.
"""

Init = Callable[[nn.Module, str, torch.Size], Fill | Tensor | None]
"""``init(module, name, shape)`` says how the tensor ``name`` of the full ``shape``, which ``module`` owns, starts.

Returns the ``Fill`` of its rows; or all of it, for a small tensor that is easier to write down as a whole; or None, to
leave it to ``default_init``.
"""


@dataclass(frozen=True)
class Uniform:
    """Values drawn from U(-bound, bound)."""

    bound: float

    def __call__(self, block: Tensor, rng: torch.Generator, row: int) -> None:
        """Draw ``block``."""
        block.uniform_(-self.bound, self.bound, generator=rng)


@dataclass(frozen=True)
class Normal:
    """Values drawn from N(0, std²), but for a row of zeros if there is one (an embedding's padding)."""

    std: float
    zero_row: int | None = None

    def __call__(self, block: Tensor, rng: torch.Generator, row: int) -> None:
        """Draw ``block``."""
        block.normal_(0, self.std, generator=rng) if row != self.zero_row else block.zero_()


@dataclass(frozen=True)
class Constant:
    """One value everywhere."""

    value: float

    def __call__(self, block: Tensor, rng: torch.Generator, row: int) -> None:
        """Set ``block``."""
        block.fill_(self.value)


def default_init(module: nn.Module, name: str, shape: torch.Size) -> Fill | None:
    """Return how PyTorch's own modules (and transformers' Conv1D) start ``name``; None for what is not theirs.

    The distribution is that of the module's ``reset_parameters``, not the bits. What a model does to its modules'
    tensors afterwards is not seen: an ``_init_weights`` of its own, or the Xavier weights of ``nn.Transformer``. Nor is
    there a rule for a subclass that has its own ``reset_parameters``. Write an ``init`` for those.
    """
    kind, own = type(module), name.rpartition(".")[2]
    if f"{kind.__module__.partition('.')[0]}.{kind.__name__}" == "transformers.Conv1D":
        return Normal(0.02) if own == "weight" else Constant(0) if own == "bias" else None
    reset: Any = getattr(kind, "reset_parameters", getattr(kind, "_reset_parameters", None))
    if not getattr(reset, "__module__", "").startswith("torch."):
        return None
    match module:
        case NonDynamicallyQuantizableLinear() if own == "bias":  # out_proj of MultiheadAttention
            return Constant(0)
        case nn.Linear() | _ConvNd() | nn.Bilinear() if own in ("weight", "bias"):
            sizes = module.weight.shape[1:2] if isinstance(module, nn.Bilinear) else module.weight.shape[1:]
            return Uniform(_inverse_root(sizes.numel()))
        case nn.Embedding() | nn.EmbeddingBag() if own == "weight":
            return Normal(1.0, zero_row=module.padding_idx)
        case _NormBase() | nn.LayerNorm() | nn.GroupNorm() | nn.RMSNorm():
            ones, zeros = ("weight", "running_var"), ("bias", "running_mean", "num_batches_tracked")
            return Constant(1) if own in ones else Constant(0) if own in zeros else None
        case nn.MultiheadAttention():
            return _attention(own, shape)
        case nn.RNNBase() | nn.RNNCellBase() if own.startswith(("weight_", "bias_")):
            return Uniform(_inverse_root(module.hidden_size))
        case nn.PReLU() if own == "weight":
            return Constant(module.init)
    return None


def _inverse_root(size: int) -> float:
    return 1 / math.sqrt(size) if size else 0.0


def _attention(own: str, shape: torch.Size) -> Fill | None:
    if own == "in_proj_bias":
        return Constant(0)
    if own in ("bias_k", "bias_v"):  # Xavier's normal, of (1, 1, embed_dim)
        return Normal(_inverse_root(shape[2]))
    if own in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return Uniform(math.sqrt(6) * _inverse_root(sum(shape)))  # Xavier's uniform
    return None


class FromInitializer:
    """Fresh tensors, drawn row by row: a row is a pure function of (seed, name of the tensor, index of the row).

    So a process draws whole only the rows that it has a part of, holds a few of them at a time beside its part, and
    agrees with every other process without a message.

    Args:
        model: on meta or not; only shapes and dtypes are looked at. But a buffer that nobody has a rule for and that
            has real values there (a mask, a table of frequencies) keeps those.
        seed: of the draw.
        init: how tensors start, where ``default_init`` does not know or is not what is wanted.

    Raises:
        ValueError: there is no rule for a tensor.

    Example:
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Embedding(50_000, 64), nn.Linear(64, 10))
        >>> def init(module, name, shape):
        ...     if isinstance(module, nn.Embedding):
        ...         return Normal(0.02)
        >>> source = FromInitializer(model, seed=0, init=init)
        >>> rows = torch.tensor([3, 49_999])
        >>> part = source.read("0.weight", (rows, None))
        >>> part.shape, bool(part.abs().max() < 0.2)
        (torch.Size([2, 64]), True)
        >>> torch.equal(part, source.read("0.weight")[rows])
        True
    """

    def __init__(self, model: nn.Module, seed: int, init: Init = default_init) -> None:
        self._seed = seed
        self._starts: dict[str, tuple[torch.Size, torch.dtype, Fill | Tensor]] = {}
        parameters = dict(model.named_parameters())
        for name, tensor in named_tensors(model).items():
            module, shape = model.get_submodule(name.rpartition(".")[0]), tensor.shape
            start = init(module, name, shape)
            if start is None:
                start = default_init(module, name, shape)
            if start is None and name not in parameters and not tensor.is_meta:
                start = tensor.clone()
            if start is None:
                raise ValueError(
                    f"{name} ({type(module).__name__}): no rule for how it starts; pass init=... that returns one, or "
                    "start from files or from a model with real tensors"
                )
            if not (start.shape == shape if isinstance(start, Tensor) else callable(start)):
                got = f"a tensor of shape {tuple(start.shape)}" if isinstance(start, Tensor) else repr(start)
                raise ValueError(
                    f"{name}: init returned {got}, expected a function that fills a row, or all of the tensor, of "
                    f"shape {tuple(shape)}"
                )
            self._starts[name] = (shape, tensor.dtype, start)

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part of ``name``, drawn anew."""
        shape, dtype, start = self._starts[name]
        if isinstance(start, Tensor):
            return take(start.detach(), cut).to("cpu", dtype)
        fill: Fill = start
        row_shape = shape[1:] if len(shape) > 1 else shape
        drawn = torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype
        rng = torch.Generator()

        def made(rows: Tensor) -> Tensor:
            slab = torch.empty((len(rows), *row_shape), dtype=drawn, device="cpu")
            for block, row in zip(slab, rows.tolist(), strict=True):
                fill(block, rng.manual_seed(seed_of(self._seed, "init", name, row)), row)
            return slab

        if len(shape) < 2:
            return take(made(torch.zeros(1, dtype=torch.int64, device="cpu"))[0].to(dtype), cut)
        return _by_slabs(shape, dtype, cut, lambda rows, rest: _rest_of(made(rows), rest))


def _rest_of(slab: Tensor, rest: Cut) -> Tensor:
    return slab if all(index is None for index in rest) else take(slab, (None, *rest))


# ---- read from files


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file, as the file's header has it; ``dtype`` is a safetensors code."""

    path: Path
    name: str
    shape: torch.Size
    dtype: str


class FromFiles:
    """The tensors of a safetensors file, or of a folder as Hugging Face writes it, sharded or not.

    Only the rows that are needed are read, a slab at a time, and made the model's dtype. A tied tensor is found under
    any of its names (the model's first, if the files have several), and names may have the model's
    ``base_model_prefix`` too many or too few. Buffers that are not stored with a model (``persistent=False``) keep the
    values that they have in ``model``.

    Args:
        path: the file, or the folder with ``model.safetensors`` or ``model.safetensors.index.json``.
        model: on meta or not; its names, shapes and dtypes are expected.

    Attributes:
        unused: the names of tensors in the files that the model has no use for.

    Raises:
        ValueError: the files cannot be read, or are not of this model.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(nn.Linear(4, 3), f"{folder}/model.safetensors")
        ...     source = FromFiles(folder, nn.Linear(4, 3, device="meta"))
        ...     source.read("weight", ((slice(0, 2),), None)).shape
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
        for names, tensor in _tensors_by_names(model):
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
        """Return the part of ``name``, read anew."""
        if name in self._kept:
            return take(self._kept[name], cut).cpu()
        stored = self._stored[name]
        return read_part(stored.path, stored.name, stored.shape, self._dtypes[name], cut)


def read_part(path: Path, name: str, shape: torch.Size, dtype: torch.dtype, cut: Cut = ()) -> Tensor:
    """Return the part of a tensor of ``shape`` in a safetensors file that ``cut`` names, as ``dtype``.

    Raises:
        ValueError: the file cannot be read.
    """
    if not shape:
        with _opened(path) as file:
            return take(file.get_tensor(name)).to(dtype)

    def read_rows(rows: Tensor, rest: Cut) -> Tensor:
        # Opened for each slab: the file is mapped into memory, and pages that were touched stay until it is closed.
        with _opened(path) as file:
            begin, end = int(rows[0]), int(rows[-1]) + 1
            picked: Index = (slice(0, end - begin),) if end - begin == len(rows) else rows - begin
            return take(file.get_slice(name)[begin:end], (picked, *rest))

    return _by_slabs(shape, dtype, cut, read_rows)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); write or fetch it anew") from error


_INDEX = "model.safetensors.index.json"


def _stored(path: Path) -> dict[str, _Stored]:
    """Return what the files at ``path`` hold, by name, from their headers alone."""
    stored = {}
    for file_path in _files(path):
        with _opened(file_path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                stored[name] = _Stored(file_path, name, torch.Size(part.get_shape()), part.get_dtype())
    return stored


def _files(path: Path) -> list[Path]:
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
    "a pickle, which can run any code when it is read; load it with torch.load(..., weights_only=True) and save it "
    "with safetensors.torch.save_file"
)


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        files = sorted(index.parent / name for name in names)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors files; write or fetch it anew") from error
    for file in files:
        if file.suffix in _PICKLES:
            raise ValueError(f"{file}: {_PICKLE_TEXT}")
        if not file.is_file():
            raise ValueError(f"{file}: there is no such file, but {index.name} names it; fetch it")
    return files


def _tensors_by_names(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return each parameter and buffer once, with all its names."""
    known: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        known.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(known.values())


def _not_stored(model: nn.Module) -> set[str]:
    """Return the names of buffers that ``state_dict`` leaves out."""
    modules = model.named_modules(remove_duplicate=False)
    return {f"{path}.{own}".lstrip(".") for path, module in modules for own in module._non_persistent_buffers_set}


def _spellings(names: Sequence[str], prefix: object) -> list[str]:
    """Return the names under which files may have a tensor, the likeliest first."""
    if not isinstance(prefix, str) or not prefix:
        return list(names)
    added = [f"{prefix}.{name}" for name in names]
    return [*names, *added, *(name.removeprefix(f"{prefix}.") for name in names)]


_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _check(stored: _Stored, name: str, tensor: Tensor) -> None:
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
            f"{path}: no '{name}'{more}, a buffer that is not saved with a model, and the model has it on meta; build "
            "the model with this buffer on the CPU"
        )
    tails = [other for other in stored if other.endswith(f".{name}") or name.endswith(f".{other}")]
    near = tails or difflib.get_close_matches(name, stored, n=1)
    hint = f", but '{near[0]}'" if near else ""
    return f"{path}: no '{name}'{more}{hint}; save the state_dict of a model of this class, under its own names"


# ---- models without and with values


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with every parameter and buffer on meta; no tensor is copied, tied ones stay tied.

    Example:
        >>> skeleton(nn.Linear(4, 3)).weight
        Parameter containing:
        tensor(..., device='meta', size=(3, 4), requires_grad=True)
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = parameter_like(torch.empty_like(parameter.detach(), device="meta"), parameter)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # locks, generators, ...
        raise ValueError(
            f"the model cannot be copied ({error}); keep what cannot be copied outside of its modules"
        ) from error


def materialize(model: nn.Module, source: Source) -> nn.Module:
    """Give ``model`` (on meta) the tensors of ``source``, whole and on the CPU; tied ones stay tied. Returns ``model``.

    Example:
        >>> with torch.device("meta"):
        ...     model = nn.Linear(4, 3)
        >>> materialize(model, FromInitializer(model, seed=0))(torch.ones(4)).shape
        torch.Size([3])
    """
    return fill_(model, {name: source.read(name) for name in named_tensors(model)})
