# `make run` and `make test` are each enough on a bare clone: they make .venv, install, and do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test lint zoo bench bench-peers gpu clean

run: $(STAMP)
	$(BIN)/gradbench run

test: $(STAMP) lint
	$(BIN)/python -m pytest --dist worksteal --numprocesses $$($(BIN)/python -c 'from gradbench.machine.devices import cores; print(cores())')

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)

# Correct losses as users write them: any FAIL is a false alarm: what the check says of them, and the engine beside a plain loop.
zoo: $(STAMP)
	$(BIN)/python tests/run_zoo.py $(ZOO)

bench: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -o addopts="--strict-markers" $(BENCH)

bench-peers: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[peers]"
	$(BIN)/python tests/benchmarks/peers.py

# On a machine with a GPU: its tests, the gradients, the default run, many trials, what to choose there (the A/Bs),
# and the peers. Uses the packages that are there (GPU_PYTHON), since such machines seldom reach a registry.
GPU_PYTHON ?= $(BIN)/python
GPU_OUT ?= results
gpu: export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu:
	$(GPU_PYTHON) -m pytest -m gpu -p no:cacheprovider
	$(GPU_PYTHON) -m gradbench doctor
	-$(GPU_PYTHON) -m gradbench check --device gpu --dtype float32 --dtype bfloat16 --out $(GPU_OUT)
	-$(GPU_PYTHON) -m gradbench check --device gpu --precision tf32 --fast --out $(GPU_OUT)
	$(GPU_PYTHON) -m gradbench run --device gpu --out $(GPU_OUT)
	$(GPU_PYTHON) -m gradbench run quadratic_bowl logistic_regression -o sgd --lr 1e-4:1:16384 --seeds 1 --device gpu \
	  --out $(GPU_OUT)
	-$(GPU_PYTHON) tests/benchmarks/gpu.py --out $(GPU_OUT)
	-$(GPU_PYTHON) tests/benchmarks/peers.py --out $(GPU_OUT)/peers

# The stamp is written last, so a half-made .venv is made again; it is older than pyproject.toml after a change there.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradbench needs Python 3.11 or newer; set PYTHON=")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
