"""Recipes: one function per experiment, each run by its name on the command line."""

from collections.abc import Callable

from skerry.experiments.recipes.cifar import resist_cifar, resnet18_cifar, skewed_resnet, vgg_cifar
from skerry.experiments.recipes.depends_xc import depends_xc
from skerry.experiments.recipes.image_mlp import digits_mlp, fashion_mlp, mnist_mlp, skewed_mlp
from skerry.experiments.recipes.recipe import Job, Recipe
from skerry.experiments.recipes.speech_mlp import speech_mlp2, speech_mlp3

RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        fashion_mlp, mnist_mlp, digits_mlp, depends_xc, speech_mlp2, speech_mlp3, vgg_cifar, resnet18_cifar,
        resist_cifar, skewed_mlp, skewed_resnet,
    )
}  # fmt: skip
"""Recipes by name, in the order of ``skerry recipes``."""

__all__ = ["RECIPES", "Job", "Recipe"]
