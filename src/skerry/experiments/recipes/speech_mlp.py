"""The IST paper's speech nets: wide MLPs on 4096 features of a spectrogram."""

from typing import Any

import torch

from skerry.experiments.config import Config
from skerry.experiments.datasets.speech import speech_commands
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.compared import compared
from skerry.experiments.recipes.image_mlp import check_widths, mlp_rules
from skerry.experiments.recipes.recipe import Job, Recipe, job
from skerry.plan.table import Plan


def speech_mlp2() -> Recipe:
    """Two layers of weights, 4096-h-12: every weight has one dealt dim."""
    return _recipe(1)


def speech_mlp3() -> Recipe:
    """Three layers of weights, 4096-h-h-12: the middle one lies between two dealt axes."""
    return _recipe(2)


def _recipe(layers: int) -> Recipe:
    """The paper's, smaller: 1024 hidden units by default, 12 of 35 classes, 4,036 clips; and momentum .9.

    Learning rates: those of ``docs/performance.md``, found with one more hidden layer.

    References: Yuan et al., VLDB 2022, arXiv 1910.02120, section 5 (4096 hidden units with two layers of weights, 8192
    with three; SGD, batch 128, 20 local steps).
    """
    name = f"speech-mlp{layers + 1}"
    settings: dict[str, Any] = {"rounds": 20, "local_steps": 20, "eval_every": 2}
    return Recipe(
        summary=f"MLP 4096{'-1024' * layers}-12 with batch norm on Speech Commands",
        config=Config(recipe=name, model={"hidden": 1024, "layers": layers}),
        methods=compared(
            subnets=settings,
            replicas=settings | {"rounds": 6 - layers, "eval_every": 1},
            nested=settings | {"rounds": 12 - layers},
            own={
                "relay": {"rounds": 8, "local_steps": 50, "optimizer.lr": 0.05},
                "ist": {"rounds": 8, "local_steps": 50},
                "narrow": {"optimizer.lr": 0.1},
                "local_sgd": {"optimizer.lr": 0.02},
                "single": {"optimizer.lr": 0.02},
                "ddp": {"optimizer.lr": 0.05},
                "diloco": {"optimizer.name": "AdamW", "optimizer.lr": 0.0002},
                "fedrolex": {"partition.step": 64},
            },
        ),
        build=_build,
        paper="Yuan et al. (arXiv 1910.02120), Speech Commands of 35 classes, final accuracy of data parallel / local "
        "SGD / IST: .7938 / .7998 / **.8153** with two layers of weights (4096 hidden), .7950 / .7992 / **.8327** with "
        "three (8192 hidden); time to 77%: 4.2 and 6.1 times less than local SGD, 10.6 and 16.6 times less than data "
        "parallel.",
    )


def _build(config: Config) -> Job:
    hidden, layers = check_widths(config)
    speech = speech_commands()
    train, test = (speech.x_train, speech.y_train), (speech.x_test, speech.y_test)
    with torch.device("meta"):
        model = MLP([speech.x_train.shape[1], *[hidden] * layers, speech.num_classes])
    plan = Plan.from_rules(model, mlp_rules(layers))
    return job(config, model, plan, train, test, transform=speech.standardize, num_classes=speech.num_classes)
