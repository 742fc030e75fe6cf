# Targets: `make` alone lists them. Every install is pinned by constraints.txt.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT) # what newer pip asks for where it builds
export PIP_DISABLE_PIP_VERSION_CHECK := 1
WEIGHTS ?= ../shared/weights
RUNS ?= $(wildcard runs/camvid)
MEASURES ?= start prepare folder memory
COMPILER := $(shell for name in $(firstword $(CXX)) c++ g++ clang++; do command -v $$name && break; done)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1	/' | expand -t 12

demo: $(VENV)/.core $(VENV)/.native ## install what running needs and segment the bundled photos into out/
	@$(BIN)/espy demo --out out

test: $(VENV)/.dev $(VENV)/.native ## install the rest, check form and types, run the tests
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n 2 -q

test-native: $(VENV)/.dev $(VENV)/.native ## test the CPU engine with sanitizers, for other processors (g++-aarch64-linux-gnu, qemu-user) and for long
	@$(BIN)/pip install -q cmake
	$(BIN)/python -m pytest -q -m native

test-export: $(VENV)/.export $(VENV)-litert/.export ## install the heavy exporters, LiteRT's in an environment of its own, and test every format
	$(BIN)/python -m pytest -q -m export
	$(VENV)-litert/bin/python -m pytest -q -m export tests/ship/test_formats.py -k litert

check: $(VENV)/.dev ## form and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint: check ## the same

format: $(VENV)/.dev ## put every file into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models: $(VENV)/.dev ## make the bundled models from the published weights (WEIGHTS=folder) and runs (RUNS=folders)
	$(BIN)/python -m espy.ship.bundle $(WEIGHTS) $(RUNS)

docs: $(VENV)/.dev $(VENV)/.native ## the figures that README.md states, measured here
	$(BIN)/python docs/tables.py

accuracy: $(VENV)/.dev ## the figures of docs/accuracy.md, measured here on CamVid (ESPY_SHARED=folder of data and weights)
	$(BIN)/python docs/accuracy.py

bench: $(VENV)/.dev $(VENV)/.native ## throughput of a folder of photos against the engine's own, reading and preparing, memory of a large photo (MEASURES=names)
	$(BIN)/python docs/measure.py $(MEASURES)

clean: ## remove the environment, results and caches
	rm -rf $(VENV) $(VENV)-litert out build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache src/*.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -e .
	@touch $@

# the CPU engine, where it can be compiled; without it the others run
$(VENV)/.native: $(wildcard native/*.* native/*/*.*) | $(VENV)/.core
ifeq ($(COMPILER),)
	@echo "no C++ compiler found (CXX, c++, g++, clang++): going on without espy-engine"
else
	$(BIN)/pip install -q ./native
	@touch $@
endif

# torch first and alone: an open range elsewhere would bring another build of it
$(VENV)/.dev: $(VENV)/.core
	$(BIN)/pip install -q torch
	$(BIN)/pip install -q -e '.[dev]'
	$(BIN)/pip install -q --no-deps cityscapesscripts pyquaternion # what it declares is far more than the tests call
	@touch $@

$(VENV)/.export: $(VENV)/.dev
	$(BIN)/pip install -q -e '.[executorch,ncnn,quantize]'
	@touch $@

$(VENV)-litert/.export: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-litert
	$(VENV)-litert/bin/pip install -q torch
	$(VENV)-litert/bin/pip install -q -e '.[train,litert-export]' pytest
	@touch $@

.PHONY: help demo test test-native test-export check lint format models docs accuracy bench clean
.DEFAULT_GOAL := help
