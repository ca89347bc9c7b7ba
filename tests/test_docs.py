"""README and docs: the README stays short, what pages show runs, links lead somewhere, generated pages are current."""

import importlib.util
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from skerry.experiments.cli import call
from skerry.experiments.cli.commands import main
from skerry.experiments.config import Asynchronous, Config, Dealing, Privacy
from skerry.experiments.recipes import RECIPES
from skerry.merge.outer import Outer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


LONG = ["graphs"]  # with an example that is run


def blocks(page: Path) -> str:
    """The Python blocks of a page, as one script; those marked "notest" are left out."""
    return "\n".join(BLOCK.findall(page.read_text()))


def test_the_readme_can_be_read_in_one_go():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900


@pytest.mark.filterwarnings("ignore")  # short runs are warned of
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else [])
        for page in PAGES
        if blocks(page)
    ],
)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.stem == "private":
        pytest.importorskip("opacus")
    if "skerry.load(" in blocks(page):
        (command,) = re.findall(r"^skerry (train .* runs/first)", page.read_text(), re.MULTILINE)
        assert call([*command.split(), "--set", "rounds=2"]) == (0, "")
    exec(compile(blocks(page), str(page), "exec"), {"__name__": "page"})


def test_the_recipe_on_the_page_is_that_of_the_example():
    assert blocks(DOCS / "cli.md") in (ROOT / "examples" / "own_recipe.py").read_text()


def test_the_command_line_page_has_every_recipe_and_setting_and_the_help_every_recipe():
    page, shown = (DOCS / "cli.md").read_text(), main.commands["train"].help
    groups = {"": Config, "partition.": Dealing, "asynchronous.": Asynchronous, "outer.": Outer, "private.": Privacy}
    names = [f"{group}{field.name}" for group, kind in groups.items() for field in fields(kind)]
    assert [name for name in (*names, *RECIPES) if not re.search(rf"(`|--|\b){re.escape(name)}\b", page)] == []
    assert RECIPES.keys() <= set(re.findall(r"[\w-]+", shown))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not anchor or anchor in headings(found), f"{target}#{anchor}"


def headings(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.slow
def test_the_page_on_models_is_what_discovery_finds():
    if not all(importlib.util.find_spec(package) for package in ("transformers", "torch_geometric")):
        pytest.skip("needs the extras hf and graphs")
    spec = importlib.util.spec_from_file_location("models_page", DOCS / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "models.md").read_text() == module.page()


def test_every_dependency_is_on_the_page_about_them():
    text = (DOCS / "dependencies.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert [extra for extra in extras if f"| `{extra}` |" not in text] == []
    needed = [*project["dependencies"], *(name for extra in extras if extra != "dev" for name in extras[extra])]
    assert [name for name in needed if re.split(r"[><=\[]", name)[0] not in text] == []
    assert len(text.splitlines()) <= 60  # one page
