# `make run` and `make test` are each enough on a bare clone: they make .venv, install, and do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test lint bench gpu clean

run: $(STAMP)
	$(BIN)/gradbench run

test: $(STAMP) lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

bench: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -o addopts="--strict-markers"

# The stamp is written last, so a half-made .venv is made again; it is older than pyproject.toml after a change there.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradbench needs Python 3.11 or newer; set PYTHON=")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
