"""Writes docs/models.md, the page "Will my model work?", from the zoo of models that the tests check.

    .venv/bin/python docs/models.py

What is dealt out is what ``skerry.discover`` finds when this runs; ``tests/test_docs.py`` checks that the page is up to
date. Needs the extras hf and graphs.
"""

import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from equivalence import dealt_to  # noqa: E402
from families import FAMILIES, Family  # noqa: E402

from skerry import Plan, discover  # noqa: E402

HEAD = """# Will my model work?

*Written by `docs/models.py` from the models in [`tests/families.py`](../tests/families.py); do not edit.*

Ask it: `print(skerry.discover(model, example_inputs))` runs the model once and prints what can be dealt out, and for
everything else why not. Below is what it finds in the models that every change to Skerry is tested with: outputs,
gradients and batch-norm statistics of narrow nets equal those of the masked full model (float64, 1e-9), all axes dealt
to 2, 3 and 5 workers at once, and write-back is exact to the bit.

- **Dealt out**: neurons, channels, groups of channels (where a convolution or a norm has groups), attention heads (with
  grouped queries: a key head with its query heads). Residual blocks if you name them:
  `discover(model, x, blocks=skerry.Blocks("layer3.[1-9]"))`.
- **Whole, on every worker**: inputs, outputs and vocabularies; whatever is normalised or averaged over, so the residual
  streams of transformers; dims of a tied weight that both make and read units; whatever goes through an operation that
  Skerry has no rule for. `plan.without("...")` keeps more whole, `plan.only("...")` all but some.
- **A width written into a `forward`** (`view(B, T, self.n_head, C // self.n_head)`): discovery runs a narrow net, sees
  it, and adapts it. Numbers that a module keeps (`num_heads`, `config.num_heads`, those in tuples) are scaled in a
  subnet, sizes that a forward takes from its input are replaced while it runs, and what a module gets with a part for
  each head (slopes of position biases) is cut, if the narrow net then does what the full one does. `print(plan)` says
  what is adapted. What cannot be adapted is left whole, and its note names the module. Then pass a patch, a
  function `patch(narrow, full)` that sets the narrow module's numbers, or gives it another `forward`.
  `nn.MultiheadAttention`, and GPT-2's and GAT's layers, are known.

  ```python notest
  def patch(narrow, full):  # for a forward that views by self.heads
      narrow.heads = full.heads * narrow.query.weight.shape[0] // full.query.weight.shape[0]


  plan = skerry.discover(model, x, patches={"layers.*.attention": patch})
  ```
- **What is verified is what is trained**: `skerry.train` compares narrow nets of each size that its workers will have
  with the masked full model, in evaluation and in training mode, before it starts.
- **Models of transformers, timm, vit-pytorch, torch_geometric**: `python bench/real_models.py` tries many of them,
  in tiny configurations. [What it found](real-models.md) in transformers is a page of its own.
- **Whatever discovery cannot see**: `Plan.from_rules`, in the words of tensor parallelism. `skerry.verify` checks any
  plan, and `skerry.train` does it before it starts.

The share is that of parameters and buffers in these small models; in wide ones it is larger. *How*: by itself, adapted
(numbers that modules keep are scaled in a subnet), or with a patch that you pass. *Tested with*: the least and the most
units of each kind that a narrow net had in these tests. What is not in this table or the other is not promised.

| model | dealt out | share | how | tested with | whole, and why |
|---|---|---:|---|---|---|
"""


def row(family: Family) -> str:
    """The page's line for a family."""
    torch.manual_seed(0)
    model, inputs = family.build()
    plan = discover(model, inputs, patches=family.patches)
    found = Counter((axis.kind, axis.num_units) for axis in plan.axes)
    axes = ", ".join(f"{n} {kind}" + (f" (x{times})" if times > 1 else "") for (kind, n), times in found.items())
    how = "a patch" if family.patches else "adapted" if plan.numbers else "by itself" if axes else "-"
    whole = family.undealt or "inputs and outputs"
    return f"| {family.about} | {axes or 'nothing'} | {share(plan):.0%} | {how} | {tested(plan) or '-'} | {whole} |"


def tested(plan: Plan) -> str:
    """The least and the most units of each kind that a worker has when all axes are dealt to 2, 3 and 5 workers."""
    sizes: dict[str, set[int]] = {}
    for workers in (2, 3, 5) if plan.axes else ():
        for units in dealt_to(plan, workers):
            held = torch.zeros(plan.num_units, dtype=torch.bool)
            held[units] = True
            for axis in plan.axes:
                sizes.setdefault(axis.kind, set()).add(int(held[axis.units].sum()))
    return ", ".join(f"{min(own)} to {max(own)} {kind}" for kind, own in sizes.items())


def share(plan: Plan) -> float:
    """The share of elements that are dealt out."""
    numel = {name: shape.numel() for name, shape in plan.shapes.items()}
    return sum(numel[name] for name in plan.dims) / sum(numel.values())


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(row(family) for family in FAMILIES) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "models.md").write_text(page())
