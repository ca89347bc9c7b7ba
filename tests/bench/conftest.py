"""Scripts of bench/ are loaded from their files, since they belong to no package."""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Returns a function that loads a script, given its path in bench/; it can import the files beside it."""

    def load(path: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            # torch.distributed.optim compiles some of its own with what torch has deprecated.
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
            patch.syspath_prepend(str((BENCH / path).parent))
            name = f"bench_{Path(path).stem}"
            spec = importlib.util.spec_from_file_location(name, BENCH / path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
            spec.loader.exec_module(module)
        return module

    return load
