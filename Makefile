# `make demo` and `make test` do all the set-up: each makes .venv and installs what it needs.
.PHONY: demo test test-fast lint types bench train clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On Linux without an NVIDIA GPU, torch is pinned to its CPU build before anything can ask for the CUDA one.
CONSTRAINTS := $(shell [ "$$(uname)" != Linux ] || nvidia-smi -L >/dev/null 2>&1 || echo '-c constraints-cpu.txt')
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(CONSTRAINTS)
NO_TORCH := If no CPU build of torch was found: give pip an index that has one (PIP_EXTRA_INDEX_URL).

demo: $(VENV)/.train
	rm -rf build/demo build/run build/exported
	$(BIN)/dsvl-prep build --blend examples/blend.yaml --out build/demo
	$(BIN)/dsvl-prep verify build/demo
	$(BIN)/dsvl-prep stats build/demo
	$(BIN)/dsvl-prep inspect build/demo --limit 3
	$(BIN)/dsvl-train run --config examples/train.yaml
	$(BIN)/dsvl-train run --config examples/train.yaml schedule.steps=30
	$(BIN)/dsvl-train export --checkpoint build/run --out build/exported
	$(BIN)/dsvl-train chat --model build/exported --max-new-tokens 40 < examples/questions.txt

test: lint types
	$(BIN)/python -m pytest -n 2

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python tools/bench_compile.py
	$(BIN)/python tools/bench_open.py
	$(BIN)/python tools/bench_loader.py --scratch build/bench
	$(BIN)/python tools/bench_train.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(VENV)/bin/python pyproject.toml constraints-cpu.txt
	$(PIP) -e '.[train]' || (echo "$(NO_TORCH)"; exit 1)
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints-cpu.txt
	$(PIP) -e '.[dev,eval,ray,remote,train]' || (echo "$(NO_TORCH)"; exit 1)
	touch $@ $(VENV)/.train

train: $(VENV)/.train

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
