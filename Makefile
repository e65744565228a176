# SPDX-License-Identifier: Apache-2.0
# Everything starts here, on a fresh Debian 12: `make demo` and `make test` install what they need (system packages
# when root), make the virtual environment, compile, and run. `make help` lists the targets.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
NATIVE := $(shell find native/include native/src native/driver -name '*.[ch]' 2>/dev/null)
BUILDERS := $(wildcard setup.py native/build_*.py)
# Python that ruff doesn't know by its name
SCRIPTS := scripts/check-includes scripts/make-man scripts/instruction-counts scripts/starve docker/healthcheck

.DEFAULT_GOAL := build
.PHONY: help build demo test test-c test-py instructions lint format fuzz bench clean
.PHONY: packages-build packages-demo packages-test

help:
	@echo 'build    virtual environment in $(VENV) with the pvswitch command, C compiled'
	@echo 'demo     two guests on a switch, talking, with the numbers on screen'
	@echo 'test     everything: lint, C tests under sanitizers, Python and system tests'
	@echo 'test-c   C tests alone      test-py  Python and system tests alone'
	@echo 'lint     checkers alone     format   reformat Python and C'
	@echo 'instructions  that the switch executes for a frame, compared with bench/instructions.json'
	@echo 'fuzz     the fuzzers        bench    pvswitch next to other switches, into build/bench'
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
	$(MAKE) --no-print-directory -j2 -C native arm64
	$(MAKE) --no-print-directory instructions
	$(if $(shell command -v clang),$(MAKE) --no-print-directory -C native fuzz-quick,@echo 'no clang: fuzzers skipped')

instructions:
	scripts/instruction-counts

test-py: build
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: build
	$(BIN)/ruff check . $(SCRIPTS)
	$(BIN)/ruff format --check . $(SCRIPTS)
	$(BIN)/mypy
	$(BIN)/lint-imports
	scripts/check-includes
	scripts/lint-c

format: build
	$(BIN)/ruff check --fix . $(SCRIPTS)
	$(BIN)/ruff format . $(SCRIPTS)
	git ls-files --cached --others --exclude-standard '*.c' '*.h' | xargs --no-run-if-empty clang-format -i

fuzz: packages-test
	$(MAKE) -C native fuzz

bench: packages-test build
	mkdir -p build/bench
	$(BIN)/pvswitch bench --json build/bench/results.json --svg build/bench/results.svg --table build/bench/table.txt

clean:
	-test ! -f native/Makefile || $(MAKE) --no-print-directory -C native clean
	rm -rf $(VENV) build dist *.egg-info pvswitch/_*.so .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
