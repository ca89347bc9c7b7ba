"""The house: rooms that a stranger finds, imports one way between rooms and inside of them, one idea per file."""

import ast
import subprocess
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from machines import EXTRAS, run_bare

import skerry

SRC = Path(skerry.__file__).parent

# From the bottom up. A room imports from rooms before it, and from itself.
ROOMS = [
    "choose",
    "whole_number",
    "randomness",
    "files",
    "model",
    "plan",
    "partitions",
    "subnet",
    "weights",
    "exchange",
    "merge",
    "clients",
    "discovery",
    "trained",
    "algorithm",
    "algorithms",
    "runtimes",
    "checkpoint",
    "data",
    "defaults",
    "privacy",
    "training",
    "callbacks",
    "federated",
    "graphs",
    "predictor",
    "sklearn",
    "experiments",
    "__main__",
]
EXPERIMENTS = ["models", "datasets", "config", "methods", "recipes", "runs", "planner", "reports", "theory", "cli"]
MOST_FILES = 12

FILES = [path for path in SRC.rglob("*.py") if path != SRC / "__init__.py"]


def _module(path: Path) -> str:
    return ".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _imports(path: Path) -> set[str]:
    """Modules of Skerry that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "skerry":
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "skerry"}
    return found - {"skerry"}


def _below(order: list[str], depth: int) -> list[str]:
    """Imports that go up, of files whose rooms are the parts at ``depth`` of their names."""
    level, wrong = {room: k for k, room in enumerate(order)}, []
    for name, path in MODULES.items():
        for other in _imports(path):
            rooms = [module.split(".")[depth] for module in (name, other) if len(module.split(".")) > depth]
            if len(rooms) == 2 and all(room in level for room in rooms) and level[rooms[1]] > level[rooms[0]]:
                wrong.append(f"{name} imports {other}")
    return wrong


def test_rooms_import_one_way():
    assert {name.split(".")[1] for name in MODULES} == set(ROOMS)
    assert _below(ROOMS, 1) == []


def test_the_rooms_of_experiments_import_one_way():
    own = {name.split(".")[2] for name in MODULES if name.startswith("skerry.experiments.")}
    assert own == set(EXPERIMENTS)
    assert _below(EXPERIMENTS, 2) == []


def test_files_import_without_cycles():
    # A room's __init__ hands on names of its files, which do not import it.
    graph = {name: _imports(path) for name, path in MODULES.items() if path.name != "__init__.py"}
    inits = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    for name, others in graph.items():
        assert not {other for other in others & inits if name.startswith(f"{other}.")}, f"{name} imports its own room"
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_room_is_crowded():
    rooms: dict[Path, list[str]] = {}
    for path in [*FILES, SRC / "__init__.py"]:
        if path.name != "__init__.py":
            rooms.setdefault(path.parent, []).append(path.name)
    assert {str(room.relative_to(SRC)): files for room, files in rooms.items() if len(files) > MOST_FILES} == {}


def test_every_file_says_what_it_is_for():
    for path in FILES:
        assert ast.get_docstring(_tree(path)), path


def test_there_is_no_utils():
    assert not list(SRC.rglob("util*"))


def test_models_know_nothing_of_skerry():
    for name, path in MODULES.items():
        if name.startswith("skerry.experiments.models."):
            assert all(other.startswith("skerry.experiments.models") for other in _imports(path))


def test_import_skerry_pulls_in_no_extra(tmp_path):
    code = f"import sys, skerry; print([m for m in {[*EXTRAS, 'skerry.experiments']} if m in sys.modules])"
    assert run_bare(tmp_path, code) == (0, "[]\n")


def test_git_ignores_no_source():
    """A pattern of .gitignore may name a folder in src by mistake; then new files there are never committed."""
    if not (SRC.parents[1] / ".git").exists():
        return
    tracked = ["git", "-C", str(SRC.parents[1]), "check-ignore", "--no-index", *map(str, FILES)]
    assert subprocess.run(tracked, capture_output=True, text=True).stdout == ""
