"""``bench/thousand_faults.py`` with a few faults."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
def test_a_run_endures_a_few_faults(tmp_path):
    words = [sys.executable, "thousand_faults.py", "--faults", "4", "--every", "2", "--out", str(tmp_path / "rows")]
    ended = subprocess.run(words, cwd=BENCH, capture_output=True, text=True, timeout=200)
    told = json.loads(ended.stdout.splitlines()[-1])
    assert (ended.returncode, told["problems"], sum(told["faults"].values())) == (0, [], 4)
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["faults"] for row in rows] == [2, 4]


def test_growth_is_a_problem(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    growth = importlib.import_module("thousand_faults")._growth
    uses = [{"files": 23, "threads": 2, "mb": mb} for mb in (300.0, 310.0, 320.0)]
    assert growth(uses) == []
    grown = growth([*uses, {"files": 26, "threads": 5, "mb": 331.0}])
    assert grown == ["3 more files", "3 more threads", "300 MB, then 331"]
