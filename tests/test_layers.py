"""The house: imports point one way, one idea a file."""

import ast
from pathlib import Path

import skerry

SRC = Path(skerry.__file__).parent

# From the bottom up. A file may import from its own line or from lines before it.
LAYERS = [
    ["randomness", "optimizer_state", "rules", "schedule", "atomic", "patches", "inputs", "tensor_file", "diagnosis"],
    ["plan"],
    ["partition", "plan_file"],
    ["subnet", "covering", "parts", "relay", "warmup"],
    ["aggregate", "discovery", "sources", "exchange"],
    ["verify"],
    ["calibrate"],
    ["local"],
    ["cost", "evaluate", "outer"],
    ["algorithm"],
    ["models", "data"],
    ["algorithms", "priors", "state"],
    ["runtimes"],
    ["checkpoint", "export"],
    ["loop"],
    ["watch"],
    ["session"],
    ["train"],
    ["config"],
    ["run", "comparison", "progress", "tensorboard", "estimator"],
    ["pictures"],
    ["report", "results"],
    ["recipes", "methods", "theory"],
    ["experiment"],
    ["cli"],
    ["__main__"],
]


def _room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "skerry":
            rooms |= {
                alias.name for alias in node.names if (SRC / f"{alias.name}.py").exists() or (SRC / alias.name).is_dir()
            }
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name and name.startswith("skerry.")}
    return rooms


def test_imports_point_one_way():
    level = {room: k for k, rooms in enumerate(LAYERS) for room in rooms}
    files = [p for p in SRC.rglob("*.py") if _room(p) != "__init__"]
    assert {_room(p) for p in files} == set(level)
    for path in files:
        room = _room(path)
        for other in _imports(path):
            assert level[other] <= level[room], f"{path.name} imports skerry.{other}, which is above it"
            same_line = level[other] == level[room] and other != room
            assert not same_line, f"{path.name} imports skerry.{other} from its own line"


def test_models_know_nothing_of_skerry():
    for path in (SRC / "models").glob("*.py"):
        assert _imports(path) <= {"models"}


def test_there_is_no_utils():
    assert not list(SRC.rglob("util*"))


def test_every_file_says_what_it_is_for():
    for path in SRC.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
