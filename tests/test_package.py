"""The package as others install it: what is in the wheel, and that the README's example needs no extra."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_docs import blocks

ROOT = Path(__file__).parents[1]
NO_EXTRAS = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in {extras!r} else find(name, *more)
import skerry
assert skerry.__file__.startswith({folder!r}), skerry.__file__
exec(compile({code!r}, "README.md", "exec"))
"""
EXTRAS = (
    "click",
    "rich",
    "matplotlib",
    "jinja2",
    "sklearn",
    "PIL",
    "tensorboard",
    "transformers",
    "torch_geometric",
    "flwr",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
    ]
    subprocess.run([*command, ROOT], check=True, capture_output=True, text=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_has_every_module_and_the_page_of_reports(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "skerry").rglob("*.py")}
    data = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "skerry").rglob("*.jinja")}
    assert data
    assert sources | data | {"skerry/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests")]


@pytest.mark.slow
def test_the_example_of_the_readme_runs_without_extras(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    folder = str(tmp_path / "installed")
    script = NO_EXTRAS.format(extras=EXTRAS, folder=folder, code=blocks(ROOT / "README.md"))
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    assert "accuracy" in ran.stdout


def test_dependencies_are_torch_numpy_and_safetensors():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {name.partition(">")[0] for name in project["dependencies"]} == {"torch", "numpy", "safetensors"}
