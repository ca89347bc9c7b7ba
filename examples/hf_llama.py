"""A transformer from Hugging Face, heads and neurons dealt out: SKERRY_DATA=... python examples/hf_llama.py

Trains an ordinary, small ``LlamaForCausalLM`` from scratch on the characters of Shakespeare (tinyshakespeare.txt, 1.1 MB)
as four nets of a quarter of its heads and neurons, in about a minute on two cores. Expect about 2.0 nats a character on
held-out text; knowing only how frequent each character is gives 3.3, knowing nothing 4.2.
"""

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import skerry

try:
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError:
    raise SystemExit("this example needs transformers; run: pip install transformers") from None

LENGTH = 64  # characters the model sees at once


def load() -> tuple[Tensor, int]:
    """The text as numbers of characters, int64, and how many different ones there are."""
    path = Path(os.environ.get("SKERRY_DATA", ".")) / "tinyshakespeare.txt"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; set SKERRY_DATA to the folder that has it (any text of a megabyte will do)")
    text = path.read_text()
    number = {character: k for k, character in enumerate(sorted(set(text)))}
    return torch.tensor([number[character] for character in text]), len(number)


def windows(text: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of the text, (num, LENGTH), and for each place the character that comes next."""
    num = (len(text) - 1) // LENGTH
    return text[: num * LENGTH].view(num, LENGTH), text[1 : num * LENGTH + 1].view(num, LENGTH)


def main() -> skerry.Result:
    """Discover, train, tell."""
    torch.set_num_threads(1)
    text, characters = load()
    (x, y), test = windows(text[:1_000_000]), windows(text[1_000_000:1_050_000])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=characters, hidden_size=128, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    plan = skerry.discover(model, x[:2])
    print(plan)
    result = skerry.train(
        model, lambda out, y: F.cross_entropy(out.logits.flatten(0, 1), y.flatten()),
        skerry.Shards(x, y, skerry.split(y, 4, "iid", seed=0), batch_size=32, seed=0),
        plan=plan, algorithm=skerry.ist(workers=4, local_steps=20, reshuffle=0.1),
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
        num_rounds=20, schedule=skerry.cosine, test=test, verify=False,
        on_round=lambda record, state: print(f"round {record.round}: training loss {record.train_loss:.3f}", record.totals["time_s"]),
    )  # fmt: skip
    assert result.score is not None
    unigram = F.cross_entropy(torch.bincount(text[:1_000_000], minlength=characters).log().expand(len(text) - 1_000_000, -1), text[1_000_000:])
    print(f"held-out text: {result.score.loss:.2f} nats a character; unigram {unigram:.2f}")
    return result


if __name__ == "__main__":
    main()
