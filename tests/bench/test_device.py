"""bench/device.py: on a device that is not the CPU, a pretended one; its checks fail where they must; a small run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretend_device import backend, pretend
from safetensors.torch import load_file

PATH = Path(__file__).parents[2] / "bench" / "device.py"


@pytest.fixture(scope="module")
def bench(load_script):
    return load_script("device.py")


@pytest.mark.parametrize("case", [("ist", "MLP", "float64"), ("relay", "CNN", "float32"), ("narrow", "MLP", "float32")])
def test_cases_train_on_a_device_and_are_compared_with_the_cpu(bench, tmp_path, case):
    bench.Case(*case).export(tmp_path / "cpu", 2, "cpu")
    with pretend() as device:
        bench.Case(*case).export(tmp_path / "device", 2, str(device))
    found, meant = (load_file(tmp_path / name / "model.safetensors") for name in ("device", "cpu"))
    assert bench.difference(found, meant) <= bench.TOLERANCE[case[2]]
    name = next(name for name in meant if meant[name].dim() == 2)
    found[name] = found[name] * (1 + 1e-3)
    assert bench.difference(found, meant) == pytest.approx(1e-3, rel=0.01)
    found[name][0, 0] = torch.nan
    assert bench.difference(found, meant) == float("inf")
    del found[name]
    assert bench.difference(found, meant) == float("inf")


SLOW = [pytest.param(rows, marks=pytest.mark.slow) for rows in ("step_rows", "round_rows", "memory_rows")]


@pytest.mark.parametrize("rows", ["cut_rows", *SLOW])
def test_costs_are_measured_on_a_device(bench, monkeypatch, rows):
    peak = iter([0, 100, 0, 1000] * 2)
    for name, value in {
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: next(peak),
        "max_memory_allocated": lambda device: next(peak),
    }.items():
        monkeypatch.setattr(backend, name, value, raising=False)
    with pretend() as device:
        found = list(getattr(bench, rows)(device, True))
    assert len(found) == (4 if rows == "cut_rows" else 2)
    if rows == "memory_rows":
        assert [row.measured for row in found] == [0.1, 0.1]
    else:
        assert all(row.measured > -1 for row in found)


def test_what_fails_is_told_in_the_last_line_and_the_other_tables_are_printed(bench, monkeypatch, capsys):
    def fails(device, small):
        yield bench.Row("serial against CPU", 1e-9, 2e-9, ".1e", must=True)
        raise RuntimeError("no memory\nleft")

    monkeypatch.setattr(bench, "check_rows", fails)
    monkeypatch.setattr(bench, "step_rows", lambda device, small: iter([bench.Row("step", 1.05, 1.2)]))
    for name in ("cut_rows", "round_rows"):
        monkeypatch.setattr(bench, name, lambda device, small: iter(()))
    monkeypatch.setattr(sys, "argv", ["device.py", "--device", "cpu", "--small"])
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)
    assert bench.main() == 1
    out = capsys.readouterr().out
    assert "| step | 1.05 | 1.20 | **aim missed** |" in out
    told = out.splitlines()[-1]
    assert told.startswith("failed: serial against CPU: 2.0e-09, expected at most 1e-09; ")
    assert told.endswith("no memory left")


@pytest.mark.slow  # it starts processes that import torch
def test_a_small_run_on_the_cpu_passes_its_checks():
    command = [sys.executable, str(PATH), "--small", "--device", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("| met |") >= 4
    assert "processes against serial, 2 workers, float64" in ran.stdout
