"""A Llama of Hugging Face learns Shakespeare, by a discovered plan: SKERRY_DATA=FOLDER python examples/hf_llama.py

An ordinary, untrained ``LlamaForCausalLM``, four workers with a quarter of its heads and neurons each. About a minute
on two cores. Expect about 2.1 nats a character on held-out text; characters by their frequency alone would cost 3.3.
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

LENGTH = 64  # characters that the model sees at once


def load() -> Tensor:
    """The text as numbers from 0, one for each different character, int64."""
    path = Path(os.environ.get("SKERRY_DATA", ".")).expanduser() / "tinyshakespeare.txt"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; set SKERRY_DATA to the folder with it (any text of a megabyte will do)")
    text = path.read_text(encoding="utf-8")
    number = {character: k for k, character in enumerate(sorted(set(text)))}
    return torch.tensor([number[character] for character in text])


def windows(text: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of the text, (num, LENGTH), and for each of their characters the next one."""
    num = (len(text) - 1) // LENGTH
    return text[: num * LENGTH].view(num, LENGTH), text[1 : num * LENGTH + 1].view(num, LENGTH)


def main() -> skerry.training.Result:
    """Discover, train, tell."""
    torch.set_num_threads(1)  # nets this small gain little from more
    text = load()
    known, held_out = text[:-60_000], text[-60_000:]
    x, y = windows(known)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=int(text.max()) + 1, hidden_size=128, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    # Two query heads and their key-value head are one unit; RMSNorm keeps the residual stream whole.
    plan = skerry.discover(model, x[:2])
    print(plan)

    result = skerry.train(
        model, lambda output, y: F.cross_entropy(output.logits.flatten(0, 1), y.flatten()),
        skerry.Shards(x, y, skerry.split(y, 4, "iid", seed=0), batch_size=32, seed=0),
        plan=plan, algorithm=skerry.ist(workers=4, local_steps=20, optimizer_state="travel"),
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
        num_rounds=16, schedule=skerry.cosine, test=windows(held_out),
        on_round=lambda record, state: print(f"round {record.round}: training loss {record.train_loss:.3f}"),
    )  # fmt: skip
    assert result.score is not None
    frequency = torch.bincount(known, minlength=config.vocab_size) / len(known)
    by_frequency = -frequency[held_out].log().mean()
    print(f"held-out text: {result.score.loss:.2f} nats a character; by their frequency alone {by_frequency:.2f}")
    return result


if __name__ == "__main__":
    main()
