"""Signs of life from outside: read with torch's own store, whose protocol the small process speaks by itself."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from skerry import launch
from skerry.runtimes.distributed import busy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _wait(until) -> bool:
    """Use the processor until it holds, for a minute at most."""
    end = time.monotonic() + 60
    while not (held := until()) and time.monotonic() < end:
        sum(range(10**6))
    return held


def test_the_store_counts_while_a_process_is_busy():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    prefixed = dist.PrefixStore("skerry/0.0", store)
    prefixed.set("busy/1", "0")
    process = busy.start("127.0.0.1", store.port, "/skerry/0.0/busy/1", 0.01)
    try:
        assert _wait(lambda: int(prefixed.get("busy/1")) > 3)
    finally:
        process.terminate()
        process.wait()


def test_it_ends_with_its_parent():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    code = f"import busy; print(busy.start('127.0.0.1', {store.port}, '/key', 0.01).pid)"
    folder = Path(busy.__file__).parent
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert _wait(lambda: not Path(f"/proc/{int(run.stdout)}").exists())


def _hold_the_lock(runtime, folder) -> None:
    if runtime.rank == 1:
        sum(range(6 * 10**8))  # one call, some 6 seconds, in which no other thread runs
    runtime.total(torch.ones(1))
    (folder / f"{runtime.rank}").touch()


@pytest.mark.slow
def test_a_process_in_a_call_that_holds_the_interpreters_lock_is_not_lost(tmp_path):
    launch(_hold_the_lock, 2, tmp_path, timeout_s=2.0)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}
