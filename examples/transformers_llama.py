"""Train an unchanged Llama of Hugging Face, with a discovered plan: python examples/transformers_llama.py

Four workers train a quarter of its heads and neurons each. The text is Python's own help, so there is no download.
Seconds on two cores. Needs transformers.
"""

from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.nn import functional as F

import skerry

try:
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError:
    raise SystemExit("this example needs transformers; run: pip install transformers") from None

LENGTH = 32  # characters that the model sees at once


def windows(text: Tensor) -> tuple[Tensor, Tensor]:
    """Return windows of the text, (num, LENGTH), and for each of their characters the next one."""
    num = (len(text) - 1) // LENGTH
    return text[: num * LENGTH].view(num, LENGTH), text[1 : num * LENGTH + 1].view(num, LENGTH)


def main() -> None:
    """Find a plan, train, compare with the entropy of single characters."""
    torch.set_num_threads(1)  # nets this small gain little from more
    text = torch.tensor(list("".join(topics.values()).encode()))  # bytes: 0 to 255
    known, held_out = text[:-40_000], text[-40_000:]
    x, y = windows(known)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    # One unit is a key-value head with its two query heads. RMSNorm keeps the residual stream whole.
    plan = skerry.discover(model, x[:2])
    print(plan)

    result = skerry.train(
        model, lambda output, y: F.cross_entropy(output.logits.flatten(0, 1), y.flatten()),
        skerry.Shards(x, y, skerry.split(y, 4, "iid", seed=0), batch_size=32, seed=0),
        plan=plan, algorithm=skerry.ist(workers=4, local_steps=20, optimizer_state="travel"),
        optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1),
        num_rounds=6, schedule=skerry.cosine, test=windows(held_out),
        callbacks=[skerry.callbacks.Progress()],
    )  # fmt: skip
    assert result.score is not None
    frequency = torch.bincount(known, minlength=256).clamp(min=1) / len(known)
    print(f"by frequency alone {-frequency[held_out].log().mean():.2f} nats per character")
    print(f"held-out text {result.score.loss:.2f} nats per character")


if __name__ == "__main__":
    main()
