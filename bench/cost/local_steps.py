"""What the settings of local steps cost: time and memory of a quarter-width subnet of a transformer, and of compiling.

    python bench/cost/local_steps.py   # a few minutes on two cores; on a CPU compiling needs g++

The model has 4 blocks 128 wide, on batches of 16 sequences of 64 tokens; 4 workers under ``ist``, 5 local steps.
"step" is the median processor time of the steps after a worker's first, in one thread; "first step" is that of the
training, by the clock, which compiles.
"activations" is what a step stores for the backward pass, as ``Result.step_cost`` predicts it.
"""

import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry

SETTINGS = {
    "as it is": {},
    "clip_grad_norm=1": {"clip_grad_norm": 1.0},
    "accumulate=4": {"accumulate": 4},
    'precision="bf16"': {"precision": "bf16"},
    "checkpoint_activations=True": {"checkpoint_activations": True},
    "compile=True": {"compile": True},
}
WIDTH, CONTEXT, BATCH, VOCABULARY = 128, 64, 16, 96


class Block(nn.Module):
    """Attention with 4 heads, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what attention and the MLP add."""
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def net() -> nn.Module:
    """Return the model."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block() for _ in range(4)))
    return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), blocks, nn.Linear(WIDTH, VOCABULARY))


def loss_fn(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean loss of the next token."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def measure(more: dict[str, object]) -> tuple[float, float, int]:
    """Return the seconds of the first step and of a later one, and the bytes of activations."""
    model = net()
    tokens = torch.randint(0, VOCABULARY, (400, CONTEXT), generator=torch.Generator().manual_seed(0))
    parts = list(torch.arange(400).split(100))
    data = skerry.Shards(tokens, tokens, parts, batch_size=BATCH, seed=0)
    plan = skerry.discover(model, tokens[:2])
    algorithm = skerry.ist(workers=4, local_steps=5)
    first, later = [], []
    with skerry.Session(
        model, plan=plan, algorithm=algorithm, optimizer=lambda net: torch.optim.AdamW(net.parameters(), 1e-3),
        num_rounds=3, loss_fn=loss_fn, **more,
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:
                for k, (x, y) in enumerate(data.batches(worker.number, worker.first_step, worker.num_steps)):
                    started, used = time.perf_counter(), time.process_time()
                    for xs, ys in zip(
                        x.tensor_split(worker.accumulate), y.tensor_split(worker.accumulate), strict=True
                    ):
                        worker.backward(loss_fn(worker.subnet(xs), ys))
                    worker.step()
                    first.append(time.perf_counter() - started)
                    if k:
                        later.append(time.process_time() - used)
    cost = skerry.train(
        model, loss_fn, data, plan=plan, algorithm=skerry.ist(workers=4, local_steps=1),
        optimizer=lambda net: torch.optim.AdamW(net.parameters(), 1e-3), num_rounds=1, **more,
    ).step_cost  # fmt: skip
    return first[0], statistics.median(later), cost.activations


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| | first step, s | step, ms | activations, MB |\n|---|---:|---:|---:|")
    for name, more in SETTINGS.items():
        first, later, activations = measure(more)
        print(f"| `{name}` | {first:.2f} | {later * 1e3:.0f} | {activations / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
