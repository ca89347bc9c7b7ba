"""Recipes: one function a published result or headline, each a line of the CLI."""

from collections.abc import Callable

from skerry.recipes.image_mlp import digits_mlp, fashion_mlp, mnist_mlp
from skerry.recipes.recipe import Job, Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "fashion-mlp": fashion_mlp,
    "mnist-mlp": mnist_mlp,
    "digits-mlp": digits_mlp,
}

__all__ = ["RECIPES", "Job", "Recipe"]
