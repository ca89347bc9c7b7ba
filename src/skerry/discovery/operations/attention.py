"""The rule of attention as one operation, which a forward may ask for by the name of a kernel."""

from torch import Tensor

from skerry.discovery.index_labels import Labels
from skerry.discovery.operations.operation import Operation, RuleTable, pin_everything

rules = RuleTable()


@rules.add("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
           "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
           "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip
def attention(op: Operation) -> list[Labels]:
    """Softmax of queries times keys, times values: (batch, heads, tokens, width), head by head."""
    q, k, v, *rest = op.args
    if len({t.shape[1] for t in (q, k, v)}) > 1:
        return pin_everything(op)
    masks = [t for t in [*rest, *op.kwargs.values()] if isinstance(t, Tensor)]
    pairs = []
    for tensor, inner in [(q, {2, 3}), (k, {2, 3}), (v, {2}), *((mask, {2, 3}) for mask in masks)]:
        labels, wide = op.aligned(tensor, 4)
        pairs.append((op.collapsed(labels, inner, "statistic"), wide - inner - {2, 3}))
    result = op.combined(pairs)
    op.constraints.heads.extend(one.ids.flatten() for one in result.fields)
    return op.first_has(result)
