"""Fixtures that many tests share."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch
from costs import by_size, remembered
from hypothesis import settings
from machines import start_server
from torch import Tensor, nn
from zoo import CASES

from skerry import Plan, launch
from skerry.training import cost

_MODULES = tempfile.TemporaryDirectory()  # where transformers copies the code of models, which it does not load twice
os.environ["HF_MODULES_CACHE"] = _MODULES.name
torch.set_num_threads(1)  # small nets; and both runtimes must do their sums in the same order
settings.register_profile("skerry", deadline=None)  # nothing is tested by a timer
settings.load_profile("skerry")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)  # the command line sets it; with more, all tests after it would take several times as long


def pytest_collection_finish() -> None:
    gc.freeze()  # what torch and the tests have imported is not looked through again and again


@pytest.fixture(autouse=True, scope="session")
def _server() -> Iterator[None]:
    """A server that has imported everything forks what ``launch`` starts: imports would take most of the time."""
    start_server()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys.modules[launch.__module__], "_START", "forkserver")
        yield


@pytest.fixture(autouse=True, scope="session")
def _costs() -> Iterator[None]:
    with remembered():
        yield


@pytest.fixture(scope="module")
def no_costs() -> Iterator[None]:
    """For tests of many short runs: measuring what a step costs would take most of their time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cost, "step_cost", by_size)
        yield


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Plan, Tensor]:
    built: tuple[nn.Module, Plan, Tensor] = request.param.build()
    return built
