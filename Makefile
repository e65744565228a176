# SPDX-License-Identifier: Apache-2.0
# Everything starts here, on a fresh Debian 12: `make demo` and `make test` install what they need (system packages
# when root), make the virtual environment, compile, and run. `make help` lists the targets.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
NATIVE := $(shell find native/include native/src native/driver -name '*.[ch]' 2>/dev/null)
BUILDERS := $(wildcard setup.py native/build_*.py)

.DEFAULT_GOAL := build
.PHONY: help build demo test test-c test-py lint format fuzz bench clean packages-build packages-demo packages-test

help:
	@echo 'build    virtual environment in $(VENV) with the pvswitch command, C compiled'
	@echo 'demo     two guests on a switch, talking, with the numbers on screen'
	@echo 'test     everything: lint, C tests under sanitizers, Python and system tests'
	@echo 'test-c   C tests alone      test-py  Python and system tests alone'
	@echo 'lint     checkers alone     format   reformat Python and C'
	@echo 'fuzz     the fuzzers        bench    cycles per packet, TCP between VMs and to the host, next to peers'
	@echo 'clean    remove what was built'

packages-build packages-demo packages-test: packages-%:
	@scripts/install-system-packages $*

# The tools of the build come first, so that a changed C file is compiled without a fresh isolated environment;
# the dependencies are looked at again only when pyproject.toml has changed.
$(VENV)/compiled: pyproject.toml $(BUILDERS) $(NATIVE) | packages-build
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f pvswitch/_*.so
	$(if $(filter pyproject.toml,$?),$(BIN)/pip install --quiet 'setuptools>=77' 'cffi>=1.16')
	$(BIN)/pip install --quiet --no-build-isolation --editable $(if $(filter pyproject.toml,$?),'.[dev]',. --no-deps)
	touch $@

build: $(VENV)/compiled

demo: packages-demo build
	$(BIN)/pvswitch demo

test: packages-test build
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test-c
	$(MAKE) --no-print-directory test-py

test-c:
	$(MAKE) --no-print-directory -j2 -C native check tsan
	$(if $(shell command -v clang),$(MAKE) --no-print-directory -C native fuzz-quick,@echo 'no clang: fuzzers skipped')

test-py: build
	$(BIN)/python -m pytest

lint: build
	$(BIN)/ruff check . scripts/check-includes scripts/make-man docker/healthcheck
	$(BIN)/ruff format --check . scripts/check-includes scripts/make-man docker/healthcheck
	$(BIN)/mypy
	$(BIN)/lint-imports
	scripts/check-includes
	scripts/lint-c

format: build
	$(BIN)/ruff check --fix . scripts/check-includes scripts/make-man docker/healthcheck
	$(BIN)/ruff format . scripts/check-includes scripts/make-man docker/healthcheck
	git ls-files --cached --others --exclude-standard '*.c' '*.h' | xargs --no-run-if-empty clang-format -i

fuzz: packages-test
	$(MAKE) -C native fuzz

bench: packages-test build
	$(BIN)/python -m bench.cycles
	$(BIN)/python -m bench.tcp
	$(BIN)/python -m bench.uplink

clean:
	-test ! -f native/Makefile || $(MAKE) --no-print-directory -C native clean
	rm -rf $(VENV) build dist *.egg-info pvswitch/_*.so .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
