# One word per action; each sets up what it needs by itself. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FAULT ?=
SEED ?=
SEEDS ?= 1
SECONDS ?= 30
PYTEST_ARGS ?=
# One for each core, 2 at least. Most of a test is waiting: WORKERS=6 takes half the time, and is for
# a machine that does nothing else.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(max(2, os.cpu_count() or 2))")

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint format bench chaos gen lock clean

help:  ## list the actions
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# The stamp holds the hash of what it was made from, so that a pull that moves the lock re-installs.
setup: $(VENV)/.installed  ## make the virtual environment (done by the others when needed)
$(VENV)/.installed: lock/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Roost needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what lock/dev.txt pins into $(VENV) (once, about half a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r lock/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## show the main job: stop, start again, and the counter is still 2 (FAULT=snapshot_dropped makes it fail)
	@$(BIN)/python -m local demo $(if $(FAULT),--fault $(FAULT))

up: setup  ## run the whole stack in the foreground; Ctrl-C ends it
	@$(BIN)/python -m local up

test: lint  ## every check: lint, types, layers, protos, tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: setup  ## style, types, layers, protos, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/buf lint protos
	@$(BIN)/buf format protos --diff --exit-code
	@$(BIN)/buf breaking protos --against protos/baseline.binpb
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	@$(BIN)/python tools/generate.py --check

format: setup  ## put the code and the protos in form
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/buf format protos --write

bench: setup  ## measure the speed figures, as ratios to a floor in the same run
	@$(BIN)/python -m bench

chaos: setup  ## break a whole stack on purpose, and judge what its callers saw (SEED=, SEEDS=20, SECONDS=)
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --seeds $(SEEDS) --seconds $(SECONDS)

gen: setup  ## compile protos/ into gen/
	@$(BIN)/python tools/generate.py

lock: setup  ## compile pyproject.toml's ranges into lock/*.txt
	@$(BIN)/python tools/lock.py

clean:  ## take away the virtual environment and the local stack's data
	rm -rf $(VENV) .roost
