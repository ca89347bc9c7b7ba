"""Examples run as they stand and do what they say; docstring examples too."""

import doctest
import importlib
import os
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import skerry

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("own_*.py"))
STARTS_PROCESSES = Path(__file__).parents[1] / "examples" / "own_processes.py"
NEED_DATA = [p for p in sorted((Path(__file__).parents[1] / "examples").glob("*.py")) if p not in EXAMPLES]


@pytest.mark.filterwarnings("ignore")  # a Python of its own has its own filters
@pytest.mark.parametrize("path", [p for p in EXAMPLES if p != STARTS_PROCESSES], ids=lambda path: path.stem)
def test_example(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")  # what starting Python would do, without importing torch again
    assert_learned(capsys.readouterr().out)


def test_example_that_starts_processes(tmp_path):
    done = subprocess.run([sys.executable, STARTS_PROCESSES], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_learned(done.stdout)


def assert_learned(told):
    accuracy = re.findall(r"accuracy.* (0\.\d+)", told)
    assert float(accuracy[-1]) > 0.95


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NEED_DATA, ids=lambda path: path.stem)
def test_an_example_without_its_data_says_in_one_line_what_to_do(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKERRY_DATA", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert isinstance(end.value.code, str)  # which Python prints, and ends with code 1
    assert "SKERRY_DATA" in end.value.code
    assert "\n" not in end.value.code


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
