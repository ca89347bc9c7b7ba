"""A GPT-2 of transformers with tied embeddings, trained in every way that people pretrain one: as a plain loop does."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import skerry
from skerry.algorithms import single
from skerry.training import causal_lm_loss

transformers = pytest.importorskip("transformers")
STEPS = 6
TOKENS = torch.randint(20, (24, 8), generator=torch.Generator().manual_seed(0))
DATA = skerry.Shards(TOKENS, TOKENS, [torch.arange(24)], batch_size=8, seed=0)


def build() -> nn.Module:
    torch.manual_seed(1)
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    return transformers.GPT2LMHeadModel(config).train()


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), 1e-2)


def warmup_and_cosine(optimizer: torch.optim.Optimizer) -> object:
    return transformers.get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=STEPS)


FEATURES = {
    "accumulate": {"accumulate": 4},
    "clip": {"clip_grad_norm": 0.1},
    "warm-up and cosine": {"lr_scheduler": warmup_and_cosine},
    "bf16": {"precision": "bf16"},
    "checkpoint": {"checkpoint_activations": True},
}


def plain(*, accumulate=1, clip_grad_norm=None, lr_scheduler=None, precision="fp32", checkpoint_activations=False):
    net = build()
    optimizer = adamw(net)
    schedule = lr_scheduler(optimizer) if lr_scheduler else None
    if checkpoint_activations:
        for block in net.transformer.h:
            block.forward = lambda *a, f=block.forward, **k: checkpoint(f, *a, use_reentrant=False, **k)
    for x, y in DATA.batches(0, 0, STEPS):
        for xs, ys in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = net(xs).logits
            (causal_lm_loss(logits.float(), ys) / accumulate).backward()
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
    return net


@pytest.mark.parametrize("feature", FEATURES)
def test_one_worker_with_everything_is_a_plain_loop(feature):
    model = build()
    skerry.train(
        model, causal_lm_loss, DATA, plan=skerry.Plan.whole(model), algorithm=single(local_steps=STEPS),
        optimizer=adamw, num_rounds=1, verify=False, **FEATURES[feature],
    )  # fmt: skip
    meant = plain(**FEATURES[feature])
    assert model.lm_head.weight is model.transformer.wte.weight
    for (name, got), expected in zip(model.named_parameters(), meant.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
