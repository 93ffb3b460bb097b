# Everything runs in .venv, made on the first call. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MERGEKIT := .mergekit-env
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help install demo test test-slow check bench mergekit-env clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "evomerge needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "Python's venv module is not complete; on Debian: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,dashboard]'
	@touch $@

install: $(READY) ## make the environment in .venv

demo: $(READY) ## train tiny experts, search, print the result, write a report, export the model
	@$(BIN)/evomerge demo --dir demo

test: $(READY) ## the fast tests, in minutes
	$(PYTEST) -n 2 --dist worksteal -m "not slow"

test-slow: $(READY) mergekit-env ## the slow tests: whole searches, kills, parity with mergekit
	EVOMERGE_MERGEKIT_PYTHON=$(CURDIR)/$(MERGEKIT)/bin/python $(PYTEST) -n 2 --dist worksteal -m slow

check: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) mergekit-env ## every benchmark; results go to benchmarks/results
	EVOMERGE_MERGEKIT_PYTHON=$(CURDIR)/$(MERGEKIT)/bin/python $(BIN)/python benchmarks/run_all.py

mergekit-env: $(MERGEKIT)/.ready ## mergekit in an environment of its own, for parity tests and benchmarks

$(MERGEKIT)/.ready: constraints.txt
	@$(PYTHON) -m venv $(MERGEKIT)
	@$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check mergekit==0.1.5 'lm-eval[hf]==0.4.13'
	@touch $@

clean: ## remove the environments and the demo
	rm -rf $(VENV) $(MERGEKIT) demo
