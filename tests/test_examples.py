"""Examples run as they stand, without the network, and learn something; docstring examples too."""

import doctest
import importlib
import pkgutil
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import skerry

FOLDER = Path(__file__).parents[1] / "examples"
NEEDS = {"pyg_graph_sage": "torch_geometric", "transformers_llama": "transformers"}
STARTS_PROCESSES = FOLDER / "several_processes.py"


@pytest.mark.filterwarnings("ignore")  # a Python of its own has its own filters
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_example(path, tmp_path, monkeypatch, capsys):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("an example asked for a host"))
    if path == STARTS_PROCESSES:
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        runpy.run_path(str(path), run_name="__main__")  # what starting Python would do, without importing torch again
        printed = capsys.readouterr().out
    if path.stem == "transformers_llama":
        by_frequency, of_model = map(float, re.findall(r"([\d.]+) nats", printed))
        assert of_model < by_frequency - 0.3
    else:
        accuracy = re.findall(r"accuracy (0\.\d+)", printed)
        assert float(accuracy[-1]) > (0.85 if path.stem == "pyg_graph_sage" else 0.95)


def test_docstrings():
    names = [m.name for m in pkgutil.walk_packages(skerry.__path__, "skerry.") if m.name != "skerry.__main__"]
    done = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(d.attempted for d in done) > 0
    assert not any(d.failed for d in done)
