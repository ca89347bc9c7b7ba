"""Convolutional nets on CIFAR-10: a VGG and a ResNet-18 with channels dealt out, a deep ResNet with blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from skerry.discovery.named.blocks import Blocks
from skerry.experiments.config import Config
from skerry.experiments.datasets.archives import frozen
from skerry.experiments.datasets.cifar import cifar10, cifar10_jpeg
from skerry.experiments.models.resnet import ResNet
from skerry.experiments.models.vgg import VGG
from skerry.experiments.recipes.augmented import crops_and_flips
from skerry.experiments.recipes.recipe import (
    Recipe,
    Task,
    chosen_set,
    settings_per_method,
    whole_number,
    with_label_skew,
)
from skerry.plan.rules import In, Out, Rules
from skerry.plan.table import Plan

CLASSES, SIZE = 10, 32
SETS = {"cifar10": cifar10, "cifar10-jpeg": cifar10_jpeg}
ADAMW: Mapping[str, Any] = {"optimizer.name": "AdamW", "optimizer.lr": 0.001}


def vgg_cifar() -> Recipe:
    """A small VGG; the channels of every layer are dealt out, as the paper does with neurons.

    Both dims of most weights are dealt out, so a worker's step costs a fourteenth of the full net's. Learning rates are
    not tuned.

    References: Yuan et al., VLDB 2022, arXiv 1910.02120, section 5 (a VGG12 on ImageNet-21k).
    """
    return Recipe(
        summary=f"VGG with 6 convolutions, 16 to 128 channels, on {_on()}",
        config=_config("vgg-cifar", {"convs": [1, 1, 2, 2], "width": 16, "hidden": 256}),
        methods=settings_per_method(
            subnets={"rounds": 58, "local_steps": 50, "optimizer.lr": 0.1},
            replicas={"rounds": 10, "local_steps": 20, "optimizer.lr": 0.05},
            nested={"rounds": 12, "local_steps": 50, "optimizer.lr": 0.1},
            own={"diloco": ADAMW},
        ),
        task=_task,
        model=_vgg,
        paper="Yuan et al. (arXiv 1910.02120), VGG12 on ImageNet-21k, top 10: data parallel .3688, local SGD .3685, "
        "IST .3802.",
    )


def resnet18_cifar() -> Recipe:
    """ResNet-18's layout; in each block the filters of conv1, norm2 and the inputs of conv2 are dealt out.

    Stem, shortcuts, residual stream and classifier are on every worker. Learning rates are not tuned.

    Differs from LoFT, arXiv 2210.16169, which also shares the first stage and strided blocks: a step then costs a
    worker 2.6 times as much, and a first trial (docs/log.md) was worse at equal operations.

    References: Yuan et al., VLDB 2022, arXiv 1910.02120, section 5 (ResNet18 on CIFAR-10).
    """
    return Recipe(
        summary=f"pre-activation ResNet-18 layout, 16 to 128 channels, on {_on()}",
        config=_config("resnet18-cifar", {"blocks": [2, 2, 2, 2], "width": 16, "stem_stride": 2}),
        methods=settings_per_method(
            subnets={"rounds": 60, "local_steps": 50, "optimizer.lr": 0.1},
            replicas={"rounds": 40, "local_steps": 20, "optimizer.lr": 0.05},
            nested={"rounds": 33, "local_steps": 50, "optimizer.lr": 0.1},
            own={"diloco": ADAMW},
            without=("relay", "ensemble"),  # subnets share the residual stream
        ),
        task=_task,
        model=_resnet_channels,
        paper="Yuan et al. (arXiv 1910.02120), ResNet18 on CIFAR-10: data parallel .9128, local SGD .9087, IST .9102.",
    )


def loft_cifar() -> Recipe:
    """LoFT: ``ist`` on the filters inside residual blocks, to be pruned by ``skerry prune`` and trained on.

    As in the paper, stem, first stage, strided blocks and classifier are on every worker and averaged; of the blocks
    that are left the filters of conv1, norm2 and the inputs of conv2 are dealt out: 55% of the parameters, as the bytes
    in the paper's tables say of ResNet-18, too. Methods are compared at equal samples, as there, not at equal
    operations. Learning rates are not tuned. ``bench/accuracy/tickets.py`` prunes and trains on.

    References: Wang, Dun, Liao, Jermaine, Kyrillidis: LoFT: Finding Lottery Tickets through Filter-wise Training,
    AISTATS 2023, arXiv 2210.16169.
    """
    recipe = resnet18_cifar()
    steps: dict[str, Any] = {"rounds": 16, "local_steps": 25, "optimizer.lr": 0.1}
    return replace(
        recipe,
        summary=f"LoFT: filters inside the blocks of a ResNet-18 layout, to be pruned, on {_on()}",
        config=recipe.config.change({"recipe": "loft-cifar"}),
        methods=settings_per_method(
            subnets=steps,
            replicas=steps,
            nested=steps,
            own={"diloco": ADAMW, "single": {"rounds": 64}},  # as many samples as four workers
            without=("relay", "ensemble"),  # subnets share the residual stream
        ),
        model=_resnet_inner_channels,
        paper="Wang et al. (arXiv 2210.16169), CIFAR-10, ResNet-18, 80%/50% pruned: dense .9436; two workers local SGD "
        ".9437/.9441 (55 GB), LoFT .9397/.9411 (40 GB); four .9452/.9481 (111 GB), .9397/.9413 (65 GB).",
    )


def skewed_resnet() -> Recipe:
    """``resnet18_cifar`` with label skew (Dirichlet .3), as with private data; logits are adjusted by label priors."""
    return with_label_skew(resnet18_cifar(), "skewed-resnet", "the ResNet of resnet18-cifar")


def resist_cifar() -> Recipe:
    """A deep, thin ResNet; the blocks of section 3 after the strided first one are dealt out, the rest is shared.

    ``narrow`` is its rival with the same memory and operations: all workers train one net that has only as many of
    these blocks as a worker holds. Methods that may leave a unit unassigned cannot deal out blocks. Learning rates are
    not tuned.

    References: Dun, Wolfe, Jermaine, Kyrillidis: ResIST, UAI 2022, arXiv 2107.00961 (sections of 3, 4, 23 and 3 blocks;
    50 local steps of SGD with momentum .9 and weight decay 5e-4, batch 128).
    """
    config = _config("resist-cifar", {"blocks": [1, 1, 9, 1], "width": 16, "stem_stride": 2})
    subnets: dict[str, Any] = {"rounds": 40, "local_steps": 20, "optimizer.lr": 0.05}
    replicas: dict[str, Any] = subnets | {"rounds": 26}
    return Recipe(
        summary=f"pre-activation ResNet with 8 blocks to deal out, 16 to 128 channels, on {_on()}",
        config=config.change({"method": "resist"}),
        methods={
            "resist": subnets | {"partition.min_units": 4},
            "narrow": subnets | {"width": 0.5},
            "local_sgd": replicas,
            "diloco": {**replicas, **ADAMW},
            "ddp": replicas,
            "single": replicas,
        },
        task=_task,
        model=_resnet_blocks,
        paper="Dun et al. (arXiv 2107.00961), CIFAR-10, 2/4/8 workers: local SGD .9236/.9290/.9200, "
        "ResIST .9195/.9235/.9145.",
    )


def vgg_rules(num_convs: int) -> Rules:
    """Return the rules of ``VGG``: convolution k makes axis ``ck``, the hidden layer ``h``."""
    rules: dict[str, Any] = {f"norms.{k}": Out(f"c{k}") for k in range(num_convs)}
    for k in range(num_convs):
        rules[f"convs.{k}"] = (In(f"c{k - 1}"), Out(f"c{k}")) if k else Out("c0")
    last = f"c{num_convs - 1}"
    return rules | {"hidden": (In(last), Out("h")), "hidden_norm": Out("h"), "out": In("h")}


def channel_rules() -> Rules:
    """Return the rules of ``ResNet``: one axis inside each block. The residual stream is not dealt out."""
    block = "stages.*.*"
    return {f"{block}.conv1": Out(block), f"{block}.norm2": Out(block), f"{block}.conv2": In(block)}


def _config(recipe: str, model: Mapping[str, Any]) -> Config:
    """Return the settings that all recipes here share.

    ``data.images``: the number of training images, of 50,000. ``data.set``: "cifar10", or "cifar10-jpeg" of the
    benchmarks, which is the default where ``$SKERRY_DATA`` has it. ``data.crops_and_flips``: whether to train on random
    crops, of images padded by 4 pixels, half of them mirrored.
    """
    sgd = {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    data = {"images": 50_000, "set": _default_set(), "crops_and_flips": False}
    return Config(recipe=recipe, model=model, data=data, batch_size=64, optimizer=sgd, eval_batch_size=1000)


def _default_set() -> str:
    return "cifar10-jpeg" if frozen("cifar10_jpeg_train.npz") else "cifar10"


def _on() -> str:
    return {"cifar10": "CIFAR-10", "cifar10-jpeg": "CIFAR-10 (JPEG)"}[_default_set()]


def _vgg(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
    convs = _counts(config, "convs")
    width, hidden = whole_number(config, "model.width"), whole_number(config, "model.hidden")
    with torch.device("meta"):
        model = VGG(convs, width=width, hidden=hidden, image_size=SIZE, classes=CLASSES)
    return model, Plan.from_rules(model, vgg_rules(sum(convs)))


def _resnet(config: Config) -> ResNet:
    width, stride = whole_number(config, "model.width"), whole_number(config, "model.stem_stride")
    with torch.device("meta"):
        return ResNet(_counts(config, "blocks"), width=width, classes=CLASSES, stem_stride=stride)


def _resnet_channels(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
    model = _resnet(config)
    return model, Plan.from_rules(model, channel_rules())


def _resnet_inner_channels(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
    model, blocks = _resnet(config), _counts(config, "blocks")
    if len(blocks) < 2 or max(blocks[1:]) < 2:
        raise ValueError(
            f"model.blocks={blocks}: expected a stage after the first with 2 blocks or more, of which all but one are "
            "dealt out"
        )
    plan = Plan.from_rules(model, channel_rules())
    return model, plan.only(*(f"stages.{s}.{k}" for s in range(1, len(blocks)) for k in range(1, blocks[s])))


def _resnet_blocks(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
    model, blocks = _resnet(config), _counts(config, "blocks")
    if len(blocks) < 3 or blocks[2] < 2:
        raise ValueError(
            f"model.blocks={blocks}: expected at least 2 blocks in section 3, of which all but one are dealt"
        )
    pattern = Blocks(*(f"stages.2.{k}" for k in range(1, blocks[2])), axis="section 3", branch="conv2")
    return model, pattern.plan(model, torch.empty(2, 3, SIZE, SIZE, device="meta"))


def _task(config: Config) -> Task:
    num_images = whole_number(config, "data.images")
    cifar = chosen_set(config, SETS, before="cifar10-jpeg")
    x, y = cifar.x_train[:num_images], cifar.y_train[:num_images]
    if len(x) < num_images:
        raise ValueError(f"data.images={num_images}: expected at most {len(x)}, the training images there are")
    changed = config.data.get("crops_and_flips", False)  # no such setting in older runs
    if not isinstance(changed, bool):
        raise ValueError(f"data.crops_and_flips={changed!r}: expected true or false")
    return Task(
        train=(x, y),
        test=(cifar.x_test, cifar.y_test),
        scaling=cifar.scaling,
        classes=cifar.class_names,
        augment=crops_and_flips if changed else None,
    )


def _counts(config: Config, name: str) -> Sequence[int]:
    """Return the setting ``model.NAME``; raise ValueError unless it is a list of whole numbers from 1."""
    counts = config.model[name]
    if not (isinstance(counts, list) and counts and all(isinstance(c, int) and c >= 1 for c in counts)):
        raise ValueError(f"model.{name}={counts!r}: expected a list of whole numbers from 1, for example [2,2,2,2]")
    return counts
