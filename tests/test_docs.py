"""Generated pages are up to date."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_on_models_is_what_discovery_finds():
    if not all(importlib.util.find_spec(package) for package in ("transformers", "torch_geometric")):
        pytest.skip("needs the extras hf and graphs")
    spec = importlib.util.spec_from_file_location("models_page", DOCS / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "models.md").read_text() == module.page()
