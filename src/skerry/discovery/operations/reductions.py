"""Rules of operations along dims: sums and other statistics, softmax, sorting, cumulative sums."""

from dataclasses import replace

from torch import Tensor

from skerry.discovery.index_labels import Labels
from skerry.discovery.operations.operation import Operation, RuleTable, pin_everything
from skerry.discovery.operations.pointwise import pointwise

rules = RuleTable()


@rules.add("sum", "mean", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "logsumexp", "norm",
           "linalg_vector_norm", "prod", "argmax", "argmin", "any", "all", "nansum", "median", "aminmax",
           "count_nonzero")  # fmt: skip
def statistic(op: Operation) -> list[Labels]:
    """A statistic over dims needs everything that goes into it."""
    x = op.args[0]
    labels = op.labels_of(x)
    given = op.arg(2 if "norm" in op.name else 1, "dim")
    if isinstance(given, Tensor):  # max(a, b) of two tensors
        return list(pointwise(op))
    if isinstance(given, bool) or given is None or given == []:
        given = range(x.dim())
    dims = {d % max(1, x.dim()) for d in ([given] if isinstance(given, int) else given)}
    kept = [d for d in range(x.dim()) if d not in dims]
    fields = op.constraints.activation(op.collapsed(labels, dims, "statistic").fields)
    results = []
    for out in op.outs:
        if out.dim() == x.dim():
            results.append(Labels(fields, uniform=labels.uniform))
        else:
            moved = tuple(replace(f, ids=f.ids.reshape([f.ids.shape[d] for d in kept])) for f in fields)
            results.append(Labels(moved, uniform=not kept or labels.uniform))
    return results


@rules.add("flip", "roll", "tril", "triu", "diagonal", "constant_pad_nd", "topk", "sort", "argsort", "cumsum",
           "cumprod", "logcumsumexp", "_softmax", "_log_softmax", "_safe_softmax", "softmax",
           "log_softmax", "_fft_r2c", "_fft_c2r", "_fft_c2c")  # fmt: skip
def mixes_along(op: Operation) -> list[Labels]:
    """The result has as many dims, but along some of them each element depends on all others or on its position."""
    x = op.args[0]
    dims = _mixed_dims(op, x.dim())
    left = op.collapsed(op.labels_of(x), [d % x.dim() for d in dims], "statistic")
    if "softmax" in op.name:
        op.constraints.heads.extend(one.ids.flatten() for one in left.fields)
    if op.name == "diagonal":
        return pin_everything(op)
    result = op.constraints.activation(left.fields)
    return [Labels(result) for _ in op.outs]


def _mixed_dims(op: Operation, num_dims: int) -> list[int]:
    if op.name in ("tril", "triu", "diagonal"):
        return [-2, -1]
    if "fft" in op.name:
        return list(op.args[1])
    if op.name == "constant_pad_nd":
        pad = op.args[1]
        return [-1 - k for k in range(len(pad) // 2) if pad[2 * k] or pad[2 * k + 1]]
    if op.name in ("flip", "roll"):
        dims = op.arg(2 if op.name == "roll" else 1, "dims", ()) or range(num_dims)
        return [dims] if isinstance(dims, int) else list(dims)
    return [int(op.arg(2 if op.name == "topk" else 1, "dim", -1))]
