"""Fine-tune a pretrained GPT-2 (tiny) by ``ist`` and by local SGD: python bench/accuracy/fine_tuning.py

It is pretrained on sequences of one rule, and goes on with more of these, or with sequences of another rule. Both
methods take the same number of steps (a step of ist on two workers has half the heads and MLP units). Prints the loss
on held-out sequences of both rules. A minute.
"""

import copy
import warnings

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import skerry
from skerry.algorithms import Algorithm, ist, local_sgd
from skerry.training import causal_lm_loss

WORKERS, LENGTH, VOCABULARY = 2, 16, 40


def sequences(rule: int, num: int, seed: int) -> Tensor:
    """Return (num, LENGTH) tokens that grow by ``rule`` plus 0 to 2; these three numbers repeat within a sequence."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 3, (num, 3), generator=rng).repeat(1, 6)[:, :LENGTH]
    return (torch.randint(VOCABULARY, (num, 1), generator=rng) + (noise + rule).cumsum(1)) % VOCABULARY


@torch.no_grad()
def loss_on(model: nn.Module, tokens: Tensor) -> float:
    """Return the mean loss of next tokens."""
    return float(causal_lm_loss(model.eval()(tokens), tokens))


def pretrained(tokens: Tensor) -> nn.Module:
    """Return a GPT-2 after 300 steps."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(300):
        batch = tokens[torch.randint(len(tokens), (32,), generator=torch.Generator().manual_seed(step))]
        causal_lm_loss(model(batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def tuned(model: nn.Module, tokens: Tensor, algorithm: Algorithm, rate: float) -> nn.Module:
    """Return the model after ten rounds of ten steps on ``tokens``; ``model`` is not changed."""
    model = copy.deepcopy(model)
    parts = skerry.split(tokens[:, 0], WORKERS, "iid", seed=0)
    return skerry.train(
        model, causal_lm_loss, skerry.Shards(tokens, tokens, parts, batch_size=16, seed=0),
        plan=skerry.discover(model, tokens[:2]), algorithm=algorithm, num_rounds=10, schedule=skerry.cosine,
        optimizer=lambda net: torch.optim.AdamW(net.parameters(), rate),
    ).model  # fmt: skip


def main() -> None:
    """Fine-tune with both methods on both rules."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    old, new = (sequences(rule, 300, seed=1) for rule in (1, 5))
    model = pretrained(sequences(1, 2000, seed=0))
    print(f"pretrained: old rule {loss_on(model, old):.3f}, new rule {loss_on(model, new):.3f}", flush=True)
    for what, rule, rate in (("new", 5, 1e-3), ("old", 1, 3e-4)):
        for algorithm in (local_sgd(WORKERS, local_steps=10), ist(WORKERS, local_steps=10, optimizer_state="travel")):
            net = tuned(model, sequences(rule, 2000, seed=2), algorithm, rate)
            losses = f"old rule {loss_on(net, old):.3f}, new rule {loss_on(net, new):.3f}"
            print(f"{algorithm.name} on the {what} rule, rate {rate}: {losses}", flush=True)


if __name__ == "__main__":
    main()
