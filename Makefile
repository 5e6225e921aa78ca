# Every target installs what it needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
# Tests start dozens of interpreters: without .pyc files each of them would compile its modules again.
unexport PYTHONDONTWRITEBYTECODE
BIN := $(VENV)/bin
FAULT ?=
ONLY ?=
SEED ?=
SEEDS ?= 1
SECONDS ?= 30
PYTEST_ARGS ?=
REQUESTS ?= 20000
# Three workers per core, because a test mostly waits: two leave a fifth of a core idle.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(3 * (os.cpu_count() or 2))")

# How pip says that it has no connection to a package index.
UNREACHABLE := NewConnectionError|ConnectTimeoutError|NameResolutionError|ProxyError|Network is unreachable

.DEFAULT_GOAL := help
.PHONY: help setup demo up check test mutants lint types style format bench chaos fuzz tools proof gen rules lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# The stamp is older than a changed lock or pyproject.toml, so that a pull installs again.
setup: $(VENV)/.installed  ## create the virtual environment (other targets do it when needed)
$(VENV)/.installed: lock/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Roost needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what lock/dev.txt pins into $(VENV) (once, about half a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r lock/dev.txt \
		2>$(VENV)/install.log || { \
		if grep -qE '$(UNREACHABLE)' $(VENV)/install.log; then \
			echo "No package index can be reached. make setup needs the network once, or an index of your own (PIP_INDEX_URL); what pip said is in $(VENV)/install.log" >&2; \
		else cat $(VENV)/install.log >&2; fi; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## show the main scenario: after a stop and a start the counter is still 2 (FAULT=snapshot_dropped makes it fail)
	@$(BIN)/python -m local demo $(if $(FAULT),--fault $(FAULT))

up: setup  ## run the whole stack in the foreground until Ctrl-C
	@$(BIN)/python -m local up

check: lint  ## run the quick checks: lint, types, unit and property tests (a minute)
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal tests/unit tests/property $(PYTEST_ARGS)

# Lint and tests at once, because tests leave a quarter of the cores idle. What lint says comes last.
test: setup  ## run every check: lint, types, layers, protos, tests
	@mkdir -p .roost; \
	$(MAKE) --no-print-directory lint >.roost/lint.log 2>&1 & lint=$$!; \
	trap 'kill $$lint 2>/dev/null; wait $$lint; exit 130' INT TERM HUP; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS); tests=$$?; \
	wait $$lint; lint=$$?; cat .roost/lint.log; \
	test $$lint -eq 0 || echo "make lint failed: see above" >&2; \
	test $$tests -eq 0 -a $$lint -eq 0

mutants: setup  ## break each rule in a copy of the code, and check that a test fails
	@$(BIN)/python -m tests.mutants

# Both at once, because mypy takes as long as all others together.
lint: setup  ## check style, types, layers, protos and generated files
	@$(MAKE) --no-print-directory -j2 types style

types: setup
	@$(BIN)/mypy

style: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/buf lint protos
	@$(BIN)/buf format protos --diff --exit-code
	@$(BIN)/buf breaking protos --against protos/baseline.binpb
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	@$(BIN)/python tools/generate.py --check
	@$(BIN)/python -m tools.rules --check

format: setup  ## format the code and the protos
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/buf format protos --write

bench: setup  ## run the benchmarks, as ratios to a baseline in the same run
	@$(BIN)/python -m bench

chaos: setup  ## inject faults into a whole stack and check what its callers saw (SEED=, SEEDS=20, SECONDS=)
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --seeds $(SEEDS) --seconds $(SECONDS)

fuzz: setup  ## send damaged and odd requests to every method of a whole stack (SEED=, SEEDS=20, REQUESTS=20000)
	@$(BIN)/python -m tests.fuzz $(if $(SEED),--seed $(SEED)) --seeds $(SEEDS) --requests $(REQUESTS)

proof: setup  ## run what takes longer than `make test`, and write its figures to .roost/proof.md (SEEDS=5, ONLY=chaos)
	@$(BIN)/python -m tools.proof $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) $(if $(filter command environment,$(origin SEEDS)),--seeds $(SEEDS))

tools:  ## fetch the programs that some tests need beyond Python, make and a C compiler (TOOLS_SECONDS=300)
	@$(PYTHON) -m tools.fetch

gen: setup  ## compile protos/ into gen/
	@$(BIN)/python tools/generate.py

rules: setup  ## write docs/rules.md: where each rule is held, and which tests attack it
	@$(BIN)/python -m tools.rules

lock: setup  ## compile the ranges in pyproject.toml into lock/*.txt
	@$(BIN)/python tools/lock.py

clean:  ## remove the virtual environment, the fetched tools and the data of the local stack
	rm -rf $(VENV) .roost .tools
