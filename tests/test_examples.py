"""Examples run as they stand and do what they say; docstring examples too."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skerry

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("own_*.py"))
NEED_DATA = [p for p in sorted((Path(__file__).parents[1] / "examples").glob("*.py")) if p not in EXAMPLES]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    accuracy = re.findall(r"accuracy.* (0\.\d+)", done.stdout)
    assert float(accuracy[-1]) > 0.95


@pytest.mark.parametrize("path", NEED_DATA, ids=lambda path: path.stem)
def test_an_example_without_its_data_says_in_one_line_what_to_do(path, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "SKERRY_DATA"}
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment
    )
    assert done.returncode == 1
    assert "SKERRY_DATA" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", NEED_DATA, ids=lambda path: path.stem)
def test_an_example_on_real_data(path, tmp_path):
    if "SKERRY_DATA" not in os.environ:
        pytest.skip("set SKERRY_DATA to the folder with the data")
    folder = Path(os.environ["SKERRY_DATA"]).resolve()
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, cwd=tmp_path, timeout=600,
        env={**os.environ, "SKERRY_DATA": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_docstrings():
    names = [m.name for m in pkgutil.walk_packages(skerry.__path__, "skerry.") if m.name != "skerry.__main__"]
    done = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(d.attempted for d in done) > 0
    assert not any(d.failed for d in done)
