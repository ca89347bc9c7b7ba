"""Examples run as they stand and do what they say; docstring examples too."""

import doctest
import importlib
import pkgutil
import runpy
from pathlib import Path

import pytest

import skerry

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    result = runpy.run_path(str(path))["main"]()
    assert result.score.accuracy > 0.85


def test_docstrings():
    names = [m.name for m in pkgutil.walk_packages(skerry.__path__, "skerry.") if m.name != "skerry.__main__"]
    done = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(d.attempted for d in done) > 0
    assert not any(d.failed for d in done)
