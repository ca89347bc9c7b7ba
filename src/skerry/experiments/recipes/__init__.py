"""Recipes: one function per experiment, each run by its name on the command line."""

from collections.abc import Callable

from skerry.experiments.recipes.cifar import resist_cifar, resnet18_cifar, skewed_resnet, vgg_cifar
from skerry.experiments.recipes.depends_xc import depends_xc
from skerry.experiments.recipes.image_mlp import digits_mlp, fashion_mlp, mnist_mlp, skewed_mlp
from skerry.experiments.recipes.recipe import Job, Recipe
from skerry.experiments.recipes.speech_mlp import speech_mlp2, speech_mlp3

RECIPES: dict[str, Callable[[], Recipe]] = {
    "fashion-mlp": fashion_mlp,
    "mnist-mlp": mnist_mlp,
    "digits-mlp": digits_mlp,
    "depends-xc": depends_xc,
    "speech-mlp2": speech_mlp2,
    "speech-mlp3": speech_mlp3,
    "vgg-cifar": vgg_cifar,
    "resnet18-cifar": resnet18_cifar,
    "resist-cifar": resist_cifar,
    "skewed-mlp": skewed_mlp,
    "skewed-resnet": skewed_resnet,
}

__all__ = ["RECIPES", "Job", "Recipe"]
