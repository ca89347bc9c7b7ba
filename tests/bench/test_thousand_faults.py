"""``bench/thousand_faults.py`` with a few faults."""

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
    assert (ended.returncode, told["problems"], told["faults"]) == (0, [], 4)
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["faults"] for row in rows] == [2, 4]
    assert all(use["files"] > 0 for row in rows for use in row["uses"])
