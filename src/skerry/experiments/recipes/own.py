"""What users wrote: ``my_module:function`` or ``my_file.py:function``, found from the current folder."""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from skerry.choose import choose
from skerry.experiments.recipes.recipe import Recipe


def own_recipe(reference: str) -> Recipe:
    """Return the recipe that the function ``reference`` returns; see ``own_object``."""
    recipe = own_object(reference)
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"{reference}: it returns {type(recipe).__name__}, expected a skerry.experiments.recipes.Recipe"
        )
    return recipe


def own_object(reference: str) -> object:
    """Return what the function ``reference`` returns. It runs the code of that module.

    Args:
        reference: a module, or the path of a file, then a colon and the name of the function in it.

    Raises:
        ValueError: there is no such module, file or function, or it needs arguments. What the module itself raises is
            not changed.
    """
    place, _, name = reference.rpartition(":")
    if (not place or place.startswith(".")) and not place.endswith(".py"):
        raise ValueError(f"recipe {reference}: expected MODULE:FUNCTION or FILE.py:FUNCTION, without a leading dot")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as with python -m
    module = _from_file(Path(place)) if place.endswith(".py") else _imported(place)
    found = getattr(module, choose(name, [n for n in vars(module) if not n.startswith("_")], f"name in {place}:"))
    return _called(reference, found) if callable(found) and not isinstance(found, nn.Module) else found


def _called(reference: str, function: Callable[..., object]) -> object:
    """Return what ``function`` returns; what it raises itself is not changed."""
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:  # ValueError: one written in C
        raise ValueError(f"{reference}: {error}; expected a function without arguments") from error
    return function()


def _from_file(path: Path) -> ModuleType:
    """Return the module in ``path``; its code runs once."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file in {os.getcwd()}; start in the folder that has it")
    key = str(path.resolve())
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[key] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there and misses another one
        raise ValueError(
            f"recipe {name}: there is no module '{error.name}' in {os.getcwd()} or among the installed ones; start in "
            "the folder that has it, or give the file: my_recipe.py:recipe"
        ) from error
