"""Recipes: one function per experiment, each run by its name on the command line. Your own: docs/cli.md."""

from collections.abc import Callable
from dataclasses import replace

from skerry.choose import choose
from skerry.experiments.config import Config
from skerry.experiments.recipes.cifar import loft_cifar, resist_cifar, resnet18_cifar, skewed_resnet, vgg_cifar
from skerry.experiments.recipes.depends_xc import depends_xc
from skerry.experiments.recipes.gist import gist_citeseer, gist_cora, gist_wordnet, gist_wordnet_wide
from skerry.experiments.recipes.gpt_shakespeare import gpt_shakespeare
from skerry.experiments.recipes.graph_task import GraphTask
from skerry.experiments.recipes.image_mlp import (
    async_fashion,
    digits_mlp,
    fashion_mlp,
    mnist_mlp,
    private_fashion,
    skewed_mlp,
)
from skerry.experiments.recipes.llama_docs import llama_docs
from skerry.experiments.recipes.own import own_recipe
from skerry.experiments.recipes.recipe import Job, Recipe, Task
from skerry.experiments.recipes.speech_mlp import speech_mlp2, speech_mlp3
from skerry.predictor import Scaling

RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        fashion_mlp, mnist_mlp, digits_mlp, depends_xc, speech_mlp2, speech_mlp3, vgg_cifar, resnet18_cifar, loft_cifar,
        resist_cifar, skewed_mlp, skewed_resnet, async_fashion, private_fashion, gpt_shakespeare, llama_docs,
        gist_cora, gist_citeseer, gist_wordnet, gist_wordnet_wide,
    )
}  # fmt: skip
"""Recipes by name, in the order of ``skerry recipes``."""

__all__ = ["RECIPES", "Config", "GraphTask", "Job", "Recipe", "Scaling", "Task", "find_recipe"]


def find_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``, or a user's own (``own_recipe``), whose config gets that name.

    Raises:
        ValueError: there is no such recipe.

    Example:
        >>> find_recipe("digits-mlp").config.workers
        4
    """
    if ":" not in name:
        if name.endswith(".py"):
            raise ValueError(f"recipe {name}: which function? expected {name}:FUNCTION")
        return RECIPES[choose(name, RECIPES, "recipe")]()
    recipe = own_recipe(name)
    return replace(recipe, config=recipe.config.change({"recipe": name}))
