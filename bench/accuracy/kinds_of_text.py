"""Nets by kind of text and their mixture by likelihood, beside nets of mixed text and narrow, at equal operations.

    SKERRY_DATA=... python bench/accuracy/kinds_of_text.py --length .33

``llama-docs``: four narrow nets that never meet, each on text of its own kind (``split=by_label``) or on mixed text
(``split=iid``). The validation loss is of the mean of their logits, of their mixture given the text before in the same
block, and of their mixture that also remembers the blocks before, each half as much as the one after it. One line of
JSON per training goes to ``OUT/kinds.jsonl``.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import load
from skerry.experiments.recipes import RECIPES
from skerry.experiments.reports.comparison import load_run
from skerry.experiments.runs.execute import configure, run
from skerry.runtimes import Serial
from skerry.subnet import Mixture

RECIPE, KEPT = "llama-docs", 0.5
RUNS = {"kinds": ("ensemble", "by_label"), "mixed": ("ensemble", "iid"), "narrow": ("narrow", "iid")}


@torch.no_grad()
def mixture_losses(nets: list[nn.Module], x: Tensor, y: Tensor, size: int = 256) -> dict[str, float]:
    """Return the loss per token of the mixture without and with memory of earlier blocks, and of the best net."""
    mixture = Mixture(nets).eval()
    rows = range(0, len(x), size)
    whole = torch.cat([x, y[:, -1:]], 1)  # the likelihood of a block is of its targets
    seen = torch.cat([_likelihood(nets, whole[a : a + size]) for a in rows], 1)  # (nets, blocks)
    before, memory = torch.zeros_like(seen), torch.zeros(len(nets))
    for block in range(len(x)):
        before[:, block] = memory
        memory = KEPT * (memory + seen[:, block])

    def loss(weights: Tensor | None) -> float:
        total = 0.0
        for a in rows:
            part = slice(a, a + size)
            logs = mixture(x[part], None if weights is None else weights[:, part])
            total += float(F.nll_loss(logs.flatten(0, 1), y[part].flatten(), reduction="sum"))
        return total / y.numel()

    return {"mixture": loss(None), "mixture_remembers": loss(before), "one_net": -float(seen.mean()) / x.shape[1]}


def _likelihood(nets: list[nn.Module], whole: Tensor) -> Tensor:
    x, y = whole[:, :-1], whole[:, 1:]
    logits = [net(x) for net in nets]
    found = [(each if isinstance(each, Tensor) else each["logits"]).log_softmax(-1) for each in logits]
    return torch.stack([each.gather(-1, y[..., None]).sum((1, 2)) for each in found])


def measure(name: str, rate: float, length: float, characters: int) -> dict[str, object]:
    """Train once and return the figures."""
    method, split = RUNS[name]
    steps = max(4, round(1500 * length / 4) * 4)
    rounds = (
        {"rounds": steps // 20, "local_steps": 20} if method == "narrow" else {"rounds": 4, "local_steps": steps // 4}
    )
    settings = {**rounds, "optimizer.lr": rate, "split": split, "threads": 1, "eval_every": 0}
    config = configure(RECIPE, method, settings | {"data.characters": characters})
    with tempfile.TemporaryDirectory() as folder:
        run(config, Path(folder) / "run", Serial(), resume=False)
        last, model = load_run(Path(folder) / "run").metrics[-1], load(Path(folder) / "run").model
    found = {"name": name, "rate": rate, "steps": steps, "characters": characters, "loss": last["loss"]}
    found |= {"flop": last["flop"], "bytes_due": last["bytes_due"], "time_s": last["time_s"]}
    if method == "ensemble":
        found |= mixture_losses(list(model.nets), *RECIPES[RECIPE]().task(config).test)
    return found


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--rates", default="0.006")
    parser.add_argument("--length", type=float, default=1.0)
    parser.add_argument("--characters", type=int, default=3_000_000)
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for rate in map(float, options.rates.split(",")):
        for name in options.runs.split(","):
            row = measure(name, rate, options.length, options.characters)
            with (options.out / "kinds.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
