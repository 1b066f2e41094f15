# Everything a person or a CI machine does here. Each target sets up .venv first (at once when it is ready).
# Written for the make of Linux and macOS (3.81); all paths are relative, so the checkout may live anywhere.

BIN := .venv/bin
# Processes that share the tests; each uses one thread of torch.
WORKERS ?= 2
# Passed on to pytest: make test ARGS="tests/model -k masks"
ARGS ?=

# ROS and others put their own packages on PYTHONPATH; the project's environment is complete without them.
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help setup test lint format demo parity examples wheel lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with the locked versions (PYTHON=<path> chooses the interpreter)
	@sh tools/setup_environment.sh

test: lint ## set up, lint, run the tests (WORKERS=2, ARGS="-k name")
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS) </dev/null

lint: setup ## ruff, formatting, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: setup ## rewrite the files as `make lint` wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: setup ## the whole story on the conveyor: record, train, evaluate, look at the imagined future
	$(BIN)/internvla-demo

parity: setup ## compare with reference tensors: make parity GOLDEN=<folder>
	@test -n "$(GOLDEN)" || { echo "Name the folder with the reference tensors: make parity GOLDEN=<folder>" >&2; exit 2; }
	$(BIN)/internvla-parity "$(GOLDEN)"

examples: setup ## run every example
	@set -e; for page in examples/[0-9]*.py; do echo "== $$page"; $(BIN)/python "$$page"; done

wheel: setup ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

lock: setup ## resolve pyproject.toml again and rewrite requirements.lock
	$(BIN)/python tools/refresh_lock.py

clean: ## remove .venv, builds and caches (outputs/ stays)
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests tools examples -name __pycache__ -type d -prune -exec rm -rf {} +
