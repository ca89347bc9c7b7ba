"""Examples run as they stand, without the network, and learn something; docstring examples too."""

import doctest
import importlib
import os
import pkgutil
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from machines import run_on_machines

import skerry

FOLDER = Path(__file__).parents[1] / "examples"
NEEDS = {"pyg_graph_sage": "torch_geometric", "transformers_llama": "transformers", "ray_train": "ray"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STARTED = {"several_processes": [], "torchrun": TORCHRUN, "ray_train": []}
"""Examples with several processes, and how Python starts them."""
JOINED = {"several_processes": 3, "torchrun": 2}
"""Those that torchrun can start, and with how many processes."""
SLOW = ["own_recipe", "transformers_llama", "one_loader", "dataset_and_loaders", *JOINED]


@pytest.mark.filterwarnings("ignore")  # a Python of its own has its own filters
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
        for path in sorted(FOLDER.glob("*.py"))
    ],
)
def test_example(path, tmp_path, monkeypatch, capsys):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("an example asked for a host"))
    if path.stem in STARTED:
        done = subprocess.run([sys.executable, *STARTED[path.stem], path], capture_output=True, text=True, timeout=120)
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


@pytest.mark.parametrize("name", JOINED)
def test_an_example_joins_the_processes_of_its_launcher(tmp_path, name):
    scripts, more = [FOLDER / f"{name}.py"] * JOINED[name], [{"TORCHELASTIC_RUN_ID": "none"}] * JOINED[name]
    codes, said = run_on_machines(tmp_path, *scripts, more=more)
    assert codes == [0] * JOINED[name], said
    assert float(re.findall(r"accuracy (0\.\d+)", said[0])[-1]) > 0.95


SRUN = """#!/bin/sh
for rank in 0 1; do
    SLURM_JOB_ID=$$ SLURM_STEP_ID=0 SLURM_PROCID=$rank SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=here "$@" &
    last=$!
done
wait $last
"""


@pytest.mark.slow
def test_the_script_for_slurm(tmp_path, monkeypatch):
    """srun is not here: one that sets what srun sets starts two processes on this machine."""
    (tmp_path / "examples").symlink_to(FOLDER)
    for name, text in (("srun", SRUN), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["sh", "examples/slurm.sh"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"accuracy (0\.\d+)", done.stdout)[-1]) > 0.95


@pytest.mark.filterwarnings("ignore")  # importing torch_geometric warns
def test_docstrings():
    names = [m.name for m in pkgutil.walk_packages(skerry.__path__, "skerry.") if m.name != "skerry.__main__"]
    done = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(d.attempted for d in done) > 0
    assert not any(d.failed for d in done)
