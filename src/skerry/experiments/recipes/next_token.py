"""What recipes of language models share: their settings, a text as blocks of tokens, loss and perplexity, the plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.choose import choose
from skerry.data.kinds import kinds_of_text
from skerry.discovery.discover import discover
from skerry.discovery.named.blocks import Blocks
from skerry.experiments.config import Config
from skerry.experiments.recipes.recipe import Recipe, Settings, Task, settings_per_method, whole_number
from skerry.plan.table import Plan
from skerry.training.evaluation.metrics import Perplexity

SIZES = ("layers", "width", "heads", "head_size", "hidden")
MODEL: Settings = {"layers": 2, "width": 64, "heads": 4, "head_size": 16, "hidden": 256, "groups": 1, "deal": "units"}
STREAM_TOO: Settings = {"model.width": 256, "model.groups": 4}
LAYERS: Settings = {"model.layers": 8, "model.heads": 1, "model.hidden": 64, "model.deal": "layers"}
ADAMW: Settings = {"name": "AdamW", "lr": 0.008, "betas": [0.9, 0.95], "weight_decay": 0.1}
DOCUMENTS_PER_KIND = 16  # at least


def language_recipe(
    name: str,
    summary: str,
    *,
    model: Callable[[Config, Mapping[str, int]], nn.Module],
    layers: Blocks,
    task: Callable[[Config], Task],
    data: Settings,
    wide_steps: int,
    own: Mapping[str, Settings],
) -> Recipe:
    """Return the recipe of a language model: 4 workers, 1500 local steps of a narrow net, as many operations with all.

    By default heads and hidden units of MLPs are dealt out; embeddings and the residual stream of 64 channels are on
    every worker. ``relay`` and ``ensemble`` deal the stream out, too: it has 256 channels, normed in 4 groups
    (``model.groups``), so that each of the four nets is as large as that of ``narrow``. ``resist`` deals out whole
    layers of a deeper model (``model.deal`` "layers"), of which a worker has two.

    Args:
        name, summary: of the recipe.
        model: makes the model from a config and ``Task.sizes``.
        layers: its layers, and what each adds to the stream.
        task: makes the task from a config.
        data: settings of the data beside ``block``, the number of tokens in a sample.
        wide_steps: steps of the wide net that cost what 1500 of a narrow one cost.
        own: what single methods change.
    """
    subnets: dict[str, Any] = {"rounds": 75, "local_steps": 20, "eval_every": 15}
    long_rounds: dict[str, Any] = {"rounds": 4, "local_steps": 375, "eval_every": 1, **STREAM_TOO}
    kept: Settings = {"optimizer_state": "stay"}
    methods = settings_per_method(
        subnets=subnets,
        replicas={"rounds": wide_steps // 20, "local_steps": 20, "eval_every": 3},
        nested={"rounds": 41, "local_steps": 20, "eval_every": 10},
        own={
            "relay": long_rounds | {"optimizer_state": "travel"}, "ensemble": long_rounds,
            "ist": {"optimizer_state": "travel"}, "narrow": kept, "local_sgd": kept, "fedrolex": {"partition.step": 16},
        },
    ) | {"resist": {**subnets, **LAYERS}}  # fmt: skip
    config = Config(
        recipe=name, model=MODEL, data={"block": 64, **data}, batch_size=32, optimizer=ADAMW, clip_grad_norm=1.0,
        eval_batch_size=256,
    )  # fmt: skip

    def dealt(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
        net = model(config, sizes)
        device = next(net.parameters()).device
        example = torch.zeros(2, sizes["block"], dtype=torch.int64, device=device)
        if choose(str(config.model["deal"]), ("units", "layers"), "model.deal") == "layers":
            return net, layers.plan(net, example)
        groups = whole_number(config, "model.groups")
        return net, discover(net, example, grouped_norms=groups if groups > 1 else False)

    return Recipe(
        summary=summary,
        config=config,
        methods={method: {**settings, **own.get(method, {})} for method, settings in methods.items()},
        task=task,
        model=dealt,
    )


def model_sizes(config: Config) -> dict[str, int]:
    """Return the settings in ``SIZES``; ValueError unless they are whole numbers from 1."""
    return {name: whole_number(config, f"model.{name}") for name in SIZES}


def next_token_loss(output: Any, targets: Tensor) -> Tensor:
    """Return the mean cross entropy per token.

    Args:
        output: logits, (B, T, vocabulary), or an output of transformers that has them.
        targets: the tokens that follow, (B, T), int64.
    """
    logits = output if isinstance(output, Tensor) else output["logits"]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def next_token_task(
    config: Config,
    train: Tensor,
    val: Tensor,
    vocabulary: Sequence[str],
    *,
    document: int,
    tokenizer: str = "",
) -> Task:
    """Return the task of predicting each next token, in samples of ``data.block`` tokens.

    Args:
        config: unless its split is "iid", a split by label is one by kind of text (``kinds_of_text``).
        train, val: the text to train on and the one to validate with, as numbers of tokens, (num_tokens,) int64.
        vocabulary: the tokens.
        document: the number of tokens that are told to be of one kind, fewer in a short text.
        tokenizer: see ``Signature``.
    """
    block = whole_number(config, "data.block")
    x, y = _blocks(train, block, "the text to train on")
    kinds = None
    if config.split != "iid":
        per_document = min(document // block, len(x) // (DOCUMENTS_PER_KIND * config.workers))
        kinds = kinds_of_text(x, config.workers, samples_per_document=max(1, per_document))
    return Task(
        train=(x, y),
        test=_blocks(val, block, "the text to validate with"),
        classes=tuple(vocabulary),
        sizes={"vocabulary": len(vocabulary), "block": block},
        loss_fn=next_token_loss,
        split_by=kinds,
        metrics={"perplexity": Perplexity(next_token_loss)},
        tokenizer=tokenizer,
    )


def _blocks(tokens: Tensor, size: int, what: str) -> tuple[Tensor, Tensor]:
    """Return blocks that do not overlap, and for each token the next one: (num_blocks, size) both."""
    num = (len(tokens) - 1) // size
    if num < 1:
        raise ValueError(
            f"{what}: {len(tokens)} tokens, expected at least {size + 1}, one more than data.block; "
            "give a longer text or a smaller block"
        )
    return tokens[: num * size].view(num, size), tokens[1 : num * size + 1].view(num, size)
