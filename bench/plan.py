"""Count forwards and seconds of ``discover`` on models of real size, on the meta device: their weights take no memory.

    python bench/plan.py

A Vision Transformer (ViT-L/16, 24 layers) and a Llama (8B, 32 layers) of transformers, with a batch of one. The memory
is what the process grew by over torch, transformers and the modules.
"""

import time
import warnings
from resource import RUSAGE_SELF, getrusage

import torch
import transformers
from torch import Tensor, nn

from skerry import discover

SMALL = 2  # layers, for comparison


def vit(layers: int = 24) -> tuple[nn.Module, dict[str, Tensor]]:
    """ViT-L/16 at 224 x 224, 304M parameters."""
    config = transformers.ViTConfig(
        hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096, num_labels=1000
    )
    with torch.device("meta"):
        return transformers.ViTForImageClassification(config), {"pixel_values": torch.zeros(1, 3, 224, 224)}


def llama(layers: int = 32) -> tuple[nn.Module, dict[str, Tensor]]:
    """Llama 3 8B, 8 tokens."""
    config = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    return model, {"input_ids": torch.ones(1, 8, dtype=torch.int64)}


def measured(model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """A line of the table for a model."""
    forwards = [0]

    def count(module: nn.Module, args: object) -> None:
        forwards[0] += type(module) is type(model)

    hook = nn.modules.module.register_module_forward_pre_hook(count)  # of the model and of narrow nets
    began, before = time.process_time(), getrusage(RUSAGE_SELF).ru_maxrss
    plan = discover(model, inputs)
    seconds, grown = time.process_time() - began, getrusage(RUSAGE_SELF).ru_maxrss - before
    hook.remove()
    numel = {name: shape.numel() for name, shape in plan.shapes.items()}
    share = sum(numel[name] for name in plan.dims) / sum(numel.values())
    elements = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{elements:.0f} | {len(plan.axes)} | {share:.0%} | {forwards[0]} | {seconds:.1f} | {grown >> 10} |"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    discover(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(2, 4))  # what is loaded on the first call
    print("| model | layers | million parameters | axes | dealt out | forwards | CPU seconds | MB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, build, layers in (("ViT-L/16", vit, 24), ("Llama 3 8B", llama, 32)):
        for n in (SMALL, layers):
            print(f"| {name} | {n} | {measured(*build(n))}", flush=True)


if __name__ == "__main__":
    main()
