# Everything happens in .venv. `make demo` shows what Skerry does, `make test` checks it; both set themselves up.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUN ?= runs/demo

.PHONY: demo test lint types clean

demo: .venv/.done
	$(BIN)/skerry data fetch fashion-mnist
	rm -rf $(RUN)
	$(BIN)/skerry compare fashion-mlp --methods relay,ist,narrow,local_sgd --runtime processes --out $(RUN)

test: lint types
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.done
	$(BIN)/mypy

# Made again when what it depends on changes.
.venv/.done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
